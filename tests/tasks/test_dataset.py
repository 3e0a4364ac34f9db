"""A task of two datasets: every example once an epoch, additive scores, buffers that follow the parameters."""

from __future__ import annotations

import concurrent.futures
import copy
import math
import pathlib
import random
import threading
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from hvd_async.config import RunConfig, parse_config
from hvd_async.errors import ConfigError, HvdAsyncError
from hvd_async.tasks.dataset import DatasetTask
from hvd_async.tasks.gradient import check_buffers, compute_gradient
from hvd_async.tasks.metric import Metric
from hvd_async.training.options import TrainOptions
from hvd_async.training.run import train
from hvd_async.vectors.flat import FlatParameters
from tests.tasks.blobs import ACCURACY, blobs, make_task


def configured(seed: int = 1, **training: Any) -> RunConfig:
    tree = {"output": "x", "seed": seed, "task": {"factory": "a:b"}, "training": training or {"epochs": 3}}
    return parse_config(tree, source="test")


def numbered(size: int, **settings: Any) -> DatasetTask:
    keys: dict[str, Any] = {
        "model": lambda: torch.nn.Linear(1, 1),
        "train": TensorDataset(torch.arange(size, dtype=torch.float32)[:, None]),
        "validation": TensorDataset(torch.ones(5, 1)),
        "batch_size": 4,
        "loss": lambda outputs, batch: outputs.square().sum(),
        **settings,
    }
    return DatasetTask(keys.pop("config", configured()), **keys)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_micro_batches_have_each_example_of_the_batch_once(num_workers: int) -> None:
    strategy = {"kind": "async", "micro_batches": 3}
    tree = {"output": "x", "task": {"factory": "a:b"}, "training": {"epochs": 3}, "strategy": strategy}
    task = numbered(10, config=parse_config(tree, source="test"), num_workers=num_workers)
    task.expect(range(4))
    try:
        for index in range(4):
            batch = [int(example) for example in task.batch(index, "cpu")[0]]
            parts = [[int(example) for example in part[0]] for part in task.micro_batches(index, 3, "cpu")]
            number = 2 if len(batch) == 4 else 1  # at least two examples in each; the last batch of an epoch has two
            assert parts == [batch[start::number] for start in range(number)]
    finally:
        task.close()


@pytest.mark.parametrize(("drop_last", "per_epoch"), [(False, 3), (True, 2)])
def test_every_epoch_has_each_example_at_most_once_in_an_order_of_its_own(drop_last: bool, per_epoch: int) -> None:
    task = numbered(10, drop_last=drop_last)
    assert task.num_batches() == 3 * per_epoch
    epochs = []
    for epoch in range(3):
        indices = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        assert {task.epoch_of(index) for index in indices} == {epoch}
        epochs.append([int(x) for index in indices for x in task.batch(index, "cpu")[0]])
        assert len(set(epochs[-1])) == len(epochs[-1]) == (8 if drop_last else 10)
    assert epochs[0] != epochs[1] != epochs[2]
    assert torch.equal(task.batch(0, "cpu")[0], numbered(10, drop_last=drop_last).batch(0, "cpu")[0])
    assert not torch.equal(task.batch(0, "cpu")[0], numbered(10, config=configured(seed=2)).batch(0, "cpu")[0])


@pytest.mark.parametrize(("weight", "batches"), [(1, 1), (4, 1), (5, 2), (10, 3), (11, 4), (20, 6), (25, 8)])
def test_a_bound_by_weight_takes_whole_batches_until_it_is_reached(weight: int, batches: int) -> None:
    assert numbered(10, config=configured(weight=weight)).num_batches() == batches


def test_shards_add_up_to_the_whole_and_scores_are_means() -> None:
    task = make_task(configured(), buffers="refuse")
    model = task.build_model()
    whole = task.evaluate(model)
    parts = [task.evaluate(model, shard, 4) for shard in range(4)]
    assert [sum(column) for column in zip(*parts, strict=True)] == pytest.approx(whole)
    scores = task.scores(whole)
    validation = blobs(90, 2)
    outputs = model.eval()(validation.tensors[0]).detach()
    assert scores["loss"] == pytest.approx(float(F.cross_entropy(outputs, validation.tensors[1])), rel=1e-5)
    correct = (outputs.argmax(1) == validation.tensors[1]).float().mean()
    assert scores["accuracy"] == pytest.approx(100 * float(correct))
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
    assert task.scores([1.0, 1e9, 0.0])["perplexity"] == math.inf


