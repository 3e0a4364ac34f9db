"""Tasks of users: a function that the configuration names makes them.

The code of a user may do anything, so its errors are reported as what they are, with their place in that code, and never as
faults of this package.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from hvd_async.config import FactoryConfig, RunConfig
from hvd_async.errors import ConfigError
from hvd_async.system.printable import printable
from hvd_async.tasks.task import Task
from hvd_async.tasks.user_values import describe_failure


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
        raise ConfigError(f"task.factory: {task.factory} failed: {describe_failure(error)}") from error
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
        raise ConfigError(
            f"task.factory: got {factory}, whose module cannot be imported: {describe_failure(error)}; modules are looked for in"
            f" {os.getcwd()} and where Python is installed"
        ) from error


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


def _members() -> list[str]:
    return sorted(name for name in dir(Task) if not name.startswith("_"))
