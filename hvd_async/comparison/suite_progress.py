"""Progress of a suite for a user: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import pathlib
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

import rich.console
import rich.live
import rich.progress_bar
import rich.table

from hvd_async.system.durations import clock_text
from hvd_async.system.json_text import parse_json
from hvd_async.system.printable import printable

if TYPE_CHECKING:
    from hvd_async.comparison.suite import BudgetConfig

_REFRESH_PER_SECOND = 1.0


@dataclass
class Follower:
    """Follows a growing event log."""

    path: pathlib.Path
    version: int = 0
    weight: float = 0.0
    seconds: float = 0.0
    loss: float | None = None
    weight_unit: str = ""
    _offset: int = 0
    _rest: bytes = field(default=b"")

    def look(self) -> None:
        """Read what was written since the last call; from the start if the log was truncated because its run began again."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, 2) < self._offset:
                    self.version, self.weight, self.seconds, self.loss, self._offset, self._rest = 0, 0.0, 0.0, None, 0, b""
                file.seek(self._offset)
                text = self._rest + file.read()
                self._offset = file.tell()
        except OSError:
            return
        *lines, self._rest = text.split(b"\n")
        for line in lines:
            # Only for display: errors in it are reported by those who need it.
            with contextlib.suppress(ValueError, KeyError, TypeError, OverflowError):
                self._take(parse_json(line))

    def share(self, budget: BudgetConfig) -> float:
        """Return how much of the run is done: 0 to 1."""
        for done, limit in ((self.weight, budget.weight), (self.version, budget.updates), (self.seconds, budget.seconds)):
            if limit is not None:
                return min(1.0, done / limit)
        return 0.0

    def _take(self, event: dict[str, Any]) -> None:
        if event["event"] == "update":
            version, weight = int(event["version"]), float(event["weight"])
            seconds, loss = float(event["seconds"]), float(event["loss"])
            self.version, self.seconds, self.loss = version, seconds, loss
            self.weight += weight
        elif event["event"] == "start":
            self.weight_unit = printable(str(event["weight_unit"]))


@dataclass
class _Running:
    name: str
    follower: Follower
    budget: BudgetConfig
    since: float


class Board:
    """Shows the running runs and their progress. Used by several threads."""

    def __init__(self, *, is_live: bool, stream: TextIO | None = None) -> None:
        """Start empty. `is_live`: draw a table, for a terminal."""
        self._num_runs = 0
        self._is_live = is_live
        self._stream = sys.stdout if stream is None else stream
        self._console = rich.console.Console(file=self._stream, force_terminal=is_live)
        self._running: list[_Running] = []
        self._num_done = 0
        self._since = time.monotonic()
        self._lock = threading.Lock()

    def expect(self, num_runs: int) -> None:
        """Add to the number of runs to compute."""
        with self._lock:
            self._num_runs += num_runs

    @contextlib.contextmanager
    def showing(self) -> Iterator[None]:
        """Show the table inside the block."""
        self._since = time.monotonic()
        if not self._is_live:
            yield
            return
        live = rich.live.Live(
            get_renderable=self.table, console=self._console, refresh_per_second=_REFRESH_PER_SECOND, transient=True
        )
        with live:
            yield

    @contextlib.contextmanager
    def running(self, name: str, events: pathlib.Path, budget: BudgetConfig, *, is_resumed: bool) -> Iterator[None]:
        """Show the run `name` as running inside the block; its event log will be at `events`."""
        one = _Running(name, Follower(events), budget, time.monotonic())
        with self._lock:
            self._running.append(one)
            number = self._num_done + len(self._running)
        if not self._is_live:
            self.say(f"{name}: {'resumes' if is_resumed else 'starts'}, {number} of {self._num_runs}")
        try:
            yield
        finally:
            with self._lock:
                self._running.remove(one)
                self._num_done += 1

    def say(self, line: str) -> None:
        """Print a line, above the table if there is one."""
        if self._is_live:
            self._console.print(line, markup=False, highlight=False)
        else:
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def table(self) -> rich.table.Table:
        """Return a table of the running runs and their progress."""
        with self._lock:
            running, num_done, num_runs = list(self._running), self._num_done, self._num_runs
        elapsed = clock_text(time.monotonic() - self._since)
        table = rich.table.Table(title=f"{num_done} of {num_runs} runs done, {elapsed}", title_justify="left", box=None)
        for name, side in (("run", "left"), ("done", "left"), ("", "right"), ("version", "right"), ("loss", "right")):
            table.add_column(name, justify=side)  # type: ignore[arg-type]  # left and right are two of its literals
        table.add_column("speed", justify="right")
        table.add_column("time", justify="right")
        for one in running:
            one.follower.look()
            follower, share = one.follower, one.follower.share(one.budget)
            loss = "-" if follower.loss is None else f"{follower.loss:.3f}"
            speed = f"{follower.weight / follower.seconds:,.0f} {follower.weight_unit}/s" if follower.seconds else "-"
            bar = rich.progress_bar.ProgressBar(total=1.0, completed=share, width=20)
            clock = clock_text(time.monotonic() - one.since)
            table.add_row(one.name, bar, f"{share:.0%}", f"{follower.version:,}", loss, speed, clock)
        return table
