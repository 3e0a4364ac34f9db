"""A training run on one rank, from the launcher's environment to the summary: what surrounds the loop."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hvd_async.cluster.batch_job import read_batch_job
from hvd_async.cluster.environment import check_world, read_environment
from hvd_async.cluster.placement import placement_of
from hvd_async.cluster.topology import Machine, RankPlan, assign_roles, describe, this_machine
from hvd_async.config import RunConfig
from hvd_async.emulation.idling import Emulation, check_emulation
from hvd_async.errors import (
    CheckpointError,
    DivergedError,
    HvdAsyncError,
    OrphanedError,
    PeerError,
    StoppedBySignal,
)
from hvd_async.runs.checkpoint import SavedData, check_tensors, load_tensors
from hvd_async.runs.continuation import Supply
from hvd_async.runs.folder import Beginning, Resumption, RunFolder
from hvd_async.runs.progress import Goal, Progress
from hvd_async.runs.provenance import device_of, provenance_of, this_software
from hvd_async.runs.recorder import RunRecorder, read_snapshot
from hvd_async.store.wire.stop import StopKind, StopNotice
from hvd_async.strategies import make_strategy
from hvd_async.strategies.protocol import EvaluationPlan, Job, SavedState, Strategy
from hvd_async.strategies.watch import Watch
from hvd_async.system.failures import tell
from hvd_async.tasks.gradient import check_buffers
from hvd_async.tasks.task import Task
from hvd_async.training.agreement import in_agreement, told_by_rank_0
from hvd_async.training.loop import TrainingLoop
from hvd_async.training.stop_request import StopRequest
from hvd_async.transport.group import Group
from hvd_async.vectors.flat import FlatParameters

# How long a rank that was told of another's failure waits for the launcher to end it, before it ends the job itself.
_GRACE_SECONDS = 5.0
# How long a rank looks for a checkpoint that rank 0 has found: a listing of a network file system may be old.
_LISTING_SECONDS = 30.0


@dataclass(frozen=True)
class TrainOptions:
    """What the command line adds to a configuration: go on with a stopped run, or replace what its folder holds; whether
    progress is a live bar; go on where there is a checkpoint, else begin. At most one of the first, second and last is set.

    `stop` is listening already, for who wants to be heard before this module is loaded. `is_launched`: `hvd-async launch` started
    the ranks, and tells how they ended: a stop is no failure then, and is not told by them."""

    resume: bool = False
    overwrite: bool = False
    live_progress: bool = False
    auto_resume: bool = False
    stop: StopRequest | None = None
    is_launched: bool = False


def train(
    config: RunConfig,
    make_task: Callable[[RunConfig], Task],
    options: TrainOptions,
    environ: Mapping[str, str] = os.environ,
) -> dict[str, Any]:
    """Run `config` on all ranks of this job; the summary of the run (empty on ranks other than 0).

    Collective over all ranks that the launcher started. `make_task` is called on rank 0 first, then on the others, and may
    leave files behind for them. What any rank raises before training begins, every rank raises. Later, a rank that fails
    prints its message and aborts the job, when what is healthy is saved. Raises `StoppedBySignal` on every rank after a clean
    stop, and `DivergedError` at the end of a run that has. Meanwhile rank 0 holds the lock of the run's folder.
    """
    stop = StopRequest() if options.stop is None else options.stop
    with stop.listening() if options.stop is None else contextlib.nullcontext():
        strategy = make_strategy(config.strategy.kind)
        stop.rank = strategy.group.rank
        limit = config.strategy.hang_timeout_seconds if stop.rank == 0 else config.strategy.stop_timeout_seconds
        is_launched = read_environment(environ) is not None
        # The folder is held until the other ranks are told to end, too: the outermost is left last.
        with (
            stop.watching_launcher(limit) if is_launched else contextlib.nullcontext(),
            contextlib.ExitStack() as holding,
            _aborting_on_failure(strategy.group),
        ):
            run = _set_up(config, make_task, options, strategy, environ, holding, stop)
            notice, summary = run.play(strategy) if isinstance(run, _Run) else (None, run)
            # Nobody leaves before everything is saved: a launcher kills the others when one has gone with a status other than 0.
            status = strategy.group.allgather(str(summary.get("status", "")))[0]
            strategy.close()
    if notice is not None and not notice.is_end and not options.is_launched:
        hint = "the same command goes on" if options.auto_resume else "go on with --resume"
        stopped = StoppedBySignal(f"stopped by {notice}, everything saved; {hint}", notice.signal_number)
        stopped.is_on_all_ranks = True
        raise stopped
    if status == "diverged":
        raise DivergedError(
            f"{config.output}: diverged: gradients or validation losses are not finite any more (see summary.json);"
            " try a lower optimizer.learning_rate, a longer warm-up or optimizer.clip_norm"
        )
    return summary


@dataclass(frozen=True)
class _Run:
    """The pieces of a run on this rank; `recorder` is on rank 0 alone."""

    folder: RunFolder
    job: Job
    loop: TrainingLoop
    stop: StopRequest
    progress: Progress
    recorder: RunRecorder | None

    def play(self, strategy: Strategy) -> tuple[StopNotice | None, dict[str, Any]]:
        """Train, measure, and write down what came of it; what stopped it, and the summary. Collective."""
        self.stop.defer()
        with self.recorder if self.recorder is not None else contextlib.nullcontext():
            return self._play(strategy)

    def _play(self, strategy: Strategy) -> tuple[StopNotice | None, dict[str, Any]]:
        with contextlib.nullcontext() if self.recorder is None else self.progress.showing():
            notice = strategy.execute(self.job, self.loop)
        self.stop.limit_seconds = self.job.strategy.stop_timeout_seconds  # everything is saved
        num_overrun, num_steps = self.count_overrun_steps(strategy.group)
        if notice is None or notice.is_end:
            notice = self.evaluate_snapshots(strategy.group) or notice
        summary: dict[str, Any] = {}
        if self.recorder is not None:
            status = self.recorder.status_of(notice)
            summary = self.recorder.conclude(status, self.job.num_workers, num_steps, num_overrun, notice)
        return notice, summary

    def count_overrun_steps(self, group: Group) -> tuple[int, int]:
        """How many steps of all workers lasted longer than emulation was to make them, and how many there were; it is said.
        Collective."""
        emulation = self.loop.emulation
        counts = [json.loads(text) for text in group.allgather(json.dumps([emulation.num_overrun, emulation.num_steps]))]
        num_overrun, num_steps = (sum(column) for column in zip(*counts, strict=True))
        if num_overrun and self.recorder is not None:
            self.progress.say(
                f"emulation: {num_overrun:,} of {num_steps:,} steps lasted longer than configured; their real work did"
            )
        return num_overrun, num_steps

    def evaluate_snapshots(self, group: Group) -> StopNotice | None:
        """Evaluate what was not evaluated during training, shared among all ranks; what stopped it, if something did, with the
        rest still to be done. Collective."""
        pending = [] if self.recorder is None else self.recorder.snapshots_to_evaluate()
        for version in json.loads(group.allgather(json.dumps(pending))[0]):
            with self.loop.flat.holding(read_snapshot(self.folder, version)):
                mine = self.loop.task.evaluate(self.loop.model, group.rank, group.size)
            asked = self.stop.notice()
            self._check_launcher([asked])
            text = json.dumps([mine.to_vector(), 0 if asked is None else asked.to_word()])
            with Watch(self.job, group) as watch, watch.waiting():
                table = [json.loads(each) for each in group.allgather(text)]
            if self.recorder is not None:
                self.recorder.evaluated(version, [sum(column) for column in zip(*(row for row, _ in table), strict=True)])
            notices = [StopNotice.from_word(word) for _, word in table if word]
            if notices:
                self._check_launcher(notices)
                return notices[0]
        return None

    def _check_launcher(self, notices: Sequence[StopNotice | None]) -> None:
        """Where the launcher has gone, end by exception: what comes needs nobody else."""
        for notice in notices:
            if notice is not None and notice.kind is StopKind.ORPHANED:
                if self.recorder is not None:
                    self.recorder.conclude("stopped", self.job.num_workers, self.loop.emulation.num_steps, 0, notice)
                raise OrphanedError(f"stopped by {notice}, everything saved")


def _set_up(
    config: RunConfig,
    make_task: Callable[[RunConfig], Task],
    options: TrainOptions,
    strategy: Strategy,
    environ: Mapping[str, str],
    holding: contextlib.ExitStack,
    stop: StopRequest,
) -> _Run | dict[str, Any]:
    """Make everything ready; of a run that has ended, and is asked for no more, its summary. On rank 0 `holding` keeps the lock
    of the run's folder. Collective."""
    group, folder = strategy.group, RunFolder(config.output)
    machines = _meet(group, environ)
    plans = in_agreement(group, lambda: _plan_ranks(config, machines))
    plan = plans[group.rank]
    torch.set_num_threads(plan.threads)
    # Before anything else asks for CUDA, or every process would also take memory on the first GPU.
    for device in (plan.device, plan.store_device):
        if device is not None and device.startswith("cuda"):
            torch.cuda.set_device(device)
            break
    if options.resume:  # before text is prepared for a configuration that will be refused
        in_agreement(group, lambda: folder.check_same(config) if group.rank == 0 else None)
    task = in_agreement(group, lambda: make_task(config))
    model = in_agreement(group, task.build_model)
    if config.strategy.is_async:
        in_agreement(group, lambda: check_buffers(task, model) if group.rank == 0 else None)
    flat = FlatParameters(model, "cpu" if plan.worker is None else plan.device)
    goal = Goal(task.num_batches(), config.training.updates, config.training.seconds)
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
        observer=None,
        stop_requested=stop.notice,
        saved=None,
    )
    strategy.check(job)  # before the folder changes: what cannot run leaves nothing behind
    progress = Progress(goal, config.training.log_every_seconds, is_live=options.live_progress)
    in_agreement(group, lambda: _hold(folder, options, progress, holding) if group.rank == 0 else None)
    lost = ""
    if options.auto_resume:
        options, lost = _decide(group, folder, config, options)
    supply = Supply(task.fingerprint(), goal.num_batches)
    resumption = in_agreement(group, lambda: _open_folder(folder, config, options, supply) if group.rank == 0 else None)
    finished = None if resumption is None else folder.finished(config, resumption.saved, supply)
    if ended := json.loads(group.allgather(json.dumps(finished))[0]):
        if group.rank == 0:
            progress.say("finished before, and asked for no more: there is nothing to do")
        return ended if group.rank == 0 else {}
    saved = _agree_on_checkpoint(group, resumption, needs_tensors=plan.shard is not None or not config.strategy.is_async)
    own = this_software(device_of(plans[group.rank].device, plans[group.rank].store_device))
    software = [json.loads(text) for text in group.allgather(json.dumps(own))]
    batch_job = read_batch_job(environ)
    provenance = provenance_of(plans, software, batch_job)
    recorder = RunRecorder(folder, config, task, flat, progress, provenance=provenance) if group.rank == 0 else None
    if recorder is not None:
        remarks = [str(batch_job) if batch_job else "", lost, "" if resumption is None else resumption.remark]
        for line in [*filter(None, remarks), *task.describe_data()]:
            progress.say(line)
        for line in (describe(each, strategy.transport(plans, each.rank)) for each in plans):
            progress.say(line)
        if resumption is not None:
            folder.go_on(config)
            recorder.restore(resumption)
    job = dataclasses.replace(job, observer=recorder, saved=saved)
    steps_before = 0 if saved is None or plan.worker is None else _steps_of(saved.data, plan.worker)
    emulation = Emulation(config.emulation, plan.worker, config.seed, job.num_workers, steps_before)
    loop = TrainingLoop(task, model, flat, emulation, config.seed)
    return _Run(folder, job, loop, stop, progress, recorder)


