"""Where the curves of a run go: TensorBoard, Weights & Biases, MLflow. The last two are called in a thread of their own."""

from __future__ import annotations

import contextlib
import json
import pathlib
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from hvd_async.system.files import write_file
from hvd_async.system.json_text import parse_json

_PROJECT = "hvd_async"
_MOST_WAITING = 10_000
"""Points that may wait for a slow tracker; more are left out, and counted."""
_LAST_SECONDS = 60.0
"""How long the end of a run waits for a tracker."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker shows of a run. `settings`: its configuration, by dotted keys. `ids`: file in the run's folder that keeps
    each tracker's name of the run, so that a resumed run continues its curves."""

    name: str
    settings: Mapping[str, Any]
    ids: pathlib.Path

    def id_of(self, tracker: str) -> str:
        """Return the tracker's name of this run, empty if there is none yet."""
        return str(self._all().get(tracker, ""))

    def keep_id(self, tracker: str, name: str) -> None:
        """Remember `name`. Raises `DataError` if the file system refuses."""
        write_file(self.ids, json.dumps({**self._all(), tracker: name}).encode())

    def _all(self) -> dict[str, Any]:
        try:
            found = parse_json(self.ids.read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


class CurveSink(Protocol):
    """One place for curves. Methods may raise anything; the caller then drops the sink and says so."""

    title: str
    place: str
    """Where the curves lie, for messages."""

    def open(self) -> None:
        """Begin, or continue the curves of an earlier process."""

    def add(self, points: Mapping[str, float], version: int) -> None:
        """Add a point to each of the named curves."""

    def add_text(self, name: str, text: str, version: int) -> None:
        """Keep a text in Markdown beside the curves."""

    def close(self, *, is_failed: bool) -> None:
        """Write what is left. `is_failed`: the run ended with an error."""


class TensorBoard:
    """Files in the run's folder."""

    title = "TensorBoard scalars"

    def __init__(self, folder: pathlib.Path, purge_from: int | None) -> None:
        """Open no file. `purge_from`: points of an earlier process from this version on are dropped."""
        self.place = str(folder)
        self._folder = folder
        self._purge_from = purge_from
        self._writer: Any = None

    def open(self) -> None:
        """Open the file."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._writer = SummaryWriter(str(self._folder), purge_step=self._purge_from)

    def add(self, points: Mapping[str, float], version: int) -> None:
        """Add to the buffer of the file."""
        for name, value in points.items():
            self._writer.add_scalar(name, value, version)

    def add_text(self, name: str, text: str, version: int) -> None:
        """Add to the buffer of the file."""
        self._writer.add_text(name, text, version)

    def close(self, *, is_failed: bool) -> None:
        """Write the buffer."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases. Its own variables say where: `WANDB_PROJECT`, `WANDB_ENTITY`, `WANDB_MODE`."""

    title = place = "wandb"

    def __init__(self, run: TrackedRun) -> None:
        """Start nothing."""
        self._tracked = run
        self._run: Any = None

    def open(self) -> None:
        """Begin a run, or continue it under its id. Blocks on the network, unless `WANDB_MODE` is `offline`."""
        import wandb  # slow to import

        name = self._tracked.id_of(self.title) or uuid.uuid4().hex[:12]
        self._run = wandb.init(
            id=name,
            resume="allow",
            project=None if wandb.Settings().project else _PROJECT,
            name=self._tracked.name,
            dir=str(self._tracked.ids.parent),
            config=dict(self._tracked.settings),
            settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True),
        )
        # Its own count of steps may not go back, as versions do where a run resumes.
        self._run.define_metric("*", step_metric="version")
        self._tracked.keep_id(self.title, name)

    def add(self, points: Mapping[str, float], version: int) -> None:
        """Hand the points to the package's own process."""
        self._run.log({**points, "version": version})

    def add_text(self, name: str, text: str, version: int) -> None:
        """Hand the text to the package's own process."""
        self._run.log({name: text, "version": version})

    def close(self, *, is_failed: bool) -> None:
        """Wait until everything is sent, or stored if offline."""
        self._run.finish(exit_code=int(is_failed))


