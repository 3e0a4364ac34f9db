"""The example of fine-tuning: the first script, then the second on real ranks, for a few steps."""

from __future__ import annotations

import pathlib
import runpy
import sys

import pytest
import safetensors.torch
import torch

from tests.examples.command import launch_script
from tests.mpi.runs import summary_of


@pytest.mark.mpi
def test_frozen_blocks_stay_as_they_were_on_disk(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pretrained.safetensors"
    monkeypatch.setattr(sys, "argv", ["pretrain", "--output", str(path), "--epochs", "1"])
    runpy.run_module("examples.finetune.pretrain", run_name="__main__")
    options = ("--pretrained", path, "--output", tmp_path / "run", "--epochs", "2")
    done = launch_script("async", "examples.finetune.train", *options)

    before, after = safetensors.torch.load_file(path), torch.load(tmp_path / "run/model.pt", weights_only=True)
    assert before.keys() == after.keys()
    equal = {name for name in before if torch.equal(before[name], after[name])}
    assert equal == {name for name in before if name.startswith(("blocks.0.", "blocks.1."))}
    scores = summary_of(tmp_path / "run")["last"]["scores"]
    assert f"accuracy {scores['accuracy']:.1f} %" in done.stdout


def test_without_the_network_on_disk_one_line_says_how_to_make_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "--pretrained", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("examples.finetune.train", run_name="__main__")
    assert ended.value.code == f"{tmp_path}/none: no such file; python -m examples.finetune.pretrain makes it"
