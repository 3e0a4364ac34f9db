"""Weights & Biases, and MLflow: what each needs to show the curves of a run. Used in a process that only does this."""

from __future__ import annotations

import json
import os
import pathlib
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from hvd_async.errors import SetupError
from hvd_async.system.files import write_file
from hvd_async.system.json_text import parse_json

_PROJECT = "hvd_async"


@dataclass(frozen=True)
class TrackedRun:
    """The run as a tracker shows it. `settings`: its configuration, by dotted keys. `record`: file in the run's folder that keeps
    the tracker's name of the run, so that a resumed run continues its curves."""

    name: str
    settings: Mapping[str, Any]
    record: pathlib.Path

    def read_id(self) -> str:
        """Return the tracker's name of this run, empty if there is none yet."""
        try:
            found = parse_json(self.record.read_bytes())
        except (OSError, ValueError):
            return ""
        return str(found.get("id", "")) if isinstance(found, dict) else ""

    def keep_id(self, name: str) -> None:
        """Remember `name`. Raises `DataError` if the file system refuses."""
        write_file(self.record, json.dumps({"id": name}).encode())


class Tracker(Protocol):
    """A tracker. Every method may block on the network, and raise anything."""

    def open(self) -> None:
        """Begin a run, or continue it under its id."""

    def add(self, points: Mapping[str, float], version: int) -> None:
        """Add a point to each of the named curves."""

    def add_text(self, name: str, text: str, version: int) -> None:
        """Keep a text in Markdown beside the curves."""

    def close(self, *, is_failed: bool) -> None:
        """Send what is left, and end the run. `is_failed`: it ended with an error."""


class Wandb:
    """A run of Weights & Biases. Its own variables say where: `WANDB_PROJECT`, `WANDB_ENTITY`, `WANDB_MODE`."""

    def __init__(self, run: TrackedRun) -> None:
        """Start nothing."""
        self._tracked = run
        self._run: Any = None

    def open(self) -> None:
        """Begin the run, online unless `WANDB_MODE` is `offline`."""
        import wandb  # slow to import

        name = self._tracked.read_id() or uuid.uuid4().hex[:12]
        self._run = wandb.init(
            id=name,
            resume="allow",
            project=None if wandb.Settings().project else _PROJECT,
            name=self._tracked.name,
            dir=str(self._tracked.record.parent),
            config=dict(self._tracked.settings),
            settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True),
        )
        # Its own count of steps may not go back, as versions do where a run resumes.
        self._run.define_metric("*", step_metric="version")
        self._tracked.keep_id(name)

    def add(self, points: Mapping[str, float], version: int) -> None:
        self._run.log({**points, "version": version})

    def add_text(self, name: str, text: str, version: int) -> None:
        self._run.log({name: text, "version": version})

    def close(self, *, is_failed: bool) -> None:
        self._run.finish(exit_code=int(is_failed))


class Mlflow:
    """A run of MLflow. Its own variables say where: `MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME`."""

    def __init__(self, run: TrackedRun) -> None:
        """Start nothing."""
        self._tracked = run
        self._client: Any = None
        self._id = ""

    def open(self) -> None:
        """Begin the run, with the configuration as its parameters."""
        import mlflow  # slow to import
        from mlflow import entities
        from mlflow.environment_variables import MLFLOW_EXPERIMENT_NAME

        self._metric, self._client = entities.Metric, mlflow.MlflowClient()
        self._id = self._tracked.read_id()
        if self._id:
            self._client.update_run(self._id, status="RUNNING")
            return
        experiment = mlflow.set_experiment(MLFLOW_EXPERIMENT_NAME.get() or _PROJECT).experiment_id
        self._id = self._client.create_run(experiment, run_name=self._tracked.name).info.run_id
        parameters = [entities.Param(key, str(value)) for key, value in self._tracked.settings.items()]
        for start in range(0, len(parameters), 100):  # the most that the server takes at once
            self._client.log_batch(self._id, params=parameters[start : start + 100])
        self._tracked.keep_id(self._id)

    def add(self, points: Mapping[str, float], version: int) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(self._id, [self._metric(name, value, now, version) for name, value in points.items()])

    def add_text(self, name: str, text: str, version: int) -> None:
        self._client.log_text(self._id, text, f"{name}/v{version:08d}.md")

    def close(self, *, is_failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if is_failed else "FINISHED")


TRACKERS: Mapping[str, type[Wandb] | type[Mlflow]] = {"wandb": Wandb, "mlflow": Mlflow}


def check_variables(tracker: str, environ: Mapping[str, str] = os.environ) -> None:
    """Raise `SetupError` if a variable is missing without which the tracker cannot work."""
    if tracker == "mlflow" and not environ.get("MLFLOW_TRACKING_URI"):
        raise SetupError(
            "mlflow: MLFLOW_TRACKING_URI is not set, expected the address of a server, such as http://HOST:5000: the extra brings"
            " no server and no database"
        )
