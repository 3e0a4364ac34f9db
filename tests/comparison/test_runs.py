"""What is said of several runs together, against answers known beforehand."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import pytest

from hvd_async.comparison.runs import Point, RunResult, common_loss, compare, format_table, read_run
from hvd_async.errors import DataError


def run(*points: tuple[float, float], name: str = "r") -> RunResult:
    """A run whose validations are (seconds, loss)."""
    measured = tuple(Point(seconds, int(seconds) * 10, loss, None) for seconds, loss in points)
    return RunResult(name, "single", points[-1][0], 1000, 7, 0.0, measured)


@pytest.mark.parametrize(
    ("loss", "seconds"),
    [
        (5.0, 10.0),  # there from the first measurement on
        (4.0, 10.0),
        (3.0, 15.0),  # half way from 4 to 2
        (2.5, 17.5),
        (2.0, 20.0),  # exactly a measurement
        (1.5, 45.0),  # after a plateau, half way from 1.75 to 1.25
        (1.0, 50.0),
        (0.5, None),
    ],
)
def test_time_to_a_loss_is_interpolated(loss: float, seconds: float | None) -> None:
    measured = run((10.0, 4.0), (20.0, 2.0), (30.0, 2.0), (42.0, 1.75), (48.0, 1.25), (50.0, 1.0))
    assert measured.seconds_to(loss) == seconds


def test_the_first_time_counts_though_the_loss_rises_again() -> None:
    assert run((10.0, 4.0), (20.0, 2.0), (30.0, 5.0), (40.0, 1.0)).seconds_to(3.0) == 15.0


@pytest.mark.parametrize("diverged", [math.nan, math.inf])
def test_a_measurement_that_is_not_finite_is_passed_over(diverged: float) -> None:
    measured = run((5.0, diverged), (10.0, 4.0), (15.0, diverged), (20.0, 2.0), (30.0, diverged))
    assert measured.seconds_to(4.0) == 10.0
    assert measured.seconds_to(3.0) == 15.0
    assert common_loss([measured, run((1.0, 1.0))]) == 2.0


def test_the_common_loss_is_the_highest_of_the_best() -> None:
    assert common_loss([run((1.0, 3.0), (2.0, 1.0)), run((1.0, 1.5), (2.0, 2.0))]) == 1.5


def test_the_table() -> None:
    runs = [
        RunResult(
            "sync", "horovod, 2 workers", 100.0, 1234567, 1000, 0.0, (Point(50.0, 1, 3.0, 1.0), Point(100.0, 2, 2.0, 20.26))
        ),
        RunResult(
            "fast", "async N = 1, 2 workers", 61.25, 999, 2000, 1.504, (Point(25.0, 1, 2.0, None), Point(60.0, 2, 1.5, None))
        ),
    ]
    assert format_table(*compare(runs)) == "\n".join(
        [
            "run   strategy                seconds     tokens  updates  staleness   loss  BLEU  to 2.000 in  speed-up",
            "----  ----------------------  -------  ---------  -------  ---------  -----  ----  -----------  --------",
            "sync  horovod, 2 workers        100.0  1,234,567    1,000       0.00  2.000  20.3      100.0 s     1.00x",
            "fast  async N = 1, 2 workers     61.2        999    2,000       1.50  1.500     -       25.0 s     4.00x",
        ]
    )


SUMMARY: dict[str, Any] = {
    "name": "a",
    "strategy": "async",
    "options": {"arrivals_per_update": 2, "lockstep": False},
    "num_workers": 3,
    "seconds": 9.5,
    "tokens": 100,
    "updates": 10,
    "mean_staleness": 0.5,
    "measurements": [
        {"version": 10, "tokens": 100, "seconds": 9.0, "loss": 1.0, "bleu": None},
        {"version": 5, "tokens": 50, "seconds": 4.0, "loss": 2.0, "bleu": 3.5},
    ],
}


def write(folder: pathlib.Path, **changes: Any) -> pathlib.Path:
    (folder / "summary.json").write_text(json.dumps({**SUMMARY, **changes}))
    return folder


def test_a_summary_is_read_with_its_measurements_in_order(tmp_path: pathlib.Path) -> None:
    points = (Point(4.0, 50, 2.0, 3.5), Point(9.0, 100, 1.0, None))
    assert read_run(write(tmp_path)) == RunResult("a", "async N = 2, 3 workers", 9.5, 100, 10, 0.5, points)


@pytest.mark.parametrize(
    ("strategy", "options", "label"),
    [
        ("single", {"reduction": "sum"}, "single"),
        ("ddp", {"reduction": "sum"}, "ddp, 3 workers"),
        ("async", {"arrivals_per_update": "workers", "lockstep": True}, "async N = workers, 3 workers, lock-step"),
        ("async", {"arrivals_per_update": 2, "lockstep": False, "provisional": False}, "async N = 2, 3 workers"),
        ("async", {"arrivals_per_update": 2, "lockstep": False, "provisional": True}, "async N = 2, 3 workers, provisional"),
        (
            "async",
            {"arrivals_per_update": [{"version": 0, "arrivals": 1}], "lockstep": False},
            "async N = schedule, 3 workers",
        ),
    ],
)
def test_a_run_is_labelled_by_what_it_did(
    tmp_path: pathlib.Path, strategy: str, options: dict[str, Any], label: str
) -> None:
    assert read_run(write(tmp_path, strategy=strategy, options=options)).label == label


def test_a_run_that_has_not_ended(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"summary.json: no such file; expected the folder of a run that has ended"):
        read_run(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"measurements": [{}]}', "\udcff"])
def test_a_damaged_summary(tmp_path: pathlib.Path, text: str) -> None:
    (tmp_path / "summary.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=r"summary.json: damaged .*expected the summary of a run"):
        read_run(tmp_path)


@pytest.mark.parametrize("losses", [[], [math.nan], [math.inf, math.nan]])
def test_a_run_without_a_finite_loss_cannot_be_compared(tmp_path: pathlib.Path, losses: list[float]) -> None:
    measurements = [{"version": 1, "tokens": 1, "seconds": 1.0, "loss": loss, "bleu": None} for loss in losses]
    with pytest.raises(DataError, match="no validation with a finite loss in it"):
        read_run(write(tmp_path, measurements=measurements))
