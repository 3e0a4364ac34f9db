"""Optimizers of torch.optim on the store's vectors: the bits of torch, whatever the shards, groups, trials and restarts."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from hvd_async.config import OptimizerConfig
from hvd_async.config.optimizer import TorchClass
from hvd_async.errors import ConfigError
from hvd_async.store.optimizers.factory import check_optimizer, make_optimizer, state_names
from hvd_async.store.optimizers.protocol import StepOrder
from hvd_async.store.optimizers.torch_class import scalar_names
from hvd_async.store.pushed_gradient import Gradient
from hvd_async.store.shards.shard import Shard
from hvd_async.vectors.arithmetic import BLOCK
from hvd_async.vectors.vector_map import VectorMap

SIZE = 2 * BLOCK + 5
CASES: list[tuple[str, float, dict[str, Any]]] = [
    ("Adadelta", 0.0, {"rho": 0.8}),
    ("Adagrad", 0.1, {"lr_decay": 0.5, "initial_accumulator_value": 0.25, "maximize": True}),
    ("Adam", 0.0, {"amsgrad": True}),
    ("AdamW", 0.1, {"betas": [0.8, 0.9], "maximize": True}),
    ("Adamax", 0.1, {}),
    ("ASGD", 0.1, {"t0": 2.0, "lambd": 0.01}),
    ("NAdam", 0.1, {"maximize": True}),
    ("RAdam", 0.1, {"decoupled_weight_decay": True}),
    ("RMSprop", 0.0, {}),
    ("RMSprop", 0.1, {"centered": True, "momentum": 0.5, "alpha": 0.9}),
    ("Rprop", 0.0, {"etas": [0.4, 1.3]}),
    ("SGD", 0.1, {"momentum": 0.9, "dampening": 0.5}),
]


def configured(name: str, decay: float, settings: dict[str, Any], **others: Any) -> OptimizerConfig:
    tree = {"kind": "torch", "torch_class": name, "learning_rate": 0.01, "weight_decay": decay, "settings": settings}
    return OptimizerConfig.model_validate({**tree, **others})


def gradients(number: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(7)
    return [torch.randn(SIZE, generator=random) for _ in range(number)]


def by_torch(name: str, decay: float, settings: dict[str, Any], start: torch.Tensor, number: int) -> list[torch.Tensor]:
    parameter = torch.nn.Parameter(start.clone())
    more = {"weight_decay": decay} if decay else {}
    optimizer = getattr(torch.optim, name)([parameter], lr=0.01, foreach=False, **more, **settings)
    found = []
    for version, gradient in enumerate(gradients(number), start=1):
        optimizer.param_groups[0]["lr"] = 0.01 / version
        parameter.grad = gradient / 2.0 * 0.5
        optimizer.step()
        found.append(parameter.detach().clone())
    return found


def order_of(version: int) -> StepOrder:
    return StepOrder(version, 1 / version, divisor=2.0, clip=0.5)


def test_every_class_is_tried() -> None:
    assert {name for name, _, _ in CASES} == set(get_args(TorchClass))


@pytest.mark.parametrize(("name", "decay", "settings"), CASES)
def test_shards_with_trials_and_restarts_make_the_steps_of_torch(name: str, decay: float, settings: dict[str, Any]) -> None:
    config = configured(name, decay, settings, average_decay=0.5)
    check_optimizer(config)
    start = torch.linspace(-1, 1, SIZE)
    parts = (slice(0, BLOCK), slice(BLOCK, SIZE))

    def shard_of(part: slice) -> Shard:
        return Shard(
            [start[part].clone(), torch.empty(start[part].numel())], config, provisional=[torch.empty_like(start[part])]
        )

    shards = [shard_of(part) for part in parts]
    average = start.clone()
    for version, (gradient, expected) in enumerate(
        zip(gradients(5), by_torch(name, decay, settings, start, 5), strict=True), 1
    ):
        partials = []
        for number, part in enumerate(parts):
            shard = shards[number]
            if version == 4:  # a restart
                state = {each: shard.read(each).clone() for each in ["parameters", *state_names(config)[:-1]]}
                shard = shards[number] = shard_of(part)
                shard.load(state, 3)
            shard.add(Gradient.measure(gradient[part]), 1.0)
            if version > 1:
                before = [shard.read(each).clone() for each in state_names(config)[:-1]]
                shard.provisional_step(order_of(version), 0)
                assert all(map(torch.equal, before, [shard.read(each) for each in state_names(config)[:-1]]))
                assert torch.equal(shard._provisional[0], expected[part])
            partials += shard.step(order_of(version))
            assert torch.equal(shard.parameters, expected[part])
        assert sum(partials) == pytest.approx(float((gradient.double() / 2).square().sum()))
        average += (expected - average) * (1 - min(0.5, (1 + version) / (10 + version)))
        found = torch.cat([shard.read("average") for shard in shards])
        torch.testing.assert_close(found, average, rtol=1e-6, atol=1e-7)


def test_scalars_of_a_state_are_vectors_alike() -> None:
    config = configured("ASGD", 0.0, {})
    assert scalar_names(make_optimizer(config)) == ("eta", "mu") and state_names(config)[:3] == ["ax", "eta", "mu"]
    assert scalar_names(make_optimizer(OptimizerConfig())) == ()


def test_groups_have_settings_of_their_own() -> None:
    groups = [{"match": ["b"], "settings": {"alpha": 0.5}, "learning_rate": 0.1}]
    config = configured("RMSprop", 0.0, {"alpha": 0.9}, groups=groups)
    check_optimizer(config)
    ranges = [slice(0, BLOCK), slice(BLOCK, SIZE)]
    shard = Shard([torch.zeros(SIZE), torch.zeros(SIZE)], config, vector_map=VectorMap(tuple(ranges)))
    (gradient,) = gradients(1)
    shard.add(Gradient.measure(gradient), 1.0)
    shard.step(StepOrder(1, 1.0, 1.0))
    for range_, alpha, rate in zip(ranges, (0.9, 0.5), (0.01, 0.1), strict=True):
        parameter = torch.nn.Parameter(torch.zeros(range_.stop - range_.start))
        parameter.grad = gradient[range_]
        torch.optim.RMSprop([parameter], lr=rate, alpha=alpha).step()
        torch.testing.assert_close(shard.parameters[range_], parameter.detach())


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"settings": {"alfa": 0.9}},
            "optimizer.settings: RMSprop: .*unexpected keyword argument 'alfa'; got alfa, expected",
        ),
        ({"settings": {"alpha": -1}}, "optimizer.settings: RMSprop: Invalid alpha value: -1"),
        (
            {"torch_class": "Rprop", "weight_decay": 0.1},
            "optimizer.settings: Rprop: .*unexpected keyword argument 'weight_decay'",
        ),
        ({"groups": [{"match": ["*"], "settings": {"momentum": 0.9}}]}, "optimizer.groups: got settings with state"),
    ],
)
def test_settings_that_the_class_refuses_are_named(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_optimizer(OptimizerConfig.model_validate({"kind": "torch", **tree}))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"kind": "torch", "settings": {"lr": 0.1}}, "settings: got lr, expected other settings of RMSprop"),
        ({"kind": "torch", "torch_class": "LBFGS"}, "torch_class"),
        ({"kind": "adam", "settings": {"alpha": 0.1}}, "torch_class, settings: expected no value for kind adam"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig.model_validate(tree)
