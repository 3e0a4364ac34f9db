"""The protocol on real ranks, with patterns that reveal a torn pull or a lost push: `python -m tests.mpi.patterns SIZE
STEPS`.

Every gradient is a constant vector and the optimizer is plain SGD, so that all elements of a version are equal; a pull
whose elements differ is torn. Gradients are -1, so that the sum of all pushed gradients is exact, and so is the mean of
any of them: on top of version v the provisional parameters are v + 1.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

import torch

from hvd_async.config import OptimizerConfig, ScheduleConfig, StrategyConfig
from hvd_async.store.arrival import Arrival, Refusal, Update
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.store.serve.client import ClientOptions, StoreClient
from hvd_async.store.serve.liveness import Heartbeat
from hvd_async.store.serve.server import ServerOptions, StoreServer
from hvd_async.store.shards.shard import Shard
from hvd_async.store.wire.layout import NUM_PROVISIONAL, Layout, Word
from hvd_async.store.wire.stop import StopNotice
from hvd_async.transport.bootstrap import MpiGroup, init_mpi
from hvd_async.transport.mpi import SharedMemory, open_blocks


class CountingObserver:
    """An observer that counts arrivals."""

    def __init__(self) -> None:
        self.num_arrivals = 0

    def started(self, store: ParameterStore) -> None: ...

    def received(self, arrivals: Sequence[Arrival]) -> None: ...

    def updating(self) -> None: ...

    def refused(self, arrival: Arrival, refusal: Refusal) -> None:
        raise AssertionError(refusal)

    def updated(self, update: Update) -> None:
        self.num_arrivals += len(update.arrivals)

    def evaluated(self, version: int, statistics: Sequence[float]) -> None: ...

    def num_evaluations_due(self) -> int:
        return 0

    def is_finished(self) -> bool:
        return False

    def ended(self, notice: StopNotice | None) -> None: ...

    def settle(self) -> None: ...

    def rescue(self, stop: StopNotice | None = None) -> bool:
        return True


def main(size: int, steps: int) -> None:
    torch.set_num_threads(1)
    group = MpiGroup(init_mpi())
    try:
        exercise(group, size, steps, StrategyConfig(kind="async", arrivals_per_update=2, reduction="sum", provisional=False))
        exercise(group, size, steps, StrategyConfig(kind="async", arrivals_per_update=4, provisional=True))
    except AssertionError:
        traceback.print_exc()
        group.abort(1)


def exercise(group: MpiGroup, size: int, steps: int, strategy: StrategyConfig) -> None:
    layout = Layout(size, group.size - 1, num_provisional=NUM_PROVISIONAL if strategy.provisional else 0)
    optimizer = OptimizerConfig(kind="sgd", learning_rate=1.0, schedule=ScheduleConfig(kind="constant"))
    with open_blocks(group, [layout], [0]) as (memory,):
        if group.rank == 0:
            assert isinstance(memory, SharedMemory)
            buffers = [memory.vector(layout.published_offset(number)) for number in range(layout.num_buffers)]
            provisional = [memory.vector(layout.provisional_offset(number)) for number in range(layout.num_provisional)]
            shard = Shard(buffers, optimizer, provisional=provisional)
            store, observer = ParameterStore(shard, size, optimizer, strategy, group.size - 1), CountingObserver()
            with Heartbeat(memory, Word.STORE_HEARTBEAT):
                StoreServer(store, memory, observer, ServerOptions()).serve(lambda: None)
            total = steps * (group.size - 1)
            assert observer.num_arrivals == total, (observer.num_arrivals, total)
            # SGD with rate 1 on gradients of -1: the parameters count the arrivals, or the versions.
            count = store.version if strategy.provisional else total
            assert torch.equal(store.parameters, torch.full((size,), float(count))), store.parameters
        else:
            client = StoreClient([memory], group.rank - 1, ClientOptions(pulls_provisional=strategy.provisional))
            client.join()
            parameters, seen, num_provisional = torch.full((size,), -1.0), -1, 0
            for _ in range(steps):
                version = client.pull(parameters)
                assert version >= seen, (version, seen)
                assert parameters.min() == parameters.max(), "torn pull"
                if strategy.provisional:
                    assert parameters[0] == version + (client.base.provisional > 0), client.base
                else:
                    # every update has two arrivals, except the last, which may have one
                    assert parameters[0] >= 2 * (version - 1)
                seen, num_provisional = version, num_provisional + (client.base.provisional > 0)
                client.push(torch.full((size,), -1.0), [Arrival(group.rank - 1, client.claim(), version, 1, 0.0)])
                if strategy.provisional:
                    client.wait_drained()
            client.leave()
            assert (num_provisional > 0) == strategy.provisional
        sys.stdout.write(f"rank {group.rank}: {memory.name}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
