"""Setup of a run on one rank, in named steps."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hvd_async.cluster.batch_system import read_batch_job
from hvd_async.cluster.environment import check_world, read_environment
from hvd_async.cluster.topology import Machine, RankPlan, assign_roles, count_workers, describe, placement_of, this_machine
from hvd_async.config import RunConfig, keys_without_effect
from hvd_async.emulation.idling import Emulation, check_emulation
from hvd_async.errors import ConfigError
from hvd_async.runs.checkpoint import check_tensors, list_checkpoints, way_out
from hvd_async.runs.continuation import Supply
from hvd_async.runs.folder import Beginning, Resumption, RunFolder
from hvd_async.runs.progress import Goal, Progress
from hvd_async.runs.provenance import Provenance, device_of, provenance_of, this_software
from hvd_async.runs.recorder import RunRecorder
from hvd_async.runs.recorder_context import RunContext
from hvd_async.runs.snapshots import read_snapshot
from hvd_async.runs.validation_pace import in_versions, pace_text
from hvd_async.store.optimizers.factory import check_optimizer
from hvd_async.store.parameter_store import RateFactor
from hvd_async.store.wire.layout import MAX_STATISTICS
from hvd_async.strategies.protocol import EvaluationPlan, Job, JobSize, JobSpec, SavedState, Strategy
from hvd_async.system.launch_page import tell_keeper
from hvd_async.system.long_work import told_if_long
from hvd_async.tasks.gradient import check_buffers, check_micro_batches, lay_out
from hvd_async.tasks.metric import metric_of_score
from hvd_async.tasks.models import model_of
from hvd_async.tasks.task import PREPARING, ReadsAhead, Task
from hvd_async.training.agreement import in_agreement, told_by_rank_0
from hvd_async.training.loop import TrainingLoop
from hvd_async.training.memory_check import check_memory
from hvd_async.training.options import TrainOptions
from hvd_async.training.resume import agree_on_checkpoint, steps_of
from hvd_async.training.stop_request import StopRequest
from hvd_async.transport.capacity import Need
from hvd_async.transport.group import Group
from hvd_async.vectors.flat import FlatParameters, VectorPlan


@dataclass(frozen=True)
class Start:
    """Inputs of the setup of a run on this rank. `rate_factor`, `reduces_at_step`: see `JobSpec`."""

    config: RunConfig
    make_task: Callable[[RunConfig], Task]
    options: TrainOptions
    strategy: Strategy
    environ: Mapping[str, str]
    stop: StopRequest
    plans: tuple[RankPlan, ...]
    rate_factor: RateFactor | None = None
    reduces_at_step: bool = False

    @property
    def group(self) -> Group:
        """All ranks of the job."""
        return self.strategy.group

    @property
    def folder(self) -> RunFolder:
        """The run's folder."""
        return RunFolder(self.config.output)


@dataclass(frozen=True)
class Workload:
    """Subject of training: the task, its model, the model's parameters as one vector, and the goal."""

    task: Task
    model: torch.nn.Module
    flat: FlatParameters
    goal: Goal


@dataclass(frozen=True)
class Opened:
    """The run's folder, locked and ready. `resumption` and `remarks` (lines to print) are on rank 0 alone. `finished` is the
    summary of a run that has ended and needs no more training (empty on other ranks), else None."""

    resumption: Resumption | None
    remarks: Sequence[str]
    finished: dict[str, Any] | None


@dataclass(frozen=True)
class Ready:
    """The parts of a run on this rank, ready to train; `recorder` is on rank 0 alone."""

    folder: RunFolder
    job: Job
    loop: TrainingLoop
    stop: StopRequest
    progress: Progress
    recorder: RunRecorder | None

    @property
    def flat(self) -> FlatParameters:
        """The model's parameters."""
        return self.job.flat

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """End the task's processes, if there are any, after the block; a context manager."""
        task = self.loop.task
        try:
            yield
        finally:
            if isinstance(task, ReadsAhead):
                task.close()


