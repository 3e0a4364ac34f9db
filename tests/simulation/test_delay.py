"""Synchronous strategies with an artificial delay, compared with the rule computed by hand, uninterrupted runs and real
ranks.
"""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch

from hvd_async.replay.replay import ReplayOptions, replay
from hvd_async.tasks.gradient import compute_gradient
from hvd_async.vectors.flat import FlatParameters
from tests.mpi.runs import Settings, checkpoint_checksum, events_of, losses_of, resumed, run_toy
from tests.mpi.toy import make_config
from tests.runs.saved import load_latest_checkpoint
from tests.simulation.simulated import ToyTask, run
from tests.trees import changed

SGD = {"kind": "sgd", "learning_rate": 0.3, "schedule": {"kind": "constant"}}


def delayed_config(folder: pathlib.Path, delay: int, kind: str = "horovod", **sections: Any) -> dict[str, Any]:
    strategy = {"kind": kind, "delay": delay}
    return make_config(folder, strategy=strategy, optimizer={"learning_rate": 0.05}, **sections)


@pytest.mark.parametrize("delay", [1, 3])
def test_every_gradient_is_computed_on_the_parameters_delayed_by_that_many_versions(
    tmp_path: pathlib.Path, delay: int
) -> None:
    run(tmp_path / "run", 12, strategy={"kind": "single", "delay": delay}, optimizer=SGD)
    task = ToyTask(Settings({}, num_batches=12, dropout=0.2), 0)
    module = task.build_model().train()
    flat = FlatParameters(module)
    versions = [flat.parameters.clone()]
    for batch in range(12):
        flat.parameters.copy_(versions[max(0, batch - delay)])
        weight, _ = compute_gradient(task, module, flat, 1, batch)
        versions.append(versions[-1] - 0.3 * flat.collect_gradient() / weight)
    checkpoint = load_latest_checkpoint(tmp_path / "run/checkpoints")
    assert checkpoint is not None
    torch.testing.assert_close(checkpoint.tensors["parameters"], versions[-1], rtol=1e-5, atol=1e-6)
    assert [arrival["staleness"] for arrival in events_of(tmp_path / "run", "arrival")] == [
        min(version, delay) for version in range(12)
    ]


def test_workers_that_take_new_parameters_in_turns_compute_on_those_of_0_to_delay_versions_ago(
    tmp_path: pathlib.Path,
) -> None:
    strategy = {"kind": "horovod", "delay": 2, "delay_pattern": "turns"}
    run(tmp_path / "run", 24, strategy=strategy, optimizer=SGD, simulation={"workers": 3})
    task = ToyTask(Settings({}, num_batches=24, dropout=0.2), 0)
    module = task.build_model().train()
    flat = FlatParameters(module)
    versions, ages = [flat.parameters.clone()], []
    for version in range(8):
        total, weights = torch.zeros_like(flat.gradient), 0.0
        for worker in range(3):
            ages.append(min(version, (version - worker) % 3))
            flat.parameters.copy_(versions[version - ages[-1]])
            weight, _ = compute_gradient(task, module, flat, 1, 3 * version + worker)
            total += flat.collect_gradient()
            weights += weight
        versions.append(versions[-1] - 0.3 * total / weights)
    checkpoint = load_latest_checkpoint(tmp_path / "run/checkpoints")
    assert checkpoint is not None
    torch.testing.assert_close(checkpoint.tensors["parameters"], versions[-1], rtol=1e-5, atol=1e-6)
    assert [arrival["staleness"] for arrival in events_of(tmp_path / "run", "arrival")] == ages
    assert sorted(ages[6:]) == sorted([0, 1, 2] * 6)
    verdict = replay(tmp_path / "run", lambda config: ToyTask(Settings({}), 0), ReplayOptions(), lambda line: None)
    assert verdict.versions == 8


def test_a_delay_of_0_changes_no_bit(tmp_path: pathlib.Path) -> None:
    for name, strategy in (("a", {"kind": "horovod"}), ("b", {"kind": "horovod", "delay": 0})):
        run(tmp_path / name, 24, strategy=strategy)
    assert checkpoint_checksum(tmp_path / "a") == checkpoint_checksum(tmp_path / "b")


@pytest.mark.slow
@pytest.mark.mpi
def test_real_ranks_do_the_same_and_a_resumed_run_equals_an_uninterrupted_one(tmp_path: pathlib.Path) -> None:
    turns = {"strategy": {"delay_pattern": "turns"}}
    in_turns = Settings(changed(delayed_config(tmp_path / "turns", 2), turns), num_batches=40, dropout=0.2)
    unbroken = Settings(delayed_config(tmp_path / "unbroken", 2), num_batches=40, dropout=0.2)
    first = Settings(
        delayed_config(tmp_path / "broken", 2, training={"epochs": None, "updates": 7}), num_batches=40, dropout=0.2
    )
    longer = Settings(delayed_config(tmp_path / "broken", 2), num_batches=40, dropout=0.2)
    ddp = Settings(delayed_config(tmp_path / "ddp", 2, "ddp"), num_batches=40, dropout=0.2)
    run_toy(2, unbroken, first, resumed(longer), ddp, in_turns).check()
    run(
        tmp_path / "simulated turns",
        40,
        strategy={"kind": "horovod", "delay": 2, "delay_pattern": "turns"},
        optimizer={"learning_rate": 0.05},
        simulation={"workers": 2},
    )
    assert losses_of(tmp_path / "turns") == pytest.approx(losses_of(tmp_path / "simulated turns"), rel=2e-5)
    assert losses_of(tmp_path / "broken") == losses_of(tmp_path / "unbroken") and len(losses_of(tmp_path / "broken")) == 20
    assert checkpoint_checksum(tmp_path / "broken") == checkpoint_checksum(tmp_path / "unbroken")
    assert losses_of(tmp_path / "ddp") == pytest.approx(losses_of(tmp_path / "unbroken"), rel=2e-5)
    run(
        tmp_path / "simulated",
        40,
        strategy={"kind": "horovod", "delay": 2},
        optimizer={"learning_rate": 0.05},
        simulation={"workers": 2},
    )
    assert losses_of(tmp_path / "simulated") == pytest.approx(losses_of(tmp_path / "unbroken"), rel=2e-5)
