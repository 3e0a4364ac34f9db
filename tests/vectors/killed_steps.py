"""Kill a process that makes steps, again and again, and complete them in this one.

    python -m tests.vectors.killed_steps NUM_RANGES

A program of its own, since it forks: threads that other tests have started would leave locks behind in its children.
"""

from __future__ import annotations

import functools
import itertools
import mmap
import os
import random
import signal
import sys
import time

import torch

from hvd_async.config import OptimizerConfig
from hvd_async.store.optimizers.factory import state_names
from hvd_async.store.optimizers.protocol import StepOrder
from hvd_async.store.pushed_gradient import Gradient
from hvd_async.store.shards.shard import KeptMemory, Shard
from hvd_async.vectors import arithmetic
from hvd_async.vectors.redo import REDO_BYTES, Redo
from hvd_async.vectors.vector_map import VectorMap

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
        return self.block(name, 4 * SIZE).view(torch.float32)

    def shard(self, version: int, is_left: bool = False, sum_place: int | None = None) -> Shard:
        redo = Redo(self.block("redo", REDO_BYTES))
        return Shard(
            [self.vector("even"), self.vector("odd")],
            self._optimizer,
            version,
            vector_map=VectorMap(tuple(GROUPS)),
            allocate=self.vector,
            kept=KeptMemory(redo, self.vector("other"), is_left, sum_place),
        )

    def block(self, name: str, num_bytes: int) -> torch.Tensor:
        """Return [num_bytes] uint8, zeros at first."""
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


def kill_and_complete(name: str, num_ranges: int) -> None:
    """Let children make versions until they are killed; complete the version under way here, and go on."""
    optimizer, dice = optimizer_of(name), random.Random(name)
    memory, oracle = (
        Memory(optimizer),
        Shard([torch.zeros(SIZE), torch.zeros(SIZE)], optimizer, vector_map=VectorMap(tuple(GROUPS))),
    )
    memory.shard(0)
    made = torch.frombuffer(mmap.mmap(-1, 8), dtype=torch.int64)
    version, begun_parts = 0, set()
    for _ in range(12):
        child = os.fork()
        if child == 0:
            try:
                shard = memory.shard(version, is_left=True)
                for following in itertools.count(version + 1):
                    step(shard, following)
                    made[0] = following
            finally:
                os._exit(1)
        while made[0] == version and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.0001)
        assert made[0] > version, "the child has ended by itself"
        time.sleep(dice.uniform(0, 0.004))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        version = int(made[0])
        shard, partials = memory.shard(version, is_left=True), []
        progress = Redo(memory.block("redo", REDO_BYTES)).progress
        if progress.version == version + 1:
            begun_parts.add(progress.part)
            partials = step(shard, version + 1)
            version += 1
            made[0] = version
        while oracle.version < version:
            expected = step(oracle, oracle.version + 1)
        assert not partials or partials == expected
        for key, value in state(oracle, optimizer).items():
            assert torch.equal(shard.read(key), value), (name, key, version, progress)
    assert begun_parts, "no child was killed in a step"


def main() -> None:
    """Try all optimizers."""
    num_ranges = int(sys.argv[1])
    torch.set_num_threads(1)

    def bounds(size: int, most: int | None = None) -> list[tuple[int, int]]:
        num_blocks = size // arithmetic.BLOCK
        return list(itertools.pairwise(num_blocks * k // num_ranges * arithmetic.BLOCK for k in range(num_ranges + 1)))

    arithmetic._bounds = bounds
    arithmetic._in_threads = lambda works: [work() for work in works]
    for each in range(CYCLE):  # before the forks
        gradients(each)
    for name in OPTIMIZERS:
        kill_and_complete(name, num_ranges)
        print(name)


if __name__ == "__main__":
    main()
