"""Tasks of users: a function that the configuration names makes them.

The code of a user may do anything, so its errors are reported as what they are, with their place in that code, and never as
faults of this package.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from hvd_async.config import FactoryConfig, RunConfig
from hvd_async.errors import ConfigError
from hvd_async.system.printable import printable
from hvd_async.tasks.task import Task

_OWN = Path(__file__).resolve().parents[1]


def make_factory_task(config: RunConfig, task: FactoryConfig) -> Task:
    """Import the module that `task` names, and return the result of its function.

    Raises `ConfigError`, with the place in the user's code, if the module cannot be imported, the function is missing, does
    not take the options or raises, or its result is no `Task`.
    """
    module_name, _, name = task.factory.partition(":")
    factory = getattr(_import(module_name, task.factory), name, None)
    if not callable(factory):
        raise ConfigError(f"task.factory: got {task.factory}, whose module has no function {name!r}")
    _check_options(factory, config, task)
    try:
        made = factory(config, **task.options)
    except Exception as error:
        raise ConfigError(f"task.factory: {task.factory} failed: {_describe(error)}") from error
    missing = [member for member in _members() if not hasattr(made, member)]
    if missing:
        raise ConfigError(
            f"task.factory: {task.factory} returned {type(made).__name__}, expected a task; it lacks {', '.join(missing)}"
        )
    task_made: Task = made
    return task_made


def _import(name: str, factory: str) -> ModuleType:
    if os.getcwd() not in sys.path:  # as with `python -m`; the command itself leaves it out
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ConfigError(f"task.factory: got {factory}, whose module cannot be imported: {_describe(error)}") from error


def _check_options(factory: Callable[..., Any], config: RunConfig, task: FactoryConfig) -> None:
    try:
        signature = inspect.signature(factory)
        signature.bind(config, **task.options)
    except TypeError as error:
        raise ConfigError(f"task.options: {task.factory} does not take them: {printable(str(error))}") from None
    except ValueError:
        return  # a builtin without a signature: the call itself will tell
    for key in ("options_that_may_change", "options_alike"):
        for option in getattr(task, key):
            try:
                signature.bind_partial(config, **{option: None})
            except TypeError:
                raise ConfigError(
                    f"task.{key}: got {printable(option)!r}, expected options that {task.factory} takes:"
                    f" {', '.join(list(signature.parameters)[1:]) or 'none'}"
                ) from None


def _describe(error: Exception) -> str:
    """Return type, message and place of `error`, in one line. The place is the innermost one outside of this package and
    of Python's import machinery."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_of_user(frame.filename)]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError) and error.filename:
        place = f" ({error.filename}:{error.lineno})"
    message = " ".join(str(error).split())
    return printable(f"{type(error).__name__}: {message}{place}")


def _is_of_user(filename: str) -> bool:
    return (
        not filename.startswith("<frozen") and _OWN not in Path(filename).resolve().parents and "importlib" not in filename
    )


def _members() -> list[str]:
    return sorted(name for name in dir(Task) if not name.startswith("_"))