@dataclass(frozen=True)
class Finished:
    """A run that has ended and needs no more training: its `summary` (empty on ranks other than 0) and its `workload`."""

    summary: dict[str, Any]
    workload: Workload

    @property
    def flat(self) -> FlatParameters:
        """The model's parameters."""
        return self.workload.flat


def set_up(start: Start, holding: contextlib.ExitStack) -> Ready | Finished:
    """Make everything ready, unless the run has ended and needs no more training. Collective.

    On rank 0, `holding` keeps the lock of the run's folder.
    """
    plans = start.plans
    plan = plans[start.group.rank]
    _claim_processors(plan)
    rank = start.group.rank
    # Checks memory before the folder changes, so that a job that cannot run leaves nothing behind.
    with told_if_long(PREPARING) if rank == 0 else contextlib.nullcontext():
        workload = make_workload(
            start, plan, lambda vector: start.strategy.needs(JobSize.of(start.config, plans, vector), rank)
        )
    asked = start.config
    if asked.validation.every_epochs is not None:
        paced = in_agreement(start.group, lambda: in_versions(asked, workload.task, count_workers(plans)))
        start = dataclasses.replace(start, config=paced)
    spec = describe_job(start, plans, workload)
    progress = Progress(
        workload.goal,
        start.config.training.log_every_seconds,
        workload.task.weight_unit,
        is_live=start.options.live_progress,
    )
    opened = _open_folder(start, workload, progress, holding)
    if opened.finished is not None:
        return Finished(opened.finished, workload)
    needs_tensors = plan.shard is not None or not start.config.strategy.is_async
    saved = agree_on_checkpoint(start.group, opened.resumption, needs_tensors=needs_tensors)
    provenance = _gather_provenance(start, plans)
    recorder = _make_recorder(start, workload, progress, opened, provenance) if start.group.rank == 0 else None
    if recorder is not None:
        _introduce(start, spec, workload, progress, opened)
        for line in pace_text(asked, start.config):
            progress.say(line)
    loop = _make_loop(start, plans, workload, saved)
    job = spec.with_state(recorder, saved)
    if recorder is not None:

        def invite(invitation: Mapping[str, Any]) -> None:
            of_task = {"fingerprint": workload.task.fingerprint(), "is_measured": bool(workload.task.metrics)}
            start.folder.write_invitation({**invitation, **of_task})
            tell_keeper(start.environ, start.folder.root)

        job = dataclasses.replace(job, invite=invite)
    return Ready(start.folder, job, loop, start.stop, progress, recorder)


def plan_ranks(group: Group, config: RunConfig, environ: Mapping[str, str]) -> tuple[RankPlan, ...]:
    """Give every rank its role, device and threads; every rank computes the same plan. Collective."""
    launched = read_environment(environ)
    if config.strategy.is_single and launched is not None and launched.size > 1:
        error = ConfigError(
            f"strategy {config.strategy.kind}: got {launched.size} processes of {launched.launcher.name}, expected one; choose"
            " strategy async, horovod or ddp"
        )
        error.is_on_all_ranks = True
        raise error
    check_world(launched, group.rank, group.size)
    machines = [Machine.from_text(text) for text in group.allgather(this_machine().to_text())]

    def plan() -> tuple[RankPlan, ...]:
        plans = assign_roles(machines, placement_of(config))
        check_emulation(config.emulation, count_workers(plans))
        config.strategy.check_num_workers(count_workers(plans))
        return plans

    return in_agreement(group, plan)


def _claim_processors(plan: RankPlan) -> None:
    """Set the threads and the GPU of this rank."""
    torch.set_num_threads(plan.threads)
    # Before any other use of CUDA; otherwise every process would also take memory on the first GPU.
    for device in (plan.device, plan.store_device):
        if device is not None and device.startswith("cuda"):
            torch.cuda.set_device(device)
            break


