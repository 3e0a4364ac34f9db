"""What users pass to `prepare`, `optimizer.step` and `run.log` by mistake: one line that says what was expected."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.parallel import DataParallel

import hvd_async as ha
from hvd_async.errors import HvdAsyncError
from tests.tasks.blobs import ACCURACY, blobs

X, Y = blobs(12, 1).tensors


class WithState(nn.Linear):
    """A layer with state of its own in the state_dict."""

    def __init__(self, state: Any) -> None:
        super().__init__(2, 3)
        self.state = state

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


def run_with(folder: pathlib.Path, step: Callable[[Any, Any], None] | None = None, **arguments: Any) -> None:
    """Make a run of three batches; `step` gets the run and its optimizer."""
    run = ha.init(folder, strategy="single", epochs=1, tensorboard=False, device="cpu")
    model = arguments.pop("model", nn.Linear(2, 3))
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else [nn.Parameter(torch.ones(1))]
    optimizer = arguments.pop("optimizer", torch.optim.SGD(parameters, lr=0.1))
    loader = arguments.pop("loader", list(zip(X.split(4), Y.split(4), strict=True)))
    try:
        module, stepper, batches = run.prepare(model, optimizer, loader, **arguments)
        for x, y in batches:
            stepper.zero_grad()
            nn.functional.cross_entropy(module(x), y).backward()
            stepper.step(weight=len(y)) if step is None else step(run, stepper)
    finally:
        run.finish()


def sparse() -> nn.Module:
    model = nn.Linear(2, 3)
    model.register_buffer("adjacency", torch.eye(3).to_sparse())
    return model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": 3}, r"model: got 3, expected a torch\.nn\.Module$"),
        ({"model": nn.Linear}, "model: got the class Linear, expected a torch.nn.Module; make one of the class"),
        (
            {"model": DataParallel(nn.Linear(2, 3))},
            "model: got DataParallel, expected the model inside of it: pass model.module",
        ),
        ({"model": nn.LazyLinear(3)}, "model: weight: got a lazy tensor without a shape, expected one; call the model with"),
        ({"model": nn.Linear(2, 3, device="meta")}, "model: weight: got a tensor on the meta device"),
        ({"model": nn.Linear(2, 3).double()}, r"model: weight: got a parameter of torch\.float64, expected torch\.float32"),
        ({"model": nn.Linear(2, 3).requires_grad_(False)}, "model: got no parameter that requires a gradient"),
        ({"model": sparse()}, r"model: adjacency: got the layout torch\.sparse_coo, expected a dense one"),
        ({"model": WithState({"plain": 1})}, "model: _extra_state: got dict in the state_dict, expected tensors alone"),
        ({"optimizer": 3}, "optimizer: got 3, expected an optimizer of torch.optim on the model's parameters"),
        ({"optimizer": torch.optim.SGD}, "optimizer: got the class SGD, expected an optimizer of torch.optim"),
        ({"loader": None}, "loader: got None, expected a DataLoader"),
        ({"loader": 5}, "loader: got 5, expected a DataLoader"),
        ({"schedule": "linear"}, "schedule: got 'linear', expected a function of the version"),
        ({"loss": "max"}, "loss: got 'max', expected 'mean' or 'sum'"),
        ({"buffers": "recalibrate"}, "buffers: got 'recalibrate', expected 'refuse' or 'average'"),
        ({"evaluate": 0.5}, "evaluate: got 0.5, expected a function"),
        ({"metrics": ["accuracy"]}, r"metrics: got 'accuracy' in it, expected hvd_async\.Metric\(name, title\) alone"),
        ({"metrics": ACCURACY}, "metrics: got Metric, expected a list of hvd_async.Metric"),
        ({"metrics": [ACCURACY, ACCURACY]}, "metrics: got accuracy, accuracy, expected different names"),
        ({"metrics": [ha.Metric("loss", "l", is_higher_better=True)]}, "metrics: got a loss of which more is better"),
        ({"metrics": [ACCURACY]}, "metrics: got some without evaluate"),
        (
            {"evaluate": abs, "metrics": [ha.Metric(f"m{number}", "m") for number in range(8)]},
            "metrics: got 18 sums in an evaluation, expected at most 16",
        ),
        ({"weight_unit": 3}, "weight_unit: got 3, expected what weights count, in the plural"),
        ({"weight_unit": "a\nb"}, r"weight_unit: got 'a\\nb', expected"),
    ],
)
def test_arguments_of_prepare(tmp_path: pathlib.Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(HvdAsyncError, match=message) as raised:
        run_with(tmp_path / "run", **arguments)
    assert raised.value.exit_status == 2 and "\n" not in str(raised.value)
    assert not (tmp_path / "run/config.yaml").exists()


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "evaluate: returned None, expected the loss, or a dict of 'loss', 'accuracy', each a number"),
        ("0.5", "evaluate: returned '0.5', expected the loss"),
        (torch.ones(2), r"evaluate: returned a tensor of shape \[2\], expected the loss"),
        ((0.1, 0.2), "evaluate: returned tuple, expected the loss"),
        ({"loss": {"validation": 1.0}}, "evaluate: returned dict as 'loss', expected a number"),
        (
            {"loss": 1.0, "accuracy": torch.ones(3)},
            r"evaluate: returned a tensor of shape \[3\] as 'accuracy', expected a number",
        ),
        (
            {"loss": 1.0, "f1": 0.5},
            r"evaluate: got the score 'f1', expected those of `metrics`; add hvd_async\.Metric\('f1', ",
        ),
        ({"loss": 1.0, 3: 0.5}, "evaluate: got the score 3, expected those of `metrics`"),
        ({"accuracy": 0.5}, "evaluate: returned no 'loss', expected the loss, or a dict"),
    ],
)
def test_what_evaluate_returns(tmp_path: pathlib.Path, found: Any, message: str) -> None:
    with pytest.raises(HvdAsyncError, match=message) as raised:
        run_with(tmp_path / "run", evaluate=lambda model: found, metrics=[ACCURACY])
    assert raised.value.exit_status == 2


@pytest.mark.parametrize("found", [torch.tensor(0.5, requires_grad=True), {"loss": torch.ones(1), "accuracy": float("nan")}])
def test_tensors_of_one_number_and_a_score_that_is_not_defined_are_fine(tmp_path: pathlib.Path, found: Any) -> None:
    run_with(tmp_path / "run", evaluate=lambda model: found, metrics=[ACCURACY])


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda run, optimizer: optimizer.step(weight="4"), "optimizer.step: weight: got '4', expected a number > 0"),
        (lambda run, optimizer: optimizer.step(weight=X), r"weight: got a tensor of shape \[12, 2\], expected a number > 0"),
        (lambda run, optimizer: optimizer.step(weight=float("nan")), "weight: got nan, expected a number > 0"),
        (
            lambda run, optimizer: optimizer.step(weight=4, loss="x"),
            "optimizer.step: loss: got 'x', expected the loss of the",
        ),
        (
            lambda run, optimizer: optimizer.step(weight=4, loss=X),
            r"loss: got a tensor of shape \[12, 2\], expected the loss of",
        ),
        (lambda run, optimizer: optimizer.step(4), "optimizer.step: got 4 without a name, expected optimizer.step"),
        (lambda run, optimizer: run.log(accuracy="high"), "log: accuracy: got 'high', expected a number"),
        (lambda run, optimizer: run.log(accuracy=None), "log: accuracy: got None, expected a number"),
        (lambda run, optimizer: run.log(time=1.0), "log: got the name 'time', which each line has already"),
    ],
)
def test_arguments_in_the_loop(tmp_path: pathlib.Path, step: Callable[[Any, Any], None], message: str) -> None:
    with pytest.raises(HvdAsyncError, match=message) as raised:
        run_with(tmp_path / "run", step)
    assert raised.value.exit_status == 2


@pytest.mark.parametrize("rate", [None, float("nan"), float("inf"), -1.0, "0.1"])
def test_a_schedule_that_fails_later_is_told_with_its_version(tmp_path: pathlib.Path, rate: Any) -> None:
    with pytest.raises(HvdAsyncError, match=r"schedule: got .* for version 3, expected a number >= 0") as raised:
        run_with(tmp_path / "run", schedule=lambda version: rate if version == 3 else 1.0)
    assert raised.value.exit_status == 2


def test_extra_state_that_is_a_tensor_is_exported_and_loaded(tmp_path: pathlib.Path) -> None:
    model = WithState(torch.tensor([1.0, 2.0]))
    run_with(tmp_path / "run", model=nn.Sequential(model))
    assert torch.equal(model.state, torch.tensor([1.0, 2.0]))
    saved = safetensors.torch.load_file(tmp_path / "run/models/last/model.safetensors")
    assert saved["0._extra_state"].tolist() == [1.0, 2.0] and saved["0.weight"].shape == (3, 2)
