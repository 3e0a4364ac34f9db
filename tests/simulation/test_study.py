"""Studies: what is computed, what is said of it, and that an interrupted one goes on."""

from __future__ import annotations

import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import yaml

from hvd_async.__main__ import main
from hvd_async.config import dump_config
from hvd_async.errors import ConfigError
from hvd_async.nmt.grammar import write_corpus
from hvd_async.simulation.study import Spec, Study, format_rows


@pytest.fixture
def study(tmp_path: pathlib.Path) -> dict[str, Any]:
    """A tiny study, not yet written; its base is."""
    write_corpus(tmp_path / "text", train=120, validation=8, test=8)
    base = {
        "output": "unused",
        "data": {"folder": str(tmp_path / "text")},
        "vocabulary": {"size": 300},
        "model": {"encoder_layers": 1, "decoder_layers": 1, "width": 16, "feed_forward": 32, "heads": 2},
        "batching": {"tokens": 200},
        "strategy": {"kind": "async"},
        "training": {"updates": 4, "tensorboard": False},
        "validation": {"every": 2, "bleu": False},
        "simulation": {"workers": 2},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    return {
        "base": "base.yaml",
        "baseline": "synchronous",
        "set": {"training.label_smoothing": 0.0},
        "methods": {"synchronous": {"strategy.kind": "horovod"}, "N = 1": {"strategy.arrivals_per_update": 1}},
        "clusters": {"two, even": {}},
        "rates": [0.001],
        "seeds": [1],
    }


def write(tmp_path: pathlib.Path, study: dict[str, Any]) -> pathlib.Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def finish(study: Study, spec: Spec, seconds: float, *points: tuple[int, float]) -> None:
    """Leave what a run leaves that had these losses after these tokens."""
    folder = pathlib.Path(study.config_of(spec).output)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(study.config_of(spec)))
    measured = [
        {"version": n, "tokens": t, "seconds": seconds, "loss": loss, "bleu": None} for n, (t, loss) in enumerate(points)
    ]
    summary = {
        "name": spec.name,
        "strategy": "horovod",
        "num_workers": 2,
        "seconds": seconds,
        "tokens": points[-1][0],
        "updates": 1,
        "mean_staleness": 0.5,
        "measurements": measured,
    }
    (folder / "summary.json").write_text(json.dumps(summary))


