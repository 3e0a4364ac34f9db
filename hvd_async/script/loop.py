"""The loop of a script over its batches, from `prepare` to the end of the run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from hvd_async.errors import ConfigError
from hvd_async.runs.checkpoint import list_checkpoints
from hvd_async.script.buffers import Buffers
from hvd_async.script.loader import BatchSource, EndOfStream
from hvd_async.script.nesting import lines_of, loop_around
from hvd_async.strategies.protocol import Claim, Session, Step
from hvd_async.system.json_text import plain_number
from hvd_async.system.limits import MOST_MICRO_BATCHES
from hvd_async.system.random_numbers import seed_batch
from hvd_async.tasks.user_values import describe_value, number_of
from hvd_async.training.setup import Ready
from hvd_async.transport.group import Group

_NO_BATCH = "optimizer.step: called without a batch, expected once for each batch, inside the loop"
_NOTHING_UNDER_WAY = "optimizer.pull: called without a batch, expected inside the loop, before optimizer.step"
_MOST_PULLS = MOST_MICRO_BATCHES - 1


class ScriptLoop:
    """The part of a run between `prepare` and the last batch."""

    session: Session

    def __init__(
        self, ready: Ready, source: BatchSource, buffers: Buffers, *, is_mean: bool, tells_of_no_loss: bool = False
    ) -> None:
        """All arguments stay the caller's. `is_mean`: whether the loss is a mean. `tells_of_no_loss`: whether to print a line if
        the script passes none to `step`."""
        self.ready = ready
        self._source = source
        self._is_mean = is_mean
        self._buffers = buffers
        self.is_left = False
        """Whether the script has left the loop before the last batch."""
        self.claim: Claim | None = None
        """The batch of this rank, from its beginning to that of the next one."""
        self._is_handed_over = True
        self._is_over = False  # whether there are no more batches for this rank
        self._num_pulls = 0  # of this batch
        self._is_new = True  # whether no gradient was computed since the parameters came
        self._began = 0.0
        self._tells_of_no_loss = tells_of_no_loss
        self._has_gradient = False
        self._is_clear = False
        self._trained = [parameter for parameter in ready.job.model.parameters() if parameter.requires_grad]
        hooks: list[Any] = [parameter.register_post_accumulate_grad_hook for parameter in self._trained]  # untyped in torch
        self._hooks = [register(self._note_gradient) for register in hooks]

    def batches(self) -> Iterator[Any]:
        """Yield the batches of this rank."""
        worker = self.session.worker
        if worker is not None:
            if not self.session.module.training:  # else parts of it may be in evaluation mode, as it was prepared
                self.session.module.train()
            self._buffers.begin()
            for claim in worker.claims():
                seed_batch(self.ready.loop.seed, claim.batch)
                self._began = time.monotonic()
                self._source.expect(claim.upcoming)
                try:
                    batch = self._source.batch(claim.batch)
                except EndOfStream:
                    break
                self.zero()
                self.claim, self._is_handed_over, self._num_pulls, self._is_new = claim, False, 0, True
                try:
                    yield batch
                except GeneratorExit:  # by `break`
                    self.is_left = self._is_over = True
                    raise
                if not self._is_handed_over:
                    raise ConfigError(
                        f"batch {claim.batch}: got no optimizer.step, expected one for each batch; to accumulate over several,"
                        " yield larger batches and split them"
                    )
        self._is_over = True

    @property
    def epoch(self) -> int:
        """The epoch, from 0, of this rank's batch."""
        return 0 if self.claim is None else self.ready.loop.task.epoch_of(self.claim.batch)

    def close(self) -> None:
        """Leave the model to the script."""
        self._is_over = True
        for hook in self._hooks:
            hook.remove()

    def leave(self) -> None:
        """Take part, without gradients, in the steps of the other ranks after a `break`, as far as the strategy needs it."""
        worker = self.session.worker
        if worker is None:
            return
        for claim in worker.claims_after_leaving():
            self.ready.job.flat.collect_gradient().zero_()
            worker.step(Step(claim.batch, 0.0, 0.0, 0.0))
            self.ready.loop.evaluate_if_due(worker, self._buffers.keep)

    def zero(self) -> None:
        """Clear the gradient, unless it is clear already: before a batch, and perhaps once more by the script."""
        if not self._is_clear:
            self.ready.job.flat.zero_gradient()
            self._is_clear, self._has_gradient = True, False

    def step(self, weight: float | None, loss: Any, scale: float) -> None:
        """Hand over the gradient of the current batch, divided by `scale`, by which the loss of `backward` was multiplied."""
        claim, worker, flat = self.claim, self.session.worker, self.ready.job.flat
        if claim is not None and self._is_handed_over and not self._is_over:
            raise ConfigError(
                f"optimizer.step: called twice for batch {claim.batch}, expected once for each batch; for several steps on a"
                " batch, yield smaller ones"
            )
        if claim is None or worker is None or self._is_handed_over:
            raise ConfigError(_NO_BATCH)
        if strayed := flat.strayed(self.ready.job.model):
            raise ConfigError(
                f"optimizer.step: {strayed}: got a parameter that prepare did not see, or that was moved or cast since; expected"
                " the model as it was prepared: change it before"
            )
        if not self._has_gradient or all(each.grad is None for each in self._trained):
            raise ConfigError(
                "optimizer.step: got no gradient, expected loss.backward() before it, and no zero_grad() between them"
            )
        if weight is None:
            raise ConfigError(
                "optimizer.step: got no weight, expected weight=..., such as the number of examples, over which the loss is a"
                f" {'mean' if self._is_mean else 'sum'}; weight=1 gives each batch the same"
            )
        given, weight = weight, number_of(weight)
        if weight is None or not 0.0 < weight < float("inf"):
            raise ConfigError(f"optimizer.step: weight: got {describe_value(given)}, expected a number > 0")
        factor = (weight if self._is_mean else 1.0) / scale
        if not claim.counts:
            flat.collect_gradient().zero_()  # not times 0, which leaves what is not finite
        elif factor != 1.0:
            flat.collect_gradient().mul_(factor)
        self._buffers.stepped()
        if loss is None and self._tells_of_no_loss:
            self._tells_of_no_loss = False
            print("optimizer.step: got no loss=..., so the training loss is nan in logs and reports", flush=True)
        value = float("nan") if loss is None else number_of(loss)
        if value is None:
            raise ConfigError(f"optimizer.step: loss: got {describe_value(loss)}, expected the loss of the batch, a number")
        number = value * (weight if self._is_mean else 1.0)
        self._is_handed_over = True
        own = plain_number(weight if claim.counts else 0.0)
        worker.step(Step(claim.batch, own, number, time.monotonic() - self._began))
        self._renewed()
        self.ready.loop.evaluate_if_due(worker, self._buffers.keep)

    def pull(self) -> None:
        """Bring the parameters up to date in the middle of the current batch. Does nothing before its first backward pass, or
        twice without one between: no part of the batch was computed."""
        worker, job = self.session.worker, self.ready.job
        if worker is None or self._is_handed_over:
            raise ConfigError(_NOTHING_UNDER_WAY)
        if job.strategy.is_async and (key := job.push.pacing_key):
            raise ConfigError(f"optimizer.pull: got a run with push.{key}, which pulls at other times; expected one without")
        if self._is_new:
            return
        if self._num_pulls == _MOST_PULLS:
            raise ConfigError(
                f"optimizer.pull: called {_MOST_PULLS + 1} times for a batch, expected at most {_MOST_PULLS} times; divide"
                " it into fewer parts"
            )
        self._num_pulls += 1
        device = job.flat.parameters.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # what is pulled is as new as can be when the work before it is done
        pulling = time.monotonic()
        worker.pull_newer()
        self._began += time.monotonic() - pulling  # the seconds of a step are those of its work
        self._renewed()

    def average_buffers(self, group: Group) -> None:
        """Give every rank the mean of the workers' buffers, if the user chose that, and save those that change. Collective."""
        self._buffers.average(group, is_worker=self.session.worker is not None)
        if self.ready.recorder is not None:
            self._buffers.keep_last(list_checkpoints(self.ready.folder.checkpoints)[-1])

    def _note_gradient(self, _: torch.Tensor) -> None:
        self._has_gradient, self._is_clear, self._is_new = True, False, False

    def _renewed(self) -> None:
        """Tell autograd that the parameters have changed, which were written past it: a backward pass through an older forward
        pass is then an error, as after a step of torch, and no mixture of both."""
        self._is_new = True
        for each in self._trained:
            torch.autograd.graph.increment_version(each)


