"""The synchronous baseline: Horovod's allreduce, begun for each gradient as soon as backward has made it.

`horovod` is imported here alone.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch

from hvd_async.cluster.topology import RankPlan
from hvd_async.errors import SetupError
from hvd_async.store.wire.stop import StopNotice
from hvd_async.strategies import synchronous
from hvd_async.strategies.protocol import Job, JobSpec, Worker
from hvd_async.transport.bootstrap import init_mpi, report_failure, reported_failure
from hvd_async.vectors.flat import FlatParameters

_MEND = "launch/setup.sh builds it (its log says why it could not); `async`, `ddp` and `single` work without it"


class Horovod:
    """Ranks that sum their gradients with Horovod, over MPI (mpirun, horovodrun --mpi) or Gloo (horovodrun --gloo)."""

    name = "horovod"

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        """Initialises Horovod, and MPI before it unless Gloo controls. Collective over all ranks.

        Raises `SetupError` where Horovod is missing or does not fit the torch or MPI at hand.
        """
        try:
            import horovod.torch as hvd
        except (ImportError, OSError) as error:
            reason = " ".join(str(error).split())
            raise SetupError(f"strategy horovod: Horovod cannot be loaded ({reason}); {_MEND}") from None
        self._comm = None
        if environ.get("HOROVOD_CONTROLLER") != "gloo":
            if not hvd.mpi_built():
                raise SetupError(f"strategy horovod: this Horovod is built without MPI; {_MEND}; horovodrun --gloo works")
            self._comm = init_mpi()  # whoever initialises MPI finalizes it, and that must not be Horovod
        hvd.init()
        self.group = _HorovodGroup(hvd, self._comm)

    def check(self, spec: JobSpec) -> None:
        """See `Strategy.check`."""

    def execute(self, job: Job, loop: Callable[[Worker, torch.nn.Module], None]) -> StopNotice | None:
        """See `Strategy.execute`."""
        return synchronous.execute(job, self.group, HorovodAllReduce(self.group.hvd), loop)

    def transport(self, plans: Sequence[RankPlan], rank: int) -> str:
        """See `Strategy.transport`."""
        return "Horovod over Gloo" if self._comm is None else "Horovod over MPI"

    def close(self) -> None:
        """See `Strategy.close`."""
        self.group.hvd.shutdown()


class HorovodAllReduce:
    """Sums gradients while backward goes on. Every tensor is named, since automatic names depend on the order of calls."""

    def __init__(self, hvd: Any) -> None:
        """`hvd`: the initialised module horovod.torch."""
        self._hvd = hvd
        self._handles: list[int] = []

    def attach(self, model: torch.nn.Module, flat: FlatParameters) -> torch.nn.Module:
        """See `AllReduce.attach`."""
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                hook: Any = parameter.register_post_accumulate_grad_hook  # torch gives it no types
                hook(self._begin(name))
        return model

    def reduce(self, flat: FlatParameters) -> None:
        """See `AllReduce.reduce`."""
        for handle in self._handles:
            self._hvd.synchronize(handle)
        self._handles.clear()
        flat.collect_gradient()

    def gather(self, numbers: Sequence[float]) -> list[list[float]]:
        """See `AllReduce.gather`."""
        row = torch.tensor([list(numbers)], dtype=torch.float64)
        table: list[list[float]] = self._hvd.allgather(row, name=f"numbers.{len(numbers)}").tolist()
        return table

    def _begin(self, name: str) -> Callable[[torch.Tensor], None]:
        def begin(parameter: torch.Tensor) -> None:
            self._handles.append(self._hvd.allreduce_async_(parameter.grad, name=f"gradient.{name}", op=self._hvd.Sum))

        return begin


class _HorovodGroup:
    """Horovod's ranks as a `Group`."""

    def __init__(self, hvd: Any, comm: Any) -> None:
        self.hvd = hvd
        self.rank = int(hvd.rank())
        self.size = int(hvd.size())
        self._comm = comm

    def allgather(self, text: str) -> list[str]:
        """See `Group.allgather`."""
        mine = torch.frombuffer(bytearray(text.encode() + b"\n"), dtype=torch.uint8)  # never empty: Horovod refuses that
        sizes = self.hvd.allgather(torch.tensor([len(mine)]), name="allgather.sizes").tolist()
        ends = list(itertools.accumulate(sizes, initial=0))
        received = bytes(self.hvd.allgather(mine, name="allgather.text").tolist())
        return [received[a : b - 1].decode() for a, b in itertools.pairwise(ends)]

    def report_failure(self, status: int) -> bool:
        """See `Group.report_failure`. Under Gloo there is no way beside the collective calls."""
        if self._comm is not None:
            report_failure(self._comm, status)
        return self._comm is not None

    def reported_failure(self) -> int | None:
        """See `Group.reported_failure`."""
        return None if self._comm is None else reported_failure(self._comm)

    def abort(self, status: int) -> NoReturn:
        """See `Group.abort`. Under Gloo the launcher ends the other ranks when one has gone."""
        if self._comm is not None:
            self._comm.Abort(status)
        os._exit(status)
