"""What users do in loops: uneven weights, accumulation, clipping, autocast, scaling, gradients set to None."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import torch

from tests.mpi.runs import events_of
from tests.ranks import run_ranks
from tests.script.loop_script import OPTIMIZERS, LoopNet, make_optimizer
from tests.tasks.blobs import blobs

pytestmark = pytest.mark.mpi
LOCKSTEP = {"kind": "async", "lockstep": True}


def arguments_of(folder: pathlib.Path, strategy: Any, **options: Any) -> dict[str, Any]:
    epochs = options.pop("epochs", 4)
    return {"folder": str(folder), "strategy": strategy, "epochs": epochs, "options": {"sizes": [28], **options}}


def trained(
    folder: pathlib.Path, num_ranks: int, strategy: Any, **runs: dict[str, Any]
) -> dict[str, dict[str, torch.Tensor]]:
    """Make the runs of `loop_script` with the options given, in one job, and return the saved parameters of each."""
    series = [arguments_of(folder / name, strategy, **options) for name, options in runs.items()]
    run_ranks(num_ranks, "tests.script.loop_script", json.dumps(series), timeout=120).check()
    return {name: torch.load(folder / name / "model.pt", weights_only=True) for name in runs}


def check_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=tolerance, atol=tolerance, msg=name)


def test_three_workers_with_weights_7_1_and_20_are_one_process_with_28(tmp_path: pathlib.Path) -> None:
    (whole,) = trained(tmp_path, 1, "single", whole={}).values()
    for name, num_ranks, strategy in (("async", 4, LOCKSTEP), ("horovod", 3, "horovod")):
        check_equal(trained(tmp_path, num_ranks, strategy, **{name: {"sizes": [7, 1, 20]}})[name], whole)
    assert torch.equal(whole["unused"], torch.ones(2)) and torch.equal(whole["scale"], torch.ones(6))
    assert torch.equal(whole["head.weight"], whole["twin.weight"])


@pytest.mark.parametrize("strategy", ["single", LOCKSTEP, "horovod", "ddp"], ids=str)
def test_several_backward_passes_to_a_step_are_one_arrival(tmp_path: pathlib.Path, strategy: Any) -> None:
    ranks = {"single": 1, "horovod": 2, "ddp": 2}.get(str(strategy), 3)
    sizes = [28] if ranks == 1 else [14, 14]
    found = trained(tmp_path, ranks, strategy, whole={"sizes": sizes}, parts={"sizes": sizes, "parts": 3})
    check_equal(found["parts"], found["whole"])


def test_parameters_are_pulled_between_backward_passes(tmp_path: pathlib.Path) -> None:
    both = {"parts": 3, "epochs": 8}
    (alone,) = trained(tmp_path / "single", 1, "single", pulls={**both, "pull": True}).values()
    check_equal(trained(tmp_path / "plain", 1, "single", parts=both)["parts"], alone, 0.0)
    sizes = [14, 14]
    strategy = {"kind": "async", "arrivals_per_update": 1}
    trained(tmp_path, 3, strategy, whole={**both, "sizes": sizes}, pulls={**both, "sizes": sizes, "pull": True})
    assert all(arrival["later_bases"] == [] for arrival in events_of(tmp_path / "whole", "arrival"))
    pulls = events_of(tmp_path / "pulls", "arrival")
    assert len(pulls) == 16
    for arrival in pulls:
        versions = [arrival["base_version"], *(version for version, _ in arrival["later_bases"])]
        assert len(versions) == 3 and versions == sorted(versions) and versions[-1] < arrival["version"]
    for kind in ("horovod", "ddp"):
        found = trained(tmp_path / kind, 2, kind, pulls={**both, "sizes": sizes, "pull": True})
        check_equal(found["pulls"], alone)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (
            {"push": {"overlap": True}},
            {"parts": 2},
            "optimizer.pull: got a run with push.overlap, which pulls at other times",
        ),
        ({}, {"parts": 14}, "optimizer.pull: called 8 times for a batch, expected at most 7 times"),
    ],
)
def test_pulls_that_cannot_be_are_refused(
    tmp_path: pathlib.Path, arguments: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    series = [{**arguments_of(tmp_path / "run", {"kind": "async"}, pull=True, **options), **arguments}]
    done = run_ranks(2, "tests.script.loop_script", json.dumps(series), timeout=120)
    assert done.returncode != 0 and words in done.stderr


def test_clipping_autocast_scaling_and_gradients_set_to_none(tmp_path: pathlib.Path) -> None:
    alone = trained(tmp_path / "single", 1, "single", plain={}, clipped={"clip": 1e-3})
    assert (alone["plain"]["first.weight"] - alone["clipped"]["first.weight"]).abs().max() > 1e-3
    options: dict[str, dict[str, Any]] = {
        "plain": {},
        "clipped": {"clip": 1e-3},
        "none": {"set_none": True},
        "scaled": {"scaler": True},
        "unscaled": {"scaler": True, "unscale": True, "clip": 1e-3},
        "autocast": {"autocast": True},
    }
    found = trained(tmp_path / "async", 2, LOCKSTEP, **options)
    check_equal(found["clipped"], alone["clipped"])
    check_equal(found["unscaled"], alone["clipped"])
    for name, tolerance in (("none", 1e-5), ("scaled", 1e-4), ("autocast", 0.05)):
        check_equal(found[name], found["plain"], tolerance)


def test_torch_goes_on_with_the_state_of_the_store_and_the_store_with_that_of_torch(tmp_path: pathlib.Path) -> None:
    runs: dict[str, dict[str, Any]] = {}
    for name in OPTIMIZERS:
        runs[f"{name}-four"] = {"optimizer": name}
        runs[f"{name}-six"] = {"optimizer": name, "epochs": 6}
        runs[f"{name}-more"] = {"optimizer": name, "epochs": 2, "begin": str(tmp_path / f"{name}-four")}
    found = trained(tmp_path, 2, LOCKSTEP, **runs)
    x, y = blobs(28, 1).tensors
    for name in OPTIMIZERS:
        model = LoopNet()
        model.load_state_dict(found[f"{name}-four"])
        optimizer = make_optimizer(name, model)
        optimizer.load_state_dict(torch.load(tmp_path / f"{name}-four/optimizer.pt", weights_only=True))
        for _ in range(2):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            model.unused.grad = torch.zeros(2)  # which torch would skip
            optimizer.step()
        check_equal(model.state_dict(), found[f"{name}-six"])
        more = found[f"{name}-more"]
        assert all(torch.equal(more[key], tensor) for key, tensor in found[f"{name}-six"].items()), name
        state, expected = (
            torch.load(tmp_path / f"{name}-{length}/optimizer.pt", weights_only=True)["state"] for length in ("more", "six")
        )
        assert state.keys() == expected.keys() and len(state) > 0
        for number, values in state.items():
            assert values.keys() == expected[number].keys()
            assert all(torch.equal(value, expected[number][key]) for key, value in values.items())


@pytest.mark.parametrize(("change", "name"), [("replace", "head.bias"), ("cast", "unused")])
def test_a_model_that_is_changed_after_prepare_is_refused(tmp_path: pathlib.Path, change: str, name: str) -> None:
    arguments = json.dumps([arguments_of(tmp_path / "run", "single", change=change)])
    done = run_ranks(1, "tests.script.loop_script", arguments, timeout=90)
    assert done.returncode == 2
    assert f"optimizer.step: {name}: got a parameter that prepare did not see, or that was moved or cast" in done.stderr


@pytest.mark.slow
def test_a_compiled_model_trains_alike(tmp_path: pathlib.Path) -> None:
    found = trained(tmp_path, 2, LOCKSTEP, plain={}, compiled={"compile": True})
    check_equal(found["compiled"], found["plain"], 1e-4)
