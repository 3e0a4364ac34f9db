"""The arithmetic of a shard: optimizer steps compared with values computed by hand, buffers, sparse gradients, its state."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from hvd_async.config import OptimizerConfig
from hvd_async.store.optimizers.factory import make_optimizer, state_names
from hvd_async.store.optimizers.protocol import StepOrder
from hvd_async.store.pushed_gradient import Gradient
from hvd_async.store.shards.shard import Shard
from hvd_async.vectors.arithmetic import BLOCK
from tests.store.stores import sgd


def step(shard: Shard, gradient: list[float], version: int, **order: float) -> None:
    shard.add(Gradient.measure(torch.tensor(gradient)), 1.0)
    shard.step(StepOrder(**{"version": version, "rate_factor": 1.0, "divisor": 1.0, **order}))  # type: ignore[arg-type]


def test_a_step_divides_then_clips() -> None:
    shard = Shard([torch.zeros(2)], sgd())
    step(shard, [6.0, 8.0], 1, divisor=2.0, clip=0.2)
    assert shard.parameters.tolist() == pytest.approx([-0.6, -0.8])


def test_versions_rotate_through_the_buffers_and_leave_the_others_alone() -> None:
    buffers = [torch.full((2,), float(n)) for n in (0, 9, 9)]
    shard = Shard(buffers, sgd())
    for version in (1, 2, 3, 4):
        step(shard, [-1.0, -1.0], version)
        assert shard.parameters is buffers[version % 3]
    assert [buffer.tolist() for buffer in buffers] == [[3.0] * 2, [4.0] * 2, [2.0] * 2]


def test_the_moving_average_follows_closely_at_first_and_then_decays_as_configured() -> None:
    shard = Shard([torch.zeros(1)], sgd(average_decay=0.25))
    expected, parameter = 0.0, 0.0
    for version in range(1, 6):
        step(shard, [-8.0], version)
        parameter += 8.0
        decay = min(0.25, (1 + version) / (10 + version))  # 2/11, then 3/12 = 0.25, and no more
        expected = decay * expected + (1 - decay) * parameter
        assert shard.read("average").item() == pytest.approx(expected)


def test_held_gradients_are_summed_in_order_and_read_only_when_needed() -> None:
    """In float32, (1e8 + 1) - 1e8 is 0, but (1e8 - 1e8) + 1 is 1."""
    values = [torch.tensor([1e8]), torch.tensor([1.0]), torch.tensor([-1e8])]
    shard = Shard([torch.zeros(1)], sgd())
    for value in values:
        shard.add(Gradient.measure(value), 1.0)
    shard.flush()
    assert shard.read("pending_sum").item() == 0.0
    shard.discard()
    for value in (values[0], values[2], values[1]):
        shard.add(Gradient.measure(value), 1.0)
    values[1].fill_(5.0)  # the shard has not read it yet
    shard.norm(1.0)
    assert shard.read("pending_sum").item() == 5.0


def test_flushing_in_between_does_not_change_the_sum() -> None:
    random = torch.Generator().manual_seed(1)
    gradients = [Gradient.measure(torch.randn(9000, generator=random)) for _ in range(5)]
    results = []
    for cuts in ((), (1,), (2, 4)):
        shard = Shard([torch.zeros(9000)], OptimizerConfig())
        for number, gradient in enumerate(gradients):
            shard.add(gradient, 1.0 + number)
            if number in cuts:
                shard.flush()
        partials = shard.step(StepOrder(1, 1e-3, 7.0))
        results.append((shard.parameters, partials))
    assert all(torch.equal(result[0], results[0][0]) and result[1] == results[0][1] for result in results)


def test_a_sparse_gradient_counts_like_the_dense_one_with_zeros() -> None:
    whole = torch.tensor([0.0, 2.0, 0.0, -3.0])
    few = Gradient(torch.tensor([2.0, -3.0]), 3.0, torch.tensor([1, 3], dtype=torch.int32))
    shards = [Shard([torch.ones(4)], OptimizerConfig()) for _ in range(2)]
    for shard, gradient in zip(shards, (Gradient.measure(whole), few), strict=True):
        shard.add(gradient, 2.0)
        shard.add(gradient, 1.0)
        shard.step(StepOrder(1, 0.1, 1.0))
    assert torch.equal(shards[0].parameters, shards[1].parameters)


@pytest.mark.parametrize("decay", [0.0, 4e-3, 0.5, 1e3])
@pytest.mark.parametrize("beta1", [0.0, 0.5, 0.99])
def test_nadam_takes_the_same_numbers_at_a_version_wherever_it_resumed(beta1: float, decay: float) -> None:
    config = OptimizerConfig(kind="nadam", betas=(beta1, 0.98), momentum_decay=decay)
    unbroken, product = make_optimizer(config), 1.0
    for version in range(1, 4000):
        order = StepOrder(version, 1.0, 1.0)
        momentum, following = (beta1 * (1 - 0.5 * 0.96 ** (each * decay)) for each in (version, version + 1))
        product *= momentum
        rule = unbroken.rule(order)
        assert rule.gradient_rate == 1e-3 * (1 - momentum) / (1 - product)
        assert rule.rate == 1e-3 * following / (1 - product * following)
        if version % 400 == 1:
            assert make_optimizer(config).rule(order) == rule
    assert unbroken.rule(StepOrder(3, 1.0, 1.0)) == make_optimizer(config).rule(StepOrder(3, 1.0, 1.0))


def test_adagrad_begins_with_the_sums_configured_and_its_rate_falls() -> None:
    settings = {"kind": "adagrad", "learning_rate": 1.0, "epsilon": 1e-30, "rate_decay": 0.5, "initial_accumulator": 9.0}
    shard = Shard([torch.zeros(2)], OptimizerConfig.model_validate(settings))
    step(shard, [4.0, 0.0], 1)
    assert shard.parameters.tolist() == pytest.approx([-0.8, 0.0])  # 4 / sqrt(9 + 16)
    step(shard, [12.0, 4.0], 2)
    assert shard.parameters.tolist() == pytest.approx([-0.8 - 12 / 13 / 1.5, -0.8 / 1.5])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"parameters": torch.zeros(2)}, "got no average"),
        ({"parameters": torch.zeros(2), "average": torch.zeros(3)}, "got 3 elements of average, expected 2"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(tensors: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shard([torch.zeros(2)], sgd(average_decay=0.5)).load(tensors, 1)


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"kind": "sgd", "learning_rate": 1.0},
    "momentum": {"kind": "sgd", "learning_rate": 1.0, "momentum": 0.9, "weight_decay": 0.1},
    "nesterov": {"kind": "sgd", "momentum": 0.9, "learning_rate": 1.0, "nesterov": True, "average_decay": 0.9},
    "adam": {"kind": "adam", "learning_rate": 1.0, "weight_decay": 0.1},
    "adamw": {"kind": "adamw", "learning_rate": 1.0, "weight_decay": 0.1, "average_decay": 0.9},
    "nadam": {"kind": "nadam", "learning_rate": 1.0, "weight_decay": 0.1, "momentum_decay": 0.5},
    "nadamw": {"kind": "nadam", "learning_rate": 1.0, "weight_decay": 0.1, "decoupled_weight_decay": True},
    "lion": {"kind": "lion", "learning_rate": 1.0, "weight_decay": 0.1, "average_decay": 0.9},
    "adagrad": {"kind": "adagrad", "learning_rate": 1.0, "rate_decay": 0.5, "initial_accumulator": 0.25},
}
SIZE = BLOCK + 77


def gradient(seed: int) -> Gradient:
    return Gradient.measure(torch.randn(SIZE, generator=torch.Generator().manual_seed(seed)))


def advanced(name: str, num_updates: int = 3) -> tuple[Shard, list[torch.Tensor]]:
    """Return a shard at version `num_updates`, and its vectors for provisional parameters."""
    provisional = [torch.full((SIZE,), torch.nan) for _ in range(2)]
    shard = Shard(
        [torch.zeros(SIZE) for _ in range(2)], OptimizerConfig.model_validate(OPTIMIZERS[name]), provisional=provisional
    )
    for version in range(1, num_updates + 1):
        shard.add(gradient(version), 1.0)
        shard.step(StepOrder(version, 0.1, 2.0))
    return shard, provisional


def copies(shard: Shard, name: str) -> dict[str, torch.Tensor]:
    names = ["parameters", *state_names(OptimizerConfig.model_validate(OPTIMIZERS[name]))]
    return {each: shard.read(each).clone() for each in names if each != "pending_sum"}


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if "adam" not in name])
def test_a_provisional_step_gives_the_parameters_of_a_step(name: str) -> None:
    shard, provisional = advanced(name)
    twin, _ = advanced(name)
    order = StepOrder(4, 0.05, 3.0, clip=0.7)
    for each in (shard, twin):
        each.add(gradient(11), 2.0)
        each.add(gradient(12), 1.0)
    shard.provisional_step(order, 1)
    twin.step(order)
    assert torch.equal(provisional[1], twin.parameters) and provisional[0].isnan().all()
    assert not torch.equal(provisional[1], shard.parameters)


@pytest.mark.parametrize("num_updates", [1, 3])
@pytest.mark.parametrize("name", ["adam", "adamw", "nadam", "nadamw"])
def test_a_provisional_step_of_adam_keeps_the_second_moment_unless_that_of_its_gradient_is_larger(
    name: str, num_updates: int
) -> None:
    shard, provisional = advanced(name, num_updates)
    before = {key: vector.double() for key, vector in copies(shard, name).items()}
    shard.add(gradient(11), 2.0)
    shard.add(gradient(12), 1.0)
    shard.provisional_step(StepOrder(num_updates + 1, 0.05, 3.0, clip=0.7), 0)

    (beta1, beta2), epsilon = OptimizerConfig().betas, OptimizerConfig().epsilon
    mean = (gradient(11).values.double() / 2 + gradient(12).values.double()) / 3 * 0.7
    parameters = before["parameters"]
    if name.endswith("w"):
        parameters = parameters * (1 - 0.05 * 0.1)
    else:
        mean = mean + 0.1 * parameters
    first = beta1 * before["first_moment"] + (1 - beta1) * mean
    direction = first / (1 - beta1 ** (num_updates + 1))
    if name.startswith("n"):
        decay = OPTIMIZERS[name].get("momentum_decay", 4e-3)
        momenta = [beta1 * (1 - 0.5 * 0.96 ** (version * decay)) for version in range(1, num_updates + 3)]
        direction = momenta[-1] * first / (1 - math.prod(momenta))
        direction += (1 - momenta[-2]) * mean / (1 - math.prod(momenta[:-1]))
    second = torch.maximum(before["second_moment"], (1 - beta2) * mean * mean)
    assert num_updates == 1 or 0 < (second != before["second_moment"]).sum() < SIZE / 10
    spread = (second / (1 - beta2**num_updates)).sqrt() + epsilon
    expected = (parameters - 0.05 * direction / spread).float()
    torch.testing.assert_close(provisional[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["adam", "adamw", "nadam", "lion", "adagrad"])
def test_a_first_nonzero_gradient_causes_no_large_provisional_step(kind: str) -> None:
    """Examples are the embedding of a word not seen so far, and an element that was never pushed."""
    provisional = torch.empty(2)
    shard = Shard([torch.zeros(2), torch.zeros(2)], OptimizerConfig(kind=kind, learning_rate=1.0), provisional=[provisional])
    for version in range(1, 51):
        shard.add(Gradient.measure(torch.tensor([0.1, 0.0])), 1.0)
        shard.step(StepOrder(version, 1e-3, 1.0))
    shard.add(Gradient.measure(torch.tensor([0.1, 0.01])), 1.0)
    shard.provisional_step(StepOrder(51, 1e-3, 1.0), 0)
    shard.step(StepOrder(51, 1e-3, 1.0))
    torch.testing.assert_close(provisional, shard.parameters, rtol=0.02, atol=0.0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_provisional_steps_leave_later_versions_unchanged(name: str) -> None:
    """Run provisional steps before gradients and before combinations: every later version stays bit-identical."""
    shard, provisional = advanced(name)
    twin, _ = advanced(name)
    for version in (4, 5, 6):
        for number in range(3):
            for each in (shard, twin):
                each.add(gradient(10 * version + number), 1.0 + number)
            before = copies(shard, name)
            shard.provisional_step(StepOrder(version, 0.05, 1.0 + number), 3 * version + number)
            assert all(torch.equal(vector, before[key]) for key, vector in copies(shard, name).items())
            assert provisional[(3 * version + number) % 2].isfinite().all()
        if version == 5:
            assert shard.norm(3.0) == twin.norm(3.0)
        order = StepOrder(version, 0.05, 3.0)
        assert shard.step(order) == twin.step(order)
        assert all(torch.equal(vector, shard.read(key)) for key, vector in copies(twin, name).items())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_loaded_shard_continues_bit_for_bit_in_other_buffers(name: str) -> None:
    shard, _ = advanced(name)
    loaded = Shard([torch.full((SIZE,), 7.0)], OptimizerConfig.model_validate(OPTIMIZERS[name]))
    loaded.load(copies(shard, name), 3)
    for each in (shard, loaded):
        each.add(gradient(11), 2.0)
        each.step(StepOrder(4, 0.1, 1.0))
    assert all(torch.equal(vector, loaded.read(key)) for key, vector in copies(shard, name).items())
