"""The gradient of one batch, and its weight."""

from __future__ import annotations

import math

import pytest

from hvd_async.errors import DataError
from hvd_async.tasks.gradient import compute_gradient
from hvd_async.vectors.flat import FlatParameters
from tests.mpi.toy import Settings, ToyTask


def gradient_of(point_weight: float, batch: int = 0, counts: bool = True) -> tuple[float, float, list[float]]:
    """Return weight, loss and gradient of `batch`, which has three points if it is 0, and four if it is 1."""
    task = ToyTask(Settings({}, dropout=0.0, point_weight=point_weight), 0)
    model = task.build_model()
    flat = FlatParameters(model)
    weight, loss = compute_gradient(task, model.train(), flat, 1, batch, counts)
    return weight, loss, flat.collect_gradient().tolist()


def test_a_whole_weight_is_an_int_and_another_a_float() -> None:
    for point_weight, batch, expected in ((1.0, 0, 3), (0.5, 1, 2), (0.5, 0, 1.5)):
        weight = gradient_of(point_weight, batch)[0]
        assert weight == expected and type(weight) is type(expected)


def test_a_batch_that_does_not_count_has_no_weight_loss_or_gradient() -> None:
    weight, loss, gradient = gradient_of(1.0, counts=False)
    assert (weight, loss, any(gradient)) == (0, 0.0, False)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_an_invalid_weight_is_refused(weight: float) -> None:
    with pytest.raises(DataError, match=r"batch 0: got a weight of \S+ from the task, expected a finite number >= 0"):
        gradient_of(weight)
