"""The synchronous baseline: Horovod's allreduce, started for each gradient as soon as backward has computed it.

Only this module imports `horovod`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NoReturn

import torch

from hvd_async.cluster.topology import RankPlan
from hvd_async.errors import SetupError
from hvd_async.strategies import synchronous
from hvd_async.strategies.protocol import Job, JobSpec, Session
from hvd_async.system.extras import install_command
from hvd_async.transport.bootstrap import init_mpi, report_failure, reported_failure
from hvd_async.transport.group import messages_of
from hvd_async.vectors.flat import FlatParameters

_HINT = (
    f"{install_command('horovod')} compiles it, with the settings under Install in the README; `async`, `ddp` and `single` work"
    " without it"
)


class Horovod(synchronous.WithReplica):
    """Ranks that sum their gradients with Horovod, over MPI (mpirun, horovodrun --mpi) or Gloo (horovodrun --gloo)."""

    name = "horovod"

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        """Initialise Horovod, and MPI before it unless Gloo is the controller. Collective over all ranks.

        Raises `SetupError` if Horovod is missing or was built for another torch or MPI.
        """
        try:
            import horovod.torch as hvd
        except (ImportError, OSError) as error:
            reason = " ".join(str(error).split())
            raise SetupError(f"strategy horovod: Horovod cannot be loaded ({reason}); {_HINT}") from None
        self._comm = None
        if environ.get("HOROVOD_CONTROLLER") != "gloo":
            if not hvd.mpi_built():
                raise SetupError(f"strategy horovod: this Horovod is built without MPI; {_HINT}; horovodrun --gloo works")
            # Before Horovod, which would otherwise finalize MPI because it had initialised it. Horovod's own thread polls MPI.
            self._comm = init_mpi(waiting_threads=2)
        hvd.init()
        self.group = _HorovodGroup(hvd, self._comm)

    def session(self, job: Job) -> AbstractContextManager[Session]:
        return synchronous.session(job, self.group, HorovodAllReduce(self.group.hvd))

    def remarks(self, spec: JobSpec) -> Sequence[str]:
        return ()

    def transport(self, plans: Sequence[RankPlan], rank: int) -> str:
        return "Horovod over Gloo" if self._comm is None else "Horovod over MPI"

    def close(self) -> None:
        self.group.hvd.shutdown()


class HorovodAllReduce:
    """Sums gradients during backward. Every tensor gets a name, since automatic names depend on the order of calls."""

    def __init__(self, hvd: Any) -> None:
        """`hvd`: the initialised module horovod.torch."""
        self._hvd = hvd
        self._handles: list[int] = []

    def attach(self, model: torch.nn.Module, flat: FlatParameters) -> torch.nn.Module:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                hook: Any = parameter.register_post_accumulate_grad_hook  # untyped in torch
                hook(self._begin(name))
        return model

    def reduce(self, flat: FlatParameters) -> None:
        for handle in self._handles:
            self._hvd.synchronize(handle)
        self._handles.clear()
        flat.collect_gradient()

    def reduce_vector(self, vector: torch.Tensor) -> None:
        self._hvd.allreduce_(vector, name="gradient", op=self._hvd.Sum)

    def gather(self, numbers: Sequence[float]) -> list[list[float]]:
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
        mine = torch.frombuffer(bytearray(text.encode() + b"\n"), dtype=torch.uint8)  # never empty, which Horovod refuses
        sizes = self.hvd.allgather(torch.tensor([len(mine)]), name="allgather.sizes").tolist()
        ends = list(itertools.accumulate(sizes, initial=0))
        received = bytes(self.hvd.allgather(mine, name="allgather.text").tolist())
        return [received[a : b - 1].decode() for a, b in itertools.pairwise(ends)]

    def broadcast(self, tensor: torch.Tensor) -> None:
        for part in messages_of(tensor):
            self.hvd.broadcast_(part, root_rank=0, name="broadcast")

    def take_lost(self) -> list[int]:
        return []

    def report_failure(self, status: int, text: str) -> bool:
        """Report a failure to rank 0 over MPI. Return False under Gloo, which has only collective calls."""
        if self._comm is not None:
            report_failure(self._comm, status, text)
        return self._comm is not None

    def reported_failure(self) -> tuple[int, str] | None:
        return None if self._comm is None else reported_failure(self._comm)

    def abort(self, status: int) -> NoReturn:
        """End all ranks; under Gloo, end this rank, after which the launcher ends the others."""
        if self._comm is not None:
            self._comm.Abort(status)
        os._exit(status)
