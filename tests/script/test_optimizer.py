"""What the store is told of a torch optimizer, and what is refused; schedules over versions."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import hvd_async as ha
from hvd_async.config import OptimizerConfig, ScheduleConfig
from hvd_async.errors import ConfigError
from hvd_async.script.description import describe_optimizers
from hvd_async.script.optimizer import RunOptimizer, check_schedule, guard_groups
from hvd_async.tasks.gradient import flatten
from tests.lion import TorchLion

BASE = OptimizerConfig(clip_norm=2.0, average_decay=0.9, schedule=ScheduleConfig(kind="constant"))


# A class of another package, known by its name.
Lion = type("Lion", (TorchLion,), {})
DecoupledLion = type("Lion", (TorchLion,), {"decoupled_wd": True})


def network() -> torch.nn.Module:
    return torch.nn.ModuleDict({"a": torch.nn.Linear(3, 4), "b.[x]".replace(".", "_"): torch.nn.Linear(4, 2)})


def test_a_schedule_of_torch_keeps_its_last_rate_beyond_its_length() -> None:
    cosine = ha.torch_schedule(lambda each: torch.optim.lr_scheduler.CosineAnnealingLR(each, 10), 10)
    assert [cosine(version) for version in (1, 10, 11, 30)] == [1.0, cosine(10), cosine(10), cosine(10)] and cosine(
        10
    ) < 0.03

    def one_cycle(each: torch.optim.Optimizer, **settings: bool) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.OneCycleLR(each, 1.0, total_steps=5, **settings)

    rates = ha.torch_schedule(lambda each: one_cycle(each, cycle_momentum=False), 5)
    assert rates(5) == rates(50) < rates(2)
    with pytest.raises(
        ConfigError, match=r"torch_schedule: OneCycleLR changes the momentum too, .* pass cycle_momentum=False"
    ):
        ha.torch_schedule(one_cycle, 5)


def test_class_groups_and_settings_are_read_and_the_rest_stays() -> None:
    model = network()
    groups = [
        {"params": [model["a"].weight]},
        {"params": [model["a"].bias], "lr": 0.5, "weight_decay": 0.0},
        {"params": list(model["b_[x]"].parameters()), "betas": (0.5, 0.6), "eps": 1e-3},
    ]
    found = describe_optimizers([torch.optim.AdamW(groups, lr=0.25, weight_decay=0.1)], model, BASE)
    assert (found.kind, found.learning_rate, found.weight_decay, found.clip_norm) == ("adamw", 0.25, 0.1, 2.0)
    assert [found.group_of(name) for name, _ in model.named_parameters()] == [0, 1, 2, 2]
    one, two = found.of_groups()[1:]
    assert (one.learning_rate, one.weight_decay, one.betas) == (0.5, 0.0, (0.9, 0.999))
    assert (two.learning_rate, two.betas, two.epsilon) == (0.25, (0.5, 0.6), 1e-3)
    assert len(flatten(model, found).map.groups) == 3


def test_frozen_and_tied_parameters_are_no_hindrance() -> None:
    model = torch.nn.ModuleList([torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)])
    model[1].weight = model[0].weight
    model[1].bias.requires_grad_(False)
    found = describe_optimizers([torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)], model, BASE)
    assert (found.kind, found.momentum, found.nesterov) == ("sgd", 0.9, True)
    assert flatten(model, found).size > 0


def test_nadam_is_read_with_both_its_decays_in_each_group() -> None:
    model = network()
    groups = [
        {"params": list(model["a"].parameters()), "momentum_decay": 0.5},
        {"params": list(model["b_[x]"].parameters()), "decoupled_weight_decay": True},
    ]
    torch_optimizer = torch.optim.NAdam(groups, weight_decay=0.1, foreach=True)
    one, two = describe_optimizers([torch_optimizer], model, BASE).of_groups()
    assert (one.kind, one.learning_rate, one.betas, one.epsilon) == ("nadam", 2e-3, (0.9, 0.999), 1e-8)
    assert (one.momentum_decay, one.decoupled_weight_decay, one.weight_decay) == (0.5, False, 0.1)
    assert (two.momentum_decay, two.decoupled_weight_decay, two.weight_decay) == (4e-3, True, 0.1)


def test_adagrad_is_read_with_its_decay_and_its_first_sums() -> None:
    model = network()
    torch_optimizer = torch.optim.Adagrad(model.parameters(), lr_decay=0.5, initial_accumulator_value=0.25, fused=True)
    found = describe_optimizers([torch_optimizer], model, BASE)
    assert (found.kind, found.learning_rate, found.epsilon) == ("adagrad", 0.01, 1e-10)
    assert (found.rate_decay, found.initial_accumulator) == (0.5, 0.25)


@pytest.mark.parametrize("others", [{}, {"foreach": True, "caution": False, "maximize": False}, {"cautious_factor": 1.0}])
def test_a_lion_of_any_package_is_read(others: dict[str, Any]) -> None:
    model = network()
    found = describe_optimizers([Lion(model.parameters(), weight_decay=0.1, betas=[0.8, 0.7], **others)], model, BASE)
    assert (found.kind, found.learning_rate, found.betas, found.weight_decay) == ("lion", 1e-4, (0.8, 0.7), 0.1)


def test_hyperparameters_of_the_configuration_do_not_mix_with_those_of_the_optimizer() -> None:
    model, base = network(), OptimizerConfig(kind="adagrad", rate_decay=0.5, initial_accumulator=0.1)
    found = describe_optimizers([torch.optim.SGD(model.parameters(), lr=0.1)], model, base)
    assert (found.kind, found.rate_decay, found.initial_accumulator) == ("sgd", 0.0, 0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: torch.optim.Adafactor(p), "optimizer: got Adafactor, whose update of an element depends on the rows"),
        (
            lambda p: torch.optim.LBFGS(p),
            "optimizer: got LBFGS, which computes the loss several times in a step; expected one",
        ),
        (lambda p: torch.optim.SparseAdam(p), "optimizer: got SparseAdam, which takes sparse gradients"),
        (
            lambda p: type("AdamW", (torch.optim.AdamW,), {})(p),
            r"optimizer: got .*\.AdamW, which is not one of torch.optim's, so that the store does not know its update; expected",
        ),
        (
            lambda p: type("SGD", (torch.optim.SGD,), {"__module__": "horovod.torch.optimizer"})(p, lr=0.1),
            "optimizer: got SGD in hvd.DistributedOptimizer, expected the SGD itself",
        ),
        (
            lambda p: torch.optim.Adagrad([{"params": p, "initial_accumulator_value": 0.5}]),
            "optimizer: Adagrad: initial_accumulator_value: got 0.5 in a group, expected 0",
        ),
        (lambda p: Lion(p, caution=True), "optimizer: Lion: caution: got True, expected False"),
        (lambda p: Lion(p, cautious_factor=0.0), "optimizer: Lion: cautious_factor: got 0.0, expected 1.0"),
        (lambda p: Lion(p, corrected=0.5), "optimizer: Lion: corrected: got 0.5, expected no such setting"),
        (lambda p: DecoupledLion(p), "optimizer: Lion: decoupled_weight_decay: got True, expected False"),
        (
            lambda p: type("Lion", (torch.optim.SGD,), {})(p, lr=0.1),
            "optimizer: Lion: got no betas in a group, expected betas, lr, weight_decay",
        ),
        (lambda p: torch.optim.SGD(p[:1], lr=0.1), r"optimizer: got no group for 3 parameters \(a\.bias, "),
        (
            lambda p: torch.optim.SGD([*p, torch.nn.Parameter(torch.ones(1))], lr=0.1),
            "got 1 parameters that are not in the model",
        ),
    ],
)
def test_what_the_store_cannot_honour_is_refused(make: Callable[[Any], torch.optim.Optimizer], message: str) -> None:
    model = network()
    with pytest.raises(ConfigError, match=message):
        describe_optimizers([make(list(model.parameters()))], model, BASE)


def test_a_scheduler_of_torch_becomes_a_function_of_the_version() -> None:
    schedule = ha.torch_schedule(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5))
    assert [schedule(version) for version in (1, 2, 3, 4, 7)] == [1.0, 1.0, 1.0, 0.5, 0.25]
    assert schedule(2) == 1.0
    checked = check_schedule(schedule)
    assert [checked(version) for version in (1, 4, 7)] == [1.0, 0.5, 0.25]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0), 1),
            "schedule: got a scheduler of torch, which counts the steps of one worker",
        ),
        (3, "schedule: got 3, expected a function of the version"),
        (lambda: 1.0, r"schedule: failed for version 1: TypeError: .* takes 0 positional arguments"),
        (lambda version: "fast", "schedule: got 'fast' for version 1, expected a number >= 0"),
        (lambda version: None, "schedule: got None for version 1, expected a number >= 0"),
        (lambda version: torch.ones(2), r"schedule: got a tensor of shape \[2\] for version 1"),
        (
            lambda version: 1 / (version - 1),
            r"schedule: failed for version 1: ZeroDivisionError: .*test_optimizer\.py:\d+\)",
        ),
        (lambda version: -1.0, "schedule: got -1.0 for version 1, expected a number >= 0"),
    ],
)
def test_other_schedules_are_refused(schedule: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_schedule(schedule)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (3, "torch_schedule: got 3, expected a function such as"),
        (lambda optimizer: None, "torch_schedule: the function made None, expected one whose rate"),
        (
            torch.optim.lr_scheduler.ReduceLROnPlateau,
            "torch_schedule: the function made ReduceLROnPlateau, expected one",
        ),
    ],
)
def test_what_makes_no_schedule_is_refused(factory: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ha.torch_schedule(factory)


def test_the_optimizer_of_a_run_refuses_what_only_the_store_can_do() -> None:
    steps: list[Any] = []
    model = torch.nn.Linear(2, 1)
    loop = SimpleNamespace(
        zero=lambda: steps.append("zero"), step=lambda *given: steps.append(given), pull=lambda: steps.append("pull")
    )
    optimizer = RunOptimizer(BASE, model, loop)
    optimizer.zero_grad()
    optimizer.pull()
    optimizer.step(weight=3.0)
    assert steps == ["zero", "pull", (3.0, None, 1.0)]
    assert optimizer.param_groups[0]["lr"] == BASE.learning_rate
    assert optimizer.param_groups[0]["params"] == list(model.parameters())
    with pytest.raises(ConfigError, match=r"param_groups: lr: got an assignment, .* pass the rate to prepare as schedule="):
        optimizer.param_groups[0]["lr"] = 0.1
    with pytest.raises(ConfigError, match="param_groups: lr: got an assignment"):
        optimizer.param_groups[0].update(lr=3.0)
    with pytest.raises(ConfigError, match="add_param_group: called after prepare"):
        optimizer.add_param_group({"params": []})
    with pytest.raises(ConfigError, match="got a closure"):
        optimizer.step(lambda: 1.0)  # type: ignore[arg-type]  # the mistake
    for call in (optimizer.state_dict, lambda: optimizer.load_state_dict({})):
        with pytest.raises(ConfigError, match="the state is at the store"):
            call()


def test_a_scheduler_of_an_optimizer_that_was_taken_over_is_refused_when_it_is_made() -> None:
    model = torch.nn.Linear(2, 1)
    taken = torch.optim.SGD(model.parameters(), lr=0.1)
    guard_groups([taken])
    own = RunOptimizer(BASE, model, SimpleNamespace())
    with pytest.raises(ConfigError, match=r"initial_lr: got an assignment, .* pass the rate to prepare as schedule="):
        torch.optim.lr_scheduler.StepLR(taken, 10)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(taken, patience=0)
    plateau.step(1.0)
    with pytest.raises(ConfigError, match=r"lr: got an assignment, .*hvd_async.torch_schedule.lambda optimizer: Scheduler"):
        plateau.step(2.0)
    makers: dict[str, Callable[[torch.optim.Optimizer], object]] = {
        "StepLR": lambda each: torch.optim.lr_scheduler.StepLR(each, 10, last_epoch=4),
        "ReduceLROnPlateau": torch.optim.lr_scheduler.ReduceLROnPlateau,
        "OneCycleLR": lambda each: torch.optim.lr_scheduler.OneCycleLR(each, 1.0, total_steps=10),
    }
    for name, make in makers.items():
        with pytest.raises(
            ConfigError, match=f"got {name}, a scheduler of torch, .*torch_schedule.lambda optimizer: {name}"
        ):
            make(own)


def test_what_a_run_took_over_can_be_copied_and_what_it_returns_cannot() -> None:
    model = torch.nn.Linear(2, 1)
    taken = torch.optim.SGD(model.parameters(), lr=0.1)
    guard_groups([taken])
    copied = copy.deepcopy(taken)
    copied.param_groups[0]["lr"] = 0.5
    with pytest.raises(ConfigError, match="lr: got an assignment"):
        taken.param_groups[0] |= {"lr": 0.5}
    own = RunOptimizer(BASE, model, SimpleNamespace())
    assert not own.state and not own.defaults
    for call in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(ConfigError, match="optimizer: cannot be copied or pickled"):
            call(own)
    for register in (own.register_step_post_hook, own.register_state_dict_pre_hook):
        with pytest.raises(ConfigError, match="optimizer: got a hook, expected none"):
            register(lambda *_: None)
