"""Simulated runs that compute gradients: they repeat to the last bit, and agree with real runs where both must."""

from __future__ import annotations

import math
import pathlib
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvd_async.errors import ConfigError
from hvd_async.simulation import real_store
from tests.mpi.runs import checkpoint_checksum, events_of, losses_of, run_toy
from tests.mpi.toy import Settings, make_config
from tests.simulation.simulated import UNEVEN, run

UPDATE = {"kind": "adamw", "weight_decay": 0.01, "clip_norm": 0.5, "average_decay": 0.9}

COSINE = {"kind": "cosine", "warmup": 2, "final": 0.2}


def trace_of(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Return every event, without the fields that depend on the machine."""
    return [event for kind in ("arrival", "update", "evaluation", "end") for event in events_of(folder, kind)]


def simulated(folder: pathlib.Path, *, num_batches: int = 40, **sections: Any) -> list[dict[str, Any]]:
    sections.setdefault("strategy", {"kind": "async", "arrivals_per_update": 2})
    run(folder, num_batches, **{"optimizer": UPDATE, **sections})
    return trace_of(folder)


def test_the_same_configuration_gives_the_same_trace_to_the_last_bit(tmp_path: pathlib.Path) -> None:
    first = simulated(tmp_path / "a", emulation=UNEVEN, validation={"every": 5})
    assert simulated(tmp_path / "b", emulation=UNEVEN, validation={"every": 5}) == first
    assert checkpoint_checksum(tmp_path / "a") == checkpoint_checksum(tmp_path / "b")
    other = simulated(tmp_path / "c", emulation=UNEVEN, validation={"every": 5}, seed=2)
    assert [e["seconds"] for e in other] != [e["seconds"] for e in first]


@pytest.mark.parametrize("kind", ["async", "horovod"])
def test_half_the_weight_and_half_the_loss_of_every_batch_train_alike(tmp_path: pathlib.Path, kind: str) -> None:
    sections = {"strategy": {"kind": kind}, "optimizer": UPDATE, "emulation": {**UNEVEN, "seconds_per_weight": 0.01}}
    run(tmp_path / "whole", 40, **sections)
    run(tmp_path / "half", 40, point_weight=0.5, **{**sections, "emulation": {**UNEVEN, "seconds_per_weight": 0.02}})
    assert losses_of(tmp_path / "half") == losses_of(tmp_path / "whole")
    assert checkpoint_checksum(tmp_path / "half") == checkpoint_checksum(tmp_path / "whole")
    for event in ("arrival", "update", "evaluation"):
        weights = [each["weight"] for each in events_of(tmp_path / "half", event)]
        assert [2 * weight for weight in weights] == [each["weight"] for each in events_of(tmp_path / "whole", event)]
        assert weights and not any(isinstance(weight, float) and weight.is_integer() for weight in weights)  # 2, not 2.0


@pytest.mark.parametrize("section", ["training", "store"])
def test_a_device_other_than_the_cpu_is_refused(tmp_path: pathlib.Path, section: str) -> None:
    with pytest.raises(ConfigError, match=rf"{section}\.device: got cuda in a simulation, expected auto or cpu"):
        run(tmp_path / "run", **{section: {"device": "cuda"}})
    assert not (tmp_path / "run").exists()


def test_the_threads_of_the_caller_are_left_as_they_were(tmp_path: pathlib.Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run(tmp_path / "run", 4)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_simultaneous_events_are_shuffled_and_not_in_the_order_of_workers(tmp_path: pathlib.Path) -> None:
    orders = set()
    for seed in range(6):
        arrivals = events_of_arrivals(tmp_path / str(seed), seed)
        assert sorted(arrivals) == [0, 1, 2, 3]
        orders.add(tuple(arrivals))
    assert len(orders) > 1
    assert tuple(events_of_arrivals(tmp_path / "again", 0)) == tuple(events_of_arrivals(tmp_path / "and again", 0))


def events_of_arrivals(folder: pathlib.Path, seed: int) -> list[int]:
    strategy = {"kind": "async", "arrivals_per_update": 1}
    simulated(folder, num_batches=4, strategy=strategy, seed=seed)
    return [arrival["worker"] for arrival in events_of(folder, "arrival")]


def test_one_worker_with_one_arrival_is_the_single_process_to_the_last_bit(tmp_path: pathlib.Path) -> None:
    simulated(tmp_path / "single", strategy={"kind": "single"})
    one = {"kind": "async", "arrivals_per_update": 1}
    simulated(tmp_path / "async", strategy=one, simulation={"workers": 1})
    assert losses_of(tmp_path / "async") == losses_of(tmp_path / "single")
    assert checkpoint_checksum(tmp_path / "async") == checkpoint_checksum(tmp_path / "single")


def test_micro_batches_are_computed_on_what_came_between_them(tmp_path: pathlib.Path) -> None:
    strategy = {"kind": "async", "arrivals_per_update": 2, "micro_batches": 2, "provisional": True}
    costs = {"arrival_seconds": 0.0, "update_seconds": 0.0, "memory": {"bytes_per_second": 1e15}}
    emulation = {"seconds": 1.0, "slow_workers": {1: 1.6}}
    simulation = {"workers": 2, **costs}
    simulated(tmp_path / "run", num_batches=6, strategy=strategy, emulation=emulation, simulation=simulation)
    # Worker 0 has steps of 1 s, worker 1 of 1.6 s, from which versions come at 1.6, 3 and 4.8 s.
    assert [
        (arrival["worker"], arrival["batch"], arrival["base_version"], arrival["provisional"], arrival["later_bases"])
        for arrival in events_of(tmp_path / "run", "arrival")
    ] == [
        (0, 1, 0, 0, [[0, 0]]),
        (1, 0, 0, 0, [[0, 0]]),
        (0, 2, 0, 0, [[0, 0]]),  # from 1 s, when its own gradient is pending, on which no version is provisional yet
        (0, 4, 1, 1, [[1, 1]]),  # from 2 s; its second half begins at 2.5 s
        (1, 3, 1, 0, [[1, 1]]),  # from 1.6 s; its second half begins at 2.4 s, when batch 2 is pending
        (0, 5, 2, 0, [[2, 1]]),
    ]


def test_what_dividing_costs_makes_steps_longer(tmp_path: pathlib.Path) -> None:
    def seconds_of(name: str, number: int) -> list[float]:
        strategy = {"kind": "async", "micro_batches": number}
        emulation = {"seconds": 1.0, "seconds_per_micro_batch": 0.25, "slow_workers": {1: 2.0}}
        simulated(tmp_path / name, num_batches=12, strategy=strategy, emulation=emulation, simulation={"workers": 2})
        return sorted({arrival["step_seconds"] for arrival in events_of(tmp_path / name, "arrival")})

    assert seconds_of("whole", 1) == [1.0, 2.0]
    assert seconds_of("divided", 3) == [1.5, 3.0]


def test_one_worker_gains_nothing_from_micro_batches_but_other_last_bits(tmp_path: pathlib.Path) -> None:
    one = {"kind": "async", "arrivals_per_update": 1}
    for name, number in (("whole", 1), ("divided", 3)):
        simulated(tmp_path / name, strategy={**one, "micro_batches": number}, simulation={"workers": 1}, dropout=0.0)
    assert losses_of(tmp_path / "divided") == pytest.approx(losses_of(tmp_path / "whole"), rel=1e-4)
    assert all(
        base == [arrival["base_version"], 0]
        for arrival in events_of(tmp_path / "divided", "arrival")
        for base in arrival["later_bases"]
    )


def test_micro_batches_have_no_effect_in_lock_step(tmp_path: pathlib.Path) -> None:
    for name, number in (("whole", 1), ("divided", 3)):
        lockstep = {"kind": "async", "lockstep": True, "micro_batches": number}
        simulated(tmp_path / name, num_batches=24, strategy=lockstep, simulation={"workers": 3}, emulation=UNEVEN)
    assert checkpoint_checksum(tmp_path / "divided") == checkpoint_checksum(tmp_path / "whole")


def test_lock_step_is_the_synchronous_strategy_to_the_last_bit(tmp_path: pathlib.Path) -> None:
    simulated(tmp_path / "horovod", num_batches=24, strategy={"kind": "horovod"}, simulation={"workers": 3})
    for name, push in (("lock-step", {}), ("node-sum", {"node_sum": True})):
        lockstep = {"kind": "async", "lockstep": True}
        simulated(tmp_path / name, num_batches=24, strategy=lockstep, simulation={"workers": 3}, emulation=UNEVEN, push=push)
        assert losses_of(tmp_path / name) == losses_of(tmp_path / "horovod")
        assert checkpoint_checksum(tmp_path / name) == checkpoint_checksum(tmp_path / "horovod")


def test_synchronous_groups_never_reach_into_the_next_epoch(tmp_path: pathlib.Path) -> None:
    simulated(tmp_path / "run", num_batches=60, strategy={"kind": "ddp"}, simulation={"workers": 4})
    sizes = Counter(arrival["version"] for arrival in events_of(tmp_path / "run", "arrival"))
    assert [sizes[version] for version in sorted(sizes)] == [4, 4, 4, 4, 4, 4, 4, 2] * 2


@pytest.mark.mpi
def test_lock_step_gives_the_parameters_of_a_real_run(tmp_path: pathlib.Path) -> None:
    strategy = {"kind": "async", "lockstep": True}
    sections = {
        "strategy": strategy,
        "optimizer": {**UPDATE, "schedule": COSINE},
        "training": {"epochs": None, "updates": 10},
    }
    real = make_config(tmp_path / "real", **sections)
    run_toy(4, Settings(real, num_batches=None, dropout=0.2)).check()
    run(tmp_path / "simulated", None, simulation={"workers": 3}, **sections)
    rates = [update["learning_rate"] for update in events_of(tmp_path / "real", "update")]
    cosines = [(1 + math.cos(math.pi * past / 8)) / 2 for past in range(9)]
    assert rates == pytest.approx([0.05 * share for share in (0.5, *(0.2 + 0.8 * each for each in cosines))], rel=1e-14)
    assert rates == [update["learning_rate"] for update in events_of(tmp_path / "simulated", "update")]
    assert losses_of(tmp_path / "simulated") == losses_of(tmp_path / "real")
    assert checkpoint_checksum(tmp_path / "simulated") == checkpoint_checksum(tmp_path / "real")


def test_a_run_ends_at_its_last_version_and_refuses_later_arrivals(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "run"
    strategy = {"kind": "async", "arrivals_per_update": 1}
    training = {"epochs": None, "updates": 10}
    summary = run(folder, strategy=strategy, training=training, simulation={"workers": 3})
    assert summary["updates"] == 10 and summary["refused"] == {"after_the_end": 2} and summary["simulated"]


def test_patience_ends_a_run(tmp_path: pathlib.Path) -> None:
    validation = {"every": 2, "patience": 2}
    summary = run(tmp_path / "run", 200, strategy={"kind": "async"}, optimizer={"learning_rate": 5.0}, validation=validation)
    assert summary["status"] == "finished early" and summary["updates"] < 50


def test_the_best_model_and_patience_go_by_the_score(tmp_path: pathlib.Path) -> None:
    validation = {"every": 2, "patience": 2, "score": "bleu"}
    summary = run(tmp_path / "run", 200, has_accuracy=True, strategy={"kind": "async"}, validation=validation)
    scores = [measurement["scores"]["bleu"] for measurement in summary["measurements"]]
    best = scores.index(max(scores))
    assert summary["best"] == summary["measurements"][best] and summary["status"] == "finished early"
    assert len(scores) == best + 3  # with that of the best version, and the two after it


def test_a_simulation_refuses_a_score_that_is_not_measured(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match=r"validation\.score: got 'bleu', expected a score that the task measures: loss"):
        run(tmp_path / "run", validation={"score": "bleu"})
    assert not (tmp_path / "run").exists()


def test_parameters_of_a_version_are_held_once_and_no_longer_than_needed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []
    keep = real_store.Versions.keep

    def counted(versions: real_store.Versions, used: set[int], newest: int) -> None:
        keep(versions, used, newest)
        held.append((len(versions._kept), len(used)))

    monkeypatch.setattr(real_store.Versions, "keep", counted)
    strategy = {"kind": "async", "arrivals_per_update": 1}
    simulated(tmp_path / "run", num_batches=120, strategy=strategy, emulation=UNEVEN, simulation={"workers": 6})
    assert len(held) == 120
    assert all(now <= used + 1 for now, used in held) and max(now for now, _ in held) <= 2 * 6 + 1


STRATEGIES = st.fixed_dictionaries(
    {
        "arrivals_per_update": st.one_of(
            st.integers(1, 6),
            st.just("workers"),
            st.just([{"version": 0, "arrivals": 1}, {"version": 5, "arrivals": "workers"}]),
        ),
        "lockstep": st.booleans(),
        "synchronous_versions": st.sampled_from([0, 3]),
        "max_staleness": st.sampled_from([None, 0, 1, 3]),
        "on_stale": st.sampled_from(["wait", "drop"]),
        "staleness_policy": st.sampled_from(["none", "inverse", "delay_compensation"]),
        "pending": st.sampled_from(["apply", "drop"]),
        "provisional": st.booleans(),
        "micro_batches": st.sampled_from([1, 3]),
    }
)
PUSHES = st.sampled_from(
    [
        {},
        {"dtype": "bfloat16", "error_feedback": True},
        {"keep": 0.3, "error_feedback": True},
        {"node_sum": True},
        {"overlap": True},
        {"node_sum": True, "overlap": True},
    ]
)
CLUSTERS = st.fixed_dictionaries(
    {
        "workers": st.integers(1, 6),
        "workers_per_node": st.sampled_from([None, 1, 2]),
        "store_node_trains": st.booleans(),
        "arrival_seconds": st.sampled_from([None, 0.0, 0.05]),
        "update_seconds": st.sampled_from([None, 0.0, 0.2]),
    }
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(strategy=STRATEGIES, push=PUSHES, cluster=CLUSTERS, seed=st.integers(0, 5), num_batches=st.integers(1, 25))
def test_every_batch_ends_in_exactly_one_place_and_bounds_hold(
    tmp_path_factory: pytest.TempPathFactory,
    strategy: dict[str, Any],
    push: dict[str, Any],
    cluster: dict[str, Any],
    seed: int,
    num_batches: int,
) -> None:
    if strategy["staleness_policy"] == "delay_compensation":
        strategy = {**strategy, "provisional": False}
    if strategy["staleness_policy"] == "delay_compensation" or push.get("overlap") or push.get("node_sum"):
        strategy = {**strategy, "micro_batches": 1}
    if strategy["lockstep"] and strategy["on_stale"] == "wait":
        strategy = {**strategy, "max_staleness": None}
    if push.get("overlap"):
        strategy = {**strategy, "lockstep": False, "max_staleness": strategy["max_staleness"] or None}
    folder = tmp_path_factory.mktemp("run") / "run"
    emulation = {name: value for name, value in UNEVEN.items() if name != "slow_workers"}
    sections = {"emulation": emulation, "simulation": cluster, "push": push, "seed": seed}
    summary = run(folder, num_batches, strategy={"kind": "async", **strategy}, **sections)
    arrivals = events_of(folder, "arrival")
    assert sorted(arrival["batch"] for arrival in arrivals) == list(range(num_batches))
    assert sum(summary["staleness"].values()) + sum(summary["refused"].values()) == num_batches
    assert summary["pending"] == 0
    assert set(summary["refused"]) <= {"too_stale", "dropped_pending"}
    applied = [arrival for arrival in arrivals if "refused" not in arrival]
    assert all(arrival["staleness"] == arrival["version"] - 1 - arrival["base_version"] >= 0 for arrival in applied)
    # At the end pending arrivals are applied, however stale.
    last = max((arrival["version"] for arrival in applied), default=0)
    bound = strategy["max_staleness"]
    if bound is not None:
        assert all(arrival["staleness"] <= bound for arrival in applied if arrival["version"] < last)
