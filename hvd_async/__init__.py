"""Asynchronous data-parallel training with summed arrivals, on MPI one-sided communication.

For a script with a training loop of its own: `init`, `torch_schedule`, `Metric`. For a task that a configuration names:
`DatasetTask`, `Metric`, `Task`. To start a run as a job, and to wait for it: `submit`, which returns a `SubmittedJob`.

Importing the package starts nothing, and loads nothing until a name is used. It sets the variable GOMP_SPINCOUNT for a torch
that is loaded later, so that its threads do not spin beside other busy processes.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from hvd_async.system.openmp import bound_spinning

if TYPE_CHECKING:
    from hvd_async.jobs.job import SubmittedJob
    from hvd_async.jobs.submission import submit
    from hvd_async.script.optimizer import torch_schedule
    from hvd_async.script.run import ScriptRun, init
    from hvd_async.tasks.dataset import DatasetTask
    from hvd_async.tasks.metric import Metric
    from hvd_async.tasks.task import Task

bound_spinning(os.environ)

__version__ = "0.2.0"
__all__ = ["DatasetTask", "Metric", "ScriptRun", "SubmittedJob", "Task", "init", "submit", "torch_schedule"]

_PLACES = {
    "DatasetTask": "hvd_async.tasks.dataset",
    "Metric": "hvd_async.tasks.metric",
    "ScriptRun": "hvd_async.script.run",
    "SubmittedJob": "hvd_async.jobs.job",
    "Task": "hvd_async.tasks.task",
    "init": "hvd_async.script.run",
    "submit": "hvd_async.jobs.submission",
    "torch_schedule": "hvd_async.script.optimizer",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
