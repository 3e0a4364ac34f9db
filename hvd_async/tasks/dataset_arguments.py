"""Checks of the arguments of `DatasetTask`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from hvd_async.errors import ConfigError
from hvd_async.tasks.metric import Metric
from hvd_async.tasks.user_values import check_functions, check_metrics, check_unit, describe_value

_ALIKE = 0.01
"""Relative difference below which a loss counts as the mean of two."""
_LEAST = {"batch_size": 1, "recalibration_batches": 1, "num_workers": 0}
_DATASETS = ("train", "validation")
_FUNCTIONS = ("loss", "collate")
_OPTIONAL_FUNCTIONS = ("forward", "weight", "worker_init")


def check_arguments(given: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for the first of the arguments `given`, by name, that is of a wrong type or value."""
    for name, least in _LEAST.items():
        value = given[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{name}: got {describe_value(value)}, expected a whole number >= {least}")
    for name in _DATASETS:
        _check_dataset(name, given[name])
    model = given["model"]
    if not callable(model) or isinstance(model, nn.Module):
        raise ConfigError(f"model: got {describe_value(model)}, expected a function that makes a torch.nn.Module")
    for name in _FUNCTIONS:
        if given[name] is None:
            raise ConfigError(f"{name}: got None, expected a function")
    check_functions(**{name: given[name] for name in (*_FUNCTIONS, *_OPTIONAL_FUNCTIONS)})
    check_unit(given["weight_unit"])
    if given["buffers"] not in ("refuse", "recalibrate"):
        raise ConfigError(f"buffers: got {describe_value(given['buffers'])}, expected 'refuse' or 'recalibrate'")
    if given["fingerprint"] is not None and not isinstance(given["fingerprint"], str):
        raise ConfigError(f"fingerprint: got {describe_value(given['fingerprint'])}, expected text")


def functions_by_metric(name: str, given: Any) -> dict[Metric, Callable[..., Any]]:
    """Return `given`, nothing if it is None. Raises `ConfigError` unless it has a function for each metric."""
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(f"{name}: got {describe_value(given)}, expected a dict from hvd_async.Metric to a function")
    found = dict(given or {})
    check_metrics(list(found), name)
    for metric, function in found.items():
        if not callable(function):
            raise ConfigError(f"{name}: {metric.name}: got {describe_value(function)}, expected a function")
    return found


def _check_dataset(name: str, dataset: Any) -> None:
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__") or isinstance(dataset, type | Mapping):
        raise ConfigError(f"{name}: got {describe_value(dataset)}, expected a map-style dataset, with a length")
    if len(dataset) < 1:
        raise ConfigError(f"{name}: got a dataset without examples, expected at least one")


def check_is_sum(measured: Callable[[Sequence[int]], tuple[float, float]]) -> None:
    """Raise `ConfigError` if the loss is a mean, not a sum. `measured` returns loss and weight of a batch of some examples.

    A mean would be divided by the weight once more, and the gradient would be too small by it.
    """
    (both, _), (one, weight), (other, its_weight) = (measured(examples) for examples in ((0, 1), (0,), (1,)))
    total, mean = one + other, (weight * one + its_weight * other) / (weight + its_weight)
    if abs(both - mean) < _ALIKE * abs(mean) and abs(both - total) > 10 * _ALIKE * abs(total):
        raise ConfigError(
            f"loss: got {both:.4g} for two examples with {one:.4g} and {other:.4g} each, which is their mean; expected the sum,"
            " such as with reduction='sum'"
        )
