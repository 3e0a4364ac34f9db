"""The state of a run, as its folder tells: whether it is alive, how far it is, and what it last wrote down."""

from __future__ import annotations

import fcntl
import json
import math
import pathlib
import socket
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from hvd_async.config import RunConfig, load_config
from hvd_async.errors import ConfigError, DataError
from hvd_async.runs.folder import RunFolder
from hvd_async.runs.totals import staleness_text
from hvd_async.system.durations import clock_text
from hvd_async.system.json_text import parse_json
from hvd_async.system.printable import printable
from hvd_async.system.words import plural

# The rate is that of the updates in so many of the last seconds of training, and of at least two of them.
_RATE_SECONDS = 60.0
# A log without a lock that was written to within this time is taken for that of a run that is alive.
_SILENCE_SECONDS = 120.0
_MOST_UPDATES = 10_000
_MOST_ARRIVALS = 1000


@dataclass
class RunStatus:
    """The state of a run. `asdict` of it is what `hvd-async status --json` prints.

    Attributes:
        folder: the folder, as it was given.
        state: a status of `summary.json`; or `running`, `interrupted` (it has ended without a summary), `perhaps running`
            (whether a process has the folder cannot be known here, and the log was written to lately), `silent` (the same,
            and it was not), or `not begun`.
        strategy, workers, hosts: as the latest process began.
        version, weight, weight_unit, seconds: of training so far.
        share: the part done, 0 to 1; None if it is not known.
        rate: weight per second, lately; None before the second update.
        staleness: mean of the last 1000 applied arrivals, in versions; None before the first. `micro_batches`: their mean number
            a batch, and `micro_batch_staleness` the mean over these.
        loss: training loss of the last update, and `scores` those of the last evaluation, of version `evaluated`.
        processes: number of processes that made the run, one after another.
        gap: version before which events are missing in the log, so that `weight` is what came after; None if none are.
        refused: refused arrivals by reason. `lost`: what was told of each worker that was lost. `missing`: batches of a finished
            run that were not computed, since all workers left their loops.
        written: seconds since the log was last written to. `checkpoint`: version of the newest, `checkpoint_age` in seconds.
    """

    folder: str
    state: str = "not begun"
    simulated: bool = False
    strategy: str = ""
    workers: int = 0
    hosts: list[str] = field(default_factory=list)
    version: int = 0
    weight: float = 0.0
    weight_unit: str = ""
    seconds: float = 0.0
    share: float | None = None
    rate: float | None = None
    staleness: float | None = None
    micro_batches: float | None = None
    micro_batch_staleness: float | None = None
    loss: float | None = None
    evaluated: int | None = None
    scores: dict[str, float] = field(default_factory=dict)
    processes: int = 0
    gap: int | None = None
    refused: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    missing: int = 0
    written: float | None = None
    checkpoint: int | None = None
    checkpoint_age: float | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether a process trains it, as far as that is known."""
        return self.state in ("running", "perhaps running")

    @property
    def seconds_left(self) -> float | None:
        """Seconds of training that are left, if the run goes on at the pace of its whole."""
        if not self.share or not self.is_under_way:
            return None
        return self.seconds * (1 - self.share) / self.share

    def to_json(self) -> dict[str, Any]:
        """Return the state as plain data, with None for numbers that are not finite."""
        data = {**asdict(self), "seconds_left": self.seconds_left}
        return {
            key: _finite(value) if not isinstance(value, dict) else {name: _finite(each) for name, each in value.items()}
            for key, value in data.items()
        }

    def lines(self) -> list[str]:
        """Return the state in words: a line that is complete by itself, and lines with details."""
        share = "" if self.share is None else f"{100 * self.share:.0f} %, "
        is_evaluating = self.state == "running" and self.share == 1.0
        done = " (training is done; saved versions are evaluated)" if is_evaluating else ""
        lines = [f"{printable(self.folder)}: {self.state}{done}"]
        if self.processes == 0:
            return lines
        seconds = "virtual s" if self.simulated else "s"
        lines[0] += (
            f", {share}version {self.version}, {self.weight:,.0f} {self.weight_unit} in {self.seconds:,.1f} {seconds}"
        )
        left = "" if self.seconds_left is None else f", about {clock_text(self.seconds_left)} left"
        second = "virtual second" if self.simulated else "second"
        rate = "" if self.rate is None else f", lately {self.rate:,.0f} {self.weight_unit} a {second}"
        rate += self._staleness_text()
        again = resumed_text(self.processes)
        where = f" on {', '.join(self.hosts)}" if self.hosts else ""
        lines.append(f"  {self.strategy}, {self.workers} worker{'s' if self.workers != 1 else ''}{where}{rate}{left}{again}")
        if self.loss is not None:
            scores = "".join(f" {name} {value:.4g}" for name, value in self.scores.items())
            evaluated = f"; version {self.evaluated} evaluated:{scores}" if self.evaluated is not None else ""
            lines.append(f"  training loss {self.loss:.4g}{evaluated}")
        ages = [] if self.written is None else [f"log written {_ago(self.written)}"]
        if self.checkpoint is not None and self.checkpoint_age is not None:
            ages.append(f"checkpoint of version {self.checkpoint} {_ago(self.checkpoint_age)}")
        lines += [f"  {', '.join(ages)}"] if ages else []
        if self.gap is not None:
            lines.append(f"  the log has a gap: {self.weight_unit} are those after version {self.gap}")
        if self.refused:
            lines.append("  refused arrivals: " + ", ".join(f"{reason} {count}" for reason, count in self.refused.items()))
        lines += [f"  lost: {each}" for each in self.lost]
        if self.missing:
            batches = plural(self.missing, "batch", "batches")
            lines.append(f"  {batches} not computed, since all workers left their loops; --resume computes the rest")
        if self.state == "interrupted":
            lines.append(
                "  no process has the folder: a simulated run is computed anew, by simulate --overwrite or by its `compare`"
                if self.simulated
                else "  no process has the folder: add --auto-resume to the command that started it to continue, unless its"
                " `launch` is about to start it again"
            )
        return lines

    def _staleness_text(self) -> str:
        if self.strategy != "async" or self.staleness is None:
            return ""
        return f", staleness {staleness_text(self.staleness, self.micro_batch_staleness or 0.0, self.micro_batches or 0.0)}"


def read_status(root: pathlib.Path) -> RunStatus:
    """Return the state of the run in the folder `root`, which is only read, and may be in use.

    Raises `DataError` if `root` is no folder of a run.
    """
    folder = RunFolder(root)
    status = RunStatus(str(root))
    if fault := folder.fault():
        raise DataError(f"{root}: {fault}, expected the folder of a run or of a comparison")
    log = _Log(status)
    log.read(folder.events)
    status.state = _state(folder, status, log.host)
    try:
        status.share = _share(load_config(folder.config), status, (log.num_applied, log.num_batches))
    except ConfigError:
        pass  # a configuration of another version: the rest is known all the same
    if status.state in ("finished", "finished early") and not status.missing:
        status.share = 1.0
    found = sorted(path for path in folder.checkpoints.glob("v*") if path.name[1:].isdigit())
    if found:
        status.checkpoint, status.checkpoint_age = int(found[-1].name[1:]), _age(found[-1])
    status.written = _age(folder.events)
    return status


class _Log:
    """Reads an event log into a status. Attributes: `host`, where the latest process that wrote it ran; `num_batches` of the
    whole run, if its data bound it; `num_applied` so far."""

    def __init__(self, status: RunStatus) -> None:
        self.host = ""
        self.num_batches: int | None = None
        self.num_applied = 0
        self._status = status
        self._updates: deque[tuple[float, float]] = deque(maxlen=_MOST_UPDATES)  # seconds, weight
        self._applied: deque[bytes] = deque(maxlen=_MOST_ARRIVALS)
        self._refused: Counter[str] = Counter()

    def read(self, path: pathlib.Path) -> None:
        """Read the whole log `path`, whose last line may be incomplete; nothing if it is missing. Raises `DataError`."""
        if path.exists() and not path.is_file():  # a pipe, say, which would be waited for
            raise DataError(f"{path}: got no ordinary file, expected the event log of a run")
        try:
            with path.open("rb") as file:
                for line in file:
                    # Most events are applied arrivals, of which the last are needed.
                    if not line.startswith(b'{"event": "arrival"') or b'"refused"' in line:
                        self._add(line)
                    elif line.endswith(b"\n"):
                        self._applied.append(line)
            self._status.rate = self._rate()
            self._measure_staleness()
        except FileNotFoundError:
            return
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError):
            raise DataError(
                f"{path}: got an event that this version does not know, expected the event log of a run"
            ) from None
        self._status.refused = dict(self._refused)

    def _add(self, line: bytes) -> None:
        if not line.endswith(b"\n"):
            return  # still being written, or cut by a crash
        event = parse_json(line)
        kind = event["event"]
        if kind == "start":
            self._start(event)
        elif kind == "update":
            status = self._status
            seconds, weight = float(event["seconds"]), float(event["weight"])
            status.version, status.loss, status.seconds = int(event["version"]), float(event["loss"]), seconds
            status.weight += weight
            self.num_applied += int(event["arrivals"])
            self._updates.append((seconds, weight))
        elif kind == "arrival":
            self._refused[str(event["refused"])] += 1
        elif kind == "evaluation":
            self._status.evaluated = int(event["version"])
            self._status.scores = {str(name): float(score) for name, score in event["scores"].items()}
        elif kind == "gap":
            self._status.gap = int(event["version"])
        elif kind == "lost":
            self._status.lost.append(f"worker {event['worker']}: {printable(str(event['reason']))}")
        elif kind == "store_lost":
            self._status.lost.append(f"the store's process, after version {int(event['version'])}")

    def _start(self, event: Mapping[str, Any]) -> None:
        status, ranks = self._status, event["ranks"]
        status.processes += 1
        status.simulated, status.strategy = bool(event.get("simulated", False)), str(event["strategy"])
        status.weight_unit = printable(str(event["weight_unit"]))
        status.workers = sum(len(workers) for workers in event["node_workers"])
        status.hosts = [] if status.simulated else list(dict.fromkeys(printable(str(rank["host"])) for rank in ranks))
        self.host = str(ranks[0]["host"])
        self.num_batches = None if event.get("num_batches") is None else int(event["num_batches"])
        self._updates.clear()

    def _measure_staleness(self) -> None:
        total, parts = 0, []
        for event in map(parse_json, self._applied):
            total += int(event["staleness"])
            bases = [event["base_version"], *(version for version, _ in event.get("later_bases", ()))]
            parts += [int(event["version"]) - 1 - int(base) for base in bases]
        if number := len(self._applied):
            self._status.staleness, self._status.micro_batches = total / number, len(parts) / number
            self._status.micro_batch_staleness = sum(parts) / len(parts)

    def _rate(self) -> float | None:
        """Return the weight per second of the last updates."""
        last = self._updates[-1][0] if self._updates else 0.0
        recent = [each for each in self._updates if each[0] >= last - _RATE_SECONDS]
        recent = recent if len(recent) > 1 else list(self._updates)[-2:]
        if len(recent) < 2 or recent[-1][0] <= recent[0][0]:
            return None
        return float(sum(weight for _, weight in recent[1:])) / (recent[-1][0] - recent[0][0])


def _state(folder: RunFolder, status: RunStatus, host: str) -> str:
    """Return `RunStatus.state`."""
    held = _is_held(folder.lock)
    if held:
        return "running"
    try:
        summary = json.loads(folder.summary.read_bytes())
        state, status.missing = str(summary["status"]), int(summary.get("missing", 0))
        return state
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{folder.summary}: damaged; expected the summary of a run") from None
    if status.processes == 0:
        return "not begun"
    # Locks of another host may not be seen here.
    if held is False and host == socket.gethostname():
        return "interrupted"
    return "perhaps running" if (_age(folder.events) or 0.0) < _SILENCE_SECONDS else "silent"


def _is_held(lock: pathlib.Path) -> bool | None:
    """Return whether a process holds the file `lock`; None if that cannot be known."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back at once
        return False
    except BlockingIOError:
        return True
    except OSError:
        return None


def _share(config: RunConfig, status: RunStatus, batches: tuple[int, int | None]) -> float | None:
    """Return the part of its length that a run has done. `batches`: those that were applied, and those of the whole run."""
    training = config.training
    lengths = ((status.weight, training.weight), (status.version, training.updates), (status.seconds, training.seconds))
    pairs: tuple[tuple[float, float | None], ...] = (*lengths, batches)
    return next((min(1.0, done / whole) for done, whole in pairs if whole), None)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _age(path: pathlib.Path) -> float | None:
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s ago" if seconds < 120.0 else f"{clock_text(seconds)} ago"


def resumed_text(processes: int) -> str:
    """Return how often a run was resumed that `processes` have computed, with a comma before it; empty if never."""
    if processes < 2:
        return ""
    return ", resumed once" if processes == 2 else f", resumed {processes - 1} times"
