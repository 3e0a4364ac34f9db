"""A check that the hosts have the memory for a model and for what a strategy keeps, made before any of it is allocated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hvd_async.cluster.topology import RankPlan
from hvd_async.errors import HvdAsyncError
from hvd_async.strategies.memory_plan import needs_of_model
from hvd_async.strategies.protocol import Strategy
from hvd_async.transport.capacity import Need, check_capacity


def check_memory(
    strategy: Strategy, plan: RankPlan, size: int, needs: Callable[[int], Sequence[Need]], *, is_made: bool
) -> None:
    """Raise `HvdAsyncError`, with the arithmetic, on all ranks if a host has too little memory for a model of `size` trained
    elements. Collective over the ranks of `strategy`.

    `plan`: that of this rank. `needs(size)`: what this rank needs besides the model. `is_made`: whether the model is there, but
    not yet its vectors of parameters and gradients. Memory for activations, and for data, is not counted.
    """
    model = needs_of_model(plan, size)
    made = [] if is_made else [Need("the model as it is made", 4 * size, False)]
    try:
        for wanted in ([*model, *needs(size)], [*made, *model]):
            check_capacity(strategy.group, plan.host, wanted, hint=strategy.less_memory)
    except HvdAsyncError as error:
        error.is_on_all_ranks = True  # all ranks compute the same result
        raise