def test_buffers_that_are_recalibrated_depend_on_the_parameters_alone(tmp_path: pathlib.Path) -> None:
    task = make_task(configured())
    fresh, used = task.build_model(), task.build_model()
    used.train()
    for _ in range(5):
        used(torch.randn(50, 2) * 9)  # changes the running statistics, which no gradient depends on
    statistics = used[1].running_mean.clone()
    assert task.evaluate(fresh) == task.evaluate(used)
    assert torch.equal(used[1].running_mean, statistics) and used.training and used[1].momentum == 0.1
    for name, model in (("fresh", fresh), ("used", used)):
        task.export(tmp_path / name, {key: value.detach() for key, value in model.named_parameters()}, 3, {"loss": 1.0})
    one, other = (safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("fresh", "used"))
    assert one.keys() == fresh.state_dict().keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert one["1.running_mean"].abs().max() > 0
    loaded = task.build_model()
    loaded.load_state_dict(one)
    plain = make_task(configured(), buffers="refuse")
    assert plain.evaluate(loaded) == pytest.approx(task.evaluate(fresh))


class CountsBatches(torch.nn.Module):
    """A layer that counts its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.tensor(0))

    count: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += int(self.training)
        return x


class Frozen(torch.nn.BatchNorm1d):
    """A BatchNorm that keeps the statistics that it came with."""

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)


def normed(*layers: torch.nn.Module, **settings: Any) -> DatasetTask:
    """Return a task of a model with `layers` on inputs of shape [B, 3, 4]."""
    images = TensorDataset(torch.randn(40, 3, 4, generator=torch.Generator().manual_seed(1)) * 3 + 2)
    model = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(12, 1))
    return numbered(40, train=images, validation=images, model=lambda: copy.deepcopy(model), **settings)


def spectral() -> torch.nn.Module:
    """Return a layer whose power iteration has not converged to the last bit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(4, 4))


@pytest.mark.parametrize(
    ("layers", "recalibrates", "name"),
    [
        ([torch.nn.BatchNorm1d(3)], False, r"0\.running_mean"),
        ([torch.nn.InstanceNorm1d(3, track_running_stats=True)], False, r"0\.running_mean"),
        ([torch.nn.InstanceNorm1d(3, track_running_stats=True)], True, ""),
        ([torch.nn.BatchNorm1d(3), Frozen(3)], True, ""),
        ([torch.nn.BatchNorm1d(3), CountsBatches()], True, r"1\.count"),
        ([spectral()], True, "0.parametrizations.weight.0._"),
    ],
)
def test_buffers_that_change_are_refused_by_async_unless_they_are_recalibrated(
    layers: list[torch.nn.Module], recalibrates: bool, name: str
) -> None:
    task = normed(*layers, buffers="recalibrate" if recalibrates else "refuse")
    model = task.build_model()
    if not name:
        check_buffers(task, model)
        return
    with pytest.raises(ConfigError, match=rf"buffers change in training \({name}") as raised:
        check_buffers(task, model)
    assert ("recalibrate" in str(raised.value)) == (not recalibrates)


