"""Starting runs: how many ranks where, the command lines of mpirun, horovodrun and srun, and Slurm's batch scripts.

All of it is pure text, but for `detection`, which asks the machine.
"""

from __future__ import annotations

from hvd_async.cluster.hosts import Host, parse_hosts, read_allocation
from hvd_async.launcher.command_lines import (
    LauncherName,
    LaunchOptions,
    MpiFamily,
    launch_command,
    mpirun_command,
    srun_command,
    variables_to_forward,
    variables_to_unset,
)
from hvd_async.launcher.detection import choose_pmi, detect_allocation, detect_mpi, detect_pmi, parse_mpi_family, parse_pmis
from hvd_async.launcher.noise import quieted
from hvd_async.launcher.outcome import LaunchOutcome, Summary, outcome_of
from hvd_async.launcher.rank_layout import RankLayout, RankPlace, Wanted, explain, lay_out, plan_ranks
from hvd_async.launcher.train_arguments import Begin, TrainArguments

__all__ = [
    "Begin",
    "Host",
    "LaunchOptions",
    "RankLayout",
    "MpiFamily",
    "LaunchOutcome",
    "RankPlace",
    "LauncherName",
    "Summary",
    "TrainArguments",
    "Wanted",
    "choose_pmi",
    "detect_allocation",
    "detect_mpi",
    "detect_pmi",
    "explain",
    "launch_command",
    "lay_out",
    "mpirun_command",
    "outcome_of",
    "parse_hosts",
    "parse_mpi_family",
    "parse_pmis",
    "plan_ranks",
    "quieted",
    "read_allocation",
    "srun_command",
    "variables_to_forward",
    "variables_to_unset",
]
