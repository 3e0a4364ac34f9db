"""Reading a run's folder."""

from __future__ import annotations

import json
import math
import pathlib

import pytest

from hvd_async.comparison.runs import Point, read_run
from hvd_async.errors import DataError
from tests.comparison.made import run, write_run


def test_a_summary_is_read_as_it_was_written_with_its_measurements_in_order(tmp_path: pathlib.Path) -> None:
    made = run(
        (10.0, 4.0, {"accuracy": 3.5}),
        (20.0, 2.0),
        folder=tmp_path,
        num_workers=3,
        mean_staleness=0.5,
        micro_batch_staleness=0.125,
        staleness={0: 5, 1: 5},
        refused={"not_finite": 2},
        num_steps=12,
        num_overrun=3,
    )
    write_run(made)
    summary = json.loads((tmp_path / "summary.json").read_text())
    (tmp_path / "summary.json").write_text(json.dumps({**summary, "measurements": summary["measurements"][::-1]}))
    found = read_run(tmp_path)
    assert found == made and found.points[-1] == Point(20.0, 200, 10, {"loss": 2.0})
    assert (found.name, found.weight_per_second, found.steps_per_second) == (tmp_path.name, 10.0, 0.5)


def test_a_run_that_diverged_is_read(tmp_path: pathlib.Path) -> None:
    write_run(run((10.0, 4.0), (20.0, math.nan), folder=tmp_path))
    found = read_run(tmp_path)
    assert found.has_diverged and [point.loss for point in found.finite_points] == [4.0]


def test_a_folder_without_a_run_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"got no config.yaml and no events.jsonl, expected the folder of a run"):
        read_run(tmp_path)


def test_a_run_that_has_not_ended_is_refused(tmp_path: pathlib.Path) -> None:
    write_run(run((10.0, 4.0), folder=tmp_path))
    (tmp_path / "summary.json").unlink()
    with pytest.raises(
        DataError, match=r"got a run without summary.json, which has not ended: `hvd-async status` says how far"
    ):
        read_run(tmp_path)


def test_a_run_that_was_stopped_is_refused(tmp_path: pathlib.Path) -> None:
    write_run(run((10.0, 4.0), folder=tmp_path, status="stopped"))
    with pytest.raises(DataError, match="got a run that was stopped, expected one that has ended; resume it with --resume"):
        read_run(tmp_path)


def test_a_run_that_measured_nothing_is_refused(tmp_path: pathlib.Path) -> None:
    write_run(run(folder=tmp_path))
    with pytest.raises(DataError, match="got no validation, expected at least one"):
        read_run(tmp_path)


def test_a_run_without_metrics_is_told_how_to_have_some(tmp_path: pathlib.Path) -> None:
    write_run(run(folder=tmp_path, metrics=()))
    with pytest.raises(
        DataError, match=r"got a run that measured nothing, expected .*; a script has it by prepare\(evaluate="
    ):
        read_run(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"measurements": [{}]}', "\udcff"])
def test_a_damaged_summary_is_named(tmp_path: pathlib.Path, text: str) -> None:
    write_run(run((10.0, 4.0), folder=tmp_path))
    (tmp_path / "summary.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=r"summary.json: damaged .*expected the summary of a run"):
        read_run(tmp_path)


def test_a_damaged_configuration_is_named(tmp_path: pathlib.Path) -> None:
    write_run(run((10.0, 4.0), folder=tmp_path))
    (tmp_path / "config.yaml").write_text("nonsense: 1")
    with pytest.raises(DataError, match=r"got no configuration of a run .*nonsense: unknown key"):
        read_run(tmp_path)


def test_the_training_data_are_read_from_the_first_line_of_the_log(tmp_path: pathlib.Path) -> None:
    write_run(
        run((10.0, 4.0), folder=tmp_path),
        [{"event": "start", "data_fingerprint": "abc"}, {"event": "start", "data_fingerprint": "other"}],
    )
    assert read_run(tmp_path).data_fingerprint == "abc"
    (tmp_path / "events.jsonl").write_text("nonsense")
    assert read_run(tmp_path).data_fingerprint is None
