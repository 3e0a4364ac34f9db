"""What users do in loops: uneven weights, accumulation, clipping, autocast, scaling, gradients set to None."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import torch

from tests.ranks import run_ranks
from tests.script.loop_script import LoopNet
from tests.tasks.blobs import blobs

pytestmark = pytest.mark.mpi
LOCKSTEP = {"kind": "async", "lockstep": True}


def trained(folder: pathlib.Path, num_ranks: int, strategy: Any, **options: Any) -> dict[str, torch.Tensor]:
    """Train with `loop_script`, and return the saved parameters."""
    arguments = {"strategy": strategy, "epochs": options.pop("epochs", 4), "options": {"sizes": [28], **options}}
    run_ranks(num_ranks, "tests.script.loop_script", str(folder), json.dumps(arguments), timeout=90).check()
    saved: dict[str, torch.Tensor] = torch.load(folder / "model.pt", weights_only=True)
    return saved


def check_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=tolerance, atol=tolerance, msg=name)


def test_three_workers_with_weights_7_1_and_20_are_one_process_with_28(tmp_path: pathlib.Path) -> None:
    whole = trained(tmp_path / "whole", 1, "single")
    check_equal(trained(tmp_path / "async", 4, LOCKSTEP, sizes=[7, 1, 20]), whole)
    check_equal(trained(tmp_path / "horovod", 3, "horovod", sizes=[7, 1, 20]), whole)
    initial = torch.ones(2)
    assert torch.equal(whole["unused"], initial) and torch.equal(whole["scale"], torch.ones(6))
    assert torch.equal(whole["head.weight"], whole["twin.weight"])


@pytest.mark.parametrize("strategy", ["single", LOCKSTEP, "horovod", "ddp"], ids=str)
def test_several_backward_passes_to_a_step_are_one_arrival(tmp_path: pathlib.Path, strategy: Any) -> None:
    ranks = {"single": 1, "horovod": 2, "ddp": 2}.get(str(strategy), 3)
    sizes = [28] if ranks == 1 else [14, 14]
    whole = trained(tmp_path / "whole", ranks, strategy, sizes=sizes)
    check_equal(trained(tmp_path / "parts", ranks, strategy, sizes=sizes, parts=3), whole)


def test_clipping_in_the_loop_clips_the_arrival(tmp_path: pathlib.Path) -> None:
    plain = trained(tmp_path / "plain", 1, "single")
    clipped = trained(tmp_path / "clipped", 1, "single", clip=1e-3)
    assert (plain["first.weight"] - clipped["first.weight"]).abs().max() > 1e-2
    check_equal(trained(tmp_path / "async", 2, LOCKSTEP, clip=1e-3), clipped)


def test_autocast_scaling_and_gradients_set_to_none(tmp_path: pathlib.Path) -> None:
    plain = trained(tmp_path / "plain", 2, LOCKSTEP)
    check_equal(trained(tmp_path / "none", 2, LOCKSTEP, set_none=True), plain)
    check_equal(trained(tmp_path / "scaled", 2, LOCKSTEP, scaler=True), plain, 1e-4)
    check_equal(trained(tmp_path / "autocast", 2, LOCKSTEP, autocast=True), plain, 0.05)


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_torch_goes_on_with_the_state_of_the_store(tmp_path: pathlib.Path, name: str, kind: Any) -> None:
    six = trained(tmp_path / "six", 2, LOCKSTEP, optimizer=name, epochs=6)
    model = LoopNet()
    model.load_state_dict(trained(tmp_path / "four", 2, LOCKSTEP, optimizer=name))
    settings = {"sgd": {"momentum": 0.9}, "adamw": {"eps": 1e-4}}[name]
    optimizer = kind([p for p in model.parameters() if p.requires_grad], lr=0.1, **settings)
    optimizer.load_state_dict(torch.load(tmp_path / "four/optimizer.pt", weights_only=True))
    x, y = blobs(28, 1).tensors
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        model.unused.grad = torch.zeros(2)  # which torch would skip
        optimizer.step()
    check_equal(model.state_dict(), six)


@pytest.mark.parametrize(("change", "name"), [("replace", "head.bias"), ("cast", "unused")])
def test_a_model_that_is_changed_after_prepare_is_refused(tmp_path: pathlib.Path, change: str, name: str) -> None:
    arguments = json.dumps({"strategy": "single", "options": {"sizes": [28], "change": change}})
    done = run_ranks(1, "tests.script.loop_script", str(tmp_path / "run"), arguments, timeout=90)
    assert done.returncode == 2
    assert f"optimizer.step: {name}: got a parameter that prepare did not see, or that was moved or cast" in done.stderr


@pytest.mark.slow
def test_a_compiled_model_trains_alike(tmp_path: pathlib.Path) -> None:
    plain = trained(tmp_path / "plain", 2, LOCKSTEP)
    check_equal(trained(tmp_path / "compiled", 2, LOCKSTEP, compile=True), plain, 1e-4)
