"""Groups of parameters with settings of their own, compared with torch.optim's parameter groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hvd_async.config import OptimizerConfig
from hvd_async.errors import ConfigError
from hvd_async.store.optimizers.factory import state_names
from hvd_async.store.optimizers.protocol import StepOrder
from hvd_async.store.pushed_gradient import Gradient
from hvd_async.store.shards.shard import Shard
from hvd_async.tasks.gradient import flatten
from hvd_async.vectors import arithmetic
from hvd_async.vectors.arithmetic import BLOCK
from tests.lion import TorchLion

GROUPS = [
    {"match": ["*.bias", "norm.*"], "weight_decay": 0.0, "learning_rate": 0.05},
    {"match": ["head.*"], "betas": [0.5, 0.9], "learning_rate": 0.02},
]


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Linear(70, 80)
        self.norm = torch.nn.LayerNorm(80)
        self.head = torch.nn.Linear(80, 3)
        self.frozen = torch.nn.Linear(2, 2).requires_grad_(False)
        self.tied = self.body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.norm(self.body(x)).relu())
        return result


def seeded() -> Net:
    torch.manual_seed(3)
    return Net()


def configured(kind: str = "adamw", **settings: Any) -> OptimizerConfig:
    fields = {"kind": kind, "learning_rate": 0.1, "weight_decay": 0.1, "epsilon": 1e-8, "groups": GROUPS, **settings}
    return OptimizerConfig.model_validate(fields)


TORCH: dict[str, Any] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "lion": TorchLion,
    "adagrad": torch.optim.Adagrad,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "nadam": {"momentum_decay": 0.1, "groups": [*GROUPS[:1], {**GROUPS[1], "decoupled_weight_decay": True}]},
    "adagrad": {"rate_decay": 0.1, "initial_accumulator": 0.5, "groups": [*GROUPS[:1], {**GROUPS[1], "rate_decay": 1.0}]},
}


def torch_groups(model: torch.nn.Module, optimizer: OptimizerConfig) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = [
        {
            "params": [],
            "lr": each.learning_rate,
            "betas": each.betas,
            "weight_decay": each.weight_decay,
            "eps": each.epsilon,
            "momentum_decay": each.momentum_decay,
            "decoupled_weight_decay": each.kind == "adamw" or each.decoupled_weight_decay,
            "lr_decay": each.rate_decay,
        }
        for each in optimizer.of_groups()
    ]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[optimizer.group_of(name)]["params"].append(parameter)
    return groups


@pytest.mark.parametrize("kind", TORCH)
def test_groups_are_updated_as_by_torch(kind: str) -> None:
    optimizer = configured(kind, **SETTINGS.get(kind, {}))
    mine, theirs = seeded(), seeded()
    flat = flatten(mine, optimizer)
    shard = Shard([flat.parameters], optimizer, vector_map=flat.map)
    begins = {"initial_accumulator_value": optimizer.initial_accumulator} if kind == "adagrad" else {}
    reference = TORCH[kind](torch_groups(theirs, optimizer), **begins)
    for version in range(1, 6):
        x = torch.randn(5, 70, generator=torch.Generator().manual_seed(version))
        flat.zero_gradient()
        reference.zero_grad()
        for model in (mine, theirs):
            model(x).square().sum().backward()
        shard.add(Gradient.measure(flat.collect_gradient()), 1.0)
        shard.step(StepOrder(version, 0.5, 1.0))
        for group, highest in zip(reference.param_groups, optimizer.of_groups(), strict=True):
            group["lr"] = highest.learning_rate * 0.5
        reference.step()
        for (name, ours), other in zip(mine.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-6, msg=name)


def test_a_group_begins_at_a_block_and_the_ranges_have_no_gaps() -> None:
    optimizer = configured()
    flat = flatten(seeded(), optimizer)
    assert [each.start % BLOCK for each in flat.map.groups] == [0, 0, 0]
    assert [each.stop for each in flat.map.groups[:-1]] == [each.start for each in flat.map.groups[1:]]
    assert flat.map.groups[0].start == 0 and flat.map.groups[-1].stop == flat.size
    assert [piece.name for piece in flat.pieces] == [
        *("body.weight", "body.bias", "norm.weight", "norm.bias", "head.bias", "head.weight")
    ]
    for piece in flat.pieces:
        group = flat.map.groups[optimizer.group_of(piece.name)]
        assert group.start <= piece.offset and piece.offset + piece.size <= group.stop


@pytest.mark.parametrize("cut", [0, BLOCK, 2 * BLOCK, 3 * BLOCK])
@pytest.mark.parametrize("kind", ["adamw", "nadam", "adagrad"])
def test_two_shards_give_the_bits_of_one(kind: str, cut: int) -> None:
    groups = [{**GROUPS[0], "initial_accumulator": 2.0}, GROUPS[1]] if kind == "adagrad" else GROUPS
    optimizer = configured(kind, average_decay=0.9, groups=groups)
    flat = flatten(seeded(), optimizer)
    assert flat.size > cut
    gradient = torch.randn(flat.size, generator=torch.Generator().manual_seed(1))
    whole = Shard([flat.parameters.clone(), torch.zeros(flat.size)], optimizer, vector_map=flat.map)
    parts = [slice(0, cut), slice(cut, flat.size)] if cut else [slice(0, flat.size)]
    shards = [
        Shard(
            [flat.parameters[part].clone(), torch.zeros(part.stop - part.start)],
            optimizer,
            vector_map=flat.map.within(part),
        )
        for part in parts
    ]
    for version in (1, 2, 3):
        partials = []
        for shard, part in zip(shards, parts, strict=True):
            shard.add(Gradient.measure(gradient[part]), 1.0)
            partials += shard.step(StepOrder(version, 0.3, 2.0, clip=0.5))
        whole.add(Gradient.measure(gradient), 1.0)
        assert whole.norm(2.0) == partials
        assert whole.step(StepOrder(version, 0.3, 2.0, clip=0.5)) == partials
    for name in ("parameters", *state_names(optimizer)[:-1]):
        assert torch.equal(whole.read(name), torch.cat([shard.read(name) for shard in shards])), name


def test_each_group_begins_with_sums_of_its_own() -> None:
    groups = [{"match": ["*.bias"], "initial_accumulator": 0.0}, {"match": ["norm.*"], "initial_accumulator": 4.0}]
    optimizer = configured("adagrad", initial_accumulator=0.5, groups=groups)
    flat = flatten(seeded(), optimizer)
    shard = Shard([flat.parameters], optimizer, vector_map=flat.map)
    sums = [shard.read("squared_sum")[each] for each in flat.map.groups]
    assert [(float(each.min()), float(each.max())) for each in sums] == [(0.5, 0.5), (0.0, 0.0), (4.0, 4.0)]


def test_a_provisional_step_of_groups_changes_nothing_else() -> None:
    optimizer = configured("sgd", momentum=0.9, groups=[{"match": ["*.bias"], "learning_rate": 0.01}])
    flat = flatten(seeded(), optimizer)
    provisional = torch.zeros(flat.size)
    shards = [Shard([flat.parameters.clone()], optimizer, vector_map=flat.map, provisional=[provisional]) for _ in range(2)]
    for version in (1, 2):
        for shard in shards:
            shard.add(Gradient.measure(torch.ones(flat.size)), 1.0)
        shards[0].provisional_step(StepOrder(version, 1.0, 1.0), 0)
        for shard in shards:
            shard.step(StepOrder(version, 1.0, 1.0))
        assert torch.equal(provisional, shards[0].parameters) and torch.equal(provisional, shards[1].parameters)


def test_a_group_without_parameters_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimizer.groups: got patterns that match no trained parameter \(frozen.\*\)"):
        flatten(seeded(), configured(groups=[{"match": ["frozen.*"]}]))


def test_settings_of_a_group_are_checked_like_those_of_the_optimizer() -> None:
    with pytest.raises(ValueError, match="momentum, nesterov"):
        configured(groups=[{"match": ["*"], "momentum": 0.5}])
    with pytest.raises(ValueError, match="groups: momentum"):
        configured("sgd", groups=[{"match": ["*"], "momentum": 0.5}])
    with pytest.raises(ValueError, match="match"):
        configured(groups=[{"learning_rate": 0.1}])


def test_the_norm_is_that_of_all_groups_together() -> None:
    optimizer = configured()
    flat = flatten(seeded(), optimizer)
    shard = Shard([flat.parameters], optimizer, vector_map=flat.map)
    shard.add(Gradient.measure(torch.ones(flat.size)), 1.0)
    assert arithmetic.norm(shard.step(StepOrder(1, 1.0, 1.0))) == pytest.approx(flat.size**0.5)
