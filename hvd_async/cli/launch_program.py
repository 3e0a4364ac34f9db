"""`hvd-async launch ... -- PROGRAM`: start a training script of the user on the ranks of a run."""

from __future__ import annotations

import argparse
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hvd_async.errors import ConfigError

if TYPE_CHECKING:
    from hvd_async.config import RunConfig

UNKNOWN_OUTPUT = "unknown"
"""The output of a script that chooses it itself."""


def program_config(arguments: argparse.Namespace) -> RunConfig:
    """Return the configuration that decides the ranks of the script: its own keywords may add to it.

    Raises `ConfigError` if it does not say which strategy the ranks are for.
    """
    from hvd_async.config import parse_config, read_tree
    from hvd_async.config.loading import apply_override, origins_of
    from hvd_async.config.script_keys import check_script_keys

    if not arguments.program:
        raise ConfigError("launch: got nothing after --, expected a program, such as -- python train.py")
    tree: dict[Any, Any] = {} if arguments.config is None else read_tree(Path(arguments.config), "configuration of a run")
    for override in arguments.overrides:
        apply_override(tree, override)
    check_script_keys(tree)
    whole = {"output": UNKNOWN_OUTPUT, "training": {"epochs": 1}, **tree, "task": {"kind": "script"}}
    config = parse_config(whole, arguments.config or "--set", origins_of(arguments.overrides))  # other faults come first
    if "kind" not in tree.get("strategy", {}):
        raise ConfigError(
            "launch: strategy.kind: not given, expected --set strategy.kind=async (or horovod, ddp, single) or a CONFIG with it:"
            " it decides how many ranks there are"
        )
    return config


def find_program(program: Sequence[str], *, is_here: bool = True) -> tuple[str, ...]:
    """Return `program` with its first word as a path, unless it is a program of a container and not `is_here`.

    Raises `ConfigError` if there is no such program, or script.
    """
    found = shutil.which(program[0]) if is_here else program[0]
    if found is None:
        hint = f"; to start a script: -- python {shlex.join(program)}" if program[0].endswith(".py") else ""
        raise ConfigError(f"launch: got the program {shlex.join(program)}, but there is no {program[0]} on PATH{hint}")
    script = next((word for word in program[1:] if word.endswith(".py")), None)
    if script is not None and "-c" not in program and "-m" not in program and not Path(script).is_file():
        raise ConfigError(f"launch: {script}: no such file; expected the training script")
    return (found, *program[1:])
