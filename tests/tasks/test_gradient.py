"""The gradient of one batch, and its weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from hvd_async.config import StrategyConfig
from hvd_async.errors import ConfigError, DataError
from hvd_async.tasks.gradient import BatchProgress, GradientOptions, check_micro_batches, compute_gradient
from hvd_async.tasks.task import Task
from hvd_async.vectors.flat import FlatParameters
from tests.mpi.toy import Settings, ToyTask


def gradient_of(point_weight: float, batch: int = 0, counts: bool = True) -> tuple[float, float, list[float]]:
    """Return weight, loss and gradient of `batch`, which has three points if it is 0, and four if it is 1."""
    task = ToyTask(Settings({}, dropout=0.0, point_weight=point_weight), 0)
    model = task.build_model()
    flat = FlatParameters(model)
    weight, loss = compute_gradient(task, model.train(), flat, 1, batch, GradientOptions(counts))
    return weight, loss, flat.collect_gradient().tolist()


def test_a_whole_weight_is_an_int_and_another_a_float() -> None:
    for point_weight, batch, expected in ((1.0, 0, 3), (0.5, 1, 2), (0.5, 0, 1.5)):
        weight = gradient_of(point_weight, batch)[0]
        assert weight == expected and type(weight) is type(expected)


def test_a_batch_that_does_not_count_has_no_weight_loss_or_gradient() -> None:
    weight, loss, gradient = gradient_of(1.0, counts=False)
    assert (weight, loss, any(gradient)) == (0, 0.0, False)


def divided(batch: int, number: int, counts: bool = True) -> tuple[float, float, list[float], list[BatchProgress]]:
    """Return weight, loss and gradient of `batch` in `number` micro-batches, before each of which all parameters grow by 1."""
    task = ToyTask(Settings({}, dropout=0.0), 0)
    model = task.build_model()
    flat, seen = FlatParameters(model), []

    def between(progress: BatchProgress) -> None:
        seen.append(progress)
        flat.parameters.add_(1.0)

    weight, loss = compute_gradient(task, model.train(), flat, 1, batch, GradientOptions(counts, number, between))
    return weight, loss, flat.collect_gradient().tolist(), seen


def test_micro_batches_sum_to_the_batch_each_on_its_own_parameters() -> None:
    task = ToyTask(Settings({}, dropout=0.0), 0)
    model = task.build_model()
    flat = FlatParameters(model)
    wanted, losses = torch.zeros_like(flat.parameters), 0.0
    points, classes = task.batch(2, "cpu")  # five points
    for start in range(3):
        loss = torch.nn.functional.cross_entropy(model(points[start::3]), classes[start::3], reduction="sum")
        flat.zero_gradient()
        loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        wanted += flat.collect_gradient()
        losses += float(loss.detach())
        flat.parameters.add_(1.0)
    weight, loss_sum, gradient, seen = divided(2, 3)
    assert (weight, loss_sum) == (5, losses) and type(weight) is int
    assert torch.equal(torch.tensor(gradient), wanted)
    assert [(each.done, each.total, each.weight()) for each in seen] == [(1, 3, 5.0), (2, 3, 5.0)]


def test_a_batch_with_few_examples_has_as_many_micro_batches() -> None:
    weight, loss, _, seen = divided(0, 8)  # three points
    assert [(each.done, each.total) for each in seen] == [(1, 3), (2, 3)]
    assert divided(0, 3)[:2] == (weight, loss)
    assert divided(0, 1)[3] == []


def test_micro_batches_that_do_not_count_have_no_weight_loss_or_gradient() -> None:
    weight, loss, gradient, seen = divided(1, 2, counts=False)
    assert (weight, loss, any(gradient), len(seen)) == (0, 0.0, False, 1)


def test_a_task_that_cannot_divide_its_batches_is_refused() -> None:
    strategy = StrategyConfig(kind="async", micro_batches=2)
    check_micro_batches(ToyTask(Settings({}), 0), strategy)
    undivided = cast(Task, SimpleNamespace())
    for harmless in (StrategyConfig(kind="async"), StrategyConfig(kind="horovod", micro_batches=2)):
        check_micro_batches(undivided, harmless)
    with pytest.raises(
        ConfigError, match=r"strategy\.micro_batches: got 2 with a task \(SimpleNamespace\) that has no method"
    ):
        check_micro_batches(undivided, strategy)


class Divider(ToyTask):
    """A task that divides its batches by `cut`."""

    def __init__(self, cut: Callable[[list[Any]], list[Any]]) -> None:
        super().__init__(Settings({}), 0)
        self._cut = cut

    def micro_batches(self, index: int, number: int, device: torch.device | str) -> list[Any]:
        return self._cut(super().micro_batches(index, number, device))


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        (lambda parts: [*parts, parts[0]], "batch 0: got 3 micro-batches from the task, expected 1 to 2"),
        (lambda parts: [], "batch 0: got 0 micro-batches from the task, expected 1 to 2"),
        (lambda parts: parts[:1], r"got parts of batch 0 that weigh 2, expected the batch's weight, 3: each example in one"),
        (lambda parts: None, "batch 0: got None from the task's micro_batches, expected a list of batches"),
        (lambda parts: iter(parts), "batch 0: got a? ?list_iterator from the task's micro_batches"),
        (
            lambda parts: parts[9],
            r"the task's micro_batches failed: IndexError: list index out of range \(\S+test_gradient.py:\d+\)",
        ),
        (lambda parts: [parts[0], parts[0]], "that weigh 4, expected the batch's weight, 3"),
    ],
)
def test_a_task_that_divides_its_batches_wrongly_is_refused(cut: Callable[[list[Any]], list[Any]], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_micro_batches(Divider(cut), StrategyConfig(kind="async", micro_batches=2))


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_an_invalid_weight_is_refused(weight: float) -> None:
    with pytest.raises(DataError, match=r"batch 0: got a weight of \S+ from the task, expected a finite number >= 0"):
        gradient_of(weight)