class NoLoop:
    """The loop of a run that had ended before, which has no batches."""

    epoch = 0

    def batches(self) -> Iterator[Any]:
        """Yield nothing."""
        return iter(())

    def zero(self) -> None:
        """Do nothing."""

    def step(self, weight: float | None, loss: Any, scale: float) -> None:
        """Raises `ConfigError`: there is no batch."""
        raise ConfigError(_NO_BATCH)

    def pull(self) -> None:
        """Raises `ConfigError`: there is no batch."""
        raise ConfigError(_NOTHING_UNDER_WAY)


class Batches:
    """The batches of this rank, in one pass over all epochs. Each batch of the run goes to one rank, whatever its speed.

    Iterating ends when the run is over on all ranks; then the model has the parameters of its last version on every rank.
    """

    def __init__(self, loop: ScriptLoop | NoLoop, finish: Callable[[], None], warns: bool) -> None:
        """Made by `ScriptRun.prepare`. `finish` ends the run. `warns`: of a loop over epochs, if there is one."""
        self._loop = loop
        self._finish = finish
        self._began = lines_of(sys._getframe(1)) if warns else None
        self._is_used = False

    @property
    def epoch(self) -> int:
        """The epoch, from 0, of the batch that this rank has; workers reach the next one at different times."""
        return self._loop.epoch

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches; once."""
        if self._is_used:
            error = ConfigError(
                "batches: iterated twice, expected one loop over all epochs (training.epochs says how many there are); the first"
                " loop was the whole run, and its model is in models/last of the run's folder"
            )
            error.is_on_all_ranks = True
            raise error
        self._is_used = True
        if self._began is not None and (line := loop_around(sys._getframe(1), self._began)) is not None:
            print(
                f"the loop over the batches is inside another loop, in line {line}, whose first turn will have the batches of all"
                " epochs, and whose second turn is an error",
                flush=True,
            )
        return self._batches()

    def _batches(self) -> Iterator[Any]:
        yield from self._loop.batches()
        self._finish()
