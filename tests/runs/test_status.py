"""What `hvd-async status` tells of folders of runs: those that ended, those that a process has, and those that were killed."""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import re
import time
from typing import Any

import pytest

from hvd_async.__main__ import main
from hvd_async.errors import ConfigError, DataError
from hvd_async.runs import status as module
from hvd_async.runs.recorder import RunRecorder
from hvd_async.runs.status import RunStatus, read_status
from hvd_async.system.locks import BusyError
from tests.mpi.runs import events_of
from tests.simulation.simulated import UNEVEN, run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("status") / "run"
    run(folder, 40, strategy={"kind": "async"}, validation={"every": 4, "when": "after"})
    return folder


@pytest.fixture
def folder(finished: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the finished run."""
    import shutil

    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def as_real(folder: pathlib.Path, host: str) -> None:
    """Make the log that of a real run without an end, whose first rank was on `host`."""
    (folder / "summary.json").unlink()
    (folder / ".lock").touch()
    path = folder / "events.jsonl"
    start, *others = path.read_text().splitlines(keepends=True)
    event = json.loads(start)
    event["ranks"][0]["host"] = host
    del event["simulated"]
    path.write_text(json.dumps(event) + "\n" + "".join(others))


def test_a_finished_run_is_told_with_its_numbers(folder: pathlib.Path) -> None:
    status, updates = read_status(folder), events_of(folder, "update")
    assert (status.state, status.share, status.simulated, status.processes) == ("finished", 1.0, True, 1)
    assert (status.version, status.workers, status.strategy) == (len(updates), 4, "async")
    assert status.weight == sum(update["weight"] for update in updates) > 0
    assert status.loss == updates[-1]["loss"] and status.seconds == updates[-1]["seconds"]
    last = events_of(folder, "evaluation")[-1]
    assert (status.evaluated, status.scores) == (last["version"], last["scores"])
    assert status.rate is not None and status.rate > 0 and status.seconds_left is None
    assert status.lines()[0].startswith(f"{folder}: finished, 100 %, version {len(updates)}, ")
    stale = [arrival["staleness"] for arrival in events_of(folder, "arrival")]
    assert status.staleness == status.micro_batch_staleness == sum(stale) / len(stale) and status.micro_batches == 1
    assert f" a virtual second, staleness {status.staleness:.2f}" in status.lines()[1]


def test_the_staleness_of_micro_batches_is_told_with_their_number(tmp_path: pathlib.Path) -> None:
    strategy = {"kind": "async", "micro_batches": 3}
    summary = run(tmp_path / "run", 40, strategy=strategy, emulation=UNEVEN, simulation={"workers": 3})
    status, parts = read_status(tmp_path / "run"), summary["micro_batches"]
    assert status.staleness == summary["mean_staleness"] and status.micro_batches == parts["number"] / 40 > 1
    assert status.micro_batch_staleness == pytest.approx(parts["mean_staleness"])
    words = f"(micro-batches {parts['mean_staleness']:.2f}, {parts['number'] / 40:.1f} a batch)"
    assert words in status.lines()[1]


def test_who_holds_the_lock_is_running(folder: pathlib.Path) -> None:
    as_real(folder, os.uname().nodename)
    with (folder / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read_status(folder).state == "running"
    status = read_status(folder)
    assert status.state == "interrupted" and "--auto-resume" in status.lines()[-1]
    with (folder / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # looking has left no lock behind


def test_a_simulated_run_is_running_until_its_process_ends(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, seen = tmp_path / "run", []

    def broken_off(*arguments: object, **keywords: object) -> None:
        seen.append(read_status(folder).state)
        raise KeyboardInterrupt

    monkeypatch.setattr(RunRecorder, "end_training", broken_off)
    with pytest.raises(KeyboardInterrupt):
        run(folder, 40)
    status = read_status(folder)
    assert seen == ["running"] and status.state == "interrupted"
    assert status.lines()[-1].startswith(
        "  no process has the folder: a simulated run is computed anew, by simulate --overwrite"
    )
    with pytest.raises(
        ConfigError, match="holds a simulated run already; replace it with --overwrite, or set another output"
    ):
        run(folder, 40)


def test_a_simulation_leaves_a_folder_to_the_process_that_has_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hvd_async.system.locks._PATIENCE_SECONDS", 0.0)
    with (tmp_path / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match="in use by another process"):
            run(tmp_path, 40)
    run(tmp_path, 4)


def test_a_run_of_another_host_is_judged_by_its_log(folder: pathlib.Path) -> None:
    as_real(folder, "elsewhere")
    assert read_status(folder).state == "perhaps running"
    old = time.time() - 1000.0
    os.utime(folder / "events.jsonl", (old, old))
    status = read_status(folder)
    assert status.state == "silent" and status.written == pytest.approx(1000.0, abs=100.0)
    assert "log written 16:" in "\n".join(status.lines())


def test_what_was_lost_and_refused_is_told(folder: pathlib.Path) -> None:
    path = folder / "events.jsonl"
    lost = {"event": "lost", "seconds": 1.0, "worker": 1, "reason": "its process has ended", "batches": [3]}
    refused = {**events_of(folder, "arrival")[0], "refused": "not_finite"}
    path.write_text(
        path.read_text() + "".join(json.dumps(each) + "\n" for each in (lost, refused, refused)) + '{"event": "up'
    )
    text = "\n".join(read_status(folder).lines())
    assert "refused arrivals: not_finite 2" in text and "lost: worker 1: its process has ended" in text


def test_a_folder_with_only_a_configuration_has_not_begun(folder: pathlib.Path) -> None:
    for name in ("events.jsonl", "summary.json"):
        (folder / name).unlink()
    assert read_status(folder).lines() == [f"{folder}: not begun"]


def test_the_share_of_a_run_follows_its_bound(folder: pathlib.Path) -> None:
    from hvd_async.config import load_config

    config = load_config(folder / "config.yaml")
    for bound, share in (({"weight": 400}, 0.25), ({"updates": 20}, 0.5), ({"seconds": 40.0}, 0.75), ({"epochs": 2}, 0.125)):
        cleared = {"epochs": None, "weight": None, "updates": None, "seconds": None}
        training = config.training.model_copy(update={**cleared, **bound})
        found = module._share(
            config.model_copy(update={"training": training}),
            RunStatus("x", weight=100.0, version=10, seconds=30.0),
            (30, 240 if "epochs" in bound else None),
        )
        assert found == share
    [start] = events_of(folder, "start")
    as_real(folder, "elsewhere")
    applied = sum(update["arrivals"] for update in events_of(folder, "update"))
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("\n  epochs: null", "\n  epochs: 7"))
    for bound in ("weight", "updates", "seconds"):
        text = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(re.sub(rf"(?m)^  {bound}: \d.*$", f"  {bound}: null", text))
    assert read_status(folder).share == pytest.approx(applied / start["num_batches"])
    assert RunStatus("x", "running", share=0.25, seconds=30.0).seconds_left == pytest.approx(90.0)


def test_the_rate_is_that_of_the_last_minute(folder: pathlib.Path) -> None:
    path = folder / "events.jsonl"
    update = events_of(folder, "update")[-1]
    later = [{**update, "seconds": 1000.0 + 10.0 * step, "weight": 50, "version": 100 + step} for step in range(12)]
    path.write_text(path.read_text() + "".join(json.dumps(each) + "\n" for each in later))
    assert read_status(folder).rate == pytest.approx(5.0)


UNKNOWN = (
    '{"event": "update"}',
    '{"event": "update", "seconds": null, "version": 1, "weight": 1, "loss": 1}',
    '{"event": "update", "seconds": 1, "version": 1, "weight": 1, "loss": "x"}',
    '{"event": "evaluation", "version": 1, "scores": {"loss": "x"}}',
    '{"event": "evaluation", "version": 1, "scores": [1]}',
    '{"event": "start", "seconds": 0, "strategy": "async", "weight_unit": "t", "node_workers": [[0]], "ranks": []}',
)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        *(("events.jsonl", f"{event}\n", "an event that this version does not know") for event in UNKNOWN),
        ("summary.json", "{", "damaged"),
    ],
)
def test_a_damaged_folder_is_refused(folder: pathlib.Path, name: str, text: str, message: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_status(folder)


def test_a_pipe_in_place_of_the_log_is_refused(folder: pathlib.Path) -> None:
    (folder / "events.jsonl").unlink()
    os.mkfifo(folder / "events.jsonl")  # reading it would wait for ever
    with pytest.raises(DataError, match=r"events.jsonl: got no ordinary file, expected the event log of a run"):
        read_status(folder)


def test_a_gap_is_told_and_json_has_no_nan(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "events.jsonl"
    update = {**events_of(folder, "update")[-1], "loss": float("nan")}
    gap = {"event": "gap", "seconds": 0.0, "version": 3}
    start, *others = path.read_text().splitlines(keepends=True)
    unit = json.loads(start)["weight_unit"]
    path.write_text(start + json.dumps(gap) + "\n" + "".join(others) + json.dumps(update) + "\n")
    assert main(["status", str(folder)]) == 0
    assert f"the log has a gap: {unit} are those after version 3" in capsys.readouterr().out
    assert main(["status", "--json", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(word))["loss"] is None


def test_the_verb_prints_lines_or_json(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(folder), str(folder)]) == 0
    assert capsys.readouterr().out.count(": finished, 100 %") == 2
    assert main(["status", "--json", str(folder)]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (found["state"], found["strategy"], found["seconds_left"]) == ("finished", "async", None)
    for place, message in (
        (folder.parent, f"holds several runs, such as {folder}"),
        (folder / "models", "got no config.yaml and no events.jsonl"),
        (folder / "config.yaml", "got a file"),
        (folder / "nowhere", r"no such folder (a run that was just started has none yet)"),
    ):
        assert main(["status", str(place)]) == 3
        expected = f"hvd-async: {place}: {message}, expected the folder of a run or of a comparison\n"
        assert capsys.readouterr().err == expected


def test_a_run_that_evaluates_says_so(folder: pathlib.Path) -> None:
    assert (
        "running (training is done; saved versions are evaluated), 100 %"
        in RunStatus("x", "running", share=1.0, processes=1).lines()[0]
    )


def test_of_several_folders_those_that_hold_no_run_are_told_last(
    finished: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", str(tmp_path / "none"), str(finished), str(tmp_path)]) == DataError.exit_status
    told = capsys.readouterr()
    assert told.out.startswith(f"{finished}: finished, ")
    assert told.err.count("hvd-async: ") == 2 and f"{tmp_path / 'none'}: no such folder" in told.err
