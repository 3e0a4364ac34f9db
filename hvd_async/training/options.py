"""What the command line adds to the configuration of a run."""

from __future__ import annotations

from dataclasses import dataclass

from hvd_async.training.stop_request import StopRequest


@dataclass(frozen=True)
class TrainOptions:
    """What the command line adds to a configuration: go on with a stopped run, or replace what its folder holds; whether
    progress is a live bar; go on where there is a checkpoint, else begin. At most one of the first, second and last is set.

    `stop` is listening already, for who wants to be heard before this module is loaded. `is_launched`: `hvd-async launch` started
    the ranks, and tells how they ended: a stop is no failure then, and is not told by them."""

    resume: bool = False
    overwrite: bool = False
    live_progress: bool = False
    auto_resume: bool = False
    stop: StopRequest | None = None
    is_launched: bool = False
