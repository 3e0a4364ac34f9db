"""COMET (Rei et al. 2020), a score that a trained model gives, by the program `comet-score` of the package unbabel-comet.

The program runs apart, since its package needs older libraries than ours: it may be in an environment of its own.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from hvd_async.errors import ConfigError, SetupError
from hvd_async.system.printable import printable
from hvd_async.tasks.translation.scoring import NUM_SAMPLES, Difference, TextScore, bootstrap_seed

PROGRAM = "comet-score"
DEFAULT_MODEL = "Unbabel/wmt22-comet-da"


def check_program() -> None:
    """Raise `ConfigError` unless the program can be found."""
    if shutil.which(PROGRAM) is None:
        raise ConfigError(
            f"--metrics: got comet, but no program {PROGRAM} is on PATH; install it in an environment of its own, for example by"
            " `pipx install unbabel-comet`"
        )


def comet_of(
    systems: Sequence[Sequence[str]], sources: Sequence[str], references: Sequence[str], model: str = DEFAULT_MODEL
) -> list[list[float]]:
    """Return the score of each sentence that each of `systems` translated, about 0 to 1; higher is better.

    `model`: a name by which `comet-score` fetches a model, or the file of a checkpoint. Blocks, on a CPU for minutes; an
    exception, as from a signal, ends the program. Raises `SetupError` if the program fails.
    """
    with tempfile.TemporaryDirectory(prefix="hvd-async-") as name:
        folder = Path(name)
        texts = {"source": sources, "reference": references}
        texts |= {f"system{number}": system for number, system in enumerate(systems)}
        for title, lines in texts.items():
            (folder / title).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        files = [str(folder / title) for title in texts]
        found = folder / "scores.json"
        command = [PROGRAM, "-s", files[0], "-r", files[1], "-t", *files[2:], "--model", model, "--to_json", str(found)]
        command += ["--gpus", str(int(torch.cuda.is_available())), "--quiet", "--only_system"]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode:
            raise SetupError(f"{PROGRAM} failed with status {done.returncode}: {_last_line(done.stderr or done.stdout)}")
        try:
            scores = json.loads(found.read_bytes())
            values = [[float(sentence["COMET"]) for sentence in scores[file]] for file in files[2:]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SetupError(
                f"{PROGRAM} gave no scores ({type(error).__name__}: {error}), expected those of {model}"
            ) from None
    if any(len(each) != len(references) or not all(map(math.isfinite, each)) for each in values):
        raise SetupError(
            f"{PROGRAM} gave too few scores, or some that are not finite; expected {len(references)} for each text"
        )
    return values


def corpus_score(values: Sequence[float], model: str) -> TextScore:
    """Return the score of a text from those of its sentences, their mean."""
    return TextScore(statistics.fmean(values), f"model:{printable(model)}")


def difference(values: Sequence[float], others: Sequence[float]) -> Difference:
    """Return by how much the mean of `values` exceeds that of `others`, of the same sentences in the same order, with p by a
    paired bootstrap as in `scoring.difference_of`."""
    differences = np.asarray(values) - np.asarray(others)
    mean = float(differences.mean())
    if not mean:
        return Difference(0.0, 1.0)
    drawn = np.random.default_rng(bootstrap_seed()).integers(0, len(differences), (NUM_SAMPLES, len(differences)))
    means = differences[drawn].mean(axis=1)
    num_as_large = int((np.abs(means - means.mean()) > abs(mean)).sum())
    return Difference(mean, (num_as_large + 1) / (NUM_SAMPLES + 1))


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return printable(lines[-1].strip()) if lines else "it printed nothing"
