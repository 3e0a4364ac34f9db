"""The command line of horovodrun: pure text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hvd_async.errors import SetupError
from hvd_async.launcher.options import LaunchOptions
from hvd_async.launcher.rank_environment import mpi_environment
from hvd_async.launcher.rank_layout import RankLayout
from hvd_async.system.processes import Command


def horovodrun_command(
    program: Sequence[str], layout: RankLayout, options: LaunchOptions, environment: Mapping[str, str]
) -> Command:
    """Return the command that runs `program` in the ranks of `layout`. Raises `SetupError` if horovodrun cannot."""
    if any(place.component for place in layout.places):
        raise SetupError("horovodrun does not know the components of a heterogeneous Slurm job; use --launcher srun")
    variables = {**environment, **mpi_environment(layout, options)}
    variables |= {} if options.path is None else {"PATH": options.path}
    where = () if layout.is_local else ("-H", layout.hosts_and_slots())
    if options.launcher == "horovodrun-gloo":
        # Otherwise the ranks of a single host would listen on an interface that other hosts can reach.
        controller: tuple[str, ...] = ("--gloo", *(("--network-interfaces", "lo") if layout.is_local else ()))
    elif options.mpi == "mpich":
        raise SetupError(
            "horovodrun --mpi does not know MPICH 5 (it reads 'HYDRA' and stops); use mpirun or horovodrun --gloo"
        )
    elif options.mpi == "intel":
        raise SetupError("horovodrun --mpi: got Intel MPI, with which it is untested; use mpirun or horovodrun --gloo")
    else:
        # Without binding arguments from us, horovodrun passes some that Open MPI 5 no longer understands.
        controller = ("--mpi", "--binding-args=--bind-to none --map-by slot:OVERSUBSCRIBE")
    argv = (options.horovodrun, "-np", str(layout.num_ranks), *controller, *where, *options.extra, *program)
    return Command(argv, variables, options.unset)
