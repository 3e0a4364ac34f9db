"""A training run on one rank, from the launcher's environment to the summary: what surrounds the loop."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from hvd_async.batch_job import read_batch_job
from hvd_async.checkpoint import Checkpoint
from hvd_async.config import RunConfig
from hvd_async.continuation import Supply
from hvd_async.emulation import Emulation, check_emulation
from hvd_async.environment import check_world, read_environment
from hvd_async.errors import HvdAsyncError, PeerError, StoppedBySignal
from hvd_async.flat import FlatParameters
from hvd_async.journal import RunJournal, read_snapshot
from hvd_async.origin import device_of, origin_of, this_software
from hvd_async.placement import placement_of
from hvd_async.printable import printable_lines
from hvd_async.progress import Goal, Progress
from hvd_async.run_folder import Beginning, RunFolder
from hvd_async.signals import StopRequest
from hvd_async.strategies import make_strategy
from hvd_async.strategies.protocol import EvaluationPlan, Job, Strategy
from hvd_async.topology import (
    Machine,
    RankPlan,
    assign_roles,
    describe,
    this_machine,
)
from hvd_async.training import Task, TrainingLoop, check_buffers
from hvd_async.transport.group import Group
from hvd_async.transport.layout import StopKind, StopNotice

T = TypeVar("T")
# How long a rank that was told of another's failure waits for the launcher to end it, before it ends the job itself.
_GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class TrainOptions:
    """What the command line adds to a configuration: go on with a stopped run, or replace what its folder holds; whether
    progress is a live bar; go on where there is a checkpoint, else begin. At most one of the first, second and last is set."""

    resume: bool = False
    overwrite: bool = False
    live_progress: bool = False
    auto_resume: bool = False


def train(
    config: RunConfig,
    make_task: Callable[[RunConfig], Task],
    options: TrainOptions,
    environ: Mapping[str, str] = os.environ,
) -> dict[str, Any]:
    """Run `config` on all ranks of this job; the summary of the run (empty on ranks other than 0).

    Collective over all ranks that the launcher started. `make_task` is called on rank 0 first, then on the others, and may
    leave files behind for them. What any rank raises before training begins, every rank raises. Later, a rank that fails
    prints its message and aborts the job. Raises `StoppedBySignal` on every rank after a clean stop. Meanwhile rank 0 holds the
    lock of the run's folder.
    """
    strategy = make_strategy(config.strategy.kind)
    # The folder is held until the other ranks are told to end, too: the outermost is left last.
    with contextlib.ExitStack() as holding, _aborting_on_failure(strategy.group):
        run = _set_up(config, make_task, options, strategy, environ, holding)
        if isinstance(run, dict):
            strategy.group.exchange("")
            strategy.close()
            return run
        with run.journal if run.journal is not None else contextlib.nullcontext():
            notice = run.execute(strategy)
            num_longer, num_steps = run.count_long_steps(strategy.group)
            if not _is_signal(notice):
                run.evaluate_snapshots(strategy.group)
            summary = run.conclude(notice, num_steps, num_longer)
        # Nobody leaves before everything is saved: a launcher kills the others when one has gone with a status other than 0.
        strategy.group.exchange("")
        strategy.close()
    if notice is not None and _is_signal(notice):
        mend = "the same command goes on" if options.auto_resume else "go on with --resume"
        raise StoppedBySignal(
            f"stopped by signal {notice.signal_number} on rank {notice.rank}, everything saved; {mend}",
            notice.signal_number,
        )
    return summary


@dataclass(frozen=True)
class _Run:
    """The pieces of a run on this rank; `journal` is on rank 0 alone."""

    folder: RunFolder
    job: Job
    loop: TrainingLoop
    stop: StopRequest
    progress: Progress
    journal: RunJournal | None

    def execute(self, strategy: Strategy) -> StopNotice | None:
        """Train, and save what training leaves behind; why it stopped."""
        showing = contextlib.nullcontext() if self.journal is None else self.progress.showing()
        with self.stop.listening(), showing:
            notice = strategy.execute(self.job, self.loop)
            if self.journal is not None:
                self.journal.end_training(is_complete=not _is_signal(notice))
        return notice

    def count_long_steps(self, group: Group) -> tuple[int, int]:
        """How many steps of all workers lasted longer than emulation was to make them, and how many there were; it is said.
        Collective."""
        emulation = self.loop.emulation
        counts = [json.loads(text) for text in group.exchange(json.dumps([emulation.num_longer, emulation.num_steps]))]
        num_longer, num_steps = (sum(column) for column in zip(*counts, strict=True))
        if num_longer and self.journal is not None:
            self.progress.say(
                f"emulation: {num_longer:,} of {num_steps:,} steps lasted longer than configured; their real work did"
            )
        return num_longer, num_steps

    def evaluate_snapshots(self, group: Group) -> None:
        """Evaluate what was not evaluated during training, shared among all ranks. Collective."""
        pending = [] if self.journal is None else self.journal.snapshots_to_evaluate()
        for version in json.loads(group.exchange(json.dumps(pending))[0]):
            with self.loop.flat.holding(read_snapshot(self.folder, version)):
                mine = self.loop.task.evaluate(self.loop.model, group.rank, group.size)
            table = [json.loads(text) for text in group.exchange(json.dumps(mine.to_vector()))]
            if self.journal is not None:
                self.journal.evaluated(version, [sum(column) for column in zip(*table, strict=True)])

    def conclude(self, notice: StopNotice | None, num_steps: int, num_longer: int) -> dict[str, Any]:
        """Write the summary, on rank 0."""
        if self.journal is None:
            return {}
        how = "stopped" if _is_signal(notice) else "finished early" if self.journal.is_out_of_patience() else "finished"
        return self.journal.conclude(how, self.job.num_workers, num_steps, num_longer)


def _set_up(
    config: RunConfig,
    make_task: Callable[[RunConfig], Task],
    options: TrainOptions,
    strategy: Strategy,
    environ: Mapping[str, str],
    holding: contextlib.ExitStack,
) -> _Run | dict[str, Any]:
    """Make everything ready; of a run that is finished, its summary. On rank 0 `holding` keeps the lock of the run's folder.
    Collective."""
    group, folder = strategy.group, RunFolder(config.output)
    machines = _meet(group, environ)
    plans = _in_agreement(group, lambda: _plan_ranks(config, machines))
    plan = plans[group.rank]
    torch.set_num_threads(plan.threads)
    # Before anything else asks for CUDA, or every process would also take memory on the first GPU.
    for device in (plan.device, plan.store_device):
        if device is not None and device.startswith("cuda"):
            torch.cuda.set_device(device)
            break
    if options.resume:  # before text is prepared for a configuration that will be refused
        _in_agreement(group, lambda: folder.check_same(config) if group.rank == 0 else None)
    task = _in_agreement(group, lambda: make_task(config))
    model = _in_agreement(group, task.build_model)
    if config.strategy.kind == "async":
        _in_agreement(group, lambda: check_buffers(task, model) if group.rank == 0 else None)
    flat = FlatParameters(model, "cpu" if plan.worker is None else plan.device)
    goal = Goal(task.num_batches(), config.training.updates, config.training.seconds)
    stop = StopRequest(group.rank)
    every = config.validation.every if config.validation.when == "during" else None
    job = Job(
        strategy=config.strategy,
        store=config.store,
        push=config.push,
        optimizer=config.optimizer,
        plans=plans,
        model=model,
        flat=flat,
        num_batches=goal.num_batches,
        epoch_of=task.epoch_of,
        last_version=goal.last_version,
        evaluation=EvaluationPlan(every or 0, lambda version: read_snapshot(folder, version)),
        journal=None,
        stop_requested=stop.notice,
        saved=None,
    )
    strategy.check(job)  # before the folder changes: what cannot run leaves nothing behind
    progress = Progress(goal, config.training.log_every_seconds, is_live=options.live_progress)
    _in_agreement(group, lambda: _hold(folder, options, progress, holding) if group.rank == 0 else None)
    lost = ""
    if options.auto_resume:
        options, lost = _decide(group, folder, config, options)
    supply = Supply(task.fingerprint(), goal.num_batches)
    saved = _in_agreement(group, lambda: _open_folder(folder, config, options, group.rank, supply))
    finished = folder.finished(config, saved, supply) if saved is not None and group.rank == 0 else None
    if ended := json.loads(group.exchange(json.dumps(finished))[0]):
        if group.rank == 0:
            progress.say("finished before, and asked for no more: there is nothing to do")
        return ended if group.rank == 0 else {}
    own = this_software(device_of(plans[group.rank].device, plans[group.rank].store_device))
    software = [json.loads(text) for text in group.exchange(json.dumps(own))]
    batch_job = read_batch_job(environ)
    origin = origin_of(plans, software, batch_job)
    journal = RunJournal(folder, config, task, flat, progress, origin=origin) if group.rank == 0 else None
    if journal is not None:
        for line in [*([str(batch_job)] if batch_job else []), *([lost] if lost else []), *task.remarks()]:
            progress.say(line)
        for line in (describe(each, strategy.transport(plans, each.rank)) for each in plans):
            progress.say(line)
        if saved is not None:
            folder.go_on(config)
            journal.restore(saved.data["journal"])
    saved_state = None if saved is None else (saved.tensors, saved.data["store"])
    job = dataclasses.replace(job, journal=journal, saved=saved_state)
    steps_before = 0 if saved is None or plan.worker is None else _steps_of(saved.data["store"], plan.worker)
    emulation = Emulation(config.emulation, plan.worker, config.seed, job.num_workers, steps_before)
    loop = TrainingLoop(task, model, flat, emulation, config.seed)
    return _Run(folder, job, loop, stop, progress, journal)


def _steps_of(store: Mapping[str, Any], worker: int) -> int:
    """Steps of `worker` that the state of a store knows of."""
    pending = sum(arrival["worker"] == worker for arrival in store["pending"])
    refused = sum(count for number, _, count in store["refused"] if number == worker)
    steps: int = store["applied"].get(str(worker), 0) + pending + refused
    return steps


def _meet(group: Group, environ: Mapping[str, str]) -> list[Machine]:
    """What every rank may use of its host, in the order of ranks. Collective."""
    check_world(read_environment(environ), group.rank, group.size)
    return [Machine.from_text(text) for text in group.exchange(this_machine().to_text())]


def _plan_ranks(config: RunConfig, machines: Sequence[Machine]) -> tuple[RankPlan, ...]:
    """Every rank's role, device and threads; every rank computes the same."""
    plans = assign_roles(machines, placement_of(config))
    num_workers = sum(plan.worker is not None for plan in plans)
    check_emulation(config.emulation, num_workers)
    return plans


