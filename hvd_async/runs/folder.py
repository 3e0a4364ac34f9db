"""The folder of a run: where everything lies, and whether a run may begin or go on there."""

from __future__ import annotations

import contextlib
import enum
import pathlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hvd_async.config import RunConfig, dump_config, load_config, read_tree
from hvd_async.errors import CheckpointError, ConfigError, DataError
from hvd_async.runs.continuation import Supply, changed_keys, check_goes_further, goes_on, is_as_long
from hvd_async.runs.event_log import LogMark, fits, read_events, whole_part
from hvd_async.system import files
from hvd_async.system.json_text import parse_json
from hvd_async.system.locks import BusyError, held

if TYPE_CHECKING:
    from hvd_async.runs.checkpoint import SavedData

# What a run writes: names in its folder, and in each of the folders in it. What has another name is somebody else's.
_FILES = re.compile(r"(config\.yaml|events\.jsonl|summary\.json)|\.(config\.yaml|summary\.json)\..*\.tmp")
_IN_FOLDERS = {
    "snapshots": re.compile(r"v\d{8,}\.safetensors|\.v\d{8,}\..*"),
    "checkpoints": re.compile(r"v\d{8,}|\.v\d{8,}\..*"),
    "models": re.compile(r"best|last|\.(best|last)\..*"),
    "tensorboard": re.compile(r"events\.out\.tfevents\..*"),
}


class Beginning(enum.Enum):
    """What to do in a folder where a run goes on if it can: begin, go on, or begin again a run of which nothing was saved."""

    NEW = "new"
    RESUME = "resume"
    AGAIN = "again"


@dataclass(frozen=True)
class Resumption:
    """What a run goes on from: a checkpoint, and as much of the event log as is kept.

    `has_gap`: events before the checkpoint are missing there. `remark`: what a person should know of the choice, or nothing.
    """

    saved: SavedData
    log: LogMark
    has_gap: bool = False
    remark: str = ""