def test_all_norms_are_recalibrated_and_nothing_else_changes() -> None:
    instance_norm = torch.nn.InstanceNorm1d(3, track_running_stats=True)
    task = normed(torch.nn.BatchNorm1d(3), instance_norm, Frozen(3), CountsBatches(), buffers="recalibrate")
    model: Any = task.build_model()
    norm, instance, frozen = (model[number] for number in range(3))
    frozen.running_mean.fill_(5.0)
    instance.running_mean.fill_(-7.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with task._calibrated(model):
        inputs = [task.batch(index, "cpu")[0] for index in range(10)]
        torch.testing.assert_close(norm.running_mean, torch.stack([x.mean((0, 2)) for x in inputs]).mean(0))
        outputs = [torch.nn.functional.batch_norm(x, None, None, norm.weight, norm.bias, training=True) for x in inputs]
        torch.testing.assert_close(instance.running_mean, torch.stack([x.mean((0, 2)) for x in outputs]).mean(0))
        assert torch.equal(frozen.running_mean, torch.full((3,), 5.0)) and model[3].count == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert norm.momentum == instance.momentum == 0.1 and model.training and norm.training


def test_a_model_is_as_before_when_recalibration_fails() -> None:
    calls = []

    def forward(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("of the user")
        outputs: torch.Tensor = model(batch[0])
        return outputs

    task = normed(torch.nn.BatchNorm1d(3), buffers="recalibrate", forward=forward)
    model: Any = task.build_model().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="of the user"):
        task.evaluate(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model[0].momentum == 0.1 and not model.training and not model[0].training


def test_an_export_has_the_buffers_with_which_the_model_was_evaluated(tmp_path: pathlib.Path) -> None:
    """As with kind single, where running statistics are those of training."""
    task = normed(torch.nn.BatchNorm1d(3))
    model: Any = task.build_model().train()
    model(torch.randn(4, 3, 4) + 9)
    task.evaluate(model)
    task.export(tmp_path / "model", {name: each.detach() for name, each in model.named_parameters()}, 1, {"loss": 1.0})
    saved = safetensors.torch.load_file(tmp_path / "model/model.safetensors")
    assert torch.equal(saved["0.running_mean"], model[0].running_mean) and saved["0.num_batches_tracked"] == 1


def test_other_data_or_batches_have_another_fingerprint() -> None:
    found = [
        numbered(10).fingerprint(),
        numbered(11).fingerprint(),
        numbered(10, batch_size=5).fingerprint(),
        numbered(10, train=TensorDataset(torch.ones(10, 1))).fingerprint(),
        numbered(10, fingerprint="mine").fingerprint(),
    ]
    assert len(set(found)) == 5 and found[0] == numbered(10).fingerprint()


def test_batches_may_be_maps_and_weigh_what_the_user_says() -> None:
    examples = [{"text": torch.full((2,), float(number)), "name": "x"} for number in range(6)]
    task = numbered(
        6,
        train=examples,
        validation=examples,
        forward=lambda model, batch: model(batch["text"].reshape(-1, 1)),
        weight=lambda batch: batch["text"].numel(),
    )
    batch = task.batch(0, "cpu")
    loss, weight = task.loss(task.build_model(), batch)
    assert batch["name"] == ["x"] * 4 and weight == 8.0 and loss.dim() == 0
    with pytest.raises(ConfigError, match=r"training\.weight: got a bound by weight"):
        numbered(6, config=configured(weight=5), weight=lambda batch: 1.0).num_batches()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size: got 0, expected a whole number >= 1"),
        ({"batch_size": "4"}, "batch_size: got '4', expected a whole number >= 1"),
        ({"batch_size": 2.0}, "batch_size: got 2.0, expected a whole number >= 1"),
        ({"num_workers": -1}, "num_workers: got -1, expected a whole number >= 0"),
        ({"recalibration_batches": 0}, "recalibration_batches: got 0, expected a whole number >= 1"),
        ({"batch_size": 40, "drop_last": True}, "batch_size: got 40 with drop_last, expected at most the 10 examples"),
        ({"validation": []}, "validation: got a dataset without examples"),
        ({"train": iter([1])}, "train: got list_iterator, expected a map-style dataset, with a length"),
        ({"train": {"x": 1}}, "train: got dict, expected a map-style dataset"),
        ({"validation": None}, "validation: got None, expected a map-style dataset"),
        ({"model": torch.nn.Linear(1, 1)}, r"model: got Linear, expected a function that makes a torch\.nn\.Module"),
        ({"model": None}, "model: got None, expected a function"),
        ({"loss": None}, "loss: got None, expected a function"),
        ({"loss": 3}, "loss: got 3, expected a function"),
        ({"collate": "stack"}, "collate: got 'stack', expected a function"),
        ({"weight": 4}, "weight: got 4, expected a function"),
        ({"forward": [1]}, "forward: got list, expected a function"),
        ({"worker_init": 1}, "worker_init: got 1, expected a function"),
        ({"weight_unit": None}, "weight_unit: got None, expected what weights count"),
        ({"buffers": "average"}, "buffers: got 'average', expected 'refuse' or 'recalibrate'"),
        ({"fingerprint": 7}, "fingerprint: got 7, expected text"),
        ({"measures": {"accuracy": abs}}, r"measures: got 'accuracy' in it, expected hvd_async\.Metric"),
        ({"measures": [ACCURACY]}, r"measures: got list, expected a dict from hvd_async\.Metric to a function"),
        ({"derived": {ACCURACY: 1.0}}, "derived: accuracy: got 1.0, expected a function"),
        (
            {"measures": {ACCURACY: max}, "derived": {ACCURACY: max}},
            "got loss, accuracy, accuracy, expected different names",
        ),
        ({"measures": {Metric("loss", "x"): lambda outputs, batch: 0.0}}, "got loss, loss, expected different names"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        numbered(10, **settings)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda outputs, batch: outputs, r"loss: got a tensor of shape \[4, 1\], expected a tensor with a single number"),
        (lambda outputs, batch: None, "loss: got None, expected a tensor with a single number"),
        (lambda outputs, batch: float(outputs.detach().sum()), "loss: got [-0-9.]+, expected a tensor with a single number"),
        (
            lambda outputs, batch: outputs.detach().sum(),
            "loss: got a tensor of torch.float32 without a gradient, expected one computed from the outputs",
        ),
        (
            lambda outputs, batch: outputs.sum().long(),
            r"loss: got a tensor of torch\.int64 without a gradient, expected one computed from the outputs",
        ),
    ],
)
def test_a_loss_that_is_no_number_is_refused(loss: Any, message: str) -> None:
    task = numbered(10, loss=loss)
    with pytest.raises(ConfigError, match=message):
        task.loss(task.build_model(), task.batch(0, "cpu"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": lambda outputs, batch: None}, "loss: got None, expected a number, the sum over the batch"),
        ({"loss": lambda outputs, batch: outputs}, r"loss: got a tensor of shape \[4, 1\], expected a number"),
        ({"weight": lambda batch: "4"}, "weight: got '4', expected a number"),
        (
            {"measures": {ACCURACY: lambda outputs, batch: outputs}},
            r"measures: accuracy: got a tensor of shape \[4, 1\], expec",
        ),
        ({"derived": {ACCURACY: lambda scores: None}}, "derived: accuracy: got None, expected a number"),
    ],
)
def test_what_functions_return_in_an_evaluation(settings: dict[str, Any], message: str) -> None:
    task = numbered(10, **settings)
    with pytest.raises(ConfigError, match=message):
        task.scores(task.evaluate(task.build_model()))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (None, "model: got None, expected"),
        (torch.nn.Linear(1, 1).double(), "model: weight: got a parameter of torch.float64"),
    ],
)
def test_a_function_that_makes_no_model_is_told_before_anything_starts(
    tmp_path: pathlib.Path, made: Any, message: str
) -> None:
    tree = {"output": str(tmp_path / "run"), "task": {"factory": "a:b"}, "training": {"epochs": 1}}
    with pytest.raises(HvdAsyncError, match=message):
        train(
            parse_config(tree, source="test"),
            lambda config: numbered(4, config=config, model=lambda: made),
            TrainOptions(),
            environ={},
        )
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_a_mean_is_refused_where_a_sum_is_expected() -> None:
    points = TensorDataset(torch.arange(10.0)[:, None])

    def made(loss: Any, **settings: Any) -> DatasetTask:
        return numbered(10, validation=points, loss=loss, **settings)

    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Dropout(0.5))
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    for loss, settings in (
        (lambda outputs, batch: outputs.square().mean(), {}),
        (lambda outputs, batch: outputs.square().mean(), {"weight": lambda batch: 7.0 * len(batch[0])}),  # such as tokens
    ):
        task = made(loss, **settings)
        with pytest.raises(
            ConfigError, match=r"loss: got .* for two examples with .* each, which is their mean; expected the sum"
        ):
            task.loss(model, task.batch(0, "cpu"))
    for loss in (
        lambda outputs, batch: outputs.square().sum(),
        lambda outputs, batch: (outputs - outputs.mean()).square().sum(),  # depends on the whole batch
        lambda outputs, batch: 0.0 * outputs.sum(),
    ):
        task = made(loss)
        task.loss(model, task.batch(0, "cpu"))
    assert [module.training for module in model.modules()] == modes
    task, states = made(lambda outputs, batch: outputs.square().sum()), []
    for _ in range(2):  # the first with the check
        torch.set_rng_state(state)
        task.loss(model, task.batch(0, "cpu"))
        states.append(torch.get_rng_state())
    assert torch.equal(*states) and not torch.equal(states[0], state)


