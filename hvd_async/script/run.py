"""A training run whose loop is the user's: what `hvd_async.init` returns."""

from __future__ import annotations

import atexit
import base64
import contextlib
import io
import os
import sys
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import nn

from hvd_async.config import RunConfig
from hvd_async.errors import ConfigError, HvdAsyncError
from hvd_async.runs.checkpoint import list_checkpoints, load_tensors, read_data
from hvd_async.script.loader import BatchSource, StreamSource, source_of
from hvd_async.script.optimizer import (
    TORCH_STATE,
    RateSchedule,
    RunOptimizer,
    check_schedule,
    describe_optimizer,
    state_for_torch,
)
from hvd_async.script.settings import script_config, script_options
from hvd_async.script.task import Evaluate, ScriptTask
from hvd_async.strategies.protocol import Claim, Session, Step
from hvd_async.system.failure_message import tell
from hvd_async.system.files import write_file
from hvd_async.system.json_text import plain_number
from hvd_async.tasks.gradient import seed_batch
from hvd_async.tasks.metric import Metric
from hvd_async.training.agreement import in_agreement
from hvd_async.training.run import JoinedJob, joined, trained
from hvd_async.training.setup import Ready
from hvd_async.transport.group import Group

_current: list[ScriptRun] = []


def init(
    output: str | os.PathLike[str] | None = None,
    *,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    resume: bool | Literal["auto"] = False,
    overwrite: bool = False,
    **keywords: Any,
) -> ScriptRun:
    """Join the ranks of this job, and return the run. Collective over all ranks that the launcher started; starts MPI or
    Horovod, as the strategy requires, and nothing else. Without a launcher the process is alone.

    Args:
        output: folder of the run, as the key `output`.
        config: YAML file of a configuration, or its keys as plain data; docs/configuration.md.
        resume: continue a stopped run from its checkpoint; "auto": if there is one.
        overwrite: replace the run in the folder.
        keywords: sections (`validation={"every": 100}`) or single keys of `strategy`, `push`, `store`, `training` and
            `validation` (`strategy="async"`, `arrivals_per_update=4`, `epochs=3`). They count more than `config`.

    `hvd-async launch CONFIG --set KEY=VALUE ... -- python train.py` adds to these settings, and counts most.

    Raises `ConfigError` for settings that are wrong, and `SetupError` if the launcher or a package does not fit.
    """
    if _current:
        raise ConfigError("init: called twice, expected once in a process: one process takes part in one run")
    settings = script_config(output, config, keywords, os.environ)
    run = ScriptRun(settings, script_options(resume, overwrite, os.environ))
    _current.append(run)
    return run


