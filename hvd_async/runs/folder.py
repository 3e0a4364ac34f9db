"""The folder of a run: the paths of its files, and whether a run may begin or resume there."""

from __future__ import annotations

import contextlib
import enum
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hvd_async.config import FactoryConfig, RunConfig, dump_config, load_config, read_tree
from hvd_async.errors import CheckpointError, ConfigError, DataError
from hvd_async.runs.continuation import Supply, changed_keys, check_goes_further, is_as_long, needs_more_training
from hvd_async.runs.event_log import LogMark, fits, read_events, whole_part
from hvd_async.system import files
from hvd_async.system.json_text import parse_json
from hvd_async.system.locks import BusyError, locked

if TYPE_CHECKING:
    from hvd_async.runs.checkpoint import SavedData

# Names that a run writes in its folder and in each subfolder. Files with other names do not belong to the run.
_FILES = re.compile(
    r"(config\.yaml|events\.jsonl|summary\.json|join\.json|tracker\.\w+\.json)"
    r"|\.(config\.yaml|summary\.json|join\.json|tracker\.\w+\.json)\..*\.tmp"
)
_IN_FOLDERS = {
    "snapshots": re.compile(r"v\d{8,}(\.buffers)?\.safetensors|\.v\d{8,}\..*"),
    "checkpoints": re.compile(r"v\d{8,}|\.v\d{8,}\..*"),
    "models": re.compile(r"best|last|\.(best|last)\..*"),
    "samples": re.compile(r"v\d{8,}\.jsonl|\.v\d{8,}\..*"),
    "ranks": re.compile(r"rank\d{4,}\.jsonl"),
    "tensorboard": re.compile(r"events\.out\.tfevents\..*"),
    "wandb": re.compile(r"(offline-)?run-.*|latest-run|debug.*\.log"),
}


class Beginning(enum.Enum):
    """How a run starts with --auto-resume: begin, resume, or begin again if nothing of an earlier start was saved."""

    NEW = "new"
    RESUME = "resume"
    AGAIN = "again"


@dataclass(frozen=True)
class Resumption:
    """Starting point of a resumed run: a checkpoint, and the part of the event log to keep.

    `has_gap`: events before the checkpoint are missing in the log. `remark`: a remark on the choice to print, or "".
    """

    saved: SavedData
    log: LogMark
    has_gap: bool = False
    remark: str = ""


