"""The progress display of a run: a bar on a terminal, few lines in a log."""

from __future__ import annotations

import io
import re

from hvd_async.runs.progress import Goal, Progress
from hvd_async.runs.totals import RunMetrics
from hvd_async.store.arrival import Arrival, Update


class WatchedRun:
    """A run of ten updates with ten images each, on a clock that the test advances by hand."""

    def __init__(self, *, is_live: bool = False) -> None:
        self.now = 100.0
        self.stream = io.StringIO()
        goal = Goal(num_batches=None, last_version=10)
        self.progress = Progress(goal, 60.0, "images", is_live=is_live, stream=self.stream, clock=lambda: self.now)
        self._total = RunMetrics()

    def update(self, version: int, seconds: float) -> None:
        """Make the update of `version`, `seconds` after the previous one."""
        self.now += seconds
        update = Update(version, (Arrival(0, version - 1, version - 1, 10, 20.0),), 0.1, 1.0)
        self._total.add_update(update)
        self.progress.update(update, self._total, self.now)

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()


def test_a_log_gets_a_line_after_ten_seconds_and_one_a_minute() -> None:
    run = WatchedRun()
    with run.progress.showing():
        for version, seconds in enumerate((5.0, 5.0, 20.0, 20.0, 20.0, 20.0), start=1):
            run.update(version, seconds)
    assert run.lines == [
        " 20%  version 2  loss 2.000  2 images/s  staleness 0.00  left 0:40",
        " 50%  version 5  loss 2.000  0 images/s  staleness 0.00  left 1:21",
    ]


def test_an_evaluation_is_on_the_next_line_and_only_there() -> None:
    run = WatchedRun()
    with run.progress.showing():
        run.update(1, 5.0)
        run.progress.evaluated(0, "validation loss 4.0000 BLEU 1.00")
        run.progress.evaluated(1, "validation loss 3.4121 BLEU 12.10")
        assert run.lines == []
        run.update(2, 55.0)
        run.update(3, 60.0)
        run.progress.evaluated(3, "validation loss 3.0000")
        run.update(4, 60.0)
    parts = [line.partition("left ")[2].partition("  ")[2] for line in run.lines]
    assert parts == ["validation loss 3.4121 BLEU 12.10 (version 1)", "", "validation loss 3.0000 (version 3)"]


def test_evaluations_after_training_have_lines_of_their_own_but_at_most_one_a_minute() -> None:
    run = WatchedRun()
    with run.progress.showing():
        run.update(10, 5.0)
    for version, seconds in ((2, 5.0), (4, 55.0), (6, 40.0), (8, 20.0), (10, 5.0)):
        run.now += seconds
        run.progress.evaluated(version, "validation loss 3.0000")
    assert run.lines == [
        f"      evaluating saved versions: validation loss 3.0000 (version {version})" for version in (4, 8)
    ]


def test_a_log_has_no_control_characters() -> None:
    run = WatchedRun()
    with run.progress.showing():
        run.update(1, 60.0)
        run.progress.say("[bold]said[/bold]")
    assert run.lines[1] == "[bold]said[/bold]" and not re.search(r"[\x00-\x09\x0b-\x1f]", run.stream.getvalue())


def test_on_a_terminal_every_evaluation_has_its_line() -> None:
    run = WatchedRun(is_live=True)
    with run.progress.showing():
        run.update(1, 1.0)
        run.progress.evaluated(1, "validation loss 3.4121 BLEU 12.10")
    run.progress.evaluated(2, "validation loss 3.0000")
    assert "      version 1  validation loss 3.4121 BLEU 12.10\n" in run.stream.getvalue()
    assert run.stream.getvalue().endswith("      version 2  validation loss 3.0000\n")


def test_staleness_is_that_of_the_first_part_of_a_batch_and_beside_it_the_mean_of_all_parts() -> None:
    total = RunMetrics()
    assert total.describe_staleness() == "0.00"
    total.add_update(Update(4, (Arrival(0, 7, base_version=1, weight=1, loss=1.0),), 0.1, 1.0))
    assert total.describe_staleness() == "2.00" and total.to_json()["micro_batches"]["number"] == 1
    divided = Arrival(1, 8, base_version=2, weight=1, loss=1.0, later_bases=((3, 0), (4, 1)))
    total.add_update(Update(5, (divided,), 0.1, 1.0))  # parts of staleness 2, 1 and 0
    assert total.describe_staleness() == "2.00 (micro-batches 1.25, 2.0 a batch)"
    assert total.to_json()["micro_batches"] == {"number": 4, "staleness_sum": 5, "mean_staleness": 1.25}
    assert RunMetrics.from_json(total.to_json()) == total
