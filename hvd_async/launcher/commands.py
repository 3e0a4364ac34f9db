"""The command that starts a run, with any launcher: pure text, which is printed, compared and tested without MPI."""

from __future__ import annotations

from dataclasses import replace

from hvd_async.config import RunConfig, StrategyConfig
from hvd_async.errors import SetupError
from hvd_async.launcher.horovodrun import horovodrun_command
from hvd_async.launcher.mpirun import mpirun_command
from hvd_async.launcher.options import LaunchOptions
from hvd_async.launcher.rank_layout import RankLayout, plan_ranks
from hvd_async.launcher.srun import srun_command
from hvd_async.launcher.train_arguments import TrainArguments
from hvd_async.system.processes import Command


def launch_command(config: RunConfig, arguments: TrainArguments, layout: RankLayout, options: LaunchOptions) -> Command:
    """Return the command that trains `config` on the ranks of `layout`. Raises `SetupError` if the launcher cannot."""
    program = arguments.program(options.python, options.python_flags)
    if options.container is not None:
        program = options.container.wrap(program)
    strategy = config.strategy
    can_outlive = strategy.is_async and strategy.placement == "dedicated"
    outlives = options.outlives and can_outlive and strategy.on_worker_failure == "continue"
    options = replace(options, is_live=arguments.progress == "bar", outlives=outlives)
    threads = min(plan.threads for plan in plan_ranks(config, layout) if plan.worker is not None)
    # Ranks set OMP_NUM_THREADS themselves once they have counted their cores; a guess would only override their count.
    are_known = all(place.are_threads_known for place in layout.places)
    environment = {**({"OMP_NUM_THREADS": str(threads)} if are_known else {}), **arguments.variables}
    if config.strategy.is_single:
        return Command(program, environment)
    if options.launcher == "mpirun":
        return mpirun_command(program, layout, options, environment)
    if options.launcher == "srun":
        return srun_command(program, layout, options, environment)
    check_launcher(options.launcher, config.strategy)
    return horovodrun_command(program, layout, options, environment)


def check_launcher(launcher: str, strategy: StrategyConfig) -> None:
    """Raise `SetupError` if `launcher` does not start what `strategy` needs."""
    if launcher == "horovodrun-gloo" and strategy.needs_mpi:
        raise SetupError(
            f"horovodrun --gloo starts no MPI, which strategy {strategy.kind} needs;"
            " use mpirun, srun, horovodrun --mpi, or strategy horovod"
        )
