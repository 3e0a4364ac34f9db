"""A step that a process began which was killed in it is completed by another, to the last bit."""

from __future__ import annotations

import functools
import itertools
import mmap
import os
import random
import signal
import time

import pytest
import torch

from hvd_async.config import OptimizerConfig
from hvd_async.store.optimizers.factory import state_names
from hvd_async.store.optimizers.protocol import StepOrder
from hvd_async.store.pushed_gradient import Gradient
from hvd_async.store.shards.shard import KeptMemory, Shard
from hvd_async.vectors import arithmetic
from hvd_async.vectors.redo import REDO_BYTES, Redo, StepProgress

pytestmark = pytest.mark.skipif(not arithmetic.is_compiled(), reason="no C extension")

SIZE = 60 * arithmetic.BLOCK
CYCLE = 6
OPTIMIZERS = {
    "adam": {"kind": "adam", "average_decay": 0.9},
    "adamw": {"kind": "adamw", "weight_decay": 0.1},
    "nadam": {"kind": "nadam"},
    "momentum": {"kind": "sgd", "momentum": 0.9, "nesterov": True},
    "lion": {"kind": "lion"},
    "adagrad": {"kind": "adagrad"},
    "sgd": {"kind": "sgd"},
}
GROUPS = [
    slice(0, 20 * arithmetic.BLOCK),
    slice(20 * arithmetic.BLOCK, 50 * arithmetic.BLOCK),
    slice(50 * arithmetic.BLOCK, SIZE),
]


class Memory:
    """The memory of a shard, which this process and its children share."""

    def __init__(self, optimizer: OptimizerConfig) -> None:
        self._optimizer = optimizer
        self._blocks: dict[str, torch.Tensor] = {}

    def vector(self, name: str) -> torch.Tensor:
        """Return [SIZE] float32, zeros at first."""
        return self._block(name, 4 * SIZE).view(torch.float32)

    def shard(self, version: int, is_left: bool = False, sum_place: int | None = None) -> Shard:
        redo = Redo(self._block("redo", REDO_BYTES))
        return Shard(
            [self.vector("even"), self.vector("odd")],
            self._optimizer,
            version,
            ranges=GROUPS,
            allocate=self.vector,
            kept=KeptMemory(redo, self.vector("other"), is_left, sum_place),
        )

    def _block(self, name: str, num_bytes: int) -> torch.Tensor:
        if name not in self._blocks:
            self._blocks[name] = torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.uint8)
        return self._blocks[name]


def optimizer_of(name: str) -> OptimizerConfig:
    groups = [{"match": ["b"], "learning_rate": 0.5}, {"match": ["c"], "weight_decay": 0.25}]
    return OptimizerConfig.model_validate({**OPTIMIZERS[name], "groups": groups})


@functools.cache
def gradients(version: int) -> list[Gradient]:
    """Return those of `version`, one of `CYCLE`."""
    generator = torch.Generator().manual_seed(version)
    dtype = torch.float32 if version % 2 else torch.bfloat16
    return [Gradient(torch.randn(SIZE, generator=generator).to(dtype), 9.0) for _ in range(1 + version % 3)]


def step(shard: Shard, version: int) -> list[float]:
    for gradient in gradients(version % CYCLE):
        shard.add(gradient, 1.0)
    return shard.step(StepOrder(version, 0.5, 2.0, 0.75))


def state(shard: Shard, optimizer: OptimizerConfig) -> dict[str, torch.Tensor]:
    names = ["parameters", *(name for name in state_names(optimizer) if name != "pending_sum")]
    return {name: shard.read(name) for name in names}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("num_ranges", [1, 3])
def test_a_step_that_was_killed_is_completed(name: str, num_ranges: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Children make versions until they are killed; this process completes the version under way, and goes on."""

    def bounds(size: int) -> list[tuple[int, int]]:
        num_blocks = size // arithmetic.BLOCK
        return list(itertools.pairwise(num_blocks * k // num_ranges * arithmetic.BLOCK for k in range(num_ranges + 1)))

    monkeypatch.setattr(arithmetic, "_bounds", bounds)
    monkeypatch.setattr(arithmetic, "_in_threads", lambda works: [work() for work in works])
    optimizer, dice = optimizer_of(name), random.Random(name)
    memory, oracle = Memory(optimizer), Shard([torch.zeros(SIZE), torch.zeros(SIZE)], optimizer, ranges=GROUPS)
    memory.shard(0)
    made = torch.frombuffer(mmap.mmap(-1, 8), dtype=torch.int64)
    for each in range(CYCLE):  # before the forks
        gradients(each)
    version, begun_parts = 0, set()
    for _ in range(8):
        child = os.fork()
        if child == 0:
            shard = memory.shard(version, is_left=True)
            for following in itertools.count(version + 1):
                step(shard, following)
                made[0] = following
        while made[0] == version:
            time.sleep(0.0001)
        time.sleep(dice.uniform(0, 0.004))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        version = int(made[0])
        shard = memory.shard(version, is_left=True)
        redo = Redo(memory._block("redo", REDO_BYTES))
        if redo.progress.version == version + 1:
            begun_parts.add(redo.progress.part)
            partials = step(shard, version + 1)
            version += 1
            made[0] = version
        else:
            partials = []
        while oracle.version < version:
            expected = step(oracle, oracle.version + 1)
        assert not partials or partials == expected
        for key, value in state(oracle, optimizer).items():
            assert torch.equal(shard.read(key), value), (key, version, redo.progress)
    assert begun_parts, "no child was killed in a step"


def test_the_record_says_how_far_a_step_has_come() -> None:
    redo = Redo(torch.zeros(REDO_BYTES, dtype=torch.uint8))
    assert redo.progress == StepProgress(0, 0)
    first = redo.begin(StepProgress(3, 0), [(0, 10), (10, 20)])
    assert redo.under_way() == [(first[0], 10), (first[1], 20)]
    second = redo.begin(StepProgress(3, 1), [(0, 5)])
    assert redo.under_way() == [(second[0], 5)] and not set(first) & set(second)
    redo.end(3, 2)
    assert redo.progress == StepProgress(3, 2)
