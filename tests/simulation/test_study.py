"""Studies: what is computed, what is said of it, and that an interrupted one goes on."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import yaml

from hvd_async.__main__ import main
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


def finish(output: pathlib.Path, spec: Spec, seconds: float, *points: tuple[int, float]) -> None:
    """Leave what a run leaves that had these losses after these tokens."""
    folder = output / "runs" / spec.name
    folder.mkdir(parents=True)
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
    prepared, output = Study(write(tmp_path, study), tmp_path / "out"), tmp_path / "out"
    for rate, loss in ((0.1, 2.5), (0.2, 2.0), (0.4, 3.0)):
        finish(output, Spec("two, even", "synchronous", rate, 1), 10.0, (100, 4.0), (200, loss))
        finish(output, Spec("two, even", "N = 1", rate, 1), 5.0, (200, 4.0), (400, loss + 1.0 - rate))
    finish(output, Spec("two, even", "synchronous", 0.2, 2), 10.0, (100, 4.0), (200, 2.0))
    finish(output, Spec("two, even", "N = 1", 0.2, 2), 10.0, (50, 4.0), (100, 2.0))
    synchronous, single = prepared.rows()
    assert (synchronous.rate, synchronous.is_at_the_edge, synchronous.losses) == (0.2, False, (2.0, 2.0))
    assert (synchronous.efficiency.mean, synchronous.efficiency.num) == (pytest.approx(1.0), 2)
    assert single.rate == 0.2 and single.losses == (2.8, 2.0)
    # Seed 1: 2.8 after 400 tokens, against 100 + 0.6 * 100; seed 2: half the tokens. Of the two the geometric mean.
    assert single.efficiency.mean == pytest.approx((160 / 400 * 2.0) ** 0.5)
    # Tokens a second: 80 and 10, against 20.
    assert single.throughput.mean == pytest.approx((4.0 * 0.5) ** 0.5)
    assert single.speed_up.mean == pytest.approx(single.efficiency.mean * single.throughput.mean)
    assert "| two, even | N = 1 | 0.2 | 2.400 | 0.50 | 0.894 (" in format_rows([single])


def test_a_rate_at_the_edge_of_those_tried_is_said(tmp_path: pathlib.Path, study: dict[str, Any]) -> None:
    study.update(rates=[0.1, 0.2])
    prepared, output = Study(write(tmp_path, study), tmp_path / "out"), tmp_path / "out"
    for rate in (0.1, 0.2):
        finish(output, Spec("two, even", "synchronous", rate, 1), 10.0, (100, 4.0), (200, 2.0 + rate))
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
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(
    tmp_path: pathlib.Path, study: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        Study(write(tmp_path, {**study, **change}), tmp_path / "out")
    assert message in str(raised.value)
    assert not (tmp_path / "out").exists()