def make_workload(start: Start, plan: RankPlan, needs: Callable[[VectorPlan], Sequence[Need]]) -> Workload:
    """Make the task, its model and its vectors, if there is memory for `needs` of them (see `check_memory`). Collective."""
    group, config, folder = start.group, start.config, start.folder
    if start.options.resume:  # before data is prepared for a configuration that will be refused
        in_agreement(group, lambda: folder.check_same(config, start.options.resume_words) if group.rank == 0 else None)
    task = in_agreement(group, lambda: start.make_task(config))
    in_agreement(group, lambda: _check_measures(task, config))
    if config.task.kind != "script":  # where the key has no effect, and says so
        in_agreement(group, lambda: check_micro_batches(task, config.strategy) if group.rank == 0 else None)
    model = in_agreement(group, lambda: model_of(task))
    if config.strategy.is_async:
        in_agreement(group, lambda: check_buffers(task, model) if group.rank == 0 else None)
    in_agreement(group, lambda: check_optimizer(config.optimizer))
    vector = in_agreement(group, lambda: lay_out(model, config.optimizer))
    check_memory(start.strategy, plan, vector.size, lambda: needs(vector))
    trains = plan.worker is not None
    flat = in_agreement(group, lambda: FlatParameters(model, plan.device if trains else "cpu", vector, trains))
    return Workload(task, model, flat, Goal(task.num_batches(), config.training.updates, config.training.seconds))


def _check_measures(task: Task, config: RunConfig) -> None:
    """Raise `ConfigError` if `task` measures too much, or not the score that `config` names."""
    metric_of_score(config.validation.score, task.metrics)
    if task.num_statistics > MAX_STATISTICS:
        raise ConfigError(f"metrics: got {task.num_statistics} sums in an evaluation, expected at most {MAX_STATISTICS}")


def describe_job(start: Start, plans: Sequence[RankPlan], workload: Workload) -> JobSpec:
    """Return the job of the strategy."""
    config, folder = start.config, start.folder
    every = (config.validation.every_during or 0) if workload.task.metrics else 0
    return JobSpec(
        strategy=config.strategy,
        store=config.store,
        push=config.push,
        optimizer=config.optimizer,
        plans=plans,
        model=workload.model,
        flat=workload.flat,
        num_batches=workload.goal.num_batches,
        epoch_of=workload.task.epoch_of,
        last_version=workload.goal.last_version,
        evaluation=EvaluationPlan(every, lambda version: read_snapshot(folder, version)),
        stop_requested=start.stop.notice,
        rate_factor=start.rate_factor,
        num_batches_ahead=workload.task.num_batches_ahead if isinstance(workload.task, ReadsAhead) else 0,
        reduces_at_step=start.reduces_at_step,
    )


def _open_folder(start: Start, workload: Workload, progress: Progress, holding: contextlib.ExitStack) -> Opened:
    """Lock the folder, and begin a run in it or choose the checkpoint to resume from, all on rank 0. Collective."""
    group, config, options, folder = start.group, start.config, start.options, start.folder
    in_agreement(group, lambda: _hold(folder, options, progress, holding) if group.rank == 0 else None)
    lost = ""
    if options.auto_resume:
        options, lost = _decide(group, folder, config, options)
    supply = Supply(workload.task.fingerprint(), workload.goal.num_batches)
    resumption = in_agreement(group, lambda: _begin(folder, config, options, supply) if group.rank == 0 else None)
    finished = None if resumption is None else folder.finished(config, resumption.saved, supply)
    ended = json.loads(group.allgather(json.dumps(finished))[0])
    if ended and group.rank == 0:
        progress.say("finished before, and no more training is configured: nothing to do")
    resumed = "" if resumption is None else f"resumes at version {resumption.saved.data['store']['version']:,}"
    remarks = [line for line in (lost, resumed, "" if resumption is None else resumption.remark) if line]
    return Opened(resumption, remarks, (ended if group.rank == 0 else {}) if ended else None)


def _hold(folder: RunFolder, options: TrainOptions, progress: Progress, holding: contextlib.ExitStack) -> None:
    """Keep other jobs, and other starts of this job, out of `folder` while `holding` is open. On rank 0."""
    if options.resume:
        folder.check_is_run()  # before the lock, which would create the folder
    holding.enter_context(folder.locked(progress.say))
    if folder.config.exists():
        folder.remove_leftovers()  # of dead processes, one of which may have been about to replace the checkpoint


