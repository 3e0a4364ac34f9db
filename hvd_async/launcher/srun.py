"""The command line of srun: pure text. What Slurm itself is like is known to `cluster.slurm`."""

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
    """`program` in the ranks of `layout` in one step of the Slurm job that the caller is in."""
    variables = {**(environment or {}), **mpi_environment(layout, options)}
    # A task that fails ends the others, which would wait for it.
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
    """The store's ranks are more than the tasks that the job asked for, and take no core of their own: they, and all others, use
    whatever the job has on their node."""
    names = [place.host for place in places for _ in range(place.ranks)]
    return [
        f"--ntasks={len(names)}",
        "--overcommit",
        "--overlap",
        "--cpu-bind=none",
        "--distribution=arbitrary",  # a task for each name of the list, in its order
        f"--nodelist={','.join(names)}",
    ]
