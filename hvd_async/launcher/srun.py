"""The command line of srun: pure text. Facts about Slurm itself are in `cluster.slurm`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from hvd_async.launcher.options import LaunchOptions
from hvd_async.launcher.rank_environment import mpi_environment
from hvd_async.launcher.rank_layout import RankLayout, RankPlace
from hvd_async.system.processes import Command


def srun_command(
    program: Sequence[str], layout: RankLayout, options: LaunchOptions, environment: Mapping[str, str] | None = None
) -> Command:
    """Return the command that runs `program` in the ranks of `layout`, in one step of the caller's Slurm job."""
    variables = {**(environment or {}), **mpi_environment(layout, options)}
    # A task that fails ends the others, which would otherwise wait for it. None could go on without it: whatever this option
    # is, Slurm's plugin for PMIx ends the step as soon as a task is lost.
    argv: list[str] = [options.srun, f"--mpi={options.pmi}", "--kill-on-bad-exit=1", "--export=ALL"]
    argv += [*(["--unbuffered"] if options.is_live else []), *options.extra]
    components = [list(places) for _, places in itertools.groupby(layout.places, key=lambda place: place.component)]
    for number, places in enumerate(components):
        if number:
            argv.append(":")
        if len(components) > 1:
            argv.append(f"--het-group={places[0].component}")
        argv += [*_step(places), *program]
    return Command(tuple(argv), variables, options.unset)


def _step(places: Sequence[RankPlace]) -> list[str]:
    """Return srun's options for the tasks of one component. The store's ranks come on top of the tasks that the job asked
    for and have no cores of their own, so all ranks share the job's cores on their node."""
    names = [place.host for place in places for _ in range(place.ranks)]
    return [
        f"--ntasks={len(names)}",
        "--overcommit",
        "--overlap",
        "--cpu-bind=none",
        "--distribution=arbitrary",  # one task for each name in the list, in order
        f"--nodelist={','.join(names)}",
    ]
