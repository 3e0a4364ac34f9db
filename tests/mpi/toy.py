"""A training job small enough for a test, on real ranks: the program that `run_toy` starts on each of them.

    python -m tests.mpi.toy SETTINGS      SETTINGS: a JSON list of `Settings`, run one after another

It calls `hvd_async.training.run.train`, the function behind the command line, with a task of a few numbers.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import math
import os
import pathlib
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from hvd_async.config import RunConfig, parse_config
from hvd_async.errors import HvdAsyncError
from hvd_async.runs.recorder import RunRecorder
from hvd_async.store.serve.client import StoreClient
from hvd_async.store.serve.server import StoreServer
from hvd_async.store.shards.shard_server import ShardServer
from hvd_async.system.process_state import children_of
from hvd_async.tasks.metric import Metric
from hvd_async.training.options import TrainOptions
from hvd_async.training.run import train
from hvd_async.vectors import arithmetic
from tests.trees import changed

FEATURES, CLASSES = 6, 3
# The second is the share of points that are classified right, in %, under a name that a configuration accepts.
METRICS = (Metric("loss", "loss"), Metric("bleu", "BLEU", digits=1, is_higher_better=True))
BATCHES_PER_EPOCH = 30
PAUSE_SECONDS = 3.0
_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class Fault:
    """A fault on `rank` at its `step`-th step (0, 1, ...), counted in versions for the store and in orders for another
    shard.

    `write`: strike not at that step, but before that write (0, 1, ...) of the push that follows it; for the store, before that
    write or piece of arithmetic. `chunk`: strike before that message of the gradient to a store on another host, or, at -1, some
    time while the messages are under way.
    """

    rank: int
    step: int
    kind: str  # nan, exception, error, pause, hold, orphan, or a signal such as sigterm
    write: int | None = None
    chunk: int | None = None
    in_evaluation: bool = False  # strike at the `step`-th evaluation instead
    in_shard: bool = False  # on a rank that also trains: strike in its shard, at an order

    @property
    def is_in_step(self) -> bool:
        """Whether a worker's step brings it, if the rank trains."""
        return not (self.in_evaluation or self.in_shard)


@dataclass(frozen=True)
class Settings:
    """Settings that `run_toy` passes to every rank."""

    config: dict[str, Any]
    num_batches: int | None = 30
    faults: list[dict[str, Any]] = field(default_factory=list)
    uneven: int | None = None  # seed of random extra work per step
    resume: bool = False
    dropout: float = 0.2
    hidden: int = 8
    point_weight: float = 1.0  # of each point in the loss
    slow_disk: float = 0.0  # seconds that rank 0 waits for every file
    file_bytes: int | None = None  # the largest file that rank 0 may write
    delays: int | None = None  # seed of random pauses before and after every access to a window
    has_accuracy: bool = False  # whether evaluations also give the share of points that are classified right


