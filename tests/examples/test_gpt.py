"""The example of the language model, on the documentation, for a few steps."""

from __future__ import annotations

import pathlib

import pytest
import torch

from tests.examples.command import ROOT, launch_script
from tests.mpi.runs import events_of, summary_of


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("further", "rate"),
    [
        ((), 3e-3),
        pytest.param(
            ("--muon",), 6e-3, marks=pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9")
        ),
    ],
)
def test_the_script_trains(tmp_path: pathlib.Path, further: tuple[str, ...], rate: float) -> None:
    text = tmp_path / "text"
    text.write_bytes((ROOT / "README.md").read_bytes()[:9000])
    options = ("--output", tmp_path / "run", "--epochs", "2", "--bfloat16", *further)
    done = launch_script("async", "examples.gpt.train", text, *options)
    scores = summary_of(tmp_path / "run")["last"]["scores"]
    assert scores["perplexity"] < 200 and f"perplexity {scores['perplexity']:.2f}" in done.stdout
    rates = [update["learning_rate"] for update in events_of(tmp_path / "run", "update")]
    assert rates[0] == pytest.approx(rate) and rates == sorted(rates, reverse=True)
