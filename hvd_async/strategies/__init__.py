"""The strategies, which all implement `protocol.Strategy`."""

from __future__ import annotations

import os
from typing import Literal

from hvd_async.cluster.environment import TORCHRUN, read_environment
from hvd_async.errors import SetupError
from hvd_async.strategies.protocol import Strategy


def make_strategy(kind: Literal["single", "horovod", "ddp", "async"]) -> Strategy:
    """Return the strategy `kind`; start what it needs (MPI, Horovod) and nothing else. Collective over all ranks of the job.

    Raises `SetupError` if a package is missing or does not work, or the launcher cannot serve the strategy.
    """
    launched = read_environment(os.environ)
    if kind in ("horovod", "async") and launched is not None and launched.launcher is TORCHRUN and launched.size > 1:
        error = SetupError(
            f"strategy {kind}: got torchrun, which starts no MPI, expected another launcher: type `hvd-async launch CONFIG"
            f" --workers {launched.size}`, or choose strategy.kind=ddp"
        )
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
