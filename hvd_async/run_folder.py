"""The folder of a run: where everything lies, and whether a run may begin or go on there."""

from __future__ import annotations

import contextlib
import enum
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import yaml

from hvd_async.atomic import write_file
from hvd_async.config import RunConfig, dump_config, parse_config
from hvd_async.errors import CheckpointError, ConfigError, DataError
from hvd_async.events import read_events
from hvd_async.locks import BusyError, held

if TYPE_CHECKING:
    from hvd_async.checkpoint import Checkpoint

# What may differ between a run and its continuation: how long, where and how it is watched; not what is computed.
_MAY_CHANGE = {"store", "output", "training", "validation", "decoding", "emulation", "simulation"}
_MUST_STAY_IN_TRAINING = {"precision", "label_smoothing"}


class Beginning(enum.Enum):
    """What to do in a folder where a run goes on if it can: begin, go on, or begin again a run of which nothing was saved."""

    NEW = "new"
    RESUME = "resume"
    AGAIN = "again"


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
            for path in (self.events, self.summary):
                path.unlink(missing_ok=True)
            for path in (self.snapshots, self.checkpoints, self.models, self.tensorboard):
                shutil.rmtree(path, ignore_errors=True)
        else:
            self.check_vacant()
        self.snapshots.mkdir(parents=True, exist_ok=True)
        self.keep_config(config)

    def check_vacant(self) -> None:
        """Raise `ConfigError` if there is a run here, or what is left of one. Touches nothing."""
        if self.config.exists():
            raise ConfigError(
                f"{self.root}: holds a run already; go on with --resume, replace it with --overwrite, or set another output"
            )
        if remains := self._remains():
            raise ConfigError(f"{remains}; put it back, remove them with --overwrite, or set another output")

    def how_to_begin(self, config: RunConfig) -> Beginning:
        """What to do here for `config`, for a job that may have been started before. Changes nothing.

        Raises `ConfigError` where `resume` would, and for what is left of a run without its configuration. A run that
        has ended, or of which a crash hid the checkpoint, is not begun again: it is for `resume` to say what is missing.
        """
        flag = "--auto-resume"
        if not self.config.exists():
            if remains := self._remains():
                mend = f"put it back, remove them with --overwrite in place of {flag}, or set another output"
                raise ConfigError(f"{flag}: {remains}; {mend}")
            return Beginning.NEW
        self.check_same(config, flag)
        was_saved = self.has_checkpoint() or self.summary.exists() or any(self.checkpoints.glob(".v*.old"))
        return Beginning.RESUME if was_saved else Beginning.AGAIN

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

    def resume(self, config: RunConfig, flag: str = "--resume") -> Checkpoint:
        """The latest checkpoint, to be continued with `config`; `flag` is what asked for it.

        Raises `CheckpointError` if there is none or it is damaged, `ConfigError` if `config` would compute something else.
        """
        from hvd_async.checkpoint import load_latest_checkpoint  # loads torch, which a reader of paths does not need

        self.check_is_run(flag)
        self.check_same(config, flag)
        checkpoint = load_latest_checkpoint(self.checkpoints)
        if checkpoint is None:
            raise CheckpointError(
                f"{self.checkpoints}: got no checkpoint, expected one to resume from; start with --overwrite in place of {flag}"
            )
        return checkpoint

    def _remains(self) -> str:
        """In words, what there is of a run whose configuration is missing; nothing where there is none.

        Snapshots are not asked for: a run that is killed as it begins leaves their empty folder.
        """
        found = [path.name for path in (self.events, self.summary) if path.exists()]
        if any(self.checkpoints.glob("*")):
            found.insert(0, self.checkpoints.name)
        return (
            f"{self.root}: got {', '.join(found)} without {self.config.name}, expected all of a run or none" if found else ""
        )

    def check_same(self, config: RunConfig, flag: str = "--resume") -> None:
        """Raises `ConfigError` if `config` would compute something else than the run that is here, or that was simulated."""
        before = parse_config(yaml.safe_load(self.config.read_text(encoding="utf-8")), source=str(self.config))
        if self.events.exists() and next(read_events(self.events), {}).get("simulated"):
            raise ConfigError(
                f"{flag}: {self.root}: got a simulated run, whose seconds are virtual, expected one of `hvd-async train`;"
                " replace it with --overwrite, or set another output"
            )
        if changed := _changed_keys(_comparable(before, config), _comparable(config, before)):
            lines = [f"{key}: got {new!r}, expected {old!r} as in {self.config}" for key, old, new in changed]
            raise ConfigError("\n".join(f"{flag}: {line}; or start another run" for line in lines))

    def keep_config(self, config: RunConfig) -> None:
        """Write `config` beside what it computes. On one rank, after all have agreed."""
        write_file(self.config, dump_config(config).encode())


def _comparable(config: RunConfig, other: RunConfig) -> dict[str, Any]:
    """`config` as plain data, with `provisional` as it takes effect: absent, true and false may mean the same."""
    fields = config.model_dump()
    are_async = config.strategy.kind == other.strategy.kind == "async"
    fields["strategy"]["provisional"] = are_async and config.strategy.has_provisional
    return fields


def _changed_keys(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    changed = []
    for section in before:
        old, new = before[section], after[section]
        if section == "training":
            old, new = ({key: value[key] for key in _MUST_STAY_IN_TRAINING} for value in (old, new))
        elif section in _MAY_CHANGE:
            continue
        if not isinstance(old, dict):
            old, new, section = {section: old}, {section: new}, ""
        prefix = f"{section}." if section else ""
        changed += [(prefix + key, old[key], new[key]) for key in sorted(old) if old[key] != new[key]]
    return changed