def _agree_on_checkpoint(group: Group, resumption: Resumption | None, *, needs_tensors: bool) -> SavedState | None:
    """What rank 0 has chosen to go on from, on every rank: nobody else chooses, since a listing of a shared folder may be old.

    Those with `needs_tensors` check that they see the very same file. Collective.
    """
    chosen = None
    if resumption is not None:
        saved = resumption.saved
        chosen = [str(saved.folder), saved.checksum, saved.data["store"]]
    told = json.loads(group.allgather(json.dumps(chosen))[0])
    if told is None:
        return None
    folder, checksum, data = told
    saved = SavedData(pathlib.Path(folder), {"store": data}, checksum)
    in_agreement(group, lambda: _find_tensors(saved, group.rank) if needs_tensors else None)
    return SavedState(data, lambda part: load_tensors(saved, part))


def _find_tensors(saved: SavedData, rank: int) -> None:
    deadline = time.monotonic() + _LISTING_SECONDS
    while not saved.folder.is_dir():
        if time.monotonic() > deadline:
            raise CheckpointError(
                f"rank {rank}: {saved.folder}: no such folder here, expected the checkpoint that rank 0 goes on from; all"
                " ranks must see the same output folder"
            )
        time.sleep(0.5)  # a file system says nothing when its listing is renewed
    check_tensors(saved, f"rank {rank} sees another file than rank 0 does, perhaps an old copy of it; start again")