def test_runs_are_computed_once_and_one_that_fails_does_not_stop_the_others(
    tmp_path: pathlib.Path, study: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    study["methods"]["N = 1"]["model.max_positions"] = 3  # which the text does not fit
    command = ["study", str(write(tmp_path, study)), "--output", str(tmp_path / "out")]
    folder = tmp_path / "out/runs/two_even-synchronous-0.001-s1"
    assert main(command) == 3
    first = capsys.readouterr()
    assert (
        "two_even-n_1-0.001-s1: exit status" in first.err and "max_positions" in first.err and "Traceback" not in first.err
    )
    assert "two_even-synchronous-0.001-s1: finished: version 4" in first.out
    assert first.out.splitlines()[-1].startswith("| two, even | synchronous | 0.001 |")
    assert (tmp_path / "out/study.md").read_text().splitlines()[-1] == first.out.splitlines()[-1]
    written = (folder / "events.jsonl").read_bytes()
    (folder / "summary.json").unlink()  # as if it had been interrupted
    assert main(command) == 3
    second = capsys.readouterr()
    assert second.out == first.out and (folder / "events.jsonl").read_bytes() == written  # the same to the last bit
    assert main([*command, "--table"]) == 0
    assert capsys.readouterr().out.splitlines() == first.out.splitlines()[-3:]


def test_a_method_is_shown_at_its_best_rate_and_compared_seed_by_seed(tmp_path: pathlib.Path, study: dict[str, Any]) -> None:
    study.update(rates=[0.1, 0.2, 0.4], seeds=[1, 2])
    prepared = Study(write(tmp_path, study), tmp_path / "out")
    for rate, loss in ((0.1, 2.5), (0.2, 2.0), (0.4, 3.0)):
        finish(prepared, Spec("two, even", "synchronous", rate, 1), 10.0, (100, 4.0), (200, loss))
        finish(prepared, Spec("two, even", "N = 1", rate, 1), 5.0, (200, 4.0), (400, loss + 1.0 - rate))
    finish(prepared, Spec("two, even", "synchronous", 0.2, 2), 10.0, (100, 4.0), (200, 2.0))
    finish(prepared, Spec("two, even", "N = 1", 0.2, 2), 10.0, (50, 4.0), (100, 2.0))
    synchronous, single = prepared.rows()
    assert (synchronous.rate, synchronous.is_at_the_edge, synchronous.losses) == (0.2, False, (2.0, 2.0))
    assert (synchronous.efficiency.mean, synchronous.efficiency.num) == (pytest.approx(1.0), 2)
    assert single.rate == 0.2 and single.losses == (2.8, 2.0)
    # Seed 1: 2.8 after 400 tokens, against 100 + 0.6 * 100; seed 2: half the tokens. Of the two the geometric mean.
    assert single.efficiency.mean == pytest.approx((160 / 400 * 2.0) ** 0.5)
    # Tokens a second: 80 and 10, against 20.
    assert single.throughput.mean == pytest.approx((4.0 * 0.5) ** 0.5)
    assert single.speed_up.mean == pytest.approx(single.efficiency.mean * single.throughput.mean)
    assert "| two, even | N = 1 | 0.2 | 2 | 2.400 | 0.50 | 0.894 (" in format_rows([single])


def test_a_rate_at_the_edge_of_those_tried_is_said(tmp_path: pathlib.Path, study: dict[str, Any]) -> None:
    study.update(rates=[0.1, 0.2])
    prepared = Study(write(tmp_path, study), tmp_path / "out")
    for rate in (0.1, 0.2):
        finish(prepared, Spec("two, even", "synchronous", rate, 1), 10.0, (100, 4.0), (200, 2.0 + rate))
    (row,) = prepared.rows()
    assert row.is_at_the_edge and "0.1 (at the edge)" in format_rows([row])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": "sync"}, "baseline: got 'sync', expected one of synchronous, N = 1"),
        ({"seeds": []}, "seeds: got none, expected one or more"),
        ({"methodes": {}}, "methodes: unknown key; did you mean 'methods'?"),
        ({"base": "nothing.yaml"}, "nothing.yaml: no such file"),
        ({"set": {"training.epoch": 1}}, "training.epoch: unknown key"),
        ({"set": {"seed": 1}}, "set: got seed, expected other keys"),
        (
            {"clusters": {"a": {"optimizer": {"learning_rate": 1.0}}}},
            "clusters: a: got optimizer.learning_rate, expected other",
        ),
        ({"methods": {"synchronous": {"output": "x"}}}, "methods: synchronous: got output, expected other keys"),
        ({"methods": {"synchronous": {}, "Synchronous!": {}}}, "methods: got 'synchronous' and 'Synchronous!', whose runs"),
        (
            {"clusters": {"a b": {}, "a, b": {}}},
            "clusters: got 'a b' and 'a, b', whose runs would have the same folder ('a_b')",
        ),
        ({"rates": [0.1, 0.1000000001]}, "rates: got 0.1 and 0.1000000001, whose runs would have the same folder ('0.1')"),
        ({"rates": [0.1, 0.0]}, "rates: got 0, expected numbers > 0"),
        ({"seeds": [2, 2]}, "seeds: got 2 and 2, whose runs would have the same folder"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(
    tmp_path: pathlib.Path, study: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        Study(write(tmp_path, {**study, **change}), tmp_path / "out")
    assert message in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_run_of_another_configuration_does_not_count(
    tmp_path: pathlib.Path, study: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    spec = Spec("two, even", "synchronous", 0.001, 1)
    del study["methods"]["N = 1"]
    finish(Study(write(tmp_path, study), tmp_path / "out"), spec, 10.0, (100, 4.0), (200, 2.0))
    study["set"] = {"training.label_smoothing": 0.1}
    command = ["study", str(write(tmp_path, study)), "--output", str(tmp_path / "out")]
    assert main([*command, "--table"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{spec.name}: was computed with another configuration; left out"
    assert main(command) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{spec.name}: was computed with another configuration; computed again"
    assert said[1].startswith(f"{spec.name}: finished: version 4")


def test_long_values_and_numbers_as_keys_reach_a_run_as_they_are(tmp_path: pathlib.Path, study: dict[str, Any]) -> None:
    folder = " ".join(["a folder"] * 30)
    slow = {0: 2.0, **dict.fromkeys(range(1, 40), 1.5)}
    study["clusters"] = {"wide": {"simulation.workers": 40, "emulation.slow_workers": slow, "data.folder": folder}}
    config = Study(write(tmp_path, study), tmp_path / "out").config_of(Spec("wide", "synchronous", 0.001, 1))
    assert config.emulation.slow_workers == slow and config.data.folder == folder


def test_a_run_that_diverged_is_the_worst_of_all(tmp_path: pathlib.Path, study: dict[str, Any]) -> None:
    study.update(rates=[0.1, 0.2, 0.4], seeds=[1, 2])
    prepared = Study(write(tmp_path, study), tmp_path / "out")
    for rate, losses in ((0.1, (4.0, 3.0)), (0.2, (2.0, math.nan)), (0.4, (math.nan, math.inf))):
        finish(prepared, Spec("two, even", "synchronous", rate, 1), 10.0, (100, losses[0]), (200, losses[1]))
        finish(prepared, Spec("two, even", "N = 1", rate, 1), 10.0, (100, math.nan), (200, math.nan))
    finish(prepared, Spec("two, even", "synchronous", 0.1, 2), 10.0, (100, 4.0), (200, math.nan))
    finish(prepared, Spec("two, even", "N = 1", 0.1, 2), 10.0, (100, math.nan))
    assert prepared.run(1, pytest.fail) == []  # nothing is missing
    synchronous, single = prepared.rows()
    assert synchronous.rate == 0.1 and synchronous.losses == (3.0, math.inf)
    table = format_rows([synchronous, single]).splitlines()
    assert "| synchronous | 0.1 (at the edge) | 1 of 2 | 3.000 (1 of 2 diverged) | 0.50 | 1.000 |" in table[2]
    assert table[3] == "| two, even | N = 1 | 0.1 (at the edge) | 0 of 2 | diverged | - | - | - | - |"


def test_an_output_that_is_a_file_is_refused(
    tmp_path: pathlib.Path, study: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, study)
    assert main(["study", str(path), "--output", str(path / "below")]) == 2
    assert f"--output: got {path / 'below'}, but {path} is a file" in capsys.readouterr().err


def test_what_runs_ends_with_the_study(tmp_path: pathlib.Path, study: dict[str, Any]) -> None:
    study["set"] = {"training.updates": 1_000_000}  # which nobody waits for
    del study["methods"]["N = 1"]
    command = [sys.executable, "-m", "hvd_async", "study", str(write(tmp_path, study)), "--output", str(tmp_path / "out")]
    # A process group of its own, of which the parent alone gets the signal.
    parent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    tasks = pathlib.Path(f"/proc/{parent.pid}/task")
    try:
        events = tmp_path / "out/runs/two_even-synchronous-0.001-s1/events.jsonl"
        while not events.exists():
            assert parent.poll() is None
            time.sleep(0.05)
        running = [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()]
        assert running
        parent.send_signal(signal.SIGTERM)
        errors = parent.communicate()[1]
    finally:
        parent.kill()
    assert parent.returncode == 143
    assert errors == "hvd-async: study: finished runs are kept, the same command goes on: stopped by SIGTERM\n"
    for pid in running:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