def _hold(folder: RunFolder, options: TrainOptions, progress: Progress, holding: contextlib.ExitStack) -> None:
    """Keep other jobs, and other starts of this one, out of `folder` while `holding` is open. On rank 0."""
    if options.resume:
        folder.check_is_run()  # the lock would make the folder
    holding.enter_context(folder.held(progress.say))


def _decide(group: Group, folder: RunFolder, config: RunConfig, options: TrainOptions) -> tuple[TrainOptions, str]:
    """`options` with what `auto_resume` means for `folder`, and on rank 0 what is lost, in words. Collective."""
    # Rank 0 decides, before it changes anything: others may see the files of a shared folder later than it does.
    own = _in_agreement(group, lambda: folder.how_to_begin(config) if group.rank == 0 else None)
    beginning = Beginning(group.exchange("" if own is None else own.value)[0])
    lost = folder.describe_loss() if group.rank == 0 and beginning is Beginning.AGAIN else ""
    resume, overwrite = beginning is Beginning.RESUME, beginning is Beginning.AGAIN
    return dataclasses.replace(options, resume=resume, overwrite=overwrite), lost


def _open_folder(
    folder: RunFolder, config: RunConfig, options: TrainOptions, rank: int, supply: Supply
) -> Checkpoint | None:
    if options.resume:
        return folder.resume(config, supply, "--auto-resume" if options.auto_resume else "--resume")
    if rank == 0:
        folder.begin(config, overwrite=options.overwrite)
    return None


