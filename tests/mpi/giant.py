"""Send a slot of more than 2^31 bytes there and back: `python -m tests.mpi.giant SIZE STEPS` on two ranks, a store and
a worker.
"""

from __future__ import annotations

import sys
import time
import traceback

import torch

from hvd_async.config import OptimizerConfig, ScheduleConfig, StrategyConfig
from hvd_async.store.arrival import Arrival
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.store.serve.client import ClientOptions, StoreClient
from hvd_async.store.serve.liveness import Heartbeat
from hvd_async.store.serve.server import ServerOptions, StoreServer
from hvd_async.store.shards.shard import Shard
from hvd_async.store.wire.layout import Layout, Word
from hvd_async.transport.bootstrap import MpiGroup, init_mpi
from hvd_async.transport.mpi import SharedMemory, open_blocks
from tests.mpi.patterns import CountingObserver

# Values repeat after a prime number of elements, so that no two pieces of a transfer look alike. Sums of a few are
# exact.
PERIOD = 65_521
_PIECE = PERIOD * 256


def fill(vector: torch.Tensor, factor: float) -> None:
    """Set element i to `factor` * (i % PERIOD), except the last three: `factor` * (-1, -2, -3)."""
    pattern = torch.arange(PERIOD, dtype=torch.float32).repeat(256) * factor
    for start in range(0, vector.numel(), _PIECE):
        piece = vector[start : start + _PIECE]
        piece.copy_(pattern[: piece.numel()])
    vector[-3:] = torch.tensor([-1.0, -2.0, -3.0]) * factor


def check(vector: torch.Tensor, factor: float) -> None:
    """Check that `vector` holds what `fill` wrote; the error names the first element that differs."""
    pattern = torch.arange(PERIOD, dtype=torch.float32).repeat(256) * factor
    assert vector[-3:].tolist() == [-factor, -2 * factor, -3 * factor], vector[-3:]
    for start in range(0, vector.numel() - 3, _PIECE):
        piece = vector[start : min(start + _PIECE, vector.numel() - 3)]
        wrong = (piece != pattern[: piece.numel()]).nonzero()
        assert not len(wrong), f"element {start + int(wrong[0])}: {piece[wrong[0]]}"


def main(size: int, steps: int) -> None:
    torch.set_num_threads(1)
    group = MpiGroup(init_mpi())
    try:
        exercise(group, size, steps)
    except BaseException:
        traceback.print_exc()
        group.abort(1)


def exercise(group: MpiGroup, size: int, steps: int) -> None:
    layout = Layout(size, 1, num_buffers=2)
    optimizer = OptimizerConfig(kind="sgd", learning_rate=1.0, schedule=ScheduleConfig(kind="constant"))
    strategy = StrategyConfig(kind="async", arrivals_per_update=1, reduction="sum")
    with open_blocks(group, [layout], [0], timeout_seconds=300.0) as (memory,):
        if group.rank == 0:
            assert isinstance(memory, SharedMemory)
            buffers = [memory.vector(layout.published_offset(number)) for number in range(2)]
            store = ParameterStore(Shard(buffers, optimizer, allocate=unused), size, optimizer, strategy, 1)
            with Heartbeat(memory, Word.STORE_HEARTBEAT):
                StoreServer(store, memory, CountingObserver(), ServerOptions()).serve(lambda: None)
            assert store.version == steps
            check(store.parameters, -float(steps))
            return
        client = StoreClient([memory], 0, ClientOptions(store_timeout_seconds=300.0))
        client.join()
        vector = torch.empty(size)
        assert client.pull(vector) == 0 and vector.count_nonzero() == 0
        for step in range(steps):
            # One vector serves as gradient and as parameters, because memory is short.
            fill(vector, 1.0)
            begin = time.monotonic()
            client.push(vector, [Arrival(0, step, step, 1, 0.0)])
            client.wait_drained()
            assert client.pull(vector) == step + 1
            seconds = time.monotonic() - begin
            check(vector, -float(step + 1))
            sys.stdout.write(f"{memory.name}: {4 * size} bytes there and back in {seconds:.1f} s\n")
        client.leave()


def unused(name: str) -> torch.Tensor:
    """Fail: the vector is the pending sum, which one arrival per update never needs."""
    assert name == "pending_sum"
    return torch.empty(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
