"""Invariants under every interleaving of real ranks: each arrival counts once, versions only rise, pulls are whole."""

from __future__ import annotations

import math
import pathlib
from collections import Counter

import pytest

from tests.mpi.runs import events_of, run_toy, summary_of
from tests.mpi.toy import Settings, make_config
from tests.ranks import run_ranks

pytestmark = pytest.mark.mpi

STRATEGIES: dict[str, dict[str, object]] = {
    "plain": {"arrivals_per_update": 1},
    "workers": {"arrivals_per_update": "workers"},
    "more-than-workers": {"arrivals_per_update": 7},
    "dropped-pending": {"arrivals_per_update": 4, "pending": "drop"},
    "schedule": {"arrivals_per_update": [{"version": 0, "arrivals": 1}, {"version": 5, "arrivals": "workers"}]},
    "bounded-wait": {"arrivals_per_update": 1, "max_staleness": 1},
    "bounded-drop": {"arrivals_per_update": 1, "max_staleness": 0, "on_stale": "drop"},
    "compensated": {"arrivals_per_update": 2, "staleness_policy": "delay_compensation"},
    "two-buffers": {"arrivals_per_update": 1},
    "warm-start": {"arrivals_per_update": 1, "synchronous_versions": 4},
    "provisional": {"arrivals_per_update": 4, "provisional": True},
    "micro-batches": {"arrivals_per_update": 3, "micro_batches": 3},
    "micro-batches-bounded": {"arrivals_per_update": 1, "micro_batches": 2, "max_staleness": 1},
    "provisional-bounded": {"arrivals_per_update": 2, "provisional": True, "max_staleness": 1},
}
NUM_BATCHES = 41


@pytest.mark.parametrize("num_workers", [pytest.param(1, marks=pytest.mark.slow), 2, 4])
def test_every_batch_ends_in_exactly_one_place(tmp_path: pathlib.Path, num_workers: int) -> None:
    runs = {}
    for seed, (name, strategy) in enumerate(STRATEGIES.items()):
        store = {"published_buffers": 2} if name == "two-buffers" else {}
        configuration = make_config(
            tmp_path / name, strategy={"kind": "async", **strategy}, store=store, validation={"every": 7}
        )
        runs[name] = Settings(configuration, num_batches=NUM_BATCHES, uneven=seed)
    run_toy(num_workers + 1, *runs.values(), timeout=180).check()
    for name in runs:
        check_conservation(tmp_path / name, STRATEGIES[name])
        if "micro_batches" in STRATEGIES[name] and num_workers > 1:
            arrivals = events_of(tmp_path / name, "arrival")
            assert any(version > each["base_version"] for each in arrivals for version, _ in each["later_bases"])


def check_conservation(folder: pathlib.Path, strategy: dict[str, object]) -> None:
    arrivals, updates, summary = events_of(folder, "arrival"), events_of(folder, "update"), summary_of(folder)
    assert sorted(a["batch"] for a in arrivals) == list(range(NUM_BATCHES)), folder.name
    applied = [a for a in arrivals if "refused" not in a]
    assert [u["version"] for u in updates] == list(range(1, len(updates) + 1))
    assert Counter(a["version"] for a in applied) == {u["version"]: u["arrivals"] for u in updates}
    assert sum(u["weight"] for u in updates) == sum(a["weight"] for a in applied) == summary["weight"]
    assert len(applied) + sum(summary["refused"].values()) + summary["pending"] == NUM_BATCHES
    assert all(a["staleness"] == a["version"] - 1 - a["base_version"] >= 0 for a in applied)
    if strategy.get("max_staleness") is not None:
        assert max(a["staleness"] for a in applied) <= int(str(strategy["max_staleness"]))
    else:
        assert set(summary["refused"]) <= {"dropped_pending"}
    bases: dict[int, int] = {}
    for arrival in arrivals:  # arrivals of one worker come in the order in which it made them
        assert arrival["base_version"] >= bases.get(arrival["worker"], 0)
        versions = [arrival["base_version"], *(version for version, _ in arrival["later_bases"])]
        assert versions == sorted(versions) and versions[-1] < arrival.get("version", math.inf)
        size = 3 + arrival["batch"] % 5  # of the toy's batch
        assert len(versions) == min(int(str(strategy.get("micro_batches", 1))), size)
        bases[arrival["worker"]] = versions[-1]
    evaluated = [e["version"] for e in events_of(folder, "evaluation")]
    assert len(set(evaluated)) == len(evaluated)
    assert set(evaluated) == {*range(7, len(updates) + 1, 7), len(updates)}


@pytest.mark.parametrize("num_ranks", [pytest.param(2, marks=pytest.mark.slow), 5])
def test_no_pull_is_torn_and_no_push_is_lost(num_ranks: int) -> None:
    run_ranks(num_ranks, "tests.mpi.patterns", "400000", "30", timeout=120).check()


def test_no_pull_is_torn_between_two_hosts(two_hosts: tuple[str, str]) -> None:
    done = run_ranks(4, "tests.mpi.patterns", "3000000", "12", timeout=150, hosts=two_hosts).check()
    assert ": MPI\n" in done.stdout and ": shared memory\n" in done.stdout


def test_training_across_two_hosts_conserves_arrivals(tmp_path: pathlib.Path, two_hosts: tuple[str, str]) -> None:
    strategy = {"kind": "async", "arrivals_per_update": 2, "micro_batches": 2}
    settings = Settings(make_config(tmp_path / "run", strategy=strategy, validation={"every": 7}), num_batches=NUM_BATCHES)
    run_toy(4, settings, hosts=two_hosts, timeout=150).check()
    check_conservation(tmp_path / "run", strategy)