class ToyTask:
    """A classification task on random points; batch `i` is a function of `i`."""

    weight_unit = "points"

    def __init__(self, settings: Settings, rank: int) -> None:
        self._settings = settings
        self._rank = rank
        self._faults = [Fault(**fault) for fault in settings.faults]
        strategy = settings.config.get("strategy", {})
        has_store_ranks = strategy.get("kind", "async") == "async" and strategy.get("placement") != "colocated"
        first = settings.config.get("store", {}).get("shards", 1) if has_store_ranks else 0  # rank that trains
        self._awaited = [fault for fault in self._faults if fault.is_in_step and fault.rank >= first and fault.rank != rank]
        self._steps = 0
        self._evaluations = 0
        self._random = None if settings.uneven is None else random.Random(f"{settings.uneven} {rank}")

    def build_model(self) -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            return torch.nn.Sequential(
                torch.nn.Linear(FEATURES, self._settings.hidden),
                torch.nn.Tanh(),
                torch.nn.Dropout(self._settings.dropout),
                torch.nn.Linear(self._settings.hidden, CLASSES),
            )

    def fingerprint(self) -> str:
        return "toy"

    def describe_data(self) -> list[str]:
        return []

    def num_batches(self) -> int | None:
        return self._settings.num_batches

    def batch(self, index: int, device: torch.device | str) -> Any:
        generator = torch.Generator().manual_seed(index)
        size = 3 + index % 5
        points = torch.randn(size, FEATURES, generator=generator)
        return points.to(device), (points.sum(1) > 0).long().to(device)

    def micro_batches(self, index: int, number: int, device: torch.device | str) -> list[Any]:
        points, classes = self.batch(index, device)
        return [(points[start::number], classes[start::number]) for start in range(min(number, len(classes)))]

    def epoch_of(self, index: int) -> int:
        return index // BATCHES_PER_EPOCH

    def weight(self, batch: Any) -> float:
        return len(batch[1]) * self._settings.point_weight

    def loss(self, model: torch.nn.Module, batch: Any) -> tuple[torch.Tensor, float]:
        points, classes = batch
        loss = torch.nn.functional.cross_entropy(model(points), classes, reduction="sum") * self._settings.point_weight
        if self._random is not None:
            for _ in range(self._random.randrange(400)):
                torch.randn(50, 50).sum()
        self._let_faults_come()
        for fault in self._faults:
            if (fault.rank, fault.step) == (self._rank, self._steps) and fault.is_in_step:
                self._trace(fault).touch()
                if fault.chunk is not None:
                    arm_transfer(fault)
                elif fault.write is not None:
                    arm_push(fault)
                else:
                    loss = happen(fault, loss)
        self._steps += 1
        return loss, self.weight(batch)

    def _let_faults_come(self) -> None:
        """Wait for ranks that have not come to the step of their fault, though this one has: a slow rank would find no batch."""
        hang_seconds = self._settings.config.get("strategy", {}).get("hang_timeout_seconds", math.inf)
        deadline = time.monotonic() + min(_PATIENCE_SECONDS, hang_seconds / 3)  # this is a part of a step
        for fault in [*self._awaited]:
            while fault.step < self._steps and time.monotonic() < deadline and not self._trace(fault).exists():
                time.sleep(0.005)
            if fault.step < self._steps:
                self._awaited.remove(fault)  # it has come, or will not

    def _trace(self, fault: Fault) -> pathlib.Path:
        return pathlib.Path(f"{self._settings.config['output']}.{fault.rank}-{fault.step}")

    def recomputed_buffers(self, model: torch.nn.Module) -> tuple[str, ...]:
        return ()

    @property
    def metrics(self) -> Sequence[Metric]:
        return METRICS if self._settings.has_accuracy else METRICS[:1]

    num_statistics = 3

    def scores(self, statistics: Sequence[float]) -> dict[str, float]:
        loss_sum, num_points, num_right = statistics
        found = {"loss": loss_sum / num_points}
        return {**found, "bleu": 100 * num_right / num_points} if self._settings.has_accuracy else found

    def evaluate(self, model: torch.nn.Module, shard: int = 0, num_shards: int = 1) -> Sequence[float]:
        was_training = model.training
        model.eval()
        for fault in self._faults:
            if (fault.rank, fault.step) == (self._rank, self._evaluations) and fault.in_evaluation:
                happen(fault, torch.zeros(()))
        self._evaluations += 1
        loss_sum, num_points, num_right = 0.0, 0, 0
        with torch.no_grad():
            for index in range(1000, 1008)[shard::num_shards]:
                points, classes = self.batch(index, next(model.parameters()).device)
                logits = model(points)
                loss_sum += float(torch.nn.functional.cross_entropy(logits, classes, reduction="sum"))
                num_points += len(classes)
                num_right += int((logits.argmax(1) == classes).sum())
        model.train(was_training)
        return [loss_sum, num_points, num_right]

    def export(
        self, folder: pathlib.Path, named_tensors: Mapping[str, torch.Tensor], version: int, scores: Mapping[str, float]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        validation = {f"validation_{name}": score for name, score in scores.items()}
        (folder / "exported.json").write_text(json.dumps({"version": version, "names": sorted(named_tensors), **validation}))


def happen(fault: Fault, loss: torch.Tensor) -> torch.Tensor:
    """Cause `fault`, and leave a trace of it for the test."""
    sys.stderr.write(f"fault {fault.kind} fired on rank {fault.rank} at {fault.step}\n")
    sys.stderr.flush()
    if fault.kind == "nan":
        return loss * float("nan")
    if fault.kind == "exception":
        raise ZeroDivisionError("injected")
    if fault.kind == "error":
        raise HvdAsyncError("injected error")
    if fault.kind == "pause":
        time.sleep(PAUSE_SECONDS)
        return loss
    if fault.kind == "hold":  # Python's lock, as C code may
        ctypes.PyDLL(None).usleep(int(1e6 * PAUSE_SECONDS))
        return loss
    if fault.kind == "orphan":  # the process that started the ranks dies
        os.kill(os.getppid(), signal.SIGKILL)
        return loss
    if (
        fault.kind == "node"
    ):  # all processes that one of mpirun's helpers has started on a host, and this helper, as in a power failure
        helper = os.getppid()
        for process in {*(children_of(helper) or ()), helper} - {os.getpid()}:
            os.kill(process, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), getattr(signal, fault.kind.upper()))
    return loss


