"""A process that joins a run under way: `hvd-async join`."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

import torch

from hvd_async.cluster.topology import assign_roles, placement_of, this_machine
from hvd_async.config import RunConfig, ScriptConfig, load_config
from hvd_async.emulation.idling import Emulation
from hvd_async.errors import ConfigError, DataError, SetupError
from hvd_async.runs.folder import RunFolder
from hvd_async.runs.status import read_status
from hvd_async.strategies.invitation import Invitation
from hvd_async.strategies.joining import joined_session, reach_store, role_of
from hvd_async.strategies.memory_plan import MemoryPlan
from hvd_async.strategies.protocol import Job, SavedState
from hvd_async.strategies.single import Single
from hvd_async.tasks.task import ReadsAhead, Task
from hvd_async.training.loop import TrainingLoop
from hvd_async.training.options import TrainOptions
from hvd_async.training.setup import Start, describe_job, make_workload
from hvd_async.training.stop_request import StopRequest


@dataclass(frozen=True)
class JoinOptions:
    """Options of a process that joins. `wait_seconds`: how long it waits for a free place; `device`: as `training.device`,
    None: as the run's configuration says; `trusts_task`: the code that `task.factory` names may be run."""

    wait_seconds: float = 0.0
    device: str | None = None
    trusts_task: bool = False


def join(
    folder: pathlib.Path,
    make_task: Callable[[RunConfig], Task],
    options: JoinOptions,
    stop: StopRequest,
    say: Callable[[str], None] = print,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Train as one more worker of the run in `folder`, which is under way, until it ends, or `stop` asks to leave.

    `stop` listens already. Lines for the user go to `say`. Raises `DataError` or `SetupError` if the run cannot be joined, and
    `PeerError` if it fails.
    """
    run = RunFolder(folder)
    if not run.invitation.exists():
        raise DataError(f"{folder}: {_why_closed(run)}")
    try:
        invitation = Invitation.from_json(run.read_invitation())
    except SetupError as error:
        raise SetupError(f"{run.invitation}: {error}") from None
    if not invitation.is_open:
        raise SetupError(f"{folder}: got a run with push.node_sum, expected one without: it takes no workers later")
    overrides = [] if options.device is None else [f"training.device={options.device}"]
    config = load_config(run.config, overrides, {"training.device": "--device"})
    _check_task(run, config, options)
    device = assign_roles([this_machine()], dataclasses.replace(placement_of(config), kind="single", num_shards=1))[0].device
    threads = min(plan.threads for plan in invitation.plans if plan.worker is not None)
    torch.set_num_threads(threads)
    me = role_of(invitation, 0, device, threads, socket.gethostname())
    start = Start(config, make_task, TrainOptions(), Single(), environ, stop, invitation.plans)
    workload = make_workload(start, me, lambda size: ())
    if workload.task.fingerprint() != invitation.fingerprint:
        raise SetupError(f"{folder}: got other training data than those of the run, expected the same files")
    saved = None if invitation.ledger is None else SavedState({"ledger": invitation.ledger}, _no_tensors)
    spec = dataclasses.replace(describe_job(start, invitation.plans, workload), stop_requested=lambda: None)
    job: Job = dataclasses.replace(spec.with_state(None, saved), leave_requested=lambda: stop.notice() is not None)
    access = reach_store(invitation, MemoryPlan(job.sized).layouts, config.strategy.store_timeout_seconds)
    try:
        worker = access.wait_for_place(options.wait_seconds)
        stop.defer()
        me = dataclasses.replace(me, worker=worker)
        emulation = Emulation(config.emulation, worker, config.seed, max(job.num_workers, worker + 1))
        loop = TrainingLoop(
            workload.task, workload.model, workload.flat, emulation, config.seed, run, config.strategy.num_micro_batches
        )
        say(f"joins {folder} as worker {worker}, {device}, {threads} thread{'s' if threads > 1 else ''}")
        with joined_session(job, me, access.windows) as session:
            if session.worker is not None:
                loop(session.worker, session.module)
    finally:
        access.close()
        if isinstance(workload.task, ReadsAhead):
            workload.task.close()
    notice = stop.notice()
    say(
        f"worker {worker} has {'left' if notice is not None else 'ended with'} {folder} after {emulation.num_steps:,} batches"
    )


def _why_closed(run: RunFolder) -> str:
    """Return what is in a folder without an invitation, and what would have one."""
    if fault := run.fault():
        return f"{fault}, expected the folder of a run that trains at the moment"
    if not (status := read_status(run.root)).is_under_way:
        return f"got a run that is {status.state}, expected one that trains at the moment"
    config = load_config(run.config)
    if isinstance(config.task, ScriptConfig):
        return "got the run of a script, whose loop cannot be joined; expected one with a task"
    if not config.strategy.is_async:
        return f"got a run of strategy {config.strategy.kind}, expected async: others take no workers later"
    return (
        "got no run that can be joined, expected one that has begun to train, with all of the store in the memory of one host,"
        " and without push.node_sum"
    )


def _check_task(run: RunFolder, config: RunConfig, options: JoinOptions) -> None:
    if isinstance(config.task, ScriptConfig):
        raise ConfigError(f"{run.config}: task.kind: got script, expected a task; a loop of its own cannot be joined")
    run.check_trusted(config, trusts_task=options.trusts_task)


def _no_tensors(part: slice | None) -> NoReturn:
    raise AssertionError("a worker reads no state of the store")
