"""Values that users pass, and that their functions return: numbers, and words for what is none."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hvd_async.errors import ConfigError
from hvd_async.system.printable import printable, shortened
from hvd_async.tasks.metric import LOSS, Metric

_OWN = Path(__file__).resolve().parents[1]
_SHOWN = 40
"""Characters of a value in a message."""


def number_of(value: Any) -> float | None:
    """Return `value`, a number or a tensor or an array of a single one, as a float; None for anything else."""
    if isinstance(value, str | bytes | bytearray):  # which Python would read
        return None
    try:
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def describe_value(value: Any) -> str:
    """Return words for `value`: itself if it is short and plain, else its type, with the shape of a tensor."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    if value is None or isinstance(value, str | bytes | bool | int | float):
        return shortened(value, _SHOWN)
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def describe_failure(error: Exception) -> str:
    """Return type, message and place of `error`, in one line. The place is the innermost one outside of this package and
    of Python's import machinery."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_of_user(frame.filename)]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError) and error.filename:
        place = f" ({error.filename}:{error.lineno})"
    message = " ".join(str(error).split())
    return printable(f"{type(error).__name__}: {message}{place}")


def check_functions(**functions: Any) -> None:
    """Raise `ConfigError` for the first of `functions` that is neither None nor can be called."""
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise ConfigError(f"{name}: got {describe_value(function)}, expected a function")


def check_metrics(metrics: Any, what: str) -> Sequence[Metric]:
    """Return `metrics`, named `what` in messages. Raises `ConfigError` unless they are several `Metric` of different names, of
    which `loss` is better if lower."""
    if isinstance(metrics, str) or not isinstance(metrics, Sequence):
        raise ConfigError(f"{what}: got {describe_value(metrics)}, expected a list of hvd_async.Metric")
    found = list(metrics)
    for each in found:
        if not isinstance(each, Metric):
            raise ConfigError(f"{what}: got {describe_value(each)} in it, expected hvd_async.Metric(name, title) alone")
        if each.name == LOSS and each.is_higher_better:
            raise ConfigError(
                f"{what}: got a {LOSS} of which more is better, expected another name: of the loss less is better"
            )
    names = [each.name for each in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"{what}: got {', '.join(names)}, expected different names")
    return found


def check_unit(weight_unit: Any) -> None:
    """Raise `ConfigError` unless `weight_unit` is text in a line that can be shown."""
    if not isinstance(weight_unit, str) or not weight_unit or not weight_unit.isprintable():
        raise ConfigError(
            f"weight_unit: got {describe_value(weight_unit)}, expected what weights count, in the plural, such as 'images'"
        )


def _is_of_user(filename: str) -> bool:
    return (
        not filename.startswith("<frozen") and _OWN not in Path(filename).resolve().parents and "importlib" not in filename
    )
