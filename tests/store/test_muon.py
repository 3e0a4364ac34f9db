"""Muon: against the singular value decomposition, in shards, and as a trial."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hvd_async.cluster.topology import Machine, Placement, assign_roles
from hvd_async.config import OptimizerConfig, PushConfig, StoreConfig, StrategyConfig
from hvd_async.errors import ConfigError
from hvd_async.store.arrival import Arrival
from hvd_async.store.optimizers.factory import state_names
from hvd_async.store.optimizers.muon import orthogonalized
from hvd_async.store.optimizers.protocol import StepOrder
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.store.pushed_gradient import Gradient
from hvd_async.store.shards.shard import Shard
from hvd_async.store.wire.slots import split
from hvd_async.strategies.memory_plan import MemoryPlan
from hvd_async.strategies.protocol import JobSize
from hvd_async.tasks.gradient import flatten
from hvd_async.vectors.arithmetic import BLOCK
from hvd_async.vectors.flat import FlatParameters
from hvd_async.vectors.vector_map import Matrix, VectorMap

GROUPS = [{"match": ["second.*"], "learning_rate": 0.02, "weight_decay": 0.0}]


class MixedNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(50, 20)
        self.first = torch.nn.Linear(20, 90)
        self.convolution = torch.nn.Conv1d(3, 4, 5)
        self.second = torch.nn.Linear(90, 70)
        self.output = torch.nn.Linear(70, 50)


MATRICES = {"first.weight": (90, 20), "convolution.weight": (4, 15), "second.weight": (70, 90)}


def configured(**settings: Any) -> OptimizerConfig:
    fields = {"kind": "muon", "learning_rate": 0.1, "weight_decay": 0.1, "epsilon": 1e-8, "groups": GROUPS, **settings}
    return OptimizerConfig.model_validate(fields)


def net_and_vector(config: OptimizerConfig) -> tuple[MixedNet, FlatParameters]:
    torch.manual_seed(3)
    net = MixedNet()
    return net, flatten(net, config)


def by_decomposition(matrix: torch.Tensor, iterations: int) -> torch.Tensor:
    """Return what the iterations make of `matrix`, by its singular values, in double precision."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.square().sum().sqrt()
    for _ in range(iterations):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ values.diag() @ right


@pytest.mark.parametrize("shape", [(7, 7), (5, 40), (40, 5), (64, 65)])
@pytest.mark.parametrize("iterations", [1, 5])
def test_the_iterations_change_singular_values_alone(shape: tuple[int, int], iterations: int) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape) * 1e-3
    found = orthogonalized(matrix, iterations)
    torch.testing.assert_close(found, by_decomposition(matrix, iterations).float(), rtol=1e-3, atol=1e-4)
    if iterations == 5:
        values = torch.linalg.svdvals(found)
        assert 0.5 < float(values.min()) and float(values.max()) < 1.3


def test_a_matrix_of_zeros_stays_as_it_is() -> None:
    assert torch.equal(orthogonalized(torch.zeros(3, 4), 5), torch.zeros(3, 4))


def test_matrices_come_before_the_others_of_their_group_each_at_a_block() -> None:
    config = configured()
    net, flat = net_and_vector(config)
    named = dict(net.named_parameters())
    places = {each.start: each for each in flat.map.matrices}
    found = {piece.name: places[piece.offset] for piece in flat.pieces if piece.offset in places}
    assert {name: (each.rows, each.columns) for name, each in found.items()} == MATRICES
    for each in places.values():
        assert each.start % BLOCK == 0
    first, second = flat.map.groups
    assert [each.start in range(first.start, first.stop) for each in flat.map.matrices] == [True, True, False]
    for piece in flat.pieces:
        assert torch.equal(flat.parameters[piece.offset : piece.offset + piece.size].view(piece.shape), named[piece.name])
        if piece.name not in MATRICES:
            group = second if piece.name.startswith("second") else first
            own = [each for each in flat.map.matrices if group.start <= each.start < group.stop]
            assert piece.offset >= max(each.stop for each in own)


