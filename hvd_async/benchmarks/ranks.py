"""Benchmarks on real ranks: the start of the ranks, and the part of each rank."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hvd_async.benchmarks.measurement import BenchFigure
from hvd_async.benchmarks.options import Options, own_cores
from hvd_async.benchmarks.report import BenchMachine, Result, read_results
from hvd_async.cluster.mpi_family import detect_mpi
from hvd_async.cluster.topology import Machine as RankMachine
from hvd_async.cluster.topology import this_machine
from hvd_async.errors import HvdAsyncError
from hvd_async.launcher import LaunchOptions, RankLayout, mpirun_command
from hvd_async.system import interpreter
from hvd_async.system.failure_message import tell
from hvd_async.system.processes import Command, run_command

if TYPE_CHECKING:
    from hvd_async.transport.bootstrap import MpiGroup


@dataclasses.dataclass(frozen=True)
class BenchRank:
    """This rank among those of a benchmark. `machines[r]`: what rank r may use of its host; rank 0 is the store."""

    group: MpiGroup
    machines: tuple[RankMachine, ...]

    @property
    def rank(self) -> int:
        """Number of this rank."""
        return self.group.rank

    @property
    def num_workers(self) -> int:
        """Number of ranks besides the store."""
        return self.group.size - 1

    @property
    def is_near(self) -> tuple[bool, ...]:
        """Whether each rank shares a host with the store."""
        return tuple(machine.host == self.machines[0].host for machine in self.machines)


def start_ranks(benchmark: str, arguments: tuple[str, ...], num_ranks: int, threads: int) -> tuple[int, list[Result]]:
    """Run `benchmark` in `num_ranks` processes of this machine under mpirun; return its exit status and its results.

    Blocks until it ends; signals are forwarded. Ranks that fail print their own errors.
    """
    with tempfile.TemporaryDirectory(prefix="hvd-async-bench-") as folder:
        path = Path(folder) / "results.json"
        program = (sys.executable, *interpreter.flags(), "-m", "hvd_async", "bench", benchmark, *arguments)
        program += ("--json", str(path), "--table", "none")
        command = ranks_command(program, RankLayout.of_ranks(num_ranks, own_cores()), threads, _mpirun_options())
        status = run_command(command, os.environ).status
        return status, read_results(path) if status == 0 else []


def ranks_command(program: tuple[str, ...], layout: RankLayout, threads: int, options: LaunchOptions) -> Command:
    """Return the mpirun command line for `program` in the ranks of `layout`. Pure."""
    return mpirun_command(program, layout, options, {"OMP_NUM_THREADS": str(threads)})


def _mpirun_options() -> LaunchOptions:
    # The MPI of this environment, even if the environment is not activated.
    beside_python = Path(sys.executable).parent / "mpirun"
    mpirun = str(beside_python) if beside_python.exists() else shutil.which("mpirun") or "mpirun"
    return LaunchOptions(mpi=detect_mpi(mpirun), mpirun=mpirun, as_root=os.geteuid() == 0)


def run_as_rank(
    benchmark: str,
    measure: Callable[[BenchRank, Options], list[BenchFigure]],
    options: Options,
) -> Result | None:
    """Run this rank's part of `benchmark`; return the result on rank 0, None elsewhere. Collective over all ranks, at least
    two.

    `measure` is called on every rank and returns the figures that this rank measured. A rank that fails ends all ranks.
    """
    from hvd_async.transport.bootstrap import MpiGroup, init_mpi

    load = os.getloadavg()[0]
    group = MpiGroup(init_mpi())
    with _aborting_on_failure(group):
        place = BenchRank(group, tuple(map(RankMachine.from_text, group.allgather(this_machine().to_text()))))
        mine = measure(place, options)
        gathered = group.allgather(json.dumps([figure.to_json() for figure in mine]))
    if group.rank != 0:
        return None
    from hvd_async.transport.probe import library_name  # late: needs an initialised MPI

    machine = dataclasses.replace(
        BenchMachine.here(library_name(), len({each.host for each in place.machines})), load=round(load, 2)
    )
    figures = tuple(BenchFigure.from_json(data) for text in gathered for data in json.loads(text))
    return Result(benchmark, machine, options, figures)


@contextlib.contextmanager
def _aborting_on_failure(group: MpiGroup) -> Iterator[None]:
    """Abort all ranks on an exception on this rank: the other ranks would wait for it."""
    try:
        yield
    except BaseException as error:
        tell(group.rank, error)
        group.abort(error.exit_status if isinstance(error, HvdAsyncError) else 1)
