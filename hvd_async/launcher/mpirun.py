"""The command line of mpirun: pure text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hvd_async.errors import SetupError
from hvd_async.launcher.options import LaunchOptions
from hvd_async.launcher.rank_environment import mpi_environment
from hvd_async.launcher.rank_layout import RankLayout
from hvd_async.system.processes import Command


def mpirun_command(
    program: Sequence[str], layout: RankLayout, options: LaunchOptions, environment: Mapping[str, str] | None = None
) -> Command:
    """Return the mpirun command that runs `program` in the ranks of `layout`. `environment` reaches ranks on all hosts."""
    if any(place.component for place in layout.places):
        raise SetupError("mpirun reaches only the first component of a heterogeneous Slurm job; use --launcher srun")
    variables = {**(environment or {}), **mpi_environment(layout, options)}
    if options.mpi == "openmpi":
        flags = _openmpi_flags(layout, variables, options)
    else:
        # Hydra counts no slots, and passes its whole environment to every host.
        flags = () if layout.is_local else ("-hosts", layout.hosts_and_slots())
    if options.path is not None:
        variables["PATH"] = options.path
    return Command(
        (options.mpirun, "-np", str(layout.num_ranks), *flags, *options.extra, *program), variables, options.unset
    )


def _openmpi_flags(layout: RankLayout, variables: Mapping[str, str], options: LaunchOptions) -> tuple[str, ...]:
    # By default Open MPI would bind each rank, with torch's threads, to one core. It counts physical cores, or a batch
    # system's tasks, as slots; there may be fewer of them than ranks, and a store beside the workers has no core or task of
    # its own.
    flags: tuple[str, ...] = ("--bind-to", "none", "--map-by", "slot:OVERSUBSCRIBE")
    if options.outlives:
        flags += ("--with-ft", "ulfm")
    if options.is_live:
        flags += ("--stream-buffering", "0")  # otherwise lines are held until whole; Hydra passes all on
    if layout.is_local:
        return flags
    names = dict.fromkeys([*sorted(variables), *options.forward])
    return (*flags, "--host", layout.hosts_and_slots(), *(word for name in names for word in ("-x", name)))
