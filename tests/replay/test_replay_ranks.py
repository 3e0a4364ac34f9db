"""Replay of runs on real ranks, with stale, rounded, dropped and node-summed gradients and interruptions: equal to the
last bit.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import signal
from typing import Any

import pytest

from hvd_async.__main__ import main
from hvd_async.errors import DifferenceError
from hvd_async.tasks.translation.builtin.grammar import write_corpus
from tests.mpi.runs import events_of, resumed, run_toy, summary_of
from tests.mpi.toy import Settings, make_config
from tests.ranks import run_ranks
from tests.replay.replaying import edit_log, nth, read_log, replay_toy

pytestmark = pytest.mark.mpi

ADAM = {"clip_norm": 0.5, "average_decay": 0.9, "schedule": {"unit": "weight", "warmup": 100}}
FEW = {"keep": 0.05, "error_feedback": True}
ROUNDED = {"dtype": "bfloat16", "error_feedback": True}


def settings(
    folder: pathlib.Path,
    strategy: dict[str, Any],
    push: dict[str, Any] | None = None,
    num_batches: int | None = 60,
    **sections: Any,
) -> Settings:
    """Return settings of the toy with uneven steps and enough elements for several shards; 5 % of them are hundreds."""
    training = {"epochs": 1, "device": "cpu", "tensorboard": False, "hash_every": 5}
    sections = {"optimizer": ADAM, **sections, "training": {**training, **sections.get("training", {})}}
    config = make_config(folder, strategy={"kind": "async", **strategy}, push=push or {}, **sections)
    return Settings(config, num_batches=num_batches, uneven=3, hidden=2000)


def assert_equal(folder: pathlib.Path, run: Settings) -> None:
    """Replay the whole run, and check that it is equal and that there was something to compare."""
    verdict = replay_toy(folder, run)
    updates, arrivals = events_of(folder, "update"), events_of(folder, "arrival")
    assert verdict.versions == len(updates) == verdict.last_hashed > 0
    assert verdict.arrivals == sum(update["arrivals"] for update in updates) <= len(arrivals)
    assert verdict.hashes == len(events_of(folder, "parameter_hash")) >= 2 + (verdict.versions - 1) // 5


# Each run shows a mechanism of its own; all but the last have stale gradients.
ORDINARY: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "four": ({"arrivals_per_update": 4}, {}),
    "few": ({"arrivals_per_update": 2, "staleness_policy": "delay_compensation"}, {**FEW, "dtype": "float16"}),
    "stale": ({"arrivals_per_update": 1, "max_staleness": 1, "on_stale": "drop"}, ROUNDED),
    "node_sum": ({"arrivals_per_update": 1}, {**ROUNDED, "node_sum": True, "overlap": True}),
    "provisional": ({"arrivals_per_update": 4, "provisional": True}, ROUNDED),
    "micro": ({"arrivals_per_update": 4, "micro_batches": 3}, ROUNDED),
}
MANY: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "inverse": ({"arrivals_per_update": 1, "staleness_policy": "inverse"}, ROUNDED),
    "half": ({"arrivals_per_update": 2, "staleness_policy": "inverse"}, {"dtype": "float16"}),
    "bounded": ({"arrivals_per_update": 2, "max_staleness": 2}, {"overlap": True}),
    "compensated": ({"arrivals_per_update": 1, "staleness_policy": "delay_compensation"}, {"overlap": True}),
    "stale_few": ({"arrivals_per_update": 1, "max_staleness": 1, "on_stale": "drop"}, FEW),
    "warm": ({"arrivals_per_update": 1, "synchronous_versions": 6, "reduction": "sum"}, FEW),
    "schedule": (
        {"arrivals_per_update": [{"version": 0, "arrivals": 1}, {"version": 7, "arrivals": 5}], "pending": "drop"},
        ROUNDED,
    ),
    "colocated": ({"arrivals_per_update": "workers", "placement": "colocated"}, FEW),
    "micro_stale": ({"arrivals_per_update": 2, "micro_batches": 8, "max_staleness": 1, "on_stale": "drop"}, FEW),
    "micro_bounded": ({"arrivals_per_update": 1, "micro_batches": 2, "max_staleness": 1}, {}),
    "micro_warm": ({"arrivals_per_update": 4, "micro_batches": 3, "synchronous_versions": 6, "placement": "colocated"}, FEW),
    "provisional_stale": (
        {"arrivals_per_update": 2, "provisional": True, "max_staleness": 1, "on_stale": "drop"},
        {"overlap": True},
    ),
    "provisional_few": ({"arrivals_per_update": 5, "provisional": True, "staleness_policy": "inverse"}, FEW),
    "provisional_team": (
        {"arrivals_per_update": 4, "provisional": True},
        {**FEW, "node_sum": True, "overlap": True},
    ),
    "team_compensated": (
        {"arrivals_per_update": 1, "staleness_policy": "delay_compensation"},
        {**FEW, "node_sum": True, "overlap": True},
    ),
}


def run_all(folder: pathlib.Path, matrix: dict[str, tuple[dict[str, Any], dict[str, Any]]], **sections: Any) -> None:
    """Run each case on 4 ranks, replay it, and check that staleness occurred."""
    runs = {name: settings(folder / name, *both, **sections) for name, both in matrix.items()}
    run_toy(4, *runs.values()).check()
    for name, run in runs.items():
        assert summary_of(folder / name)["mean_staleness"] > 0, name
        assert_equal(folder / name, run)


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[pathlib.Path, Settings]]:
    """Runs by name; tests must not change them."""
    root = tmp_path_factory.mktemp("ranks")
    runs = {name: settings(root / name, *both, validation={"every": 4}) for name, both in ORDINARY.items()}
    end = {"epochs": None, "updates": 10, "checkpoint_every": 3}
    runs["longer"] = settings(root / "longer", {"arrivals_per_update": 3}, ROUNDED, None, training=end)
    nan = [{"rank": 1, "step": 2, "kind": "nan"}, {"rank": 2, "step": 4, "kind": "nan"}]
    runs["nan"] = dataclasses.replace(settings(root / "nan", {"arrivals_per_update": 2}, FEW), faults=nan)
    runs["lockstep"] = settings(root / "lockstep", {"lockstep": True}, ROUNDED)
    # The last run is stopped by a signal, with gradients pending.
    few_updates = {"arrivals_per_update": [{"version": 0, "arrivals": 4}, {"version": 1, "arrivals": 80}]}
    stopped = settings(root / "stopped", few_updates, FEW, num_batches=90)
    runs["stopped"] = dataclasses.replace(stopped, faults=[{"rank": 2, "step": 7, "kind": "sigterm"}])
    done = run_toy(4, *runs.values())
    assert done.returncode == 128 + signal.SIGTERM, str(done)
    return {name: (root / name, run) for name, run in runs.items()}


@pytest.mark.parametrize("name", [*ORDINARY, "longer", "nan", "lockstep", "stopped"])
def test_a_run_is_equal_to_the_last_bit(ordinary: dict[str, tuple[pathlib.Path, Settings]], name: str) -> None:
    folder, run = ordinary[name]
    assert (summary_of(folder)["mean_staleness"] > 0) == (name not in ("lockstep", "stopped"))
    assert_equal(folder, run)


def test_the_runs_show_the_mechanisms_they_are_made_for(ordinary: dict[str, tuple[pathlib.Path, Settings]]) -> None:
    assert "too_stale" in summary_of(ordinary["stale"][0])["refused"]
    assert any(arrival["provisional"] for arrival in events_of(ordinary["provisional"][0], "arrival"))
    assert summary_of(ordinary["nan"][0])["refused"]["not_finite"] == 2
    assert {len([a for a in events_of(ordinary["node_sum"][0], "arrival") if a["push"] == 0])} == {3}
    start = events_of(ordinary["node_sum"][0], "start")[0]
    assert start["node_workers"] == [[0, 1, 2]] and [rank["worker"] for rank in start["ranks"]] == [None, 0, 1, 2]


def copy_of(
    ordinary: dict[str, tuple[pathlib.Path, Settings]], name: str, to: pathlib.Path
) -> tuple[pathlib.Path, Settings]:
    """Copy the parts of a run that a replay reads, for a test to change."""
    folder, run = ordinary[name]
    to.mkdir()
    for file in ("config.yaml", "events.jsonl"):
        (to / file).write_bytes((folder / file).read_bytes())
    return to, run


def test_another_order_of_summation_is_found_in_its_update(
    ordinary: dict[str, tuple[pathlib.Path, Settings]], tmp_path: pathlib.Path
) -> None:
    folder, run = copy_of(ordinary, "four", tmp_path / "run")

    def swap(events: list[dict[str, Any]]) -> None:
        for version in (6, 7, 8):
            number = events.index(nth(events, "update", version))
            events[number - 4], events[number - 1] = events[number - 1], events[number - 4]

    edit_log(folder, swap)
    # Of 18,000 sums, a few are rounded differently: perhaps too few to change the norm, and once in a while too few in one update
    # to change a later version, but not in three.
    with pytest.raises(DifferenceError, match=r"version ([6-9]|1\d): "):
        replay_toy(folder, run)


@pytest.mark.parametrize("name", ["few", "stale", "node_sum"])
def test_without_its_feedback_a_run_is_not_equal(
    ordinary: dict[str, tuple[pathlib.Path, Settings]], name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, run = copy_of(ordinary, name, tmp_path / "run")
    from hvd_async.store.wire.local_push import Pushes

    send = Pushes.send

    def send_and_forget(pushes: Pushes, *arguments: Any) -> Any:
        pushes.forget_errors()
        return send(pushes, *arguments)

    monkeypatch.setattr(Pushes, "send", send_and_forget)
    with pytest.raises(DifferenceError, match=r"version \d: "):
        replay_toy(folder, run)


def test_a_gradient_refused_as_too_stale_counts_in_the_feedback(
    ordinary: dict[str, tuple[pathlib.Path, Settings]], tmp_path: pathlib.Path
) -> None:
    folder, run = copy_of(ordinary, "stale", tmp_path / "run")
    edit_log(folder, lambda events: events.remove(next(event for event in events if event.get("refused") == "too_stale")))
    with pytest.raises(DifferenceError):
        replay_toy(folder, run)


def test_another_base_version_is_named(ordinary: dict[str, tuple[pathlib.Path, Settings]], tmp_path: pathlib.Path) -> None:
    folder, run = copy_of(ordinary, "four", tmp_path / "run")
    events = read_log(folder)
    number = next(n for n, event in enumerate(events) if event["event"] == "arrival" and event["staleness"] == 1)
    edit_log(folder, lambda events: events[number].update(base_version=events[number]["base_version"] + 1))
    words = f"version {events[number]['version']}: the loss of batch {events[number]['batch']}, computed by"
    with pytest.raises(DifferenceError, match=words):
        replay_toy(folder, run)


@pytest.mark.slow
def test_interrupted_runs_replay_whole(ordinary: dict[str, tuple[pathlib.Path, Settings]], tmp_path: pathlib.Path) -> None:
    """Three runs: stopped by a signal with gradients pending, killed after a checkpoint, finished and then extended."""
    killed = settings(
        tmp_path / "killed", {"arrivals_per_update": 2}, ROUNDED, num_batches=90, training={"checkpoint_every": 4}
    )
    killed = dataclasses.replace(killed, faults=[{"rank": 3, "step": 10, "kind": "sigkill"}])
    assert run_toy(4, killed).returncode != 0

    (longer_folder, longer), (stopped_folder, stopped) = ordinary["longer"], ordinary["stopped"]
    longer.config["training"]["updates"] = 20
    run_toy(4, resumed(stopped), resumed(killed), resumed(longer)).check()
    for folder, run in ((stopped_folder, stopped), (tmp_path / "killed", killed), (longer_folder, longer)):
        starts = events_of(folder, "start")
        assert len(starts) == 2 and starts[1]["version"] > 0
        assert summary_of(folder)["mean_staleness"] > 0
        assert_equal(folder, run)
    assert events_of(stopped_folder, "start")[1]["pending"]
    # The comparison depends on the arrivals that were pending belonging to the previous process.
    edit_log(stopped_folder, lambda events: nth(events, "start", 1).update(pending=[]))
    with pytest.raises(DifferenceError):
        replay_toy(stopped_folder, stopped)


@pytest.mark.parametrize(("threads", "dropout"), [(1, 0.0), (2, 0.0), (1, 0.2)])
@pytest.mark.slow
def test_a_translation_run_replays_to_its_exported_models(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], threads: int, dropout: float
) -> None:
    write_corpus(tmp_path / "text", train=120, validation=8, test=8)
    tree: dict[str, Any] = {
        "output": str(tmp_path / "run"),
        "task": {
            "data": {"folder": str(tmp_path / "text")},
            "vocabulary": {"size": 300, "bpe_dropout": dropout},
            "model": {"encoder_layers": 1, "decoder_layers": 1, "width": 32, "feed_forward": 64, "heads": 2},
            "batching": {"tokens": 200},
            "metrics": [],
        },
        "optimizer": {"average_decay": 0.9, "clip_norm": 1.0},
        "strategy": {"kind": "async", "arrivals_per_update": 2},
        "push": {"keep": 0.1, "error_feedback": True},
        "training": {"epochs": 2, "device": "cpu", "tensorboard": False, "threads": threads, "hash_every": 5},
        "validation": {"every": 5},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(tree))
    run_ranks(4, "hvd_async", "train", str(tmp_path / "run.yaml")).check()
    assert summary_of(tmp_path / "run")["mean_staleness"] > 0
    best = summary_of(tmp_path / "run")["best"]["version"]
    for name, until in (("last", []), ("best", ["--until", str(best)])):
        capsys.readouterr()
        assert main(["replay", str(tmp_path / "run"), "--output", str(tmp_path / name), *until]) == 0
        assert re.search(r"equal: \d+ versions, \d+ arrivals, \d+ hashes, all to the last bit", capsys.readouterr().out)
        exported, recorded = tmp_path / name, tmp_path / "run" / "models" / name
        assert (exported / "model.safetensors").read_bytes() == (recorded / "model.safetensors").read_bytes(), name
        assert (exported / "meta.json").read_bytes() == (recorded / "meta.json").read_bytes(), name


# --- Many settings ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [ADAM, {"kind": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}])
@pytest.mark.parametrize("shards", [1, 2])
def test_runs_with_many_settings_are_equal_to_the_last_bit(
    tmp_path: pathlib.Path, optimizer: dict[str, Any], shards: int
) -> None:
    run_all(tmp_path, {**ORDINARY, **MANY}, optimizer=optimizer, store={"shards": shards})


@pytest.mark.slow
def test_runs_of_three_shards_on_two_hosts_are_equal_to_the_last_bit(
    tmp_path: pathlib.Path, two_hosts: tuple[str, str]
) -> None:
    strategy = {"arrivals_per_update": 3, "placement": "colocated"}
    runs = [
        settings(tmp_path / "few", strategy, FEW, store={"shards": 3}),
        settings(tmp_path / "nodes", strategy, {**ROUNDED, "node_sum": True}, store={"shards": 3}),
        settings(tmp_path / "nodes_few", strategy, {**FEW, "node_sum": True, "overlap": True}, store={"shards": 3}),
    ]
    run_toy(4, *runs, hosts=two_hosts).check()
    for run in runs:
        folder = pathlib.Path(run.config["output"])
        assert summary_of(folder)["mean_staleness"] > 0
        assert_equal(folder, run)
