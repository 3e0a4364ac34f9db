"""The configuration of a script's run: a file, keywords, and what `hvd-async launch` passes on."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hvd_async.config import (
    PushConfig,
    RunConfig,
    Section,
    StoreConfig,
    StrategyConfig,
    TrainingConfig,
    ValidationConfig,
    parse_config,
    read_tree,
)
from hvd_async.config.loading import apply_override, origins_of
from hvd_async.config.script_keys import check_script_keys
from hvd_async.config.unknown_keys import keys_of_other_tools
from hvd_async.errors import ConfigError
from hvd_async.launcher import program_variables
from hvd_async.system.nearest import meant
from hvd_async.tasks.user_values import describe_value
from hvd_async.training.options import TrainOptions

# Sections whose keys may be given as plain keywords, in the order in which a name is looked up.
_SECTIONS: Mapping[str, type[Section]] = {
    "strategy": StrategyConfig,
    "push": PushConfig,
    "store": StoreConfig,
    "training": TrainingConfig,
    "validation": ValidationConfig,
}


def script_config(
    output: str | os.PathLike[str] | None,
    config: str | os.PathLike[str] | Mapping[str, Any] | None,
    keywords: Mapping[str, Any],
    environ: Mapping[str, str],
) -> RunConfig:
    """Return the checked configuration. Keywords count more than `config`, and what the launcher passes on most of all. The
    learning rate is constant unless `optimizer.schedule` says otherwise.

    Raises `ConfigError` with one line per error.
    """
    path = environ.get(program_variables.CONFIG)
    tree: dict[str, Any] = {}
    if config is not None and not isinstance(config, str | os.PathLike | Mapping):
        raise ConfigError(f"config: got {describe_value(config)}, expected a YAML file, or a dict of sections")
    for each in (config, path):
        if each is not None:
            found = each if isinstance(each, Mapping) else read_tree(Path(each), "configuration of a run")
            tree = _merged(tree, found)
    tree = _merged(tree, _placed(keywords))
    if output is not None:
        tree["output"] = os.fspath(output) if isinstance(output, os.PathLike) else output
    overrides = json.loads(environ.get(program_variables.OVERRIDES, "[]"))
    for override in overrides:
        apply_override(tree, override)
    check_script_keys(tree)
    optimizer = tree.get("optimizer", {})
    if isinstance(optimizer, Mapping):  # otherwise the check tells
        tree["optimizer"] = _merged({"schedule": {"kind": "constant"}}, optimizer)
    task = tree.setdefault("task", {"kind": "script"})
    if not isinstance(task, dict) or task.get("kind") != "script":
        raise ConfigError("task: got a task in the configuration of a script, expected none; the script is the task")
    task.setdefault("script", os.path.abspath(sys.argv[0]) if sys.argv and sys.argv[0] else "")
    source = "init" if path is None and not isinstance(config, str | os.PathLike) else str(path or config)
    return parse_config(tree, source, origins_of(overrides))


def script_options(resume: bool | str, overwrite: bool, environ: Mapping[str, str]) -> TrainOptions:
    """Return how the run begins: as the launcher says, or else the script. Raises `ConfigError` for what does not fit."""
    if not isinstance(resume, bool) and resume != "auto":
        raise ConfigError(f"resume: got {describe_value(resume)}, expected True, False or 'auto'")
    if not isinstance(overwrite, bool):
        raise ConfigError(f"overwrite: got {describe_value(overwrite)}, expected True or False")
    if resume and overwrite:
        raise ConfigError("resume, overwrite: got both, expected at most one of them")
    begin = environ.get(program_variables.BEGIN, "")
    if begin and begin not in program_variables.BEGINS:
        raise ConfigError(f"{program_variables.BEGIN}: got {begin!r}, expected one of {', '.join(program_variables.BEGINS)}")
    if not begin:
        begin = "overwrite" if overwrite else "auto-resume" if resume == "auto" else "resume" if resume else "new"
    return TrainOptions(
        resume=begin == "resume",
        overwrite=begin == "overwrite",
        auto_resume=begin == "auto-resume",
        is_of_script=program_variables.OVERRIDES not in environ,  # which `launch` always sets
    )


def _placed(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return `keywords` as a tree: sections as they are, text for `strategy` as its kind, single keys in their section."""
    tree: dict[str, Any] = {}
    for name, value in keywords.items():
        if name == "strategy" and isinstance(value, str):
            tree = _merged(tree, {"strategy": {"kind": value}})
        elif name in RunConfig.model_fields:
            tree = _merged(tree, {name: value})
        else:
            section = next((section for section, kind in _SECTIONS.items() if name in kind.model_fields), None)
            if section is None:
                likely = _meant(name)
                raise ConfigError(
                    f"init: {name}: unknown keyword; "
                    + (f"{likely} Expected" if likely else "expected")
                    + f" a section ({', '.join(RunConfig.model_fields)}) or a key of {', '.join(_SECTIONS)}"
                )
            tree = _merged(tree, {section: {name: value}})
    return tree


def _meant(name: str) -> str:
    """Return a question that suggests a keyword for the unknown `name`, or no text."""
    keys = [key for key in keys_of_other_tools(name) if "." not in key or key.partition(".")[0] in _SECTIONS]
    if keys:
        return f"did you mean {keys[0].rpartition('.')[2]!r}?"
    return meant(name, [*RunConfig.model_fields, *(key for kind in _SECTIONS.values() for key in kind.model_fields)])


def _merged(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(tree)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
