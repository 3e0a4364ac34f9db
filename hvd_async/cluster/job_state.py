"""States of a job in a batch system, in the same words for all of them."""

from __future__ import annotations

from typing import Literal

JobState = Literal["pending", "running", "completed", "failed", "cancelled"]
ENDED: tuple[JobState, ...] = ("completed", "failed", "cancelled")
