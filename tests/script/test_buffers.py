"""Buffers of a script's model: which change, what becomes of them, and those with which a run resumes."""

from __future__ import annotations

import pathlib
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
import safetensors.torch
import torch
from torch import nn

import hvd_async as ha
from hvd_async.errors import ConfigError
from hvd_async.runs.folder import RunFolder
from hvd_async.script.buffers import Buffers
from hvd_async.tasks.buffers import saved_tensors
from tests.tasks.blobs import blobs


class Threads:
    """A group of two ranks, each in a thread."""

    size = 2

    def __init__(self, rank: int, barrier: threading.Barrier, texts: list[str]) -> None:
        self.rank, self._barrier, self._texts = rank, barrier, texts

    def allgather(self, text: str) -> list[str]:
        self._texts[self.rank] = text
        self._barrier.wait()
        return list(self._texts)

    def broadcast(self, tensor: torch.Tensor) -> None:
        raise NotImplementedError

    def report_failure(self, status: int, text: str) -> bool:
        raise NotImplementedError

    def reported_failure(self) -> None:
        raise NotImplementedError

    def abort(self, status: int) -> NoReturn:
        raise NotImplementedError


class Many(nn.Module):
    """Buffers of all kinds, of which one is a cache and one is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("mean", torch.full((3,), 0.1))
        self.register_buffer("short", torch.ones(2, dtype=torch.bfloat16))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("seen", torch.zeros(2, dtype=torch.bool))
        self.register_buffer("constant", torch.tensor([0.1, float("nan"), float("-inf")]))
        self.register_buffer("cache", torch.zeros(2), persistent=False)

    mean: torch.Tensor
    short: torch.Tensor
    count: torch.Tensor
    seen: torch.Tensor
    constant: torch.Tensor
    cache: torch.Tensor


def watched(folder: pathlib.Path, model: nn.Module, **options: bool) -> Buffers:
    buffers = Buffers(model, RunFolder(folder), **{"are_averaged": False, "have_others": True, **options})
    buffers.begin()
    return buffers


def grow(model: Many) -> None:
    model.mean = torch.ones(4)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mean", lambda model: model.mean.data.mul_(0.5)),
        ("mean", lambda model: setattr(model, "mean", model.mean * 0.5)),
        ("mean", grow),
        ("short", lambda model: model.short.add_(1)),
        ("count", lambda model: model.count.add_(1)),
        ("seen", lambda model: model.seen.logical_not_()),
    ],
)
@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_buffer_that_changes_is_refused_at_the_next_comparison(
    tmp_path: pathlib.Path, name: str, change: Callable[[Many], Any], step: int
) -> None:
    model = Many()
    buffers = watched(tmp_path, model)
    for _ in range(step - 1):
        model.cache.add_(1)
        buffers.stepped()
    change(model)
    with pytest.raises(ConfigError, match=rf"got buffers that training changes \({name}\), which each rank would have"):
        for _ in range(step, 9):
            buffers.stepped()


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(30, 40)),
        lambda: nn.utils.spectral_norm(nn.Linear(30, 40)),  # type: ignore[no-untyped-call]  # torch gives it no types
    ],
)
def test_the_vectors_of_spectral_norm_are_found_at_the_first_step(tmp_path: pathlib.Path, make: Callable[[], Any]) -> None:
    model = make().train()
    buffers = watched(tmp_path, model)
    model(torch.randn(2, 30))
    with pytest.raises(ConfigError, match=r"got buffers that training changes .*_u"):
        buffers.stepped()


def test_buffers_that_stay_and_those_of_a_single_rank_are_no_hindrance(tmp_path: pathlib.Path) -> None:
    model = Many()
    RunFolder(tmp_path).snapshots.mkdir()
    for buffers in (watched(tmp_path, model), watched(tmp_path, nn.Linear(2, 2)), watched(tmp_path, nn.Embedding(3, 2))):
        for _ in range(8):
            buffers.stepped()
        buffers.keep(1)
    assert not RunFolder(tmp_path).versions_with_buffers()
    buffers = watched(tmp_path, model, have_others=False)
    model.mean += 1
    buffers.stepped()
    buffers.keep(1)
    assert torch.equal(buffers.of(1)["mean"], model.mean) and buffers.of(2) == {}


def test_means_of_numbers_and_the_highest_counts_and_constants_bit_by_bit(tmp_path: pathlib.Path) -> None:
    models = [Many(), Many()]
    models[1].mean.mul_(3)
    models[1].short.mul_(3)
    models[0].count += 7
    models[1].count += 5
    models[1].seen[1] = True
    barrier, texts = threading.Barrier(2), ["", ""]

    def average(rank: int) -> None:
        buffers = watched(tmp_path, models[rank], are_averaged=True)
        buffers.stepped()
        for _ in range(2):  # again, as after a resumption
            buffers.average(Threads(rank, barrier, texts), is_worker=True)
            barrier.wait()

    threads = [threading.Thread(target=average, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for model in models:
        assert torch.equal(model.mean, torch.full((3,), 0.1).add(torch.full((3,), 0.1).mul(3)) / 2)
        assert model.short.tolist() == [2, 2] and model.count == 7 and model.seen.tolist() == [False, True]
        assert torch.equal(model.constant.view(torch.int32), Many().constant.view(torch.int32))


def test_a_worker_that_made_no_step_does_not_count_in_the_mean(tmp_path: pathlib.Path) -> None:
    models = [nn.BatchNorm1d(2), nn.BatchNorm1d(2)]
    models[0](torch.randn(9, 2) + 5)
    barrier, texts = threading.Barrier(2), ["", ""]

    def average(rank: int) -> None:
        buffers = watched(tmp_path, models[rank], are_averaged=True)
        if rank == 0:
            buffers.stepped()
        buffers.average(Threads(rank, barrier, texts), is_worker=True)

    threads = [threading.Thread(target=average, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(models[1].running_mean, models[0].running_mean) and models[0].running_mean.min() > 0.1  # type: ignore[union-attr]  # it has statistics


def test_a_run_resumes_with_the_buffers_of_its_checkpoint_or_the_newest_before_it(tmp_path: pathlib.Path) -> None:
    folder, model = RunFolder(tmp_path), Many()
    buffers = watched(tmp_path, model, are_averaged=True)
    folder.snapshots.mkdir()
    for version in (3, 6, 20):
        model.count.fill_(version)
        buffers.keep(version)
    checkpoint = folder.checkpoints / "v00000012"
    checkpoint.mkdir(parents=True)
    model.count.zero_()
    assert buffers.restore(checkpoint) and model.count == 6
    model.count.fill_(12)
    buffers.keep_last(checkpoint)
    model.count.zero_()
    assert buffers.restore(checkpoint) and model.count == 12
    assert not buffers.restore(folder.checkpoints / "v00000002")
    assert buffers.restore(folder.checkpoints / "v00000021") and model.count == 20


def test_saved_buffers_of_another_shape_are_told(tmp_path: pathlib.Path) -> None:
    folder, model = RunFolder(tmp_path), Many()
    folder.snapshots.mkdir()
    buffers = watched(tmp_path, model, are_averaged=True)
    buffers.keep(1)
    model.mean = torch.zeros(5)
    with pytest.raises(ConfigError, match=r"model: saved buffers do not fit: .*mean.*; expected the model of the run"):
        buffers.restore(folder.checkpoints / "v00000001")


def continued(folder: pathlib.Path, epochs: int, **options: Any) -> tuple[dict[str, torch.Tensor], nn.Module]:
    """Make a run of a model with BatchNorm; return its buffers as the run began, and the model at its end."""
    run = ha.init(folder, strategy="single", epochs=epochs, tensorboard=False, device="cpu", **options)
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    x, y = blobs(32, 1).tensors
    try:
        module, optimizer, batches = run.prepare(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            list(zip(x.split(8), y.split(8), strict=True)),
            evaluate=lambda model: float(nn.functional.cross_entropy(model(x), y)),
        )
        began = {name: tensor.clone() for name, tensor in saved_tensors(model).items()}
        for inputs, labels in batches:
            nn.functional.cross_entropy(module(inputs), labels).backward()
            optimizer.step(weight=len(labels))
    finally:
        run.finish()
    return began, model


def test_a_longer_run_begins_with_the_buffers_of_its_checkpoint(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "run"
    _, first = continued(folder, 1, validation={"every": 3})
    older = safetensors.torch.load_file(folder / "models/last/model.safetensors")
    began, _ = continued(folder, 2, validation={"every": 3}, resume=True)
    assert began["1.num_batches_tracked"] == 4 and torch.equal(began["1.running_mean"], first[1].running_mean)  # type: ignore[index]
    safetensors.torch.save_file(older, folder / "models/last/model.safetensors")  # as if a crash had left it
    began, _ = continued(folder, 3, validation={"every": 3}, resume=True)
    assert began["1.num_batches_tracked"] == 8
    assert RunFolder(folder).versions_with_buffers() == []