class RunFolder:
    """Paths of a run's files."""

    def __init__(self, root: str | pathlib.Path) -> None:
        """Touches nothing."""
        self.root = pathlib.Path(root)
        self.config = self.root / "config.yaml"
        self.events = self.root / "events.jsonl"
        self.summary = self.root / "summary.json"
        self.snapshots = self.root / "snapshots"
        self.checkpoints = self.root / "checkpoints"
        self.models = self.root / "models"
        self.tensorboard = self.root / "tensorboard"
        self.lock = self.root / ".lock"

    def snapshot(self, version: int) -> pathlib.Path:
        """The file of the parameters of `version` that are to be evaluated."""
        return self.snapshots / f"v{version:08d}.safetensors"

    @contextlib.contextmanager
    def held(self, say: Callable[[str], None]) -> Iterator[None]:
        """Keep all other processes out of the folder inside the block; makes the folder. Waits a while for one that is there.

        `say` is told if it waits, or if the file system has no locks. Raises `BusyError` if it waited in vain.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(held(self.lock, str(self.root), "another process", say))
            except BusyError:
                raise BusyError(
                    f"{self.root}: got another process that computes there, expected none; wait for it, end it, or set another"
                    " output"
                ) from None
            yield

    def begin(self, config: RunConfig, *, overwrite: bool) -> None:
        """Make the folder for a new run. Raises `ConfigError` if it holds one, or what is left of one, and `overwrite` is not
        set."""
        if overwrite:
            self._remove()
        else:
            self.check_vacant()
        try:
            self.snapshots.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.snapshots}: cannot be made: {error.strerror or error}") from None
        self.keep_config(config)

    def check_vacant(self) -> None:
        """Raise `ConfigError` if there is a run here, or what is left of one. Touches nothing."""
        if self._has_config_of_run():
            raise ConfigError(
                f"{self.root}: holds a run already; go on with --resume, replace it with --overwrite, or set another output"
            )
        if remains := self._remains():
            raise ConfigError(f"{remains}; put it back, remove them with --overwrite, or set another output")

    def remove_leftovers(self) -> None:
        """Remove what processes that died have left half-written, and restore what they were about to replace.

        To be called while the folder is `held`. Raises `DataError` where the file system refuses.
        """
        for folder in (self.root, self.snapshots, self.checkpoints, *self.checkpoints.glob("v*"), self.models):
            files.remove_leftovers(folder)

    def how_to_begin(self, config: RunConfig) -> Beginning:
        """What to do here for `config`, for a job that may have been started before. Changes nothing.

        Raises `ConfigError` where `resume` would, and for what is left of a run without its configuration. A run that
        has ended is not begun again: it is for `resume` to say what is missing.
        """
        flag = "--auto-resume"
        if not self.config.exists():
            if remains := self._remains():
                hint = f"put it back, remove them with --overwrite in place of {flag}, or set another output"
                raise ConfigError(f"{flag}: {remains}; {hint}")
            return Beginning.NEW
        self.check_same(config, flag)
        was_saved = self.has_checkpoint() or self.summary.exists()
        return Beginning.RESUME if was_saved else Beginning.AGAIN

    def is_being_saved(self, since: float) -> bool:
        """Whether a checkpoint is being written, or was when its writer died, that was begun after `since` (of `time.time`)."""
        with contextlib.suppress(OSError):  # it may be done at this moment
            return any(path.stat().st_mtime >= since for path in self.checkpoints.glob(".v*.tmp"))
        return True

    def has_checkpoint(self) -> bool:
        """Whether there is one to resume from, whole or not."""
        return any(path.is_dir() and path.name[1:].isdigit() for path in self.checkpoints.glob("v*"))

    def describe_loss(self) -> str:
        """In a line, what there is of a run that was interrupted before its first checkpoint, as far as its log says."""
        num_updates, seconds = 0, 0.0
        with contextlib.suppress(DataError):  # a log that is not there, or damaged: nothing more is known
            for event in read_events(self.events):
                num_updates += event.get("event") == "update"
                seconds = event.get("seconds", seconds)
        return (
            f"{self.root}: a run was interrupted before its first checkpoint, and begins again; lost: {num_updates:,} updates,"
            f" {seconds:.0f} s; see training.checkpoint_every"
        )

    def check_is_run(self, flag: str = "--resume") -> None:
        """Raises `CheckpointError` if there is nothing that `resume` could continue. Touches nothing."""
        if not self.config.exists():
            raise CheckpointError(f"{self.root}: got no run to resume, expected {self.config.name} in it; leave out {flag}")

    def resume(self, config: RunConfig, supply: Supply, flag: str = "--resume") -> Resumption:
        """Choose what is continued with `config` on the data of `supply`; `flag` is what asked for it.

        It is the latest checkpoint, if the log has all that it knows.
        Where the log was cut short or damaged, it is the latest that fits what is left; where none does, the latest, with a gap
        in the log. Changes nothing. Raises `CheckpointError` if there is none or it is damaged, `ConfigError` if `config` would
        compute something else, or less than has been computed.
        """
        # Not at the top: it loads torch, which a reader of paths does not need.
        from hvd_async.runs.checkpoint import list_checkpoints, read_data, way_out

        self.check_same(config, flag)
        found = list_checkpoints(self.checkpoints)
        if not found:
            raise CheckpointError(
                f"{self.checkpoints}: got no checkpoint, expected one to resume from; start with --overwrite in place of {flag}"
            )
        latest = read_data(found[-1], way_out(found[-1], found[:-1]))
        fault = f"{self.events}: cut short or damaged since {found[-1].name} was saved"
        for number in reversed(range(len(found))):
            saved = latest if number == len(found) - 1 else read_data(found[number], way_out(found[number], found[:number]))
            log = LogMark(*saved.data["recorder"]["log"])
            if fits(self.events, log):
                check_goes_further(load_config(self.config), config, saved.data, supply, flag)
                is_latest = saved is latest
                return Resumption(saved, log, remark="" if is_latest else f"{fault}; goes on from {found[number].name}")
        check_goes_further(load_config(self.config), config, latest.data, supply, flag)
        log = LogMark(*latest.data["recorder"]["log"])
        part = whole_part(self.events, log)
        lost = log.num_bytes - part.num_bytes
        remark = f"{fault}; goes on from it, with a gap of {lost:,} bytes in the log: the run cannot be replayed"
        return Resumption(latest, part, has_gap=True, remark=remark)

    def finished(self, config: RunConfig, saved: SavedData, supply: Supply) -> dict[str, Any] | None:
        """The summary of the run that is here, where it has ended and `config` asks for no more; else None."""
        summary = _read_object(self.summary)
        has_ended = summary.get("status") == "finished" and not goes_on(config, saved.data, supply)
        has_ended = has_ended or summary.get("status") in ("finished early", "diverged")
        return summary if has_ended and is_as_long(load_config(self.config), config) else None

    def _own(self) -> list[pathlib.Path]:
        """All that is here under names that a run gives. A link to a folder, as of checkpoints on scratch, is followed."""
        if not self.root.is_dir():
            return []
        # The configuration last: as long as it is there, what is left after a death is a run, which can be removed again.
        names = sorted(self.root.iterdir(), key=lambda path: (path == self.config, path))
        found: list[pathlib.Path] = []
        for name, pattern in _IN_FOLDERS.items():
            if (self.root / name).is_dir():
                found += [path for path in sorted((self.root / name).iterdir()) if pattern.fullmatch(path.name)]
        return [*found, *(path for path in names if _FILES.fullmatch(path.name))]

    def _remove(self) -> None:
        """Remove what a run left here, and nothing else. Raises `ConfigError` if nothing tells that a run did."""
        own = self._own()
        if own and not self._is_of_run():
            names = ", ".join(str(path.relative_to(self.root)) for path in own)
            raise ConfigError(
                f"--overwrite: {self.root}: got {names}, not as a run leaves them; expected a run to replace, or none of these"
                " names; move them, or set another output"
            )
        try:
            for path in own:
                files.remove(path)
            for name in _IN_FOLDERS:
                folder = self.root / name
                if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
                    folder.rmdir()
        except OSError as error:
            raise DataError(
                f"--overwrite: {error.filename or self.root}: cannot be removed: {error.strerror or error}; remove it, or set"
                " another output"
            ) from None

    def _is_of_run(self) -> bool:
        """Whether something here can only be of a run: names alone are too common to remove files by."""
        if self._has_config_of_run() or {"status", "num_workers"} <= _read_object(self.summary).keys():
            return True
        with contextlib.suppress(DataError):
            if next(read_events(self.events), {}).get("event") == "start":
                return True
        models = (path / "meta.json" for path in (self.models / "best", self.models / "last"))
        return any(self.checkpoints.glob("v*/data.json")) or any("version" in _read_object(path) for path in models)

    def _has_config_of_run(self) -> bool:
        try:
            return {"output", "data", "training"} <= read_tree(self.config, "configuration of a run").keys()
        except ConfigError:
            return False

    def _remains(self) -> str:
        """In words, what there is of a run whose configuration is missing, or is none; nothing where there is nothing.

        Snapshots are not asked for: a run that is killed as it begins leaves their empty folder.
        """
        own = {path.relative_to(self.root).parts[0] for path in self._own()}
        found = [path.name for path in (self.checkpoints, self.models, self.events, self.summary) if path.name in own]
        if self.config.exists():
            return f"{self.root}: got a {self.config.name} that is not of a run, expected that of a run or none"
        return (
            f"{self.root}: got {', '.join(found)} without {self.config.name}, expected all of a run or none" if found else ""
        )

    def check_same(self, config: RunConfig, flag: str = "--resume") -> None:
        """Raises `ConfigError` if `config` would compute something else than the run that is here, or that was simulated; and
        `CheckpointError` if there is none. Touches nothing."""
        self.check_is_run(flag)
        before = load_config(self.config)
        if self.events.exists() and next(read_events(self.events), {}).get("simulated"):
            raise ConfigError(
                f"{flag}: {self.root}: got a simulated run, whose seconds are virtual, expected one of `hvd-async train`;"
                " replace it with --overwrite, or set another output"
            )
        if changed := changed_keys(before, config):
            lines = [f"{key}: got {new!r}, expected {old!r} as in {self.config}" for key, old, new in changed]
            raise ConfigError("\n".join(f"{flag}: {line}; or start another run" for line in lines))

    def go_on(self, config: RunConfig) -> None:
        """Write `config`, which may ask for a longer run, in place of the one before; the summary, of its end, is no longer
        true. On one rank, after all have agreed."""
        try:
            self.summary.unlink(missing_ok=True)
            self.snapshots.mkdir(exist_ok=True)
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be made ready: {error.strerror or error}") from None
        self.keep_config(config)

    def keep_config(self, config: RunConfig) -> None:
        """Write `config` beside what it computes. On one rank, after all have agreed."""
        files.write_file(self.config, dump_config(config).encode())


def _read_object(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where there is none."""
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
