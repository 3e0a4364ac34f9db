"""Options of a run that come from the command line, not from the configuration."""

from __future__ import annotations

from dataclasses import dataclass

from hvd_async.training.stop_request import StopRequest


@dataclass(frozen=True)
class TrainOptions:
    """Options of a run from the command line. At most one of `resume`, `overwrite` and `auto_resume` is set.

    `resume`: resume a stopped run. `overwrite`: replace the contents of the output folder. `live_progress`: show a live
    progress bar. `auto_resume`: resume if there is a checkpoint, else begin. `stop`: a request that listens already, for a
    caller that handles signals before this module is loaded. `is_launched`: `hvd-async launch` started the ranks and reports
    how they ended, so a stop is no failure and the ranks do not report it."""

    resume: bool = False
    overwrite: bool = False
    live_progress: bool = False
    auto_resume: bool = False
    stop: StopRequest | None = None
    is_launched: bool = False
    is_of_script: bool = False
    """Whether a script chose these options itself, by arguments of `init`."""

    @property
    def resume_words(self) -> str:
        """How the user asked, or can ask, to resume, for messages."""
        if self.is_of_script:
            return 'init(resume="auto")' if self.auto_resume else "init(resume=True)"
        return "--auto-resume" if self.auto_resume else "--resume"