def test_accuracy_is_hashable_so_that_it_can_name_a_measure() -> None:
    assert {ACCURACY: 1}[Metric("accuracy", "accuracy", unit="%", digits=1, is_higher_better=True)] == 1


def test_an_export_in_another_thread_does_not_change_what_a_batch_draws_or_contains(tmp_path: pathlib.Path) -> None:
    task = make_task(configured())
    model = task.build_model().train()
    flat = FlatParameters(model)
    batches = [13 + number % 13 for number in range(300)]  # of another epoch than those that recalibrate
    alone = [compute_gradient(task, model, flat, 1, batch) for batch in batches]
    named = {name: tensor.clone() for name, tensor in flat.named_tensors(flat.parameters).items()}
    done = threading.Event()
    exports = []

    def export() -> None:
        while not done.is_set():
            task.export(tmp_path / "model", named, 1, {})
            exports.append(1)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        thread = pool.submit(export)
        try:
            beside = [compute_gradient(task, model, flat, 1, batch) for batch in batches]
        finally:
            done.set()
        thread.result()
    assert exports
    assert beside == alone


def test_augmentation_draws_from_all_global_generators_as_the_batch_says() -> None:
    class Augmented:
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> tuple[torch.Tensor]:
            return (torch.tensor([random.random() + np.random.rand() + float(torch.rand(()))]),)

    task = numbered(8, train=Augmented(), fingerprint="noisy")
    model = task.build_model()
    flat = FlatParameters(model)
    found = [compute_gradient(task, model, flat, 1, batch) for batch in (0, 1, 0, 1)]
    assert found[:2] == found[2:] and found[0] != found[1]
    before = random.getstate(), torch.get_rng_state()
    task.build_model()
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])
