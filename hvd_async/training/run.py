"""A training run on one rank, from the launcher's environment to the summary."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hvd_async.cluster.environment import read_environment
from hvd_async.cluster.topology import RankPlan
from hvd_async.config import RunConfig, ScriptConfig
from hvd_async.errors import DivergedError, OrphanedError, StoppedBySignal
from hvd_async.runs.samples import keep_samples
from hvd_async.runs.snapshots import read_snapshot
from hvd_async.runs.summary import Ending
from hvd_async.store.parameter_store import RateFactor
from hvd_async.store.wire.stop import StopKind, StopNotice
from hvd_async.strategies import make_strategy
from hvd_async.strategies.protocol import Session, Strategy
from hvd_async.strategies.synchronous_watch import Watch
from hvd_async.tasks.task import Task
from hvd_async.training.agreement import aborting_on_failure
from hvd_async.training.options import TrainOptions
from hvd_async.training.setup import Finished, Ready, Start, plan_ranks, set_up
from hvd_async.training.start_watch import watching_start
from hvd_async.training.stop_request import StopRequest
from hvd_async.transport.group import Group


def train(
    config: RunConfig,
    make_task: Callable[[RunConfig], Task],
    options: TrainOptions,
    environ: Mapping[str, str] = os.environ,
) -> dict[str, Any]:
    """Run `config` on all ranks of this job; return the summary of the run (empty on ranks other than 0).

    Collective over all ranks that the launcher started. `make_task` is called on rank 0 first, then on the other ranks, for
    which it may leave files. An error on one rank before training begins is raised on every rank. Later, a rank that fails
    prints its message, and aborts the job after the store is saved. Raises `StoppedBySignal` on every rank after a clean
    stop, and `DivergedError` at the end of a run that diverged. Rank 0 holds the lock of the run's folder until the return.
    """
    with joined(config, options, environ) as job:
        ready = job.set_up(make_task)
        if isinstance(ready, Ready):
            with trained(job, ready) as session:
                if session.worker is not None:
                    with ready.reading():
                        ready.loop(session.worker, session.module)
    return job.summary


@dataclass
class JoinedJob:
    """This rank in its job.

    `starting` holds what ends when training begins. `summary` and `notice`, why the run was stopped, are set when the run ends.
    """

    config: RunConfig
    options: TrainOptions
    environ: Mapping[str, str]
    strategy: Strategy
    stop: StopRequest
    holding: contextlib.ExitStack
    starting: contextlib.ExitStack
    summary: dict[str, Any] = field(default_factory=dict)
    notice: StopNotice | None = None

    @functools.cached_property
    def plans(self) -> tuple[RankPlan, ...]:
        """The roles of all ranks. Collective at its first use."""
        return plan_ranks(self.strategy.group, self.config, self.environ)

    def set_up(
        self, make_task: Callable[[RunConfig], Task], rate_factor: RateFactor | None = None, *, reduces_at_step: bool = False
    ) -> Ready | Finished:
        """Make everything ready, unless the run has ended and needs no more training. Collective.

        `rate_factor`, `reduces_at_step`: see `JobSpec`.
        """
        start = Start(
            config=self.config,
            make_task=make_task,
            options=self.options,
            strategy=self.strategy,
            environ=self.environ,
            stop=self.stop,
            plans=self.plans,
            rate_factor=rate_factor,
            reduces_at_step=reduces_at_step,
        )
        ready = set_up(start, self.holding)
        if isinstance(ready, Finished):
            self.summary = ready.summary
        return ready


@contextlib.contextmanager
def joined(config: RunConfig, options: TrainOptions, environ: Mapping[str, str] = os.environ) -> Iterator[JoinedJob]:
    """Start MPI or Horovod as `config` says, and listen to signals, inside the block; a context manager. Collective.

    Errors: see `train`.
    """
    stop = StopRequest() if options.stop is None else options.stop
    with contextlib.ExitStack() as starting, stop.listening() if options.stop is None else contextlib.nullcontext():
        starting.enter_context(watching_start(environ))
        strategy = make_strategy(config.strategy.kind)
        stop.rank = strategy.group.rank
        limit = config.strategy.hang_timeout_seconds if stop.rank == 0 else config.strategy.stop_timeout_seconds
        is_launched = read_environment(environ) is not None
        # `holding` is outside `aborting_on_failure`, so that the folder stays locked until the other ranks are told to end.
        with (
            stop.watching_launcher(limit) if is_launched else contextlib.nullcontext(),
            contextlib.ExitStack() as holding,
            aborting_on_failure(strategy.group),
        ):
            job = JoinedJob(config, options, environ, strategy, stop, holding, starting)
            yield job
            starting.close()
            # No rank leaves before everything is saved: after a nonzero exit status of one rank, a launcher kills the
            # others.
            status = strategy.group.allgather(str(job.summary.get("status", "")))[0]
            strategy.close()
    _raise_unless_finished(job, status)


def _raise_unless_finished(job: JoinedJob, status: str) -> None:
    if job.notice is not None and not job.notice.is_end and not job.options.is_launched:
        hint = (
            "run the same command again to resume" if job.options.auto_resume else f"resume with {job.options.resume_words}"
        )
        # `launch` passes each signal on to a script's ranks as this one, whose loop must end.
        is_by_launch = isinstance(job.config.task, ScriptConfig) and not job.options.is_of_script
        is_by_launch &= job.notice.signal_number == signal.SIGUSR1
        by = "launch" if is_by_launch else job.notice
        stopped = StoppedBySignal(f"stopped by {by}, everything saved; {hint}", job.notice.signal_number)
        stopped.is_on_all_ranks = True
        raise stopped
    if status == "diverged":
        raise DivergedError(
            f"{job.config.output}: diverged: gradients or validation losses are no longer finite (see summary.json);"
            " try a lower optimizer.learning_rate, a longer warm-up or optimizer.clip_norm"
        )


@contextlib.contextmanager
def trained(
    job: JoinedJob, ready: Ready, before_evaluation: Callable[[Group], None] = lambda group: None
) -> Iterator[Session]:
    """Open the session of the run; a context manager. At its end call `before_evaluation`, evaluate, and write the summary.
    Collective."""
    job.stop.defer()
    job.starting.close()
    with ready.recorder if ready.recorder is not None else contextlib.nullcontext():
        with contextlib.nullcontext() if ready.recorder is None else ready.progress.showing():
            try:
                with job.strategy.session(ready.job) as session:
                    yield session
            finally:
                if ready.recorder is not None:
                    ready.folder.withdraw_invitation()
        job.stop.limit_seconds = ready.job.strategy.stop_timeout_seconds  # everything is saved
        before_evaluation(job.strategy.group)
        conclusion = _Conclusion(ready)
        num_overrun, num_steps = conclusion.count_overrun_steps(job.strategy.group)
        job.notice = session.notice
        if job.notice is None or job.notice.is_end:
            job.notice = conclusion.evaluate_snapshots(job.strategy.group) or job.notice
        if ready.recorder is not None:
            status = ready.recorder.status_of(job.notice)
            job.summary = ready.recorder.conclude(Ending(status, ready.job.num_workers, num_steps, num_overrun, job.notice))


class _Conclusion:
    """The end of a run on this rank, after the last step."""

    def __init__(self, ready: Ready) -> None:
        """The parts of `ready` stay the caller's."""
        self.folder = ready.folder
        self.job = ready.job
        self.loop = ready.loop
        self.stop = ready.stop
        self.progress = ready.progress
        self.recorder = ready.recorder

    def count_overrun_steps(self, group: Group) -> tuple[int, int]:
        """Return how many steps of all workers exceeded their emulated length, and the number of all steps; print the
        former. Collective."""
        emulation = self.loop.emulation
        counts = [json.loads(text) for text in group.allgather(json.dumps([emulation.num_overrun, emulation.num_steps]))]
        num_overrun, num_steps = (sum(column) for column in zip(*counts, strict=True))
        if num_overrun and self.recorder is not None:
            self.progress.say(
                f"emulation: {num_overrun:,} of {num_steps:,} steps exceeded the configured length: the real computation took"
                " longer"
            )
        return num_overrun, num_steps

    def evaluate_snapshots(self, group: Group) -> StopNotice | None:
        """Evaluate the snapshots that were not evaluated during training, shared among all ranks. Return the stop notice if
        the evaluation was stopped before it was complete. Collective."""
        pending = [] if self.recorder is None else self.recorder.snapshots_to_evaluate()
        versions = json.loads(group.allgather(json.dumps(pending))[0])
        self._note_lost(group.take_lost())
        for version in versions:
            table = self._evaluate_together(group, version)
            while lost := group.take_lost():  # nobody has evaluated their shares
                self._note_lost(lost)
                table = self._evaluate_together(group, version)
            if self.recorder is not None:
                self.recorder.evaluated(version, [sum(column) for column in zip(*(row for row, _ in table), strict=True)])
            notices = [StopNotice.from_word(word) for _, word in table if word]
            if notices:
                self._check_launcher(notices)
                return notices[0]
        return None

    def _evaluate_together(self, group: Group, version: int) -> list[tuple[list[float], int]]:
        """Return each rank's statistics of its share of the data, for the snapshot of `version`, and its stop request as a word;
        0: none. Collective."""
        with self.loop.flat.with_parameters(read_snapshot(self.folder, version)):
            mine = self.loop.task.evaluate(self.loop.model, group.rank, group.size)
            if group.rank == 0:
                keep_samples(self.folder, self.loop.task, self.loop.model, version)
        asked = self.stop.notice()
        self._check_launcher([asked])
        text = json.dumps([list(mine), 0 if asked is None else asked.to_word()])
        with Watch(self.job, group) as watch, watch.waiting():
            return [json.loads(each) for each in group.allgather(text)]

    def _note_lost(self, ranks: Sequence[int]) -> None:
        for rank in ranks:
            worker = self.job.plans[rank].worker
            if self.recorder is not None and worker is not None:
                self.recorder.lost(worker, f"worker {worker} died after the last version", ())

    def _check_launcher(self, notices: Sequence[StopNotice | None]) -> None:
        """Raise `OrphanedError`, after writing the summary, if the launcher has gone: no further collective call is
        possible."""
        for notice in notices:
            if notice is not None and notice.kind is StopKind.ORPHANED:
                if self.recorder is not None:
                    self.recorder.conclude(Ending("stopped", self.job.num_workers, self.loop.emulation.num_steps, 0, notice))
                raise OrphanedError(f"stopped by {notice}, everything saved")