def _in_agreement(group: Group, action: Callable[[], T]) -> T:
    """Do `action` on rank 0, then on the others, and raise everywhere what was raised anywhere. Collective."""
    result: T | None = None
    for turn in (0, 1):
        fault = ""
        if (group.rank == 0) == (turn == 0):
            try:
                result = action()
            except HvdAsyncError as error:
                fault = json.dumps([error.exit_status, str(error)])
        faults = group.exchange(fault)
        for rank, text in enumerate(faults):
            if text:
                raise AgreedError(json.loads(text), is_reporter=rank == group.rank)
    return result  # type: ignore[return-value]  # every rank had its turn


class AgreedError(HvdAsyncError):
    """An error that every rank raises because one did; the one that did reports it."""

    is_on_all_ranks = True

    def __init__(self, fault: tuple[int, str], is_reporter: bool) -> None:
        """`fault`: exit status and message; `is_reporter`: whether this rank is to print it."""
        self.exit_status, message = fault
        super().__init__(message)
        self.is_reporter = is_reporter


@contextlib.contextmanager
def _aborting_on_failure(group: Group) -> Iterator[None]:
    """An exception on this rank ends all ranks at once, with this rank's message as the only one."""
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write(f"hvd-async: rank {group.rank}: interrupted outside of training; what was saved before is whole\n")
        sys.stderr.flush()
        group.abort(130)
    except BaseException as error:
        if group.size == 1 or (isinstance(error, HvdAsyncError) and error.is_on_all_ranks):
            raise
        if isinstance(error, PeerError) and error.is_reported:
            time.sleep(_GRACE_SECONDS)  # the rank that failed is about to end the job, or its launcher is
        elif isinstance(error, HvdAsyncError):
            sys.stderr.write(f"hvd-async: rank {group.rank}: {printable_lines(str(error))}\n")
        else:
            trace = "".join(traceback.format_exception(error))
            sys.stderr.write(f"{trace}hvd-async: rank {group.rank}: {type(error).__name__}: {error}\n")
        sys.stderr.flush()
        sys.stdout.flush()
        group.abort(error.exit_status if isinstance(error, HvdAsyncError) else 1)


def _is_signal(notice: StopNotice | None) -> bool:
    return notice is not None and notice.kind is StopKind.SIGNAL
