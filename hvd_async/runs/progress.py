"""Progress display: a live bar on a terminal, plain lines in a batch log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

import rich.console
import rich.progress

from hvd_async.runs.totals import RunMetrics
from hvd_async.store.arrival import Update
from hvd_async.system.durations import clock_text

_FIRST_SECONDS = 10.0


@dataclass(frozen=True)
class Goal:
    """End of a run: the bound among these that is not None."""

    num_batches: int | None
    last_version: int | None
    seconds: float | None = None

    def share_done(self, arrivals: int, version: int, seconds: float) -> float:
        """Return the share done, 0 to 1, after `arrivals` applied arrivals, `version` and `seconds` of training."""
        if self.seconds is not None:
            return min(1.0, seconds / self.seconds)
        if self.last_version is not None:
            return min(1.0, version / self.last_version)
        return min(1.0, arrivals / self.num_batches) if self.num_batches else 1.0


class Progress:
    """Shows updates as they happen: rate, loss, version, staleness, time left. Rates are means since the last line.

    Without a bar, evaluations are appended to the lines of updates, which keeps logs of long runs readable.
    """

    def __init__(
        self,
        goal: Goal,
        every_seconds: float,
        weight_unit: str,
        *,
        is_live: bool,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_live`: draw a bar, for a terminal; else write a line every `every_seconds` of `clock`. `weight_unit`: that of
        the task."""
        self._goal = goal
        self._weight_unit = weight_unit
        self._stream = sys.stdout if stream is None else stream
        self._is_live = is_live
        self._every_seconds = 0.5 if is_live else every_seconds
        self._bar: tuple[rich.progress.Progress, rich.progress.TaskID] | None = None
        self._clock = clock
        self._since = clock()
        self._due_after = min(self._every_seconds, _FIRST_SECONDS)  # seconds since `_since`
        self._evaluation = ""  # the latest, until a line has shown it
        self._is_training = True
        self._first_share: tuple[float, float] | None = None
        self._window = RunMetrics()
        self._loss_sum = 0.0

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Show the bar inside the block. The first line of a log comes early, so that a run does not seem to hang."""
        self._since = self._clock()
        if not self._is_live:
            yield
            self._is_training = False
            return
        columns = (
            rich.progress.BarColumn(bar_width=10),
            rich.progress.TaskProgressColumn(),
            rich.progress.TextColumn("{task.description}"),
        )
        console = rich.console.Console(file=self._stream, force_terminal=True)
        with rich.progress.Progress(*columns, console=console, transient=True) as bar:
            self._bar = bar, bar.add_task("starting", total=1.0)
            try:
                yield
            finally:
                self._bar = None

    def update(self, update: Update, total: RunMetrics, seconds: float) -> None:
        """Note `update`, and show progress if it is due; `total` and `seconds` describe the run so far."""
        self._window.add_update(update)
        self._loss_sum += update.loss * update.weight
        now = self._clock()
        share = self._goal.share_done(total.staleness.total(), update.version, seconds)
        if self._first_share is None:
            self._first_share = (now, share)
        if now - self._since < self._due_after:
            return
        self._due_after = self._every_seconds
        text = self._describe(update, share, now)
        self._window, self._loss_sum, self._since = RunMetrics(), 0.0, now
        if self._bar is not None:
            bar, task = self._bar
            bar.update(task, completed=share, description=text)
        else:
            self.say(f"{share:4.0%}  {text}{self._evaluation}")
            self._evaluation = ""

    def evaluated(self, version: int, scores: str) -> None:
        """Show the `scores` of `version`, in words; if there are several between two lines, only the latest."""
        if self._is_live:
            self.say(f"      version {version}  {scores}")
            return
        if self._is_training:  # shown with the next update
            self._evaluation = f"  {scores} (version {version})"
        elif self._clock() - self._since >= self._every_seconds:
            self._since = self._clock()
            self.say(f"      evaluating saved versions: {scores} (version {version})")

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one. A single write, so that lines of several ranks do not mix."""
        if self._bar is not None:
            self._bar[0].console.print(line, markup=False, highlight=False)
        else:
            self._stream.write(line + "\n")
            self._stream.flush()

    def _describe(self, update: Update, share: float, now: float) -> str:
        assert self._first_share is not None
        began, first = self._first_share
        left = (now - began) * (1 - share) / (share - first) if share > first else None
        rate = self._window.weight / (now - self._since)
        loss = self._loss_sum / (self._window.weight or 1.0)
        return (
            f"version {update.version}  loss {loss:.3f}  {rate:,.0f} {self._weight_unit}/s"
            f"  staleness {self._window.describe_staleness()}  left {'?' if left is None else clock_text(left)}"
        )
