"""A training run whose loop is the user's: what `hvd_async.init` returns."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from hvd_async.cluster.topology import count_workers
from hvd_async.config import RunConfig, ScheduleConfig
from hvd_async.errors import ConfigError, HvdAsyncError
from hvd_async.runs.folder import RunFolder
from hvd_async.runs.summary import summary_lines
from hvd_async.script.alike import check_alike, describe, describe_settings, describe_source, describe_tensors, with_rank_0s
from hvd_async.script.buffers import Buffers
from hvd_async.script.endings import (
    at_end_of_script,
    end_at_once_if_uncaught,
    end_with,
    hint_about,
    note_role,
    on_all_ranks,
    report_uncaught_errors,
)
from hvd_async.script.final_version import FinalVersion
from hvd_async.script.loader import BatchSource, StreamSource, source_of
from hvd_async.script.loop import Batches, NoLoop, ScriptLoop
from hvd_async.script.no_input import NoInput
from hvd_async.script.optimizer import RateSchedule, RunOptimizer, check_schedule, guard_groups, release_groups
from hvd_async.script.rank_log import RankLog
from hvd_async.script.settings import script_config, script_options
from hvd_async.script.task import Evaluate, Scoring, ScriptTask
from hvd_async.store.parameter_store import RateFactor
from hvd_async.store.schedule import versions_made
from hvd_async.system.failure_message import note_origin
from hvd_async.system.files import stamp_of, write_file
from hvd_async.system.launch_page import SCRIPT_VARIABLE, tell_page
from hvd_async.system.openmp import is_too_late
from hvd_async.tasks.buffers import modules_with_statistics
from hvd_async.tasks.metric import Metric
from hvd_async.tasks.models import check_model
from hvd_async.training.agreement import in_agreement
from hvd_async.training.run import JoinedJob, joined, trained
from hvd_async.training.setup import Finished, Ready

_current: list[ScriptRun] = []
_is_registered: list[bool] = []  # once in a process
_pages: list[str] = []  # of the `launch` that has started this process; see `launch_page`


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
        raise ConfigError(
            "init: called again before the run has ended, expected one run at a time; run.finish() ends it, in a notebook also"
            " after an error in its loop"
        )
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ConfigError(
            "init: called by a process that only reads batches, which imports the script; put what trains under"
            ' `if __name__ == "__main__":`'
        )
    report_uncaught_errors()
    try:
        with on_all_ranks():  # which have the same settings
            settings = script_config(output, config, keywords, os.environ)
            options = script_options(resume, overwrite, os.environ)
        run = ScriptRun(settings, options)
    except HvdAsyncError as error:
        end_at_once_if_uncaught(error)
        raise
    _current.append(run)
    if not _is_registered:
        _is_registered.append(True)
        if is_too_late() and run.rank == 0 and torch.get_num_threads() > 1:
            print(
                "torch was imported before hvd_async: its threads spin while they wait for each other, which makes a step up to"
                " 20 times as slow beside other processes; import hvd_async first",
                flush=True,
            )
        at_end_of_script(lambda: _current[0].leave() if _current else None, run.rank)
    return run


class ScriptRun:
    """One rank of a run: what `init` returns."""

    config: RunConfig
    """The configuration; `prepare` completes it with the optimizer."""
    rank: int
    """The number of this rank."""
    size: int
    """The number of all ranks, of which some may only hold the store."""
    num_workers: int
    """The number of ranks that train."""
    worker: int | None
    """The number of this rank among those that train; None if it only holds the store, and gets no batches."""
    device: torch.device
    """The device of this rank's model, to which `prepare` moves it."""
    summary: Mapping[str, Any]
    """How the run ended, on rank 0, after the last batch; empty before, and on other ranks."""

    def __init__(self, config: RunConfig, options: Any) -> None:
        """Join the job; see `init`."""
        self.config = config
        self.summary = {}
        with contextlib.ExitStack() as stack:
            self._job: JoinedJob = stack.enter_context(joined(config, options))
            self.rank = self._job.strategy.group.rank
            self.size = self._job.strategy.group.size
            plan = self._job.plans[self.rank]
            self.num_workers, self.worker = count_workers(self._job.plans), plan.worker
            self.device = torch.device("cpu" if plan.worker is None else plan.device or "cpu")
            _tell_launch(RunFolder(config.output), self.rank)
            self._log = RankLog(RunFolder(config.output), self.rank)
            stack.callback(self._log.close)
            self._stack = stack.pop_all()
        self._is_over = False
        self._loop: ScriptLoop | None = None
        self._final: FinalVersion | None = None
        self._previous = sys.excepthook, sys.stdin
        self._stderr = sys.stderr
        sys.excepthook = self._failed
        if self.size > 1:
            sys.stdin = NoInput(self.rank)

    def prepare(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
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
            optimizer: one of torch.optim, or a Lion, on the model's parameters; or a Muon of torch.optim for its matrices and an
                AdamW for the rest, in a list. It is a description: class, groups, settings and state are read.
            loader: a DataLoader, a list of batches, or an iterable; the same on every rank.
            schedule: the learning rate over versions, as a share of each group's own; see `torch_schedule`. Default: as the
                key `optimizer.schedule` says, which is constant in a script.
            loss: whether the loss of `backward` is a mean over the `weight` that is passed to `step`, or a sum.
            evaluate: measures the model on validation data: returns scores by the names of `metrics`, or the loss alone. Called
                in evaluation mode without gradients, when `validation.every` asks for it and at the end, on one rank.
            metrics: the scores besides `loss`; their names, units and directions.
            weight_unit: what weights count, in the plural.
            buffers: `refuse`: a model whose buffers change in training is refused with several ranks: here if it has BatchNorm or
                the like, otherwise at the first `optimizer.step` that sees a change. `average`: each rank has its own while it
                trains; at the end they are averaged over the workers, and of whole numbers the highest is taken.

        Raises a `hvd_async.errors.HvdAsyncError` for what the run cannot honour, on every rank, before anything starts.
        """
        if self._final is not None:
            raise ConfigError("prepare: called twice, expected once in a run; several models make one torch.nn.ModuleList")
        group = self._job.strategy.group
        scoring = Scoring(evaluate, metrics, weight_unit)
        source = in_agreement(group, lambda: self._check(model, loader, scoring, buffers, loss))
        described = in_agreement(group, lambda: describe(_each(optimizer), model, self.config.optimizer))
        factor = in_agreement(group, lambda: self._check_schedule(schedule))
        words = [f"loss {loss}", f"buffers {buffers}", f"schedule {'a function' if factor else 'none'}", *scoring.words]
        compared = {"prepare": words, "loader": describe_source(source), "optimizer": describe_settings(described)}
        check_alike(group, {**compared, "model": describe_tensors(model)})
        self.config = self._job.config = self.config.model_copy(update={"optimizer": described})
        kept = Buffers(model, RunFolder(self.config.output), are_averaged=buffers == "average", have_others=self.size > 1)
        task = ScriptTask(self.config, model, source, scoring, kept)
        ready = self._job.set_up(lambda config: task, factor, reduces_at_step=True)
        self._log.open()
        final = FinalVersion(RunFolder(self.config.output), model, ready.flat, described, _each(optimizer))
        if isinstance(ready, Finished):
            loop: ScriptLoop | NoLoop = NoLoop()
            module = model
        else:
            ready = with_rank_0s(group, ready, kept, final.described)
            loop = self._loop = self._open(ready, source, kept, is_mean=loss == "mean")
            module = loop.session.module
            guard_groups(final.described)
        self._final = final
        return module, RunOptimizer(described, model, loop), Batches(loop, self.finish, self.worker == 0)

    def _open(self, ready: Ready, source: BatchSource, kept: Buffers, *, is_mean: bool) -> ScriptLoop:
        """Return the loop with its session. Collective."""
        loop = ScriptLoop(ready, source, kept, is_mean=is_mean, tells_of_no_loss=self.worker == 0)
        loop.session = self._stack.enter_context(trained(self._job, loop.ready, before_evaluation=loop.average_buffers))
        self._stack.enter_context(loop.ready.reading())
        note_role(is_store_alone=self.worker is None)  # which has served by now
        return loop

    def num_versions(self, batches_per_epoch: int) -> int:
        """Return how many versions a run of `training.epochs` makes with `batches_per_epoch` batches in all, such as
        `len(loader)`, while all workers take part: the length of a schedule. Not collective."""
        training, strategy = self.config.training, self.config.strategy
        if training.epochs is None:
            if training.updates is None:
                raise ConfigError(
                    "num_versions: got a run without training.epochs and training.updates, expected one of them"
                )
            return training.updates
        if not strategy.is_async:  # an epoch's last step has the batches that are left
            return training.epochs * versions_made(strategy, batches_per_epoch, self.num_workers)
        return versions_made(strategy, training.epochs * batches_per_epoch, self.num_workers)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state_dict of the final model, for `torch.load(path, weights_only=True)`. Call it after the loop on all
        ranks, or on rank 0 or worker 0 alone: these write, each the same, whole or not at all. After a `break` it first waits
        for the other ranks to end."""
        final = self._after_the_end("save", "; training.checkpoint_every saves during a run")
        if self.rank == 0 or self.worker == 0:
            content = io.BytesIO()
            torch.save(final.model.state_dict(), content)
            write_file(Path(path), content.getvalue())

    def log(self, **values: float) -> None:
        """Write numbers of this rank, such as `run.log(accuracy=0.5)`, to its file in the run's folder: `ranks/rank0001.jsonl`,
        a line of JSON for each call, with the time and the number of the batch. Scores that are compared and reported come
        from `prepare(evaluate=)`.

        Raises `ConfigError` for what is no number.
        """
        claim = None if self._loop is None else self._loop.claim
        self._log.write(None if claim is None else claim.batch, values)

    def optimizer_state_dict(self, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
        """Return the optimizer's state of the final version, as torch's optimizer would have it: for `load_state_dict` of an
        optimizer made like the one that was described. `optimizer`: which one, if `prepare` got two.

        Call it after the loop, on a rank that sees the run's folder; after a `break` on all ranks, since it first waits for the
        others to end.
        """
        return self._after_the_end("optimizer_state_dict").optimizer_state_dict(optimizer)

    def finish(self) -> None:
        """End the run on this rank: as after the last batch, or after a `break`. Called by itself at the end of the batches, and
        at the end of the script. Collective. Another run may begin in this process afterwards, with `init`."""
        if self._is_over:
            return
        self._end()
        try:
            with self._stack:
                if self._loop is not None:
                    self._loop.leave()
        except HvdAsyncError as error:  # such as a clean stop, or a run that diverged
            end_at_once_if_uncaught(error)
            raise
        self.summary = self._job.summary
        if self.summary and self.summary["status"] != "stopped":
            print(*summary_lines(self._job.summary, self.config.output), sep="\n", flush=True)
        if self._final is not None:
            self._final.load()

    def _end(self) -> None:
        """Leave the process to the script, which may begin another run."""
        self._is_over = True
        _current.clear()
        sys.excepthook, sys.stdin = self._previous
        if self._loop is not None:
            self._loop.close()
        if self._final is not None:
            release_groups(self._final.described)

    def _after_the_end(self, caller: str, hint: str = "") -> FinalVersion:
        """Return the last version of the run, which ends now if the script has left its loop.

        Raises `ConfigError`, in the name of `caller`, before the run has ended.
        """
        if self._loop is not None and self._loop.is_left:
            self.finish()
        if self._final is None:
            raise ConfigError(f"{caller}: got no model yet, expected a call of prepare first")
        if not self._is_over:
            raise ConfigError(f"{caller}: called before the last batch, expected after the loop{hint}")
        return self._final

    def _check_schedule(self, schedule: RateSchedule | None) -> RateFactor | None:
        if schedule is not None and self.config.optimizer.schedule != ScheduleConfig(kind="constant"):
            raise ConfigError(
                "optimizer.schedule: got a schedule in the configuration and one in prepare(schedule=), expected one of them"
            )
        if schedule is None:
            return None
        rate = check_schedule(schedule)
        return lambda version, _: rate(version)

    def _check(self, model: nn.Module, loader: Any, scoring: Scoring, buffers: str, loss: str) -> BatchSource:
        if hasattr(model, "_orig_mod"):
            raise ConfigError(
                "model: got one that torch.compile has wrapped, whose parameters have other names; expected the model itself:"
                " compile what prepare returns"
            )
        check_model(model)
        scoring.check()
        source = source_of(loader, self.config.seed)
        if loss not in ("mean", "sum"):
            raise ConfigError(f"loss: got {loss!r}, expected 'mean' or 'sum'")
        if buffers not in ("refuse", "average"):
            raise ConfigError(f"buffers: got {buffers!r}, expected 'refuse' or 'average'")
        changing = modules_with_statistics(model)
        if changing and buffers == "refuse" and self.size > 1:
            raise ConfigError(
                f"model: got running statistics ({', '.join(changing[:3])}), which each rank would have for itself; expected"
                " none, such as with LayerNorm or GroupNorm, or buffers='average'"
            )
        if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
            raise ConfigError("model: got SyncBatchNorm, which waits for other ranks in each layer; expected GroupNorm, say")
        if isinstance(source, StreamSource) and not self.config.strategy.is_async and self.size > 1:
            raise ConfigError(
                f"loader: got {source.kind} with strategy {self.config.strategy.kind}, whose ranks all need"
                " equally many batches; expected a DataLoader over a map-style dataset, or strategy async"
            )
        return source

    def _failed(self, kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
        """Tell the other ranks of an error that ends the script, and save; in place of `sys.excepthook`."""
        # torch.distributed calls this with a buffer in place of the stream, which the end of the process would lose.
        sys.stderr = self._stderr
        self._end()
        note_origin(error, trace, hint_about(error))
        try:
            self._stack.__exit__(kind, error, trace)
        except BaseException as raised:
            error = raised
        if isinstance(error, HvdAsyncError):
            end_with(error, self.rank)
        if not getattr(error, "is_told", False):
            self._previous[0](type(error), error, error.__traceback__)

    def leave(self) -> None:
        """End the run of a script that has ended without reading all batches. Called by itself."""
        if self._final is None and self.size > 1:  # the others may be inside of prepare, and wait
            end_with(ConfigError("the script ended before prepare, expected a call on every rank"), self.rank)
        if self._loop is not None and self._loop.session.worker is not None:
            claim = self._loop.claim
            where = "before its first batch" if claim is None else f"before the last batch, at batch {claim.batch}"
            print(f"hvd-async: rank {self.rank}: worker {self.worker}: the script ended {where}", file=sys.stderr)
        self.finish()


def _each(optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer]) -> Sequence[torch.optim.Optimizer]:
    given: Any = optimizer
    return tuple(given) if isinstance(given, (list, tuple)) else (given,)


def _tell_launch(folder: RunFolder, rank: int) -> None:
    """Tell the `launch` that has started the script, if it is on this host, which folder the run has, and what an earlier run has
    left there; on rank 0."""
    if (variable := os.environ.pop(SCRIPT_VARIABLE, None)) is not None:  # not for processes that the script starts
        _pages.append(variable)
    if rank != 0 or not _pages:
        return
    stamps = {"config": stamp_of(folder.config), "summary": stamp_of(folder.summary)}
    told = {"folder": str(folder.root.absolute()), "is_later": variable is None, **stamps}
    tell_page({SCRIPT_VARIABLE: _pages[-1]}, SCRIPT_VARIABLE, json.dumps(told))
