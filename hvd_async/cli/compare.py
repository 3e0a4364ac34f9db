"""`hvd-async compare`."""

from __future__ import annotations

import argparse
import os
import pathlib
import shlex
import sys
from typing import TYPE_CHECKING

from hvd_async.cli.arguments import check_can_be_read_again, check_folder, device, refuse, verb
from hvd_async.cli.batch_arguments import add_resources, check_no_script, conda_of, resources, several_asked, submit
from hvd_async.cli.report import write_report_to
from hvd_async.errors import ConfigError, DataError
from hvd_async.system.extras import require
from hvd_async.system.standard_streams import tell

if TYPE_CHECKING:
    from hvd_async.comparison.suite import Suite


def add_verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    _add_compare(verb(verbs, "compare", "compute a suite of comparable runs and write a report", _compare))


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("suite", type=pathlib.Path, metavar="SUITE", help="YAML file; docs/comparisons.md explains it")
    parser.add_argument(
        "--output", type=pathlib.Path, metavar="FOLDER", help="folder for runs and report (default: runs/NAME of the suite)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a key of the suite, such as budget.weight=100000, seeds=[1] or set.optimizer.kind=muon; needs --output, so"
        " that the runs of the unchanged suite stay; may be repeated",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="compute only runs, variants or environments of that name; * matches anything; may be repeated",
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="runs computed at a time (default 1); they slow each other down"
    )
    parser.add_argument(
        "--device", metavar="NAME", help="device that computes simulated runs: cpu (default), cuda or cuda:INDEX"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--dry-run", action="store_true", help="print the runs to be computed and their commands, and do nothing"
    )
    what.add_argument(
        "--count", action="store_true", help="print how many runs each stage has, one number per line, and do nothing"
    )
    what.add_argument(
        "--task",
        type=int,
        metavar="N",
        help="compute only run N of a stage, from 0, for a job array; makes no report; tasks may run at once on several nodes",
    )
    parser.add_argument(
        "--stage",
        type=int,
        metavar="S",
        help="stage of --task: 1 (default), or 2 for a suite with rates and several seeds: the other seeds at the best rates",
    )
    batch = parser.add_argument_group("batch scripts")
    batch.add_argument(
        "--slurm",
        action="store_true",
        help="print a batch script like slurm/compare.sbatch: each run is a task of a job array",
    )
    batch.add_argument("--workers-per-node", type=int, metavar="N", help="tasks on each node (default: the suite's workers)")
    batch.add_argument("--gpus-per-node", metavar="[TYPE:]N", help="GPUs of each node, such as 4 or a100:4")
    add_resources(batch, ["slurm"])


def _compare(arguments: argparse.Namespace) -> int:
    from hvd_async.comparison.execution import Execution
    from hvd_async.comparison.plan import read_collection
    from hvd_async.comparison.runs import Run
    from hvd_async.comparison.suite import Suite
    from hvd_async.comparison.suite_progress import Board

    jobs = 1 if arguments.jobs is None else arguments.jobs
    if jobs < 1:
        raise ConfigError(f"--jobs: got {jobs}, expected 1 or more")
    if arguments.stage is not None and arguments.task is None:
        raise ConfigError(f"--stage: got {arguments.stage}, expected --task N with it")
    if arguments.task is not None or arguments.count:
        refuse(arguments, ("jobs",), "--count" if arguments.count else "--task")
    if not arguments.slurm:
        check_no_script(arguments, "workers_per_node", "gpus_per_node")
    if arguments.set and arguments.output is None:
        raise ConfigError(
            f"--set: got {' '.join(arguments.set)}, expected --output FOLDER with it, so that runs of the unchanged suite stay"
        )
    output = arguments.output if arguments.output is not None else pathlib.Path("runs") / arguments.suite.stem
    check_folder(output)
    check_can_be_read_again(arguments.suite)
    suite = Suite(arguments.suite, output, arguments.set)
    check_can_be_read_again(suite.base)
    if arguments.slurm:
        refuse(arguments, ("count", "task"), "--slurm")
        return _write_script(arguments, suite, output)
    execution = Execution(suite, output, arguments.only, arguments.device)
    if arguments.device is not None and not (arguments.count or arguments.dry_run):  # as on a login node
        device(arguments.device)
    if arguments.count:
        print("\n".join(map(str, execution.num_runs())))
        return 0
    if arguments.task is not None:
        return execution.run_one(1 if arguments.stage is None else arguments.stage, arguments.task, Board(is_live=False))
    todo = execution.todo()
    missing = [spec for spec, found in todo if not isinstance(found, Run)]
    if arguments.dry_run:
        for spec, found in todo:
            print(f"{spec.name}: {'done' if isinstance(found, Run) else found}")
            if not isinstance(found, Run):
                print("    " + shlex.join(["hvd-async", *execution.command(spec)]))
        print(f"{len(missing)} of {len(todo)} runs to be computed" + execution.remark())
        return 0
    require("report")
    print(f"{len(missing)} of {len(todo)} runs to be computed in {output}{execution.remark()}", flush=True)
    failures = execution.run(jobs, Board(is_live=sys.stdout.isatty()))
    write_report_to(read_collection(output), output / "report", None, overwrite=True)
    if failures:
        raise DataError("\n".join(["runs that failed:", *failures]))
    return 0


