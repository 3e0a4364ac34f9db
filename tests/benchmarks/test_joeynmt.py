"""Training steps of JoeyNMT beside ours. `HVD_ASYNC_JOEYNMT` names a Python that has it; the figures need no JoeyNMT."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hvd_async.benchmarks.joeynmt import JoeyNmt
from hvd_async.benchmarks.measurement import Spread
from hvd_async.benchmarks.translation import _corpus, joeynmt_figure
from hvd_async.benchmarks.translation_measurement import FLOAT32, JOEYNMT, TrainingEffort, measure_beside_joeynmt
from hvd_async.errors import ConfigError
from hvd_async.tasks.translation.task import TranslationTask

PYTHON = os.environ.get("HVD_ASYNC_JOEYNMT", "")
needs_joeynmt = pytest.mark.skipif(not PYTHON, reason="HVD_ASYNC_JOEYNMT does not name a Python that has JoeyNMT")


@needs_joeynmt
def test_both_models_have_as_many_parameters_and_compute_steps_in_turns() -> None:
    with _corpus(None) as (config, corpus):
        rates, version = measure_beside_joeynmt(PYTHON, config, corpus, TrainingEffort(1, 1, 1.0))
    assert version and rates.keys() == {FLOAT32, JOEYNMT} and all(spread.median > 0 for spread in rates.values())


def test_the_figure_says_how_many_times_faster_we_are() -> None:
    figure = joeynmt_figure({FLOAT32: Spread.of([300.0]), JOEYNMT: Spread.of([200.0])}, "2.3.0")
    assert figure.ratio == 1.5 and figure.limit is not None and figure.limit.name == "JoeyNMT 2.3.0"


NOWHERE = "--joeynmt: /nowhere cannot be started: No such file or directory; expected a Python"
WITHOUT = Path(sys.executable)  # JoeyNMT needs an older protobuf than ours


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("/nowhere", NOWHERE),
        ("false", "--joeynmt: JoeyNMT could not be run: it said nothing"),
        (str(WITHOUT), "--joeynmt: JoeyNMT could not be run: ModuleNotFoundError: No module named 'joeynmt'"),
    ],
)
def test_a_python_without_joeynmt_is_refused(python: str, message: str) -> None:
    with _corpus(None) as (config, corpus):
        batch = TranslationTask(config, corpus).batch(0, "cpu")
        with pytest.raises(ConfigError) as caught:
            JoeyNmt(python, config, 1000, [batch])
    assert str(caught.value) == message


def test_the_command_ends_in_one_line_before_it_measures() -> None:
    command = [sys.executable, "-m", "hvd_async", "bench", "translation", "--joeynmt", "/nowhere", "--repeats", "1"]
    done = subprocess.run([*command, "--seconds", "0.1"], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2 and done.stderr == f"hvd-async: {NOWHERE}\n"
