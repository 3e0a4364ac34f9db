"""`hvd-async simulate`: a run in virtual time, whose gradients are computed in one process; its folder is that of an
ordinary run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hvd_async.config import RunConfig, keys_without_effect
from hvd_async.emulation.step_times import StepTimes
from hvd_async.errors import ConfigError
from hvd_async.runs.folder import RunFolder
from hvd_async.runs.progress import Goal, Progress
from hvd_async.runs.provenance import provenance_of_one_process
from hvd_async.runs.recorder import RunRecorder
from hvd_async.runs.recorder_context import RunContext
from hvd_async.runs.snapshots import read_snapshot
from hvd_async.runs.summary import Ending
from hvd_async.runs.validation_pace import in_versions, pace_text
from hvd_async.simulation.cluster import Cluster
from hvd_async.simulation.costs import costs, num_workers
from hvd_async.simulation.predict import DEFAULT_SECONDS
from hvd_async.simulation.real_replica import RealReplica
from hvd_async.simulation.real_store import Model, RealStore
from hvd_async.simulation.shared_state import Timing, World, make_clock
from hvd_async.simulation.synchronous_cluster import Synchronous
from hvd_async.system.long_work import told_if_long
from hvd_async.tasks.gradient import check_buffers, check_micro_batches, flatten
from hvd_async.tasks.metric import metric_of_score
from hvd_async.tasks.models import model_of
from hvd_async.tasks.task import PREPARING, Task
from hvd_async.vectors.threads import arithmetic_threads


@dataclass(frozen=True)
class SimulateOptions:
    """Options of the command line: replace the run in the folder; threads for arithmetic (1 computes the same bits on every
    machine); show progress as a live bar; the device of this machine (`cpu`, `cuda` or `cuda:INDEX`) that computes gradients and
    updates."""

    overwrite: bool = False
    threads: int = 1
    live_progress: bool = False
    device: str = "cpu"


def simulate(config: RunConfig, make_task: Callable[[RunConfig], Task], options: SimulateOptions) -> dict[str, Any]:
    """Run `config` on the cluster of its `simulation` section, compute every gradient, and return the summary of the run.

    On a CPU, the configuration and its seed determine the run to the last bit. Evaluations take no virtual time. Raises
    `ConfigError` for a configuration that names devices, for workers that do not exist, and for a folder that holds a run.
    """
    for key, device in (("training", config.training.device), ("store", config.store.device)):
        if device not in ("auto", "cpu"):
            raise ConfigError(
                f"{key}.device: got {device} in a simulation, expected auto or cpu; `--device` says where a simulation computes"
            )
    with arithmetic_threads(options.threads):
        return _simulate(config, make_task, options)


def _simulate(config: RunConfig, make_task: Callable[[RunConfig], Task], options: SimulateOptions) -> dict[str, Any]:
    workers = num_workers(config)
    times = StepTimes(config.emulation, config.seed, workers, default=DEFAULT_SECONDS)
    clock = make_clock(config, times, workers)
    with told_if_long(PREPARING):
        task = make_task(config)
        num_batches = task.num_batches()
    config, asked = in_versions(config, task, workers), config
    metric_of_score(config.validation.score, task.metrics)  # before the folder is made
    check_micro_batches(task, config.strategy)
    module = model_of(task)
    if config.strategy.is_async:
        check_buffers(task, module)
    flat = flatten(module, config.optimizer, options.device)
    goal = Goal(num_batches, config.training.updates, config.training.seconds)
    model = Model(task, module.train(), flat, config.seed, RunFolder(config.output))
    progress = Progress(goal, config.training.log_every_seconds, task.weight_unit, is_live=options.live_progress)
    timing = Timing(costs(config, config.simulation.parameters or flat.size), times, clock)
    if options.overwrite:
        model.folder.check_place()
    else:
        model.folder.check_vacant()  # at once, even if another process is at work there
    with model.folder.locked(progress.say):
        model.folder.begin(config, overwrite=options.overwrite, is_simulated=True)
        for line in [*keys_without_effect(config), *task.describe_data(), *pace_text(asked, config)]:
            progress.say(line)
        with _told_if_interrupted(progress, config):
            return _record(config, timing, model, goal, progress, options.device)


def _record(config: RunConfig, timing: Timing, model: Model, goal: Goal, progress: Progress, device: str) -> dict[str, Any]:
    """Compute and record the run, and return its summary."""
    folder, prices = model.folder, timing.costs
    provenance = provenance_of_one_process(prices.node_workers(config), device)
    context = RunContext(folder, config, model.task, model.flat, progress, timing.clock.read, provenance, is_simulated=True)
    with RunRecorder(context) as recorder:
        with progress.showing():
            _train(config, timing, model, recorder, goal)
            recorder.end_training(is_complete=True)
        for version in recorder.snapshots_to_evaluate():
            recorder.evaluated(version, model.evaluate(version, read_snapshot(folder, version)))
        status = "finished early" if recorder.is_out_of_patience() else "finished"
        num_steps = recorder.metrics.staleness.total() + recorder.metrics.refused.total()
        return recorder.conclude(Ending(status, prices.num_workers, num_steps))


@contextmanager
def _told_if_interrupted(progress: Progress, config: RunConfig) -> Iterator[None]:
    """Say what an interruption inside the block leaves, and what computes the rest."""
    try:
        yield
    except KeyboardInterrupt:
        progress.say(
            f"interrupted: {config.output} holds the run up to here; simulations do not resume, --overwrite computes it anew"
        )
        raise


def _train(config: RunConfig, timing: Timing, model: Model, recorder: RunRecorder, goal: Goal) -> None:
    num_workers = timing.costs.num_workers
    if config.strategy.is_async:
        store = RealStore(config, model, num_workers, recorder, goal.last_version)
        recorder.started(store.store)
        cluster = Cluster(World(config, timing, store), goal.num_batches)
        store.watch(cluster.versions_in_use)
        cluster.run()
    else:
        replica = RealReplica(config, model, num_workers, recorder, goal.last_version, goal.num_batches)
        recorder.started(replica.store)
        Synchronous(timing.costs, timing.times, replica, timing.clock).run()
