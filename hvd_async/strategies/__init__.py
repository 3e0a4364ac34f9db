"""The strategies, which all implement `protocol.Strategy`."""

from __future__ import annotations

from typing import Literal

from hvd_async.strategies.protocol import Strategy


def make_strategy(kind: Literal["single", "horovod", "ddp", "async"]) -> Strategy:
    """Return the strategy `kind`; start what it needs (MPI, Horovod) and nothing else. Collective over all ranks of the job.

    Raises `SetupError` if a package is missing or does not work.
    """
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