def _write_script(arguments: argparse.Namespace, suite: Suite, output: pathlib.Path) -> int:
    from hvd_async.comparison.execution import Execution
    from hvd_async.launcher.batch_dialect import DIALECTS
    from hvd_async.launcher.batch_script import ScriptJob, render
    from hvd_async.system.files import write_file

    Execution(suite, output, arguments.only, arguments.device)  # raises for what does not fit the suite
    if arguments.device is not None and arguments.device.startswith("cuda") and arguments.gpus_per_node is None:
        raise ConfigError(f"--device: got {arguments.device}, expected --gpus-per-node with it, for the jobs of the script")
    _check_container(arguments, suite)
    is_simulated = suite.config.launcher == "simulate"
    num_workers = 1 if is_simulated else suite.most_workers
    defaults = {"cpus_per_worker": 1} if is_simulated else {}
    asked = resources(arguments, DIALECTS["slurm"], nodes=1, workers_per_node=num_workers, **defaults)
    if is_simulated and (several := several_asked(arguments, asked)) is not None:
        flag, _ = several
        raise ConfigError(
            f"{flag}: got {asked.nodes} x {asked.workers_per_node} tasks, expected one, since a run of {arguments.suite} is one"
            " process (launcher: simulate); remove the flag"
        )
    if is_simulated and asked.gpus_per_node and not (arguments.device or "").startswith("cuda"):
        raise ConfigError(
            f"--gpus-per-node: got {asked.gpus_per_node}, expected --device cuda with it: simulated runs use the CPU otherwise"
        )
    if asked.nodes * asked.workers_per_node < num_workers:
        raise ConfigError(
            f"--workers-per-node: got {asked.workers_per_node} on {asked.nodes} nodes, expected room for {num_workers} workers,"
            f" as in {arguments.suite}; ask for more nodes, or for more tasks on each node"
        )
    job = ScriptJob(
        script="compare",
        target=str(arguments.suite),
        options=(
            *(word for change in arguments.set for word in ("--set", change)),
            *(word for pattern in arguments.only for word in ("--only", pattern)),
            *(() if arguments.device is None else ("--device", arguments.device)),
        ),
        environment=sys.prefix,
        conda=conda_of(arguments),
        name=arguments.job_name or "hvd-async",
        folder=str(output),
        path="FILE",
        **({} if arguments.jobs is None else {"at_once": arguments.jobs}),
    )
    text = render(job, asked)
    if not arguments.submit or arguments.dry_run:
        print(text, end="")
        return 0
    output.mkdir(parents=True, exist_ok=True)
    path = output / "compare.sbatch"
    write_file(path, text.encode())
    submit(["bash", str(path)])
    return 0


def _check_container(arguments: argparse.Namespace, suite: Suite) -> None:
    """Raise `ConfigError` if the site file has a container in which the suite does not run its ranks."""
    from hvd_async.launcher.site_file import read_site

    image = read_site(arguments.site, os.environ).container
    words = suite.config.launch_arguments
    if image is None or any(word.partition("=")[0] == "--container" for word in words):
        return
    if suite.config.launcher == "simulate":
        tell(f"compare: the site file's container {image} is not used: simulated runs have no ranks\n")
        return
    raise ConfigError(
        f"container: got {image} in the site file, expected it in {arguments.suite} too, for the ranks of its runs:"
        f" launch_arguments: [--container, {image}]; or name a site file without it with --site"
    )