def _steps_of(store: Mapping[str, Any], worker: int) -> int:
    """Steps of `worker` that the state of a store knows of."""
    pending = sum(arrival["worker"] == worker for arrival in store["pending"])
    refused = sum(count for number, _, count in store["refused"] if number == worker)
    steps: int = store["applied"].get(str(worker), 0) + pending + refused
    return steps


def _meet(group: Group, environ: Mapping[str, str]) -> list[Machine]:
    """What every rank may use of its host, in the order of ranks. Collective."""
    check_world(read_environment(environ), group.rank, group.size)
    return [Machine.from_text(text) for text in group.allgather(this_machine().to_text())]


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
    if folder.config.exists():
        folder.remove_leftovers()  # of processes that died; one may have been about to replace the checkpoint


def _decide(group: Group, folder: RunFolder, config: RunConfig, options: TrainOptions) -> tuple[TrainOptions, str]:
    """`options` with what `auto_resume` means for `folder`, and on rank 0 what is lost, in words. Collective."""
    # Rank 0 decides, before it changes anything: others may see the files of a shared folder later than it does.
    beginning = Beginning(told_by_rank_0(group, lambda: folder.how_to_begin(config).value))
    lost = folder.describe_loss() if group.rank == 0 and beginning is Beginning.AGAIN else ""
    resume, overwrite = beginning is Beginning.RESUME, beginning is Beginning.AGAIN
    return dataclasses.replace(options, resume=resume, overwrite=overwrite), lost