def test_patterns_choose_what_is_no_matrix() -> None:
    config = OptimizerConfig(kind="muon")
    shapes = {
        "layers.0.output.weight": (4, 4),
        "output.weight": (4, 4),
        "source_embedding.weight": (9, 4),
        "norm.weight": (4,),
    }
    assert [name for name, shape in shapes.items() if config.is_matrix(name, shape)] == ["layers.0.output.weight"]
    assert not config.is_matrix("gate.weight", (1, 8)) and not config.is_matrix("gate.weight", (8, 1))
    assert OptimizerConfig(kind="muon", muon_except=()).is_matrix("source_embedding.weight", (9, 4))
    assert not OptimizerConfig(kind="adamw").is_matrix("layers.0.output.weight", (4, 4))
    with pytest.raises(ValueError, match="they apply to muon only"):
        OptimizerConfig(kind="adamw", muon_momentum=0.9)


def test_an_exception_that_is_none_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"muon_except: got heads\.\*, which matches no trained parameter, expected patterns"
    ):
        flatten(MixedNet(), OptimizerConfig(kind="muon", muon_except=("output.*", "heads.*")))
    assert flatten(MixedNet(), OptimizerConfig(kind="muon")).map.matrices


def gradients(flat: FlatParameters, num_steps: int) -> list[torch.Tensor]:
    """Return gradients that are zero in the gaps between parameters, as real ones are."""
    torch.manual_seed(7)
    found = []
    for _ in range(num_steps):
        vector = torch.zeros(flat.size)
        for piece in flat.pieces:
            vector[piece.offset : piece.offset + piece.size] = torch.randn(piece.size)
        found.append(vector)
    return found


def orders(num_steps: int) -> list[StepOrder]:
    return [StepOrder(step, 0.5 + 0.1 * step, 4.0, 0.7) for step in range(1, num_steps + 1)]


SCALES: dict[str, Callable[[int, int], float]] = {
    "adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
    "original": lambda rows, columns: math.sqrt(max(1, rows / columns)),
}


@pytest.mark.parametrize("scale", SCALES)
def test_steps_are_those_of_the_formulas_and_of_adamw(scale: str) -> None:
    config = configured(average_decay=0.9, muon_scale=scale)
    net, flat = net_and_vector(config)
    expected = {name: parameter.detach().double().clone() for name, parameter in net.named_parameters()}
    average = {name: value.clone() for name, value in expected.items()}
    momenta = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in MATRICES.items()}
    others = {name: torch.nn.Parameter(value.clone()) for name, value in expected.items() if name not in MATRICES}
    adamw = {
        name: torch.optim.AdamW(
            [parameter], lr=1.0, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.0 if "second" in name else 0.1
        )
        for name, parameter in others.items()
    }
    shard = Shard([flat.parameters.clone()], config, vector_map=flat.map)
    for vector, order in zip(gradients(flat, 4), orders(4), strict=True):
        shard.add(Gradient.measure(vector), 1.0)
        partials = shard.step(order)
        assert math.fsum(partials) == pytest.approx(float((vector.double() / order.divisor).square().sum()))
        for name, gradient in flat.named_tensors(vector / order.divisor * order.clip).items():
            rate = order.rate_factor * (0.02 if "second" in name else 0.1)
            if name in MATRICES:
                own = gradient.double().view(MATRICES[name])
                momenta[name] = 0.95 * momenta[name] + own
                update = by_decomposition(own + 0.95 * momenta[name], 5) * SCALES[scale](*MATRICES[name])
                decayed = expected[name].view(MATRICES[name]) * (1 - rate * (0.0 if "second" in name else 0.1))
                expected[name] = (decayed - rate * update).view(expected[name].shape)
            else:
                others[name].grad = gradient.double().clone()
                adamw[name].param_groups[0]["lr"] = rate
                adamw[name].step()
                expected[name] = others[name].detach().clone()
            weight = 1 - min(0.9, (1 + order.version) / (10 + order.version))
            average[name] += (expected[name] - average[name]) * weight
    for vector, wanted in ((shard.parameters, expected), (shard.read("average"), average)):
        for name, found in flat.named_tensors(vector).items():
            torch.testing.assert_close(found.double(), wanted[name], rtol=1e-3, atol=1e-4)


def test_a_trial_with_the_whole_gradient_is_the_step_and_changes_nothing() -> None:
    config = OptimizerConfig(kind="muon", learning_rate=0.1)
    _, flat = net_and_vector(config)
    trial = torch.zeros(flat.size)
    shard = Shard([flat.parameters.clone(), torch.zeros(flat.size)], config, vector_map=flat.map, provisional=[trial])
    first, *others = zip(gradients(flat, 3), orders(3), strict=True)
    shard.add(Gradient.measure(first[0]), 1.0)
    shard.step(first[1])  # there is no trial before the first step
    for vector, order in others:
        shard.add(Gradient.measure(vector), 1.0)
        before = {name: shard.read(name).clone() for name in ("parameters", "first_moment", "second_moment")}
        shard.provisional_step(order, 0)
        for name, kept in before.items():
            assert torch.equal(shard.read(name), kept), name
        shard.step(order)
        for matrix in flat.map.matrices:
            own = slice(matrix.start, matrix.stop)
            assert torch.equal(trial[own], shard.parameters[own])


