"""JoeyNMT's training steps in a process of its own, whose Python may have other packages than ours."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from hvd_async.config import RunConfig
from hvd_async.errors import ConfigError
from hvd_async.system.printable import printable
from hvd_async.tasks.translation.batching import Batch

_PROGRAM = Path(__file__).with_name("joeynmt_program.py")


class JoeyNmt:
    """A model of JoeyNMT with the sizes of ours, which computes steps on the same batches; a context manager."""

    def __init__(self, python: str, config: RunConfig, vocabulary_size: int, batches: Sequence[Batch]) -> None:
        """Start `python`, an interpreter that has JoeyNMT.

        Raises `ConfigError` if it cannot be started or has none, or for a model that JoeyNMT lacks.
        """
        model = config.translation.model
        if model.attention_dropout:
            raise ConfigError(f"task.model.attention_dropout: got {model.attention_dropout}, expected 0 beside JoeyNMT")
        self._folder = tempfile.TemporaryDirectory(prefix="hvd-async-bench-")
        arrays: dict[str, Any] = {f"source{i}": batch.source.numpy() for i, batch in enumerate(batches)}
        arrays |= {f"target{i}": _whole_targets(batch).numpy() for i, batch in enumerate(batches)}
        np.savez(f"{self._folder.name}/batches.npz", **arrays)
        try:
            self._process = subprocess.Popen(
                [python, "-P", str(_PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        except OSError as error:
            self._folder.cleanup()
            raise ConfigError(f"--joeynmt: {python} cannot be started: {error.strerror}; expected a Python") from None
        try:
            started = self._ask(
                {
                    "model": model.model_dump(),
                    "label_smoothing": config.translation.label_smoothing,
                    "vocabulary_size": vocabulary_size,
                    "batches": f"{self._folder.name}/batches.npz",
                }
            )
            self.version, self.num_parameters = str(started["version"]), int(started["parameters"])
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> JoeyNmt:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """End the process."""
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def cpu_seconds(self, numbers: Sequence[int]) -> float:
        """Return the seconds of CPU time that steps on the batches `numbers` take, forward and backward. Blocks until they are
        done. Raises `ConfigError` if the process has ended."""
        return float(self._ask([*numbers]))

    def _ask(self, request: object) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None and self._process.stderr is not None
        try:
            self._process.stdin.write(f"{json.dumps(request)}\n")
            self._process.stdin.flush()
            if answer := self._process.stdout.readline():
                return json.loads(answer)
        except (BrokenPipeError, ValueError):
            pass  # its last words say why
        self._process.kill()
        lines = self._process.stderr.read().splitlines() or ["it said nothing"]
        raise ConfigError(f"--joeynmt: JoeyNMT could not be run: {printable(lines[-1].strip())}")


def _whole_targets(batch: Batch) -> torch.Tensor:
    """Return the targets with begin and end of sentence, [B, T + 1]."""
    return torch.cat([batch.target_input[:, :1], batch.target_output], dim=1)