def arm_push(fault: Fault) -> None:
    """Cause `fault` before write number `fault.write` of the next push of this process."""
    push, writes = StoreClient.push, itertools.count()

    def before_write(_: object, *arguments: object) -> None:
        if next(writes) == fault.write:
            happen(fault, torch.zeros(()))

    def push_and_fail(client: StoreClient, *arguments: Any) -> None:
        # The gradient itself is the first write: into the mapped slot, or by `put`.
        hook(arithmetic, "copy_and_measure", before_write)
        for name in ("put", "store", "store_words"):
            hook(type(client._window), name, before_write)
        push(client, *arguments)

    StoreClient.push = push_and_fail  # type: ignore[method-assign]


def arm_transfer(fault: Fault) -> None:
    """Cause `fault` before message number `fault.chunk` of the next transfer of this process to another host."""
    from hvd_async.transport import remote_memory

    divide, send = remote_memory.chunks_of, remote_memory.RemoteMemory._send

    def divide_and_fail(data: Any) -> Iterator[Any]:
        for number, chunk in enumerate(divide(data)):
            if number == fault.chunk:
                happen(fault, torch.zeros(()))
            yield chunk

    def send_and_fail(memory: remote_memory.RemoteMemory[Any], *arguments: Any) -> Any:
        remote_memory.chunks_of = divide_and_fail  # type: ignore[assignment]
        messages = send(memory, *arguments)
        if fault.chunk == -1:
            threading.Timer(0.001, happen, (fault, torch.zeros(()))).start()
        return messages

    remote_memory.RemoteMemory._send = send_and_fail  # type: ignore[method-assign]


@contextlib.contextmanager
def short_chunks() -> Iterator[None]:
    """Let transfers to another host travel in messages of 1 MiB; all ranks need it."""
    from hvd_async.transport import progress

    before, progress.CHUNK_BYTES = progress.CHUNK_BYTES, 1 << 20
    try:
        yield
    finally:
        progress.CHUNK_BYTES = before


def arm_store(fault: Fault, server: StoreServer) -> None:
    """Cause `fault` before write number `fault.write` of this process to the store's memory."""
    writes = itertools.count()

    def before_write(*_: object, **options: object) -> None:
        if next(writes) == fault.write:
            happen(fault, torch.zeros(()))

    for owner, names in ((type(server._memory), ("store", "store_words")), (arithmetic, ("step", "sum_inputs"))):
        for name in names:
            hook(owner, name, before_write)


def hook(owner: Any, name: str, before: Callable[..., None], after: Callable[..., None] | None = None) -> None:
    """Call `before` and `after` around every call of `owner.name`, with its arguments."""
    original = getattr(owner, name)

    def hooked(*arguments: Any, **options: Any) -> Any:
        before(*arguments)
        result = original(*arguments, **options)
        if after is not None:
            after(*arguments)
        return result

    setattr(owner, name, hooked)


@contextlib.contextmanager
def delayed_windows(seed: int, rank: int) -> Iterator[None]:
    """Pause at random before and after each load, store and copy of this rank, mostly briefly."""
    from hvd_async.transport.mpi import SharedMemory
    from hvd_async.transport.remote_memory import RemoteMemory

    pace = random.Random(f"{seed} {rank}")

    def pause(*_: object) -> None:
        draw = pace.random()
        if draw < 0.02:
            time.sleep(0.002 * pace.random())
        elif draw < 0.2:
            time.sleep(0)

    names = ("load", "store", "store_words", "load_words", "fetch_add", "put", "get", "mapped")
    saved = [(kind, name, getattr(kind, name)) for kind in (SharedMemory, RemoteMemory) for name in names]
    for kind, name, _ in saved:
        hook(kind, name, pause, pause)
    try:
        yield
    finally:
        for kind, name, original in saved:
            setattr(kind, name, original)