class RunFolder:
    """Paths of a run's files."""

    def __init__(self, root: str | pathlib.Path) -> None:
        """Access no file."""
        self.root = pathlib.Path(root)
        self.config = self.root / "config.yaml"
        self.events = self.root / "events.jsonl"
        self.summary = self.root / "summary.json"
        self.snapshots = self.root / "snapshots"
        self.checkpoints = self.root / "checkpoints"
        self.models = self.root / "models"
        self.samples = self.root / "samples"
        self.tensorboard = self.root / "tensorboard"
        self.lock = self.root / ".lock"
        self.invitation = self.root / "join.json"

    def snapshot(self, version: int) -> pathlib.Path:
        """Return the path of the snapshot of `version`."""
        return self.snapshots / f"v{version:08d}.safetensors"

    def buffers(self, version: int) -> pathlib.Path:
        """Return the path of the buffers with which a script evaluated the snapshot of `version`."""
        return self.snapshots / f"v{version:08d}.buffers.safetensors"

    def samples_of(self, version: int) -> pathlib.Path:
        """Return the path of the samples of `version`."""
        return self.samples / f"v{version:08d}.jsonl"

    def versions_with_buffers(self) -> list[int]:
        """Return the versions whose `buffers` are there, the newest last."""
        found = self.snapshots.glob("v*.buffers.safetensors")
        return sorted(int(path.name[1:].partition(".")[0]) for path in found if path.name[1:].partition(".")[0].isdigit())

    def buffers_of_checkpoint(self, checkpoint: pathlib.Path) -> pathlib.Path:
        """Return the path of the buffers with which a script resumes from `checkpoint`."""
        return checkpoint / "buffers.safetensors"

    def tracker(self, name: str) -> pathlib.Path:
        """Return the path of the file that keeps the name of the run in the tracker `name`."""
        return self.root / f"tracker.{name}.json"

    def rank_log(self, rank: int) -> pathlib.Path:
        """Return the path of what a script logs on `rank`."""
        return self.root / "ranks" / f"rank{rank:04d}.jsonl"

    @contextlib.contextmanager
    def locked(self, say: Callable[[str], None]) -> Iterator[None]:
        """Lock the folder, which is created if needed, inside the block. Waits a while for another process to release it.

        `say` prints that this process waits, or that the file system has no locks. Raises `BusyError` after waiting in vain.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self.lock, str(self.root), "another process", say))
            except BusyError:
                raise BusyError(
                    f"{self.root}: in use by another process; wait for it, end it, or set another output"
                ) from None
            yield

    def check_trusted(self, config: RunConfig, *, trusts_task: bool) -> None:
        """Refuse to run code that only the folder names, which may come from someone else. Raises `ConfigError` if `config`, that
        of the run, names such code, unless `trusts_task`."""
        if isinstance(config.task, FactoryConfig) and not trusts_task:
            raise ConfigError(
                f"{self.config}: task.factory: got {config.task.factory}, whose code would be run, expected --trust-task if you"
                " trust it"
            )

    def write_invitation(self, invitation: Mapping[str, Any]) -> None:
        """Write what a process must know to join the run, for this user alone. Raises `DataError` if the file system refuses."""
        files.write_file(self.invitation, json.dumps(invitation).encode(), mode=0o600)

    def read_invitation(self) -> dict[str, Any]:
        """Return what a process must know to join the run. Raises `DataError` if there is no run under way that can be joined, or
        the file belongs to somebody else."""
        try:
            with self.invitation.open("rb") as file:
                status = os.fstat(file.fileno())
                found = json.loads(file.read())
        except FileNotFoundError:
            raise DataError(
                f"{self.root}: got no run that can be joined, expected one that trains at the moment, with strategy async, all of"
                " the store in the memory of one host, and without push.node_sum"
            ) from None
        except (OSError, ValueError) as error:
            raise DataError(f"{self.invitation}: cannot be read: {error}") from None
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise DataError(
                f"{self.invitation}: got a file of user {status.st_uid} with mode {status.st_mode & 0o777:o}, expected one of"
                f" this user ({os.geteuid()}) alone, with mode 600"
            )
        if not isinstance(found, dict):
            raise DataError(f"{self.invitation}: got no JSON object: it is damaged")
        return found

    def withdraw_invitation(self) -> None:
        """Remove the invitation, if there is one."""
        with contextlib.suppress(OSError):
            self.invitation.unlink(missing_ok=True)

    def begin(self, config: RunConfig, *, overwrite: bool, is_simulated: bool = False) -> None:
        """Create the folder for a new run. Raises `ConfigError` if it holds a run or remains of one, unless `overwrite`; a
        simulated run never replaces a real one."""
        first = self._first_event() if is_simulated else {}
        if first and not first.get("simulated"):
            raise ConfigError(
                f"{self.root}: holds a real run, which a simulation does not replace; set another output, such as"
                f" --set output={self.root}-simulated"
            )
        if overwrite:
            self._remove()
        else:
            self.check_vacant()
        try:
            self.snapshots.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.snapshots}: cannot be created: {error.strerror or error}") from None
        self.keep_config(config)

    def holds_simulated(self) -> bool:
        """Whether the run of this folder was simulated, as far as its log shows."""
        return bool(self._first_event().get("simulated"))

    def fault(self) -> str:
        """Return what is there in place of a run, in a few words; empty if there is one."""
        if self.config.exists() or self.events.exists():
            return ""
        if not self.root.is_dir():
            return "got a file" if self.root.exists() else "no such folder (a run that was just started has none yet)"
        below = sorted(str(path.parent) for path in self.root.glob("*/events.jsonl"))[:3]
        return f"holds several runs, such as {', '.join(below)}" if below else "got no config.yaml and no events.jsonl"

    def check_place(self) -> None:
        """Raise `ConfigError` if there is no folder and none can be made, or it cannot be written. Changes nothing."""
        nearest = next(path for path in (self.root, *self.root.absolute().parents) if os.path.exists(path))
        if not os.path.isdir(nearest):
            place = "which" if nearest == self.root else f"but {nearest}"
            raise ConfigError(f"output: got {self.root}, {place} is a file, expected a folder or a new name")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise ConfigError(
                f"output: got {self.root}, but {nearest} cannot be written; expected another place, or permission to write there"
            )

    def check_vacant(self) -> None:
        """Raise `ConfigError` if the folder holds a run, or remains of one, or `check_place` does. Changes nothing."""
        self.check_place()
        if self._has_config_of_run():
            if self.holds_simulated():
                raise ConfigError(
                    f"{self.root}: holds a simulated run already; replace it with --overwrite, or set another output"
                )
            raise ConfigError(
                f"{self.root}: holds a run already; resume it with --resume, replace it with --overwrite (in a script that"
                " `hvd-async launch` did not start: init(resume=True), init(overwrite=True)), or set another output"
            )
        if remains := self._remains():
            raise ConfigError(
                f"{remains}; restore {self.config.name}, pass --overwrite to delete the remaining files, or set another output"
            )

    def remove_leftovers(self) -> None:
        """Remove half-written files of dead processes, and restore files that these were about to replace.

        Call it while the folder is `locked`. Raises `DataError` if a file system operation fails.
        """
        for folder in (self.root, self.snapshots, self.checkpoints, *self.checkpoints.glob("v*"), self.models, self.samples):
            files.remove_leftovers(folder)
        self.withdraw_invitation()

    def how_to_begin(self, config: RunConfig) -> Beginning:
        """Return how a job with `config` starts, which may have been started before. Changes nothing.

        Raises `ConfigError` as `resume` does, and for remains of a run without its configuration. A run that has ended is
        not begun again: `resume` then reports what is missing.
        """
        flag = "--auto-resume"
        if not self.config.exists():
            if remains := self._remains():
                hint = (
                    f"restore {self.config.name}, pass --overwrite in place of {flag} to delete the remaining files, or set"
                    " another output"
                )
                raise ConfigError(f"{flag}: {remains}; {hint}")
            return Beginning.NEW
        self.check_same(config, flag)
        was_saved = self.has_checkpoint() or self.summary.exists()
        return Beginning.RESUME if was_saved else Beginning.AGAIN

    def is_being_saved(self, since: float) -> bool:
        """Whether a checkpoint begun after `since` (as of `time.time`) is being written, or was when its writer died."""
        with contextlib.suppress(OSError):  # raised if the checkpoint is completed at this moment
            return any(path.stat().st_mtime >= since for path in self.checkpoints.glob(".v*.tmp"))
        return True

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint, complete or damaged."""
        return any(path.is_dir() and path.name[1:].isdigit() for path in self.checkpoints.glob("v*"))

    def describe_loss(self) -> str:
        """Return a line on the loss of a run that was interrupted before its first checkpoint, as far as its log shows."""
        num_updates, seconds = 0, 0.0
        with contextlib.suppress(DataError):  # the log is missing or damaged: nothing more is known
            for event in read_events(self.events):
                num_updates += event.get("event") == "update"
                seconds = event.get("seconds", seconds)
        return (
            f"{self.root}: a run was interrupted before its first checkpoint, and begins again; lost: {num_updates:,} updates,"
            f" {seconds:.0f} s; see training.checkpoint_every"
        )

    def check_is_run(self, flag: str = "--resume") -> None:
        """Raise `CheckpointError` if there is no run to resume. Changes nothing."""
        if not self.config.exists():
            raise CheckpointError(f"{self.root}: got no run to resume, expected {self.config.name}; leave out {flag}")

    def resume(self, config: RunConfig, supply: Supply, flag: str = "--resume") -> Resumption:
        """Choose the checkpoint from which to resume with `config` on the data of `supply`; `flag` is named in messages.

        The choice is the latest checkpoint that fits the log. If the log was cut short or damaged and fits no checkpoint,
        the choice is the latest one, with a gap in the log. Changes nothing. Raises `CheckpointError` if there is no
        checkpoint or it is damaged, `ConfigError` if `config` would compute something else, or less than was computed
        already.
        """
        # Not at the top, since the module loads torch, which a reader of paths does not need.
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
                return Resumption(saved, log, remark="" if is_latest else f"{fault}; resumes from {found[number].name}")
        check_goes_further(load_config(self.config), config, latest.data, supply, flag)
        log = LogMark(*latest.data["recorder"]["log"])
        part = whole_part(self.events, log)
        lost = log.num_bytes - part.num_bytes
        remark = f"{fault}; resumes from this checkpoint with a gap of {lost:,} bytes in the log: the run cannot be replayed"
        return Resumption(latest, part, has_gap=True, remark=remark)

    def has_ended(self) -> bool:
        """Whether the summary says that the run has ended by itself: nothing stopped it."""
        return _read_object(self.summary).get("status") in ("finished", "finished early", "diverged")

    def finished(self, config: RunConfig, saved: SavedData, supply: Supply) -> dict[str, Any] | None:
        """Return the summary of this run if it has ended and `config` requires no more training; else None."""
        summary = _read_object(self.summary)
        has_ended = summary.get("status") == "finished" and not needs_more_training(config, saved.data, supply)
        has_ended = has_ended or summary.get("status") in ("finished early", "diverged")
        return summary if has_ended and is_as_long(load_config(self.config), config) else None

    def _first_event(self) -> dict[str, Any]:
        """Return the first event of the log; empty if there is none, or it is damaged."""
        with contextlib.suppress(DataError):
            return next(iter(read_events(self.events)), {})
        return {}

    def _own(self) -> list[pathlib.Path]:
        """Return all paths with names that a run gives. A link to a folder, such as checkpoints on scratch, is followed."""
        if not self.root.is_dir():
            return []
        # The configuration last: if this process dies during a removal, the rest is still a run, which can be removed again.
        names = sorted(self.root.iterdir(), key=lambda path: (path == self.config, path))
        found: list[pathlib.Path] = []
        for name, pattern in _IN_FOLDERS.items():
            if (self.root / name).is_dir():
                found += [path for path in sorted((self.root / name).iterdir()) if pattern.fullmatch(path.name)]
        return [*found, *(path for path in names if _FILES.fullmatch(path.name))]

    def _remove(self) -> None:
        """Remove the files of a run, and nothing else. Raises `ConfigError` if nothing shows that the files are of a run."""
        own = self._own()
        if own and not self._is_of_run():
            names = ", ".join(str(path.relative_to(self.root)) for path in own)
            raise ConfigError(
                f"--overwrite: {self.root}: got {names}, not files of a run; expected a run to replace, or none of these"
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
        """Whether some file can only be of a run. Names alone are too common to justify a removal."""
        if self._has_config_of_run() or {"status", "num_workers"} <= _read_object(self.summary).keys():
            return True
        with contextlib.suppress(DataError):
            if next(read_events(self.events), {}).get("event") == "start":
                return True
        models = (path / "meta.json" for path in (self.models / "best", self.models / "last"))
        return any(self.checkpoints.glob("v*/data.json")) or any("version" in _read_object(path) for path in models)

    def _has_config_of_run(self) -> bool:
        try:
            return {"output", "task", "training"} <= read_tree(self.config, "configuration of a run").keys()
        except ConfigError:
            return False

    def _remains(self) -> str:
        """Return a description of remains of a run whose configuration is missing or invalid; "" if there are none.

        Snapshots do not count: a run that is killed as it begins leaves their empty folder.
        """
        own = {path.relative_to(self.root).parts[0] for path in self._own()}
        found = [path.name for path in (self.checkpoints, self.models, self.events, self.summary) if path.name in own]
        if self.config.exists():
            return f"{self.root}: got a {self.config.name} that is not of a run, expected the configuration of a run or none"
        return (
            f"{self.root}: got {', '.join(found)} without {self.config.name}, expected a whole run or none" if found else ""
        )

    def check_same(self, config: RunConfig, flag: str = "--resume") -> None:
        """Raise `ConfigError` if this run was simulated, or `config` would compute something else; `CheckpointError` if
        there is no run. Changes nothing."""
        self.check_is_run(flag)
        before = load_config(self.config)
        if self.holds_simulated():
            raise ConfigError(
                f"{flag}: {self.root}: got a simulated run, whose seconds are virtual, expected a run of `hvd-async train`;"
                " replace it with --overwrite, or set another output"
            )
        if changed := changed_keys(before, config):
            lines = [f"{key}: got {new!r}, expected {old!r} as in {self.config}{_hint(key)}" for key, old, new in changed]
            raise ConfigError("\n".join(f"{flag}: {line}; or start another run" for line in lines))

    def prepare_resume(self, config: RunConfig) -> None:
        """Replace the configuration by `config`, which may be longer, and remove the outdated summary. On one rank, after
        all ranks have agreed."""
        try:
            self.summary.unlink(missing_ok=True)
            self.snapshots.mkdir(exist_ok=True)
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be prepared: {error.strerror or error}") from None
        self.keep_config(config)

    def keep_config(self, config: RunConfig) -> None:
        """Write `config` into the folder. On one rank, after all ranks have agreed."""
        files.write_file(self.config, dump_config(config).encode())


def _hint(key: str) -> str:
    """Return what to know of a key that may not change when a run is resumed, where its default follows from other keys."""
    if key != "optimizer.schedule.total":
        return ""
    return (
        " (a cosine ends with the run unless optimizer.schedule.total says where; a run that ended there is not made longer)"
    )


def _read_object(path: pathlib.Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if there is none."""
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
