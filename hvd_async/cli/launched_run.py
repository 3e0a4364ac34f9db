"""The run that `launch` starts: its folder, and what it says of its end."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import TracebackType

from hvd_async.config import RunConfig, ScriptConfig
from hvd_async.launcher import Summary
from hvd_async.runs.folder import RunFolder
from hvd_async.system.files import stamp_of
from hvd_async.system.json_text import parse_json
from hvd_async.system.launch_page import SCRIPT_VARIABLE, LaunchPage


class LaunchedRun:
    """The run of a configuration, which names its folder, or of a script, whose rank 0 tells it if it is on this host.

    A context manager: inside the block the environment has the `SCRIPT_VARIABLE` of `launch_page` for the ranks that start."""

    def __init__(self, config: RunConfig, *, is_here: bool = True) -> None:
        """`config`: of a script, only what decides its ranks. `is_here`: all ranks are on this host, and
        see its processes, as those in a container may not."""
        self._is_here = is_here
        self._is_later = False  # the script had another run before
        self.config = config
        self.is_script = isinstance(config.task, ScriptConfig)
        self._page: LaunchPage | None = None
        self._folder = None if self.is_script else RunFolder(config.output)
        self._summary: Summary | None = None
        self._heard = ""
        self._config_before = None if self._folder is None else stamp_of(self._folder.config)

    def __enter__(self) -> LaunchedRun:
        """Listen to rank 0 of a script, where the system has memory without a name."""
        if self.is_script:
            with contextlib.suppress(AttributeError, OSError):
                self._page = LaunchPage()
                os.environ[SCRIPT_VARIABLE] = self._page.variable
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Listen no more."""
        if self._page is not None:
            os.environ.pop(SCRIPT_VARIABLE, None)
            self._page.close()

    def begin(self) -> None:
        """Note how things are before the ranks start."""
        if self._page is not None:
            self._page.clear()
        self._summary, self._heard = None, ""
        if self._folder is not None and not self.is_script:
            self._summary = Summary(self._folder.summary, stamp_of(self._folder.summary))

    def has_begun(self) -> bool:
        """Whether ranks have made a folder that of this run; True for a script of which that is not known."""
        folder = self.folder
        if folder is None:
            return self._page is None or not self._is_here
        return self._is_later or stamp_of(folder.config) != self._config_before

    @property
    def folder(self) -> RunFolder | None:
        """The run's folder; None if a script has not told it."""
        self._listen()
        return self._folder

    @property
    def is_unheard(self) -> bool:
        """Whether it is a script that would have told of its run, if it had begun one."""
        return self.is_script and self._is_here and self._page is not None and self.folder is None

    @property
    def summary(self) -> Summary | None:
        """The summary that the run writes at its end; None if a script has not told where, since `begin`."""
        self._listen()
        return self._summary

    def _listen(self) -> None:
        text = "" if self._page is None else self._page.read()
        if text in ("", self._heard):
            return
        with contextlib.suppress(ValueError, TypeError, KeyError):  # not all of it is there
            told = parse_json(text.encode(errors="surrogateescape"))
            if self._folder is None or self._folder.root != Path(told["folder"]):
                self._config_before = _stamp(told["config"])
            self._folder = RunFolder(Path(told["folder"]))
            self._is_later = self._is_later or bool(told["is_later"])
            self._summary = Summary(self._folder.summary, _stamp(told["summary"]))
            self._heard = text  # a script may have one run after another


def _stamp(told: list[int] | None) -> tuple[int, int] | None:
    return None if told is None else (int(told[0]), int(told[1]))