def _open_folder(folder: RunFolder, config: RunConfig, options: TrainOptions, supply: Supply) -> Resumption | None:
    """Begin in `folder`, or choose what is gone on from. On rank 0, which holds the folder."""
    if not options.resume:
        folder.begin(config, overwrite=options.overwrite)
        return None
    resumption = folder.resume(config, supply, "--auto-resume" if options.auto_resume else "--resume")
    found = resumption.saved
    check_tensors(found, f"remove {found.folder} to resume from the one before it, if there is one")
    return resumption


@contextlib.contextmanager
def _aborting_on_failure(group: Group) -> Iterator[None]:
    """An exception on this rank ends all ranks at once, with this rank's message as the only one."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, OrphanedError):
            tell(group.rank, error)
            os._exit(error.exit_status)  # nobody is left to tell MPI's end to
        is_interrupt = isinstance(error, KeyboardInterrupt)
        if not is_interrupt and (group.size == 1 or (isinstance(error, HvdAsyncError) and error.is_on_all_ranks)):
            raise
        tell(group.rank, error)
        if isinstance(error, PeerError) and error.is_reported:
            time.sleep(_GRACE_SECONDS)  # the rank that failed is about to end the job, or its launcher is
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        group.abort(error.exit_status if isinstance(error, HvdAsyncError) else 130 if is_interrupt else 1)