class ScriptRun:
    """One rank of a run.

    Attributes:
        config: the configuration; `prepare` completes it with the optimizer.
        rank, size: number of this rank, and of all ranks.
        summary: how the run ended, on rank 0, after the last batch; empty before, and on other ranks.
    """

    def __init__(self, config: RunConfig, options: Any) -> None:
        """Join the job; see `init`."""
        self.config = config
        self.summary: Mapping[str, Any] = {}
        self._stack = contextlib.ExitStack()
        self._job: JoinedJob = self._stack.enter_context(joined(config, options))
        self.rank = self._job.strategy.group.rank
        self.size = self._job.strategy.group.size
        self._is_over = False
        self._training: _Training | None = None
        self._previous_hook = sys.excepthook
        sys.excepthook = self._failed
        atexit.register(self._left)

    @property
    def device(self) -> torch.device:
        """The device of this rank's model, after `prepare`."""
        return self._prepared().ready.job.flat.parameters.device

    @property
    def is_worker(self) -> bool:
        """Whether this rank trains; a rank that only held the store gets no batches."""
        return self._prepared().session.worker is not None

    def prepare(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loader: Any,
        *,
        schedule: RateSchedule | None = None,
        loss: Literal["mean", "sum"] = "mean",
        evaluate: Evaluate | None = None,
        metrics: Sequence[Metric] = (),
        weight_unit: str = "examples",
        buffers: Literal["refuse", "average"] = "refuse",
    ) -> tuple[nn.Module, RunOptimizer, Batches]:
        """Move the model's parameters into the run, and return the model, the optimizer and the batches to loop over.
        Collective. A rank that only holds the store serves in here, and comes back, with no batches, when the run is over.

        Args:
            model: the same on every rank up to its parameters; those of rank 0 count. Not to be changed afterwards.
            optimizer: Adam, AdamW, NAdam, SGD or Adagrad of torch.optim, or a Lion, on the model's parameters. It is a
                description: class, groups and settings are read.
            loader: a DataLoader, a list of batches, or an iterable; the same on every rank.
            schedule: the learning rate over versions, as a share of each group's own; see `torch_schedule`. Default: as the
                key `optimizer.schedule` says, which is constant in a script.
            loss: whether the loss of `backward` is a mean over the `weight` that is passed to `step`, or a sum.
            evaluate: measures the model on validation data: returns scores by the names of `metrics`, or the loss alone. Called
                in evaluation mode without gradients, when `validation.every` asks for it and at the end, on one rank.
            metrics: the scores besides `loss`; their names, units and directions.
            weight_unit: what weights count, in the plural.
            buffers: `refuse`: a model with BatchNorm or the like is refused if ranks would differ in its statistics. `average`:
                each rank has its own while it trains; at the end they are averaged over the workers.

        Raises `ConfigError` for what the run cannot honour, on every rank, before anything starts.
        """
        if self._training is not None:
            raise ConfigError("prepare: called twice, expected once in a run; several models make one torch.nn.ModuleList")
        group = self._job.strategy.group
        source = in_agreement(group, lambda: self._check(model, loader, buffers, loss))
        described = in_agreement(group, lambda: describe_optimizer(optimizer, model, self.config.optimizer))
        factor = None if schedule is None else in_agreement(group, lambda: check_schedule(schedule))
        self.config = self._job.config = self.config.model_copy(update={"optimizer": described})
        ready = self._set_up(ScriptTask(self.config, model, source, evaluate, metrics, weight_unit), factor)
        _share_parameters(group, ready)
        self._training = _Training(self, ready, source, is_mean=loss == "mean", averages=buffers == "average")
        self._training.described = optimizer
        self._training.session = self._stack.enter_context(
            trained(self._job, ready, before_evaluation=self._training.average_buffers)
        )
        training = self._training
        return training.session.module, RunOptimizer(described, training.zero, training.step), Batches(training)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state_dict of the final model, for `torch.load(path, weights_only=True)`. Call it after the loop on all
        ranks: rank 0 alone writes, whole or not at all. After a `break` it first waits for the other ranks to end."""
        if self._prepared().is_left:
            self.finish()
        if not self._is_over:
            raise ConfigError(
                "save: called before the last batch, expected after the loop; training.checkpoint_every saves during a run"
            )
        if self.rank == 0:
            content = io.BytesIO()
            torch.save(self._prepared().ready.job.model.state_dict(), content)
            write_file(Path(path), content.getvalue())

    def optimizer_state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state of the final version, as torch's optimizer would have it: for `load_state_dict` of an
        optimizer made like the one that was described. Call it after the last batch, on a rank that sees the run's folder."""
        training = self._prepared()
        if not self._is_over:
            raise ConfigError("optimizer_state_dict: called before the last batch, expected after the loop")
        kind = self.config.optimizer.kind
        if kind not in TORCH_STATE:
            raise ConfigError(
                f"optimizer_state_dict: got {kind}, expected one of {', '.join(TORCH_STATE)}, whose state torch shares"
            )
        newest = list_checkpoints(training.ready.folder.checkpoints)[-1]
        saved = read_data(newest)
        tensors, flat = load_tensors(saved), training.ready.job.flat
        places = {ours: theirs for ours, theirs in TORCH_STATE[kind].items() if ours in tensors}
        named = {theirs: flat.named_tensors(tensors[ours]) for ours, theirs in places.items()}
        return state_for_torch(training.described, named, training.ready.job.model, saved.data["store"]["version"])

    def finish(self) -> None:
        """End the run on this rank: as after the last batch. Called by itself at the end of the batches. Collective."""
        if self._is_over:
            return
        self._is_over = True
        self._stack.close()
        self.summary = self._job.summary
        if self._training is not None:
            self._training.load_final()

    def _prepared(self) -> _Training:
        if self._training is None:
            raise ConfigError("got no model yet, expected a call of prepare first")
        return self._training

    def _set_up(self, task: ScriptTask, factor: RateSchedule | None) -> Ready:
        by_version = None if factor is None else lambda version, _: factor(version)
        ready = self._job.set_up(lambda config: task, by_version, reduces_at_step=True)
        if ready is None:
            error = ConfigError(
                f"{self.config.output}: finished before, and no more training is configured; raise training.epochs or start"
                " another run"
            )
            error.is_on_all_ranks = True
            raise error
        return ready

    def _check(self, model: nn.Module, loader: Any, buffers: str, loss: str) -> BatchSource:
        source = source_of(loader, self.config.seed)
        if loss not in ("mean", "sum"):
            raise ConfigError(f"loss: got {loss!r}, expected 'mean' or 'sum'")
        if buffers not in ("refuse", "average"):
            raise ConfigError(f"buffers: got {buffers!r}, expected 'refuse' or 'average'")
        changing = [name for name, module in model.named_modules() if getattr(module, "track_running_stats", False)]
        if changing and buffers == "refuse" and self.size > 1:
            raise ConfigError(
                f"model: got running statistics ({', '.join(changing[:3])}), which each rank would have for itself; expected"
                " none, such as with LayerNorm or GroupNorm, or buffers='average'"
            )
        if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
            raise ConfigError("model: got SyncBatchNorm, which waits for other ranks in each layer; expected GroupNorm, say")
        if isinstance(source, StreamSource) and not self.config.strategy.is_async and self.size > 1:
            raise ConfigError(
                f"loader: got an iterable without a length with strategy {self.config.strategy.kind}, whose ranks all need"
                " equally many batches; expected a DataLoader over a map-style dataset, or strategy async"
            )
        return source

    def _failed(self, kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
        """Tell the other ranks of an error that ends the script, and save; in place of `sys.excepthook`."""
        sys.excepthook = self._previous_hook
        if not self._is_over:
            self._is_over = True
            try:
                self._stack.__exit__(kind, error, trace)
            except BaseException as raised:
                error = raised
        if not isinstance(error, HvdAsyncError):
            if not getattr(error, "is_told", False):
                self._previous_hook(type(error), error, error.__traceback__)
            return
        is_reporter = getattr(error, "is_reporter", None)
        if is_reporter is None:
            is_reporter = not error.is_on_all_ranks or self.rank == 0
        if is_reporter:
            tell(self.rank, error)
        sys.stdout.flush()
        os._exit(error.exit_status)

    def _left(self) -> None:
        """End the run of a script that ended without reading all batches."""
        if self._is_over or self._training is None:
            return
        if self._training.session.worker is not None:
            print(f"hvd-async: rank {self.rank}: the script ended before the last batch", file=sys.stderr)
        self.finish()


class _Training:
    """The part of a run between `prepare` and the last batch."""

    session: Session
    described: torch.optim.Optimizer

    def __init__(self, run: ScriptRun, ready: Ready, source: BatchSource, *, is_mean: bool, averages: bool) -> None:
        self.run = run
        self.ready = ready
        self._source = source
        self._is_mean = is_mean
        self._averages = averages
        self.is_left = False
        """Whether the script has left the loop before the last batch."""
        self._claim: Claim | None = None
        self._began = 0.0
        self._has_gradient = False
        for parameter in ready.job.model.parameters():
            if parameter.requires_grad:
                hook: Any = parameter.register_post_accumulate_grad_hook  # untyped in torch
                hook(self._note_gradient)

    def batches(self) -> Iterator[Any]:
        """Yield the batches of this rank, and end the run after the last one."""
        worker = self.session.worker
        if worker is not None:
            self.session.module.train()
            for claim in worker.claims():
                seed_batch(self.run.config.seed, claim.batch)
                self._began = time.monotonic()
                try:
                    batch = self._source.batch(claim.batch)
                except StopIteration:
                    break
                self.zero()
                self._claim, self._has_gradient = claim, False
                try:
                    yield batch
                except GeneratorExit:  # by `break`
                    self.is_left = True
                    raise
                if self._claim is not None:
                    raise ConfigError(
                        f"batch {claim.batch}: got no optimizer.step, expected one for each batch; to accumulate over several,"
                        " yield larger batches and split them"
                    )
        self.run.finish()

    def zero(self) -> None:
        """Clear the gradient."""
        self.ready.job.flat.zero_gradient()

    def step(self, weight: float | None, loss: Any) -> None:
        """Hand over the gradient of the current batch."""
        claim, worker, flat = self._claim, self.session.worker, self.ready.job.flat
        if claim is None or worker is None:
            raise ConfigError("optimizer.step: called without a batch, expected once for each batch, inside the loop")
        if strayed := flat.strayed(self.ready.job.model):
            raise ConfigError(
                f"optimizer.step: {strayed}: got a parameter that prepare did not see, or that was moved or cast since; expected"
                " the model as it was prepared: change it before"
            )
        if not self._has_gradient:
            raise ConfigError("optimizer.step: got no gradient, expected loss.backward() before it")
        if weight is None:
            raise ConfigError(
                "optimizer.step: got no weight, expected weight=..., such as the number of examples, over which the loss is a"
                f" {'mean' if self._is_mean else 'sum'}; weight=1 gives each batch the same"
            )
        weight = float(weight)
        if not 0.0 < weight < float("inf"):
            raise ConfigError(f"optimizer.step: weight: got {weight}, expected a number > 0")
        factor = (weight if self._is_mean else 1.0) if claim.counts else 0.0
        if factor != 1.0:
            flat.collect_gradient().mul_(factor)
        value = loss.detach() if isinstance(loss, torch.Tensor) else loss
        number = float("nan") if value is None else float(value) * (weight if self._is_mean else 1.0)
        self._claim = None
        own = plain_number(weight if claim.counts else 0.0)
        worker.step(Step(claim.batch, own, number, time.monotonic() - self._began))
        self.ready.loop.evaluate_if_due(worker)

    def average_buffers(self, group: Group) -> None:
        """Give every rank the mean of the workers' floating-point buffers. Collective."""
        if not self._averages or group.size == 1:
            return
        model = self.ready.job.model
        own = {name: buffer.detach().cpu() for name, buffer in model.named_buffers() if buffer.is_floating_point()}
        text = "" if self.session.worker is None else base64.b64encode(safetensors.torch.save(own)).decode()
        found = [safetensors.torch.load(base64.b64decode(each)) for each in group.allgather(text) if each]
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in own:
                    buffer.copy_(torch.stack([each[name] for each in found]).mean(0))

    def load_final(self) -> None:
        """Give the model the exported parameters of the last version, on every rank."""
        path = self.ready.folder.models / "last" / "model.safetensors"
        tensors = safetensors.torch.load_file(path)
        self.ready.job.model.load_state_dict(tensors)

    def _note_gradient(self, _: torch.Tensor) -> None:
        self._has_gradient = True


class Batches:
    """The batches of this rank, in one pass over all epochs. Each batch of the run goes to one rank, whatever its speed.

    Iterating ends when the run is over on all ranks; then the model has the parameters of its last version on every rank.
    """

    def __init__(self, training: _Training) -> None:
        """Made by `ScriptRun.prepare`."""
        self._training = training
        self._is_used = False

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches; once."""
        if self._is_used:
            raise ConfigError("batches: iterated twice, expected one loop over all epochs; epochs= says how many there are")
        self._is_used = True
        return self._training.batches()


def _share_parameters(group: Group, ready: Ready) -> None:
    """Give every rank the initial parameters of rank 0, also frozen ones, and its buffers. Collective."""
    if group.size == 1:
        return
    model = ready.job.model
    own = {name: each.detach() for name, each in (*model.named_parameters(), *model.named_buffers())}
    mine = {name: each.to("cpu", copy=True).contiguous() for name, each in own.items()} if group.rank == 0 else {}
    text = base64.b64encode(safetensors.torch.save(mine)).decode() if group.rank == 0 else ""
    found = safetensors.torch.load(base64.b64decode(group.allgather(text)[0]))
    for name, each in own.items():
        each.copy_(found[name])