def _decide(group: Group, folder: RunFolder, config: RunConfig, options: TrainOptions) -> tuple[TrainOptions, str]:
    """Return `options` with `auto_resume` resolved for `folder`, and on rank 0 a description of the loss. Collective."""
    # Rank 0 decides, before it changes anything: other ranks may see the files of a shared folder later.
    beginning = Beginning(told_by_rank_0(group, lambda: folder.how_to_begin(config).value))
    lost = folder.describe_loss() if group.rank == 0 and beginning is Beginning.AGAIN else ""
    resume, overwrite = beginning is Beginning.RESUME, beginning is Beginning.AGAIN
    return dataclasses.replace(options, resume=resume, overwrite=overwrite), lost


def _begin(folder: RunFolder, config: RunConfig, options: TrainOptions, supply: Supply) -> Resumption | None:
    """Begin in `folder`, or choose the checkpoint to resume from. On rank 0, which holds the folder."""
    if not options.resume:
        folder.begin(config, overwrite=options.overwrite)
        return None
    resumption = folder.resume(config, supply, options.resume_words)
    found = resumption.saved
    earlier = [path for path in list_checkpoints(folder.checkpoints) if path < found.folder]
    check_tensors(found, way_out(found.folder, earlier))
    return resumption


def _gather_provenance(start: Start, plans: Sequence[RankPlan]) -> Provenance:
    """Return the hosts, devices and software of the run. Collective."""
    plan = plans[start.group.rank]
    own = this_software(device_of(plan.device, plan.store_device))
    software = [json.loads(text) for text in start.group.allgather(json.dumps(own))]
    return provenance_of(plans, software, read_batch_job(start.environ))


def _make_recorder(
    start: Start, workload: Workload, progress: Progress, opened: Opened, provenance: Provenance
) -> RunRecorder:
    """Return the recorder of the run, restored if the run is resumed. On rank 0."""
    folder = start.folder
    recorder = RunRecorder(RunContext(folder, start.config, workload.task, workload.flat, progress, provenance=provenance))
    if opened.resumption is not None:
        folder.prepare_resume(start.config)
        recorder.restore(opened.resumption)
    return recorder


def _introduce(start: Start, spec: JobSpec, workload: Workload, progress: Progress, opened: Opened) -> None:
    """Print the batch job, keys without effect, any loss, the data, and the place of every rank before training. On rank 0."""
    batch_job = read_batch_job(start.environ)
    places = (describe(each, start.strategy.transport(spec.plans, each.rank)) for each in spec.plans)
    optimizer = start.config.optimizer
    of_optimizer = []
    if optimizer.kind == "torch":
        of_optimizer = [
            f"optimizer: torch.optim.{optimizer.torch_class} on the store's vectors, slower than the store's own updates"
        ]
    if optimizer.kind == "muon":
        matrices = len(workload.flat.map.matrices)
        of_optimizer = [
            f"optimizer: muon updates {matrices} matrices, adamw the other {len(workload.flat.pieces) - matrices} tensors"
        ]
    remarks = [*opened.remarks, *keys_without_effect(start.config), *start.strategy.remarks(spec), *of_optimizer]
    for line in [*([str(batch_job)] if batch_job else []), *remarks, *workload.task.describe_data(), *places]:
        progress.say(line)


def _make_loop(start: Start, plans: Sequence[RankPlan], workload: Workload, saved: SavedState | None) -> TrainingLoop:
    """Return the loop of this rank's worker, whose emulated steps continue the sequence of earlier processes."""
    config, worker = start.config, plans[start.group.rank].worker
    num_workers = count_workers(plans)
    steps_before = 0 if saved is None or worker is None else steps_of(saved.data, worker)
    emulation = Emulation(config.emulation, worker, config.seed, num_workers, steps_before)
    return TrainingLoop(
        workload.task, workload.model, workload.flat, emulation, config.seed, start.folder, config.strategy.num_micro_batches
    )
