"""The strategies, which all implement `protocol.Strategy`."""

from __future__ import annotations

import os
from typing import Literal

from hvd_async.cluster.environment import LIKE_TORCHRUN, TORCHRUN, LaunchedAs, read_environment
from hvd_async.errors import SetupError
from hvd_async.strategies.protocol import Strategy


def make_strategy(kind: Literal["single", "horovod", "ddp", "async"]) -> Strategy:
    """Return the strategy `kind`; start what it needs (MPI, Horovod) and nothing else. Collective over all ranks of the job.

    Raises `SetupError` if a package is missing or does not work, or the launcher cannot serve the strategy.
    """
    launched = read_environment(os.environ)
    if launched is not None and launched.size > 1 and (refusal := _refusal(kind, launched)):
        error = SetupError(f"strategy {kind}: {refusal}")
        error.is_on_all_ranks = True
        raise error
    if kind == "single":
        from hvd_async.strategies.single import Single

        return Single()
    if kind == "horovod":
        from hvd_async.strategies.horovod import Horovod

        return Horovod()
    if kind == "ddp":
        from hvd_async.strategies.ddp import Ddp

        return Ddp()
    from hvd_async.strategies.asynchronous import Asynchronous

    return Asynchronous()


def _refusal(kind: str, launched: LaunchedAs) -> str | None:
    """Return why the launcher cannot serve the strategy `kind`; None if it can, or MPI will tell."""
    if kind in ("horovod", "async") and launched.launcher in (TORCHRUN, LIKE_TORCHRUN):
        return (
            f"got {launched}, which starts no MPI, expected another launcher: type `hvd-async launch CONFIG"
            f" --workers {launched.size}`, or choose strategy.kind=ddp"
        )
    if kind == "ddp" and launched.launcher is LIKE_TORCHRUN:
        # Nothing would end the ranks that wait for one that has failed.
        return (
            f"got RANK={launched.rank} and WORLD_SIZE={launched.size} from another program than torchrun, expected torchrun,"
            " which ends all ranks when one fails: type `torchrun --nproc-per-node N -m hvd_async train CONFIG`, or"
            f" `hvd-async launch CONFIG --workers {launched.size}`; if they are left over: unset RANK WORLD_SIZE"
        )
    return None
