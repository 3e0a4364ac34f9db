"""Starting runs: the ranks on each host, the command lines of mpirun, horovodrun and srun, and batch scripts. Pure text."""

from __future__ import annotations

from hvd_async.launcher.commands import check_launcher, launch_command
from hvd_async.launcher.container import Container, find_container, folders_to_bind
from hvd_async.launcher.failure_boxes import quieted
from hvd_async.launcher.mpirun import mpirun_command
from hvd_async.launcher.options import LauncherName, LaunchOptions
from hvd_async.launcher.outcome import UNKNOWN, LaunchOutcome, Summary, outcome_of
from hvd_async.launcher.rank_environment import variables_to_forward
from hvd_async.launcher.rank_layout import RankLayout, RankPlace, Wanted, explain, lay_out, plan_ranks
from hvd_async.launcher.srun import srun_command
from hvd_async.launcher.train_arguments import Begin, TrainArguments

__all__ = [
    "UNKNOWN",
    "Begin",
    "Container",
    "LaunchOptions",
    "LaunchOutcome",
    "LauncherName",
    "RankLayout",
    "RankPlace",
    "Summary",
    "TrainArguments",
    "Wanted",
    "check_launcher",
    "explain",
    "find_container",
    "folders_to_bind",
    "launch_command",
    "lay_out",
    "mpirun_command",
    "outcome_of",
    "plan_ranks",
    "quieted",
    "srun_command",
    "variables_to_forward",
]