@contextlib.contextmanager
def armed_store(settings: Settings) -> Iterator[None]:
    """Cause the faults of a dedicated store when it has published the version `step`."""
    faults = [Fault(**fault) for fault in settings.faults if fault["rank"] == 0]
    publish = StoreServer._publish

    def publish_and_fail(server: StoreServer) -> None:
        publish(server)
        for fault in faults:
            if fault.step == server._store.version and fault.write is None:
                happen(fault, torch.zeros(()))
            elif fault.step == server._store.version:
                arm_store(fault, server)

    StoreServer._publish = publish_and_fail  # type: ignore[method-assign]
    try:
        yield
    finally:
        StoreServer._publish = publish  # type: ignore[method-assign]


@contextlib.contextmanager
def armed_shard(settings: Settings, rank: int) -> Iterator[None]:
    """Cause the faults of another shard before it carries out its order number `step`."""
    is_colocated = settings.config["strategy"].get("placement") == "colocated"
    faults = [fault for each in settings.faults if (fault := Fault(**each)).rank == rank and fault.in_shard == is_colocated]
    carry_out, orders = ShardServer._carry_out, itertools.count()

    def carry_out_and_fail(server: ShardServer, order: Any) -> None:
        number = next(orders)
        for fault in faults:
            if fault.step == number:
                happen(fault, torch.zeros(()))
        carry_out(server, order)

    ShardServer._carry_out = carry_out_and_fail  # type: ignore[method-assign]
    try:
        yield
    finally:
        ShardServer._carry_out = carry_out  # type: ignore[method-assign]


def make_config(output: pathlib.Path, **sections: Any) -> dict[str, Any]:
    """Return a configuration for the toy: `sections` are merged over small defaults."""
    tree: dict[str, Any] = {
        "output": str(output),
        "task": {"data": {"folder": "unused"}},
        "optimizer": {"learning_rate": 0.05, "epsilon": 1e-6},
        "training": {"epochs": 1, "device": "cpu", "tensorboard": False},
        "strategy": {"provisional": False},  # exact traces consist of versions, unless a test asks for more
    }
    return changed(tree, sections)


def main() -> int:
    from hvd_async.cluster.environment import read_environment

    launched = read_environment(os.environ)
    rank = 0 if launched is None else launched.rank
    for fields in json.loads(sys.argv[1]):
        settings = Settings(**fields)
        for section in settings.config.values():  # JSON has turned the numbers of workers into strings
            if isinstance(section, dict) and "slow_workers" in section:
                section["slow_workers"] = {int(worker): factor for worker, factor in section["slow_workers"].items()}
        config: RunConfig = parse_config(settings.config, source="toy")
        is_store = config.strategy.kind == "async" and config.strategy.placement == "dedicated" and rank == 0
        task = ToyTask(settings, rank)
        with contextlib.ExitStack() as stack:
            if is_store:
                stack.enter_context(armed_store(settings))
            if rank == 0 and settings.slow_disk:
                hook(os, "fsync", lambda _, seconds=settings.slow_disk: time.sleep(seconds))
            if rank == 0 and settings.file_bytes is not None:  # after MPI has opened its own files
                limits = (settings.file_bytes, settings.file_bytes)
                hook(RunRecorder, "started", lambda *_, limits=limits: resource.setrlimit(resource.RLIMIT_FSIZE, limits))
            if any(fault.get("chunk") is not None for fault in settings.faults):
                stack.enter_context(short_chunks())
            if config.store.shards > 1 and rank > 0:
                stack.enter_context(armed_shard(settings, rank))
            if settings.delays is not None:
                stack.enter_context(delayed_windows(settings.delays, rank))
            train(config, lambda _, task=task: task, TrainOptions(resume=settings.resume))
    return 0


def settings_text(settings: Sequence[Settings]) -> str:
    return json.dumps([asdict(each) for each in settings])


if __name__ == "__main__":
    from hvd_async.__main__ import report

    sys.exit(report(main))
