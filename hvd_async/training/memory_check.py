"""A check that the hosts have the memory for what a strategy keeps of a model, made before any of it is allocated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hvd_async.cluster.topology import RankPlan
from hvd_async.errors import HvdAsyncError
from hvd_async.strategies.protocol import Strategy
from hvd_async.transport.capacity import Need, check_capacity


def check_memory(strategy: Strategy, plan: RankPlan, size: int, needs: Callable[[], Sequence[Need]]) -> None:
    """Raise `HvdAsyncError`, with the arithmetic, on all ranks if a host has too little memory for vectors of `size` elements.
    Collective over the ranks of `strategy`.

    `plan`: that of this rank, whose model is made: its parameters will move into their vector, so that only the gradient comes on
    top. `needs()`: what this rank needs besides. Memory for activations, and for data, is not counted.
    """
    has_gradient = plan.worker is not None and plan.device == "cpu"
    gradient = [Need("the model's gradient", 4 * size, False)] if has_gradient else []
    try:
        check_capacity(strategy.group, plan.host, [*gradient, *needs()], hint=strategy.less_memory)
    except HvdAsyncError as error:
        error.is_on_all_ranks = True  # all ranks compute the same result
        raise
