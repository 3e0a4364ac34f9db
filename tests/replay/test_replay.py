"""Replay in one process: equal runs are found equal, and every change of the log is named where it was made."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hvd_async.__main__ import main
from hvd_async.errors import ConfigError, DataError, DifferenceError
from hvd_async.replay import replay as module
from hvd_async.replay.recording import read_recording
from hvd_async.tasks.translation.builtin.grammar import write_corpus
from tests.mpi.toy import Settings, make_config, parse_config
from tests.replay.replaying import edit_log, nth, read_log, replay_toy, run_single
from tests.simulation.simulated import UNEVEN
from tests.simulation.simulated import run as simulated

Events = list[dict[str, Any]]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, Settings]:
    """A run of 12 updates with every feature of an update; tests must not change it."""
    optimizer = {"kind": "adamw", "weight_decay": 0.01, "clip_norm": 0.5, "average_decay": 0.9}
    folder = tmp_path_factory.mktemp("replay") / "run"
    settings = run_single(folder, optimizer=optimizer, validation={"every": 4}, training={"checkpoint_every": 3})
    return folder, settings


@pytest.fixture
def run(recorded: tuple[pathlib.Path, Settings], tmp_path: pathlib.Path) -> tuple[pathlib.Path, Settings]:
    """A copy of `recorded` that a test may change."""
    folder, settings = recorded
    shutil.copytree(folder, tmp_path / "run")
    return tmp_path / "run", settings


def change(run: tuple[pathlib.Path, Settings], how: Callable[[Events], None]) -> str:
    """Change the log, and return the message with which replay fails."""
    folder, settings = run
    edit_log(folder, how)
    with pytest.raises(DifferenceError) as caught:
        replay_toy(folder, settings)
    return str(caught.value)


def test_a_run_is_equal_to_the_last_bit(recorded: tuple[pathlib.Path, Settings]) -> None:
    folder, settings = recorded
    verdict = replay_toy(folder, settings)
    # Hashes of every fifth version, of every checkpoint (3, 6, 9, 12), of the first and of the last version.
    assert [event["version"] for event in read_log(folder) if event["event"] == "parameter_hash"] == [0, 3, 5, 6, 9, 10, 12]
    assert (verdict.versions, verdict.arrivals, verdict.hashes, verdict.last_hashed) == (12, 12, 7, 12)
    assert str(verdict) == "12 versions, 12 arrivals, 7 hashes"


def test_every_hash_counts_the_moving_average_too(recorded: tuple[pathlib.Path, Settings]) -> None:
    hashes = [event for event in read_log(recorded[0]) if event["event"] == "parameter_hash"]
    assert len({event["hash"] for event in hashes}) == len(hashes)
    first, last = hashes[0], hashes[-1]
    assert first["hash"] == first["average"] and last["hash"] != last["average"]


def test_a_changed_loss_is_named_with_its_batch(run: tuple[pathlib.Path, Settings]) -> None:
    def last_bit(events: Events) -> None:
        arrival = nth(events, "arrival", 6)
        arrival["loss"] = math.nextafter(arrival["loss"], math.inf)

    text = change(run, last_bit)
    assert text.startswith("version 7: the loss of batch 6, computed by worker 0 on version 6: recorded ")
    assert "equal before that: 6 versions, 6 arrivals, 4 hashes; the last equal hash is of version 6" in text
    assert "software, processor, device and threads equal the recorded ones" in text


@pytest.mark.parametrize(
    ("number", "field", "value", "words"),
    [
        (4, "batch", 77, "version 5: the weight of batch 77"),
        (5, "batch", 50, "version 6: the loss of batch 50"),  # it has the weight of batch 5
        (6, "base_version", 5, "version 7: the loss of batch 6, computed by worker 0 on version 5"),
        (7, "weight", 1, "version 8: the weight of batch 7"),
    ],
)
def test_a_changed_arrival_is_named(
    run: tuple[pathlib.Path, Settings], number: int, field: str, value: int, words: str
) -> None:
    assert change(run, lambda events: nth(events, "arrival", number).update({field: value})).startswith(words)


def test_a_log_with_too_few_micro_batches_is_damaged(tmp_path: pathlib.Path) -> None:
    settings = Settings(make_config(tmp_path / "run", strategy={"kind": "async", "micro_batches": 3}), num_batches=12)
    simulated(tmp_path / "run", 12, strategy={"kind": "async", "micro_batches": 3}, simulation={"workers": 2})
    assert replay_toy(tmp_path / "run", settings).arrivals == 12
    edit_log(tmp_path / "run", lambda events: nth(events, "arrival", 4)["later_bases"].pop())
    with pytest.raises(
        DataError, match=r"batch \d+: recorded with 2 micro-batches, but the task divides it into 3; the log is"
    ):
        replay_toy(tmp_path / "run", settings)


@pytest.mark.parametrize("field", ["weight", "loss", "learning_rate", "gradient_norm"])
def test_a_changed_update_is_named(run: tuple[pathlib.Path, Settings], field: str) -> None:
    def more(events: Events) -> None:
        nth(events, "update", 8)[field] *= 1 + 2**-40

    assert change(run, more).startswith(f"version 9: {field} of the update: recorded ")


@pytest.mark.parametrize(("field", "name"), [("hash", "parameters"), ("average", "moving average")])
def test_a_changed_hash_is_named(run: tuple[pathlib.Path, Settings], field: str, name: str) -> None:
    text = change(run, lambda events: nth(events, "parameter_hash", 2).update({field: "0" * 32}))
    assert text.startswith(f"version 5: the hash of the {name}: recorded 00000000000000000000000000000000, recomputed ")
    assert "the last equal hash is of version 3" in text


def test_another_seed_is_found_at_the_first_batch(run: tuple[pathlib.Path, Settings]) -> None:
    folder, settings = run
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("\nseed: 1\n", "\nseed: 2\n"))
    with pytest.raises(DifferenceError, match="version 1: the loss of batch 0"):
        replay_toy(folder, settings)


def test_another_initial_model_is_found_before_anything_is_computed(
    run: tuple[pathlib.Path, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, settings = run
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Dropout(0.2), torch.nn.Linear(8, 3))
    monkeypatch.setattr("tests.mpi.toy.ToyTask.build_model", lambda _: model)
    with pytest.raises(DifferenceError, match="version 0: the hash of the parameters"):
        replay_toy(folder, settings)


def test_another_text_is_found_before_anything_is_computed(run: tuple[pathlib.Path, Settings]) -> None:
    folder, settings = run
    assert nth(read_log(folder), "start", 0)["data_fingerprint"] == "toy"
    edit_log(folder, lambda events: nth(events, "start", 0).update(data_fingerprint="other"))
    with pytest.raises(DataError, match=r"the text, .*, is not that of the run, .*: recorded other, here toy"):
        replay_toy(folder, settings)
    edit_log(folder, lambda events: nth(events, "start", 0).pop("data_fingerprint"))  # the log of an older version
    assert replay_toy(folder, settings).versions == 12


def test_differences_from_the_recorded_machine_are_reported(run: tuple[pathlib.Path, Settings]) -> None:
    def elsewhere(events: Events) -> None:
        nth(events, "start", 0)["software"]["torch"] = "1.0"
        nth(events, "start", 0)["ranks"][0].update(threads=3, software={"cpu": "abacus"})
        nth(events, "parameter_hash", 3)["hash"] = ""

    text = change(run, elsewhere)
    assert f"torch: 1.0, here {torch.__version__}; cpu: abacus, here " in text
    assert "threads" not in text.splitlines()[-1]  # replay used as many threads as the run


def test_replay_uses_the_recorded_number_of_threads_or_the_requested_one(
    run: tuple[pathlib.Path, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, settings = run
    edit_log(folder, lambda events: nth(events, "start", 0)["ranks"][0].update(threads=2))
    before, used = torch.get_num_threads(), set()
    original = module.Recomputation._compute

    def compute(*arguments: Any) -> Any:
        result = original(*arguments)
        used.add(torch.get_num_threads())
        return result

    monkeypatch.setattr(module.Recomputation, "_compute", compute)
    replay_toy(folder, settings)
    assert used == {2}
    replay_toy(folder, settings, threads=1)
    assert used == {1, 2} and torch.get_num_threads() == before


def test_a_log_without_hashes_is_still_compared(tmp_path: pathlib.Path) -> None:
    settings = run_single(tmp_path / "run", training={"hash_every": 0})
    assert not [event for event in read_log(tmp_path / "run") if event["event"] == "parameter_hash"]
    assert str(replay_toy(tmp_path / "run", settings)) == "12 versions, 12 arrivals, 0 hashes"


def test_a_gradient_that_is_not_finite_is_in_no_update_of_the_replay(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "run"
    optimizer = {"kind": "sgd", "learning_rate": 3e38}  # overflows
    settings = run_single(folder, diverges=True, optimizer=optimizer)
    refused = [event for event in read_log(folder) if "refused" in event]
    assert refused
    assert replay_toy(folder, settings).arrivals == 12 - len(refused)


@pytest.mark.parametrize("push", [{}, {"dtype": "bfloat16"}, {"keep": 0.2, "error_feedback": True}, {"node_sum": True}])
def test_runs_with_muon_are_computed_again_to_the_last_bit(tmp_path: pathlib.Path, push: dict[str, Any]) -> None:
    folder = tmp_path / "run"
    optimizer = {"kind": "muon", "muon_except": [], "clip_norm": 0.5, "average_decay": 0.9, "weight_decay": 0.01}
    strategy = {"kind": "async", "provisional": True, "arrivals_per_update": "workers"}
    cluster = {"workers": 4, "workers_per_node": 2}
    simulated(folder, 40, strategy=strategy, optimizer=optimizer, simulation=cluster, emulation=UNEVEN, push=push)
    verdict = replay_toy(folder, Settings({}, num_batches=40, dropout=0.2))
    assert verdict.arrivals == 40 and verdict.hashes > 0
    assert any(event.get("provisional") for event in read_log(folder))


def test_a_difference_that_a_refused_sum_may_explain_is_reported_with_it(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "run"
    strategy = {"kind": "async", "arrivals_per_update": 3, "provisional": True}
    simulated(folder, 30, strategy=strategy, simulation={"workers": 4}, emulation=UNEVEN)
    arrival = next(event for event in read_log(folder) if event.get("provisional"))
    version, batch = arrival["base_version"], arrival["batch"]

    def change_loss(events: Events) -> None:
        next(event for event in events if event.get("batch") == batch)["loss"] += 1.0

    def refuse_a_sum(events: Events) -> None:
        refused = {**nth(events, "arrival", 0), "batch": 1000, "push": 1000, "refused": "sum_not_finite"}
        events.insert(events.index(nth(events, "update", version - 1)) + 1, refused)

    settings = Settings({}, num_batches=30, dropout=0.2)
    assert replay_toy(folder, settings).arrivals == 30
    edit_log(folder, change_loss)
    with pytest.raises(DifferenceError) as without:
        replay_toy(folder, settings)
    edit_log(folder, refuse_a_sum)
    with pytest.raises(DifferenceError) as with_one:
        replay_toy(folder, settings)
    words = f"; at version {version} a sum that was not finite was refused: batch {batch} may have been computed on"
    assert words not in str(without.value) and words in str(with_one.value)


def test_a_run_that_was_extended_is_compared_to_its_new_end(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "run"
    run_single(folder, num_batches=7)
    settings = run_single(folder, num_batches=12, resume=True)
    assert [event["version"] for event in read_log(folder) if event["event"] == "parameter_hash"] == [0, 5, 7, 7, 10, 12]
    assert str(replay_toy(folder, settings)) == "12 versions, 12 arrivals, 6 hashes"


# --- Replay up to a version, and its model ----------------------------------------------------------------------------


def test_the_model_of_a_version_is_that_of_its_snapshot(tmp_path: pathlib.Path) -> None:
    folder, exported = tmp_path / "run", tmp_path / "model"
    settings = run_single(folder, validation={"every": 4, "when": "after"}, optimizer={"average_decay": 0.9})
    verdict = replay_toy(folder, settings, until=8, output=exported)
    assert (verdict.versions, verdict.hashes) == (8, 2)
    document = json.loads((exported / "exported.json").read_text())
    measured = next(event for event in read_log(folder) if event["event"] == "evaluation" and event["version"] == 8)
    assert document["version"] == 8 and document["validation_loss"] == measured["scores"]["loss"]


def test_a_model_is_not_written_over_another_nor_after_a_difference(run: tuple[pathlib.Path, Settings]) -> None:
    folder, settings = run
    model = folder.parent / "model"
    replay_toy(folder, settings, output=model, until=1)
    with pytest.raises(ConfigError, match="exists already; replace it with --overwrite"):
        replay_toy(folder, settings, output=model)
    for name in ("meta.json", "model.safetensors"):  # files that the toy's model does not have
        (model / name).touch()
    replay_toy(folder, settings, output=model, overwrite=True, until=0)
    assert json.loads((model / "exported.json").read_text())["version"] == 0
    edit_log(folder, lambda events: nth(events, "parameter_hash", -1).update(hash=""))
    with pytest.raises(DifferenceError):
        replay_toy(folder, settings, output=folder.parent / "new")
    assert not (folder.parent / "new").exists()


@pytest.mark.parametrize("output", [".", "models", "models/last", "new", ".."])
def test_a_model_is_never_written_over_the_run(run: tuple[pathlib.Path, Settings], output: str) -> None:
    folder, settings = run
    before = sorted(folder.rglob("*"))
    with pytest.raises(ConfigError, match=r"--output: got .*, expected a folder outside the run's"):
        replay_toy(folder, settings, output=folder / output, overwrite=True, until=0)
    assert sorted(folder.rglob("*")) == before


def test_only_a_model_or_an_empty_folder_is_replaced(run: tuple[pathlib.Path, Settings], tmp_path: pathlib.Path) -> None:
    folder, settings = run
    file, other, empty = tmp_path / "file", tmp_path / "other", tmp_path / "empty"
    for path in (other, empty):
        path.mkdir()
    for path in (file, other / "thesis.tex"):
        path.write_text("x")
    with pytest.raises(ConfigError, match="file is a file, expected a folder"):
        replay_toy(folder, settings, output=file, overwrite=True, until=0)
    with pytest.raises(ConfigError, match="contains something other than a model"):
        replay_toy(folder, settings, output=other, overwrite=True, until=0)
    replay_toy(folder, settings, output=empty, overwrite=True, until=0)
    assert (other / "thesis.tex").read_text() == file.read_text() == "x" and (empty / "exported.json").exists()


@pytest.mark.parametrize("until", [-1, 13])
def test_a_version_that_the_run_does_not_have_is_refused(recorded: tuple[pathlib.Path, Settings], until: int) -> None:
    with pytest.raises(ConfigError, match=f"--until: got {until}, expected 0 to 12"):
        replay_toy(*recorded, until=until)


# --- Runs that cannot be computed again -------------------------------------------------------------------------------


def without(kind: str, field: str) -> Callable[[Events], None]:
    def remove(events: Events) -> None:
        del nth(events, kind, 0)[field]

    return remove


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (without("start", "pending"), "a start event has no 'pending': recorded by an older hvd_async"),
        (without("start", "ranks"), "a start event has no 'ranks': recorded by an older hvd_async"),
        (without("arrival", "push"), "an event is damaged, or from an older hvd_async .KeyError: 'push'"),
        (lambda events: events.pop(0), "begins with 'arrival', expected a `start` event of version 0"),
        (lambda events: events[0].update(version=3), "a start event of version 3 after 0 updates"),
        (lambda events: events.remove(nth(events, "arrival", 4)), "the update of version 5 with 1 arrivals: got 0"),
        (lambda events: events.remove(nth(events, "update", 4)), "batch 5: got base version 5, expected 0 to 4"),
        (lambda events: nth(events, "arrival", 4).update(base_version=9), "got base version 9, expected 0 to 4"),
        (lambda events: nth(events, "arrival", 4).update(base_version="x"), "an event is damaged"),
        (lambda events: nth(events, "arrival", 4).update(batch=3), "batch 3 is in two updates"),
        (lambda events: events.clear(), "contains no event"),
    ],
)
def test_an_incomplete_or_damaged_log_is_refused(run: tuple[pathlib.Path, Settings], how: Any, words: str) -> None:
    folder, settings = run
    edit_log(folder, how)
    with pytest.raises(DataError, match=words):
        replay_toy(folder, settings)


@pytest.mark.parametrize("kind", ["horovod", "ddp"])
def test_a_synchronous_run_of_several_workers_is_refused(run: tuple[pathlib.Path, Settings], kind: str) -> None:
    folder, settings = run
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("kind: single", f"kind: {kind}"))
    assert replay_toy(folder, settings).versions == 12  # a single worker has nothing to sum
    arrivals = [{**nth(read_log(folder), "arrival", number), "push": 0, "base_version": 0} for number in (0, 1)]
    ended = [read_log(folder)[0], *arrivals, {**nth(read_log(folder), "update", 0), "arrivals": 2}]
    edit_log(folder, lambda events: events.__setitem__(slice(None), ended))
    with pytest.raises(DataError, match=f"strategy {kind} with several workers, expected async, single, one worker or a"):
        replay_toy(folder, settings)


# --- The order of pushes of one sender --------------------------------------------------------------------------------


def sends(tmp_path: pathlib.Path, *events: dict[str, Any], **push: Any) -> list[list[tuple[int, list[int], int]]]:
    """Return the pushes that replay makes for each update: sender, batches and process of each."""
    config = parse_config(
        make_config(tmp_path, strategy={"kind": "async"}, push={"dtype": "bfloat16", "error_feedback": True, **push}),
        source="test",
    )
    path = tmp_path / "events.jsonl"
    path.write_text("".join(json.dumps({"seconds": 0.0, **event}) + "\n" for event in events))
    recording = read_recording(path, config)
    return [
        [
            (each.sender, [a.batch for a in each.arrivals], each.process)
            for push in update.pushes
            for each in push.with_those_before()
        ]
        for update in recording.updates
    ]


NODES = [[0], [1, 2]]


def start(version: int, *pending: int) -> dict[str, Any]:
    ranks = [{"rank": 0, "worker": None, "threads": 1, "device": "cpu", "store_device": "cpu"}]
    return {
        "event": "start",
        "version": version,
        "pending": pending,
        "software": {},
        "ranks": ranks,
        "node_workers": [[0], [1, 2]],
    }


def arrival(worker: int, batch: int, push: int | None = None, **more: Any) -> dict[str, Any]:
    times = dict.fromkeys(("step_seconds", "push_seconds", "wait_seconds", "pull_seconds"), 0.0)
    fields = {
        "worker": worker,
        "batch": batch,
        "base_version": 0,
        "weight": 1,
        "loss": 1.0,
        "sent_bytes": 0,
        "provisional": 0,
    }
    return {"event": "arrival", **fields, **times, "push": batch if push is None else push, **more}


def update(version: int, arrivals: int) -> dict[str, Any]:
    return {"event": "update", "version": version, "arrivals": arrivals}


def test_a_stale_gradient_is_sent_before_the_next_of_its_worker(tmp_path: pathlib.Path) -> None:
    # Batch 2 was refused, and therefore logged, while batch 0 of the same worker waited for its update.
    stale = {"refused": "too_stale"}
    log = [start(0), arrival(0, 2, **stale), arrival(1, 3, **stale), arrival(0, 0), arrival(1, 1), update(1, 2)]
    log += [arrival(0, 4, **stale), arrival(0, 5), update(2, 1), arrival(0, 9, **stale)]
    assert sends(tmp_path, *log) == [[(0, [0], 0), (1, [1], 0)], [(0, [2], 0), (0, [4], 0), (0, [5], 0)]]


@pytest.mark.parametrize(("reason", "leaves_a_trace"), [("not_finite", 0), ("after_the_end", 0), ("sum_not_finite", 1)])
def test_only_a_gradient_in_a_refused_sum_leaves_a_trace(tmp_path: pathlib.Path, reason: str, leaves_a_trace: int) -> None:
    log = [start(0), arrival(0, 0, refused=reason), arrival(0, 1), update(1, 1)]
    assert sends(tmp_path, *log) == [[(0, [0], 0), (0, [1], 0)][1 - leaves_a_trace :]]


def test_without_feedback_nothing_is_computed_for_a_refused_gradient(tmp_path: pathlib.Path) -> None:
    log = [start(0), arrival(0, 0, refused="too_stale"), arrival(0, 1), update(1, 1)]
    assert sends(tmp_path, *log, error_feedback=False) == [[(0, [1], 0)]]


def test_arrivals_pending_in_a_checkpoint_belong_to_the_previous_process(tmp_path: pathlib.Path) -> None:
    log = [start(0), arrival(0, 0), update(1, 1), start(1, 2, 3), start(1, 2, 3, 1)]
    log += [arrival(0, 2), arrival(1, 3), arrival(0, 1), arrival(0, 4), update(2, 4)]
    assert sends(tmp_path, *log) == [[(0, [0], 0)], [(0, [2], 0), (1, [3], 0), (0, [1], 1), (0, [4], 2)]]


def test_a_nodes_gradients_are_one_push(tmp_path: pathlib.Path) -> None:
    log = [start(0), arrival(2, 1, 1, refused="too_stale"), arrival(1, 2, 1, refused="too_stale")]
    log += [arrival(0, 0), arrival(1, 3, 3), arrival(2, 4, 3), update(1, 3)]
    assert sends(tmp_path, *log, node_sum=True) == [[(0, [0], 0), (1, [1, 2], 0), (1, [3, 4], 0)]]


# --- The command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_command_replays_a_translation_run(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], dropout: float
) -> None:
    write_corpus(tmp_path / "text", train=60, validation=8, test=8)
    tree: dict[str, Any] = {
        "output": str(tmp_path / "run"),
        "task": {
            "data": {"folder": str(tmp_path / "text")},
            "vocabulary": {"size": 300, "bpe_dropout": dropout},
            "model": {"encoder_layers": 1, "decoder_layers": 1, "width": 16, "feed_forward": 32, "heads": 2},
            "batching": {"tokens": 200},
            "metrics": [],
        },
        "training": {"epochs": 1, "device": "cpu", "tensorboard": False, "threads": 1, "hash_every": 5},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(tree))
    assert main(["train", str(tmp_path / "run.yaml")]) == 0
    capsys.readouterr()
    run, model = str(tmp_path / "run"), tmp_path / "model"
    assert main(["replay", run, "--output", str(model)]) == 0
    assert "equal: 12 versions, 12 arrivals, 4 hashes, all to the last bit" in capsys.readouterr().out
    last = tmp_path / "run" / "models" / "last"
    for name in ("model.safetensors", "meta.json", "vocabulary.model"):
        assert (model / name).read_bytes() == (last / name).read_bytes(), name
    edit_log(tmp_path / "run", lambda events: nth(events, "arrival", 9).update(loss=0.0))
    assert main(["replay", run]) == 7
    error = capsys.readouterr().err
    assert error.startswith("hvd-async: version 10: the loss of batch 9") and "Traceback" not in error
    assert main(["replay", run, "--until", "9"]) == 0
    assert main(["replay", run, "--until", "99"]) == 2
    assert main(["replay", run, "--threads", "0"]) == 2
    shutil.rmtree(tmp_path / "text")
    assert main(["replay", run]) == 3
    assert main(["replay", str(tmp_path / "nowhere")]) == 3
    assert all(line.startswith("hvd-async: ") for line in capsys.readouterr().err.splitlines())


def test_a_replay_changes_neither_the_settings_nor_the_log(recorded: tuple[pathlib.Path, Settings]) -> None:
    folder, settings = recorded
    before = dataclasses.asdict(settings), (folder / "events.jsonl").read_bytes()
    replay_toy(folder, settings)
    assert (dataclasses.asdict(settings), (folder / "events.jsonl").read_bytes()) == before
