"""What users pass to `prepare`, `optimizer.step` and `run.log` by mistake: one line that says what was expected."""

from __future__ import annotations

import json
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
from hvd_async.script.settings import script_config
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
    validation = arguments.pop("validation", {})
    run = ha.init(folder, strategy="single", epochs=1, tensorboard=False, device="cpu", validation=validation)
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


def with_hook() -> nn.Module:
    """A model whose optimizer steps in backward."""
    model = nn.Linear(2, 3)
    hook: Any = model.weight.register_post_accumulate_grad_hook  # untyped in torch
    hook(lambda parameter: None)
    return model


def test_an_optimizer_in_backward_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(
        HvdAsyncError, match=r"model: weight: got a hook on its accumulated gradient, such as that of an optim"
    ):
        run_with(tmp_path / "run", model=with_hook())


def test_a_model_can_be_prepared_again_after_its_run(tmp_path: pathlib.Path) -> None:
    model = nn.Linear(2, 3)
    for name in ("one", "two"):
        run_with(tmp_path / name, model=model)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # torch's: its optimizer makes no step
def test_a_scheduler_of_torch_cannot_step_while_the_run_has_the_optimizer(tmp_path: pathlib.Path) -> None:
    model = nn.Linear(2, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)

    def step(run: Any, stepper: Any) -> None:
        stepper.step(weight=4)
        with pytest.raises(
            HvdAsyncError, match=r"optimizer.param_groups: lr: got an assignment, expected none after prepare"
        ):
            scheduler.step()
        with pytest.raises(HvdAsyncError, match=r"optimizer.param_groups: lr: got an assignment"):
            optimizer.param_groups[0]["lr"] = 0.5

    run_with(tmp_path / "run", step, model=model, optimizer=optimizer)
    optimizer.param_groups[0]["lr"] = 0.5  # the script's own again
    assert optimizer.state_dict()["param_groups"][0]["lr"] == 0.5


def test_a_gradient_that_was_cleared_after_backward_is_none(tmp_path: pathlib.Path) -> None:
    model = nn.Linear(2, 3)

    def step(run: Any, stepper: Any) -> None:
        model.zero_grad()
        stepper.step(weight=4)

    with pytest.raises(
        HvdAsyncError, match=r"got no gradient, expected loss.backward\(\) before it, and no zero_grad\(\) bet"
    ):
        run_with(tmp_path / "run", step, model=model)


def test_modules_that_are_in_evaluation_mode_stay_so(tmp_path: pathlib.Path) -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3))
    model[0].eval()
    seen = []

    def step(run: Any, stepper: Any) -> None:
        seen.append([module.training for module in model])
        stepper.step(weight=4)

    run_with(tmp_path / "run", step, model=model, evaluate=lambda module: 1.0)
    assert seen == [[False, True]] * 3 and not model[0].training and model[1].training


@pytest.mark.parametrize(
    ("strategy", "workers", "bounds", "expected"),
    [
        ("single", 1, {"epochs": 3}, 21),
        ("horovod", 3, {"epochs": 3}, 9),  # a group of batches never reaches into the next epoch
        ({"kind": "async"}, 3, {"epochs": 3}, 7),
        ({"kind": "async", "arrivals_per_update": 1}, 3, {"epochs": 3}, 21),
        ({"kind": "async", "arrivals_per_update": 2}, 3, {"epochs": 3}, 11),
        ({"kind": "async"}, 3, {"updates": 8}, 8),
    ],
)
def test_the_length_of_a_schedule_is_known(
    tmp_path: pathlib.Path, strategy: Any, workers: int, bounds: dict[str, int], expected: int
) -> None:
    run = ha.init(tmp_path / "run", strategy="single", epochs=1, tensorboard=False, device="cpu")
    run.finish()
    run.config = script_config("x", None, {"strategy": strategy, **bounds}, {})
    run.num_workers = workers
    assert run.num_versions(7) == expected


def test_an_expanded_buffer_is_kept(tmp_path: pathlib.Path) -> None:
    model = nn.Linear(2, 3)
    model.register_buffer("mask", torch.ones(1, 5).expand(4, 5))
    run_with(tmp_path / "run", model=model)
    saved = safetensors.torch.load_file(tmp_path / "run/models/last/model.safetensors")
    assert torch.equal(saved["mask"], torch.ones(4, 5))


def test_a_run_is_resumed_with_its_own_model_alone(tmp_path: pathlib.Path) -> None:
    run_with(tmp_path / "run")
    run = ha.init(tmp_path / "run", strategy="single", epochs=2, tensorboard=False, device="cpu", resume=True)
    other = nn.Linear(2, 3, bias=False)
    with pytest.raises(
        HvdAsyncError, match=r"init\(resume=True\): got data, shapes of parameters or frozen parameters that"
    ):
        try:
            run.prepare(other, torch.optim.SGD(other.parameters(), lr=0.1), list(zip(X.split(4), Y.split(4), strict=True)))
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
            {"evaluate": abs, "metrics": [ha.Metric(f"m{number}", "m") for number in range(24)]},
            "metrics: got 50 sums in an evaluation, expected at most 48",
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
            r"evaluate: got the score 'f1', expected those of `metrics`; add a hvd_async\.Metric for it",
        ),
        ({"loss": 1.0, 3: 0.5}, "evaluate: got the score 3, expected those of `metrics`"),
        ({"accuracy": 0.5}, "evaluate: returned no 'loss', expected the loss, or a dict"),
    ],
)
def test_what_evaluate_returns(tmp_path: pathlib.Path, found: Any, message: str) -> None:
    with pytest.raises(HvdAsyncError, match=message) as raised:
        run_with(tmp_path / "run", evaluate=lambda model: found, metrics=[ACCURACY])
    assert raised.value.exit_status == 2


def test_the_score_of_a_script_chooses_its_best_model(tmp_path: pathlib.Path) -> None:
    scores = iter([0.3, 0.7, 0.5])
    validation = {"every": 1, "score": "accuracy"}
    run_with(
        tmp_path / "run",
        evaluate=lambda model: {"loss": 1.0, "accuracy": next(scores)},
        metrics=[ACCURACY],
        validation=validation,
    )
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    meta = json.loads((tmp_path / "run/models/best/meta.json").read_text())
    assert (summary["best"]["version"], meta["version"], meta["validation_accuracy"]) == (2, 2, 0.7)


def test_an_evaluation_without_the_score_that_is_asked_for_is_refused_at_once(tmp_path: pathlib.Path) -> None:
    message = "evaluate: returned loss and no 'accuracy', expected it, since validation.score is accuracy"
    with pytest.raises(HvdAsyncError, match=message):
        run_with(
            tmp_path / "run", evaluate=lambda model: 1.0, metrics=[ACCURACY], validation={"every": 1, "score": "accuracy"}
        )
    assert not list((tmp_path / "run/models").glob("last*"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"evaluate": lambda model: 1.0, "metrics": [ACCURACY]}, "a score that the task measures: loss or accuracy"),
        ({"evaluate": lambda model: 1.0}, "a score that the task measures: loss"),
        ({}, "loss, since the task measures nothing"),
    ],
)
def test_a_score_that_a_script_does_not_measure_is_refused(
    tmp_path: pathlib.Path, arguments: dict[str, Any], expected: str
) -> None:
    with pytest.raises(HvdAsyncError, match=f"^validation.score: got 'f1', expected {expected}$") as raised:
        run_with(tmp_path / "run", validation={"score": "f1"}, **arguments)
    assert raised.value.exit_status == 2 and not (tmp_path / "run/config.yaml").exists()


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