@pytest.mark.parametrize("num_shards", [2, 3, 5])
def test_shards_of_whole_matrices_give_the_bits_of_one(num_shards: int) -> None:
    config = configured()
    _, flat = net_and_vector(config)
    parts = split(flat.size, num_shards, flat.map.matrices)
    assert parts[0].start == 0 and parts[-1].stop == flat.size and all(part.start % BLOCK == 0 for part in parts)
    whole = Shard([flat.parameters.clone()], config, vector_map=flat.map)
    shards = [Shard([flat.parameters[part].clone()], config, vector_map=flat.map.within(part)) for part in parts]
    for vector, order in zip(gradients(flat, 3), orders(3), strict=True):
        whole.add(Gradient.measure(vector), 1.0)
        partials = whole.step(order)
        together = []
        for shard, part in zip(shards, parts, strict=True):
            shard.add(Gradient(vector[part], 0.0), 1.0)
            together += shard.step(order)
        assert together == partials
    for name in ("parameters", *state_names(config)):
        if name != "pending_sum":
            assert torch.equal(torch.cat([shard.read(name) for shard in shards]), whole.read(name)), name


@pytest.mark.parametrize("num_shards", range(1, 11))
def test_no_shard_cuts_a_matrix(num_shards: int) -> None:
    starts = [0, 3, 4, 11]
    matrices = [Matrix(BLOCK * start, rows, BLOCK) for start, rows in zip(starts, (3, 1, 6, 2), strict=True)]
    parts = split(16 * BLOCK, num_shards, matrices)
    assert len(parts) == min(num_shards, 8) and [part.stop for part in parts[:-1]] == [part.start for part in parts[1:]]
    assert parts[0].start == 0 and parts[-1].stop == 16 * BLOCK and all(part.start < part.stop for part in parts)
    for matrix in matrices:
        assert sum(part.start <= matrix.start and matrix.stop <= part.stop for part in parts) == 1


def test_more_shards_than_matrices_allow_are_refused() -> None:
    config = OptimizerConfig(kind="muon")
    size = 8 * BLOCK
    plans = assign_roles([Machine("here", (0,), ())] * 5, Placement("async", num_shards=4))
    job = JobSize(StrategyConfig(kind="async"), StoreConfig(shards=4), PushConfig(), config, plans, size)
    assert len(MemoryPlan(job).parts) == 4
    whole = JobSize(job.strategy, job.store, job.push, config, plans, size, [Matrix(0, 8, BLOCK)])
    with pytest.raises(ConfigError, match=r"got 4, expected at most 1 for this model: muon updates each of its 1 matrices"):
        MemoryPlan(whole)


def test_a_part_has_its_own_matrices() -> None:
    whole = VectorMap((slice(0, 3 * BLOCK), slice(3 * BLOCK, 6 * BLOCK)), (Matrix(0, 1, BLOCK), Matrix(3 * BLOCK, 2, BLOCK)))
    part = whole.within(slice(2 * BLOCK, 6 * BLOCK))
    assert part.groups == (slice(0, BLOCK), slice(BLOCK, 4 * BLOCK)) and part.matrices == (Matrix(BLOCK, 2, BLOCK),)


def test_a_store_of_whole_matrices_can_be_detached() -> None:
    config = configured()
    _, flat = net_and_vector(config)
    shard = Shard([flat.parameters.clone()], config, vector_map=flat.map)
    stores = [ParameterStore(shard, flat.size, config, StrategyConfig(kind="single"), 1)]
    other = Shard([flat.parameters.clone()], config, vector_map=flat.map)
    stores.append(ParameterStore(other, flat.size, config, StrategyConfig(kind="single"), 1))
    for number, vector in enumerate(gradients(flat, 3)):
        for store in stores:
            store.accept([Arrival(0, number, number, 1.0, 0.0)], Gradient.measure(vector))
            assert store.advance() is not None
        stores[0].detach()
    assert torch.equal(stores[0].parameters, stores[1].parameters)
    assert not torch.equal(stores[0].parameters, flat.parameters)