class Mlflow:
    """A run of MLflow. Its own variables say where: `MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME`."""

    title = place = "mlflow"

    def __init__(self, run: TrackedRun) -> None:
        """Start nothing."""
        self._tracked = run
        self._client: Any = None
        self._id = ""

    def open(self) -> None:
        """Begin a run, or continue it under its id. Blocks on the network."""
        import mlflow  # slow to import
        from mlflow import entities
        from mlflow.environment_variables import MLFLOW_EXPERIMENT_NAME

        self._metric, self._client = entities.Metric, mlflow.MlflowClient()
        self._id = self._tracked.id_of(self.title)
        if self._id:
            self._client.update_run(self._id, status="RUNNING")
            return
        experiment = mlflow.set_experiment(MLFLOW_EXPERIMENT_NAME.get() or _PROJECT).experiment_id
        self._id = self._client.create_run(experiment, run_name=self._tracked.name).info.run_id
        parameters = [entities.Param(key, str(value)) for key, value in self._tracked.settings.items()]
        for start in range(0, len(parameters), 100):  # the most that the server takes at once
            self._client.log_batch(self._id, params=parameters[start : start + 100])
        self._tracked.keep_id(self.title, self._id)

    def add(self, points: Mapping[str, float], version: int) -> None:
        """Send the points, and wait for the answer."""
        now = int(time.time() * 1000)
        self._client.log_batch(self._id, [self._metric(name, value, now, version) for name, value in points.items()])

    def add_text(self, name: str, text: str, version: int) -> None:
        """Send the text as a file, and wait for the answer."""
        self._client.log_text(self._id, text, f"{name}/v{version:08d}.md")

    def close(self, *, is_failed: bool) -> None:
        """End the run."""
        self._client.set_terminated(self._id, "FAILED" if is_failed else "FINISHED")


class Relay:
    """Calls another sink in a thread of its own, since a tracker may be slow or not answer. Its errors are raised by the next
    call."""

    def __init__(self, sink: CurveSink) -> None:
        """Start no thread yet."""
        self.title, self.place = sink.title, sink.place
        self._sink = sink
        self._waiting: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._num_left_out = 0
        self._failure: Exception | None = None
        self._is_failed = False
        self._thread = threading.Thread(target=self._run, name=f"hvd-async-{sink.title}", daemon=True)

    def open(self) -> None:
        """Start the thread, which opens the sink."""
        self._thread.start()

    def add(self, points: Mapping[str, float], version: int) -> None:
        """Queue the points."""
        self._queue(lambda: self._sink.add(points, version))

    def add_text(self, name: str, text: str, version: int) -> None:
        """Queue the text."""
        self._queue(lambda: self._sink.add_text(name, text, version))

    def close(self, *, is_failed: bool) -> None:
        """Wait until the points are sent, for a minute at most. Raises `TimeoutError`, also if points were left out."""
        self._is_failed = is_failed
        self._waiting.put(None)
        self._thread.join(_LAST_SECONDS)
        self._raise()
        if self._thread.is_alive():
            raise TimeoutError(f"no answer within {_LAST_SECONDS:.0f} s of the end of the run")
        if self._num_left_out:
            raise TimeoutError(f"too slow: {self._num_left_out} points were left out")

    def _run(self) -> None:
        try:
            self._sink.open()
            while (call := self._waiting.get()) is not None:
                call()
            self._sink.close(is_failed=self._is_failed)
        except Exception as error:
            self._failure = error
            with contextlib.suppress(Exception):
                self._sink.close(is_failed=True)

    def _queue(self, call: Callable[[], None]) -> None:
        self._raise()
        if self._waiting.qsize() >= _MOST_WAITING:
            self._num_left_out += 1
            return
        self._waiting.put(call)

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure
