"""The mean of models: exact to one rounding, refused for models that are not alike, a model folder like any other."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from hvd_async.__main__ import main
from hvd_async.config import RunConfig
from hvd_async.errors import DataError
from hvd_async.tasks.translation.averaging import average
from hvd_async.tasks.translation.corpus import PreparedCorpus
from hvd_async.tasks.translation.export import load_model
from hvd_async.tasks.translation.translator import Translator
from tests.translation.models import write_model
from tests.translation.settings import make_config


@pytest.fixture
def folders(config: RunConfig, corpus: PreparedCorpus, tmp_path: Path) -> list[Path]:
    return [write_model(tmp_path / f"m{seed}", config, corpus, seed) for seed in (3, 8, 5)]


def test_the_mean_is_rounded_once(folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "mean"
    assert main(["average", *map(str, folders), "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}: mean of 3 models, of versions 3, 8, 5\n"
    mean = load_model(output)
    assert mean.meta == {"version": 8, "averaged_versions": [3, 8, 5]}
    parameters = [dict(load_model(folder).model.named_parameters()) for folder in folders]
    for name, found in mean.model.named_parameters():
        values = [each[name].flatten().tolist() for each in parameters]
        exact = [sum(map(Fraction, column)) / 3 for column in zip(*values, strict=True)]
        assert found.flatten().tolist() == [float(np.float32(float(number))) for number in exact], name


def test_the_mean_of_a_model_with_itself_is_the_model(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "mean"
    assert main(["average", *[str(folders[0])] * 3, "--output", str(output)]) == 0
    told = f"{output}: mean of 3 models, of versions 3, 3, 3; 2 of them repeat an earlier one, which therefore counts more\n"
    assert capsys.readouterr().out == told
    assert (output / "model.safetensors").read_bytes() == (folders[0] / "model.safetensors").read_bytes()
    lines = ["The dog sees the cat."]
    assert Translator.load(output).translate(lines) == Translator.load(folders[0]).translate(lines)


def test_models_that_are_not_alike_are_refused(
    folders: list[Path], folder: Path, corpus: PreparedCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_model(tmp_path / "other", make_config(folder, model={"heads": 4}), corpus, seed=1)
    output = tmp_path / "mean"
    assert main(["average", str(folders[0]), str(other), "--output", str(output)]) == 3
    assert capsys.readouterr().err == f"hvd-async: {other}: task.model.heads: got 4, expected 2 as in {folders[0]}\n"
    assert not output.exists()


def test_dropout_may_differ(folders: list[Path]) -> None:
    one = load_model(folders[0])
    task = one.config.translation
    changed = one.config.model_copy(
        update={"task": task.model_copy(update={"model": task.model.model_copy(update={"dropout": 0.3})})}
    )
    assert average([one, replace(one, config=changed)]).versions == [3, 3]


def test_a_model_that_diverged_is_refused(folders: list[Path]) -> None:
    broken = load_model(folders[1])
    with torch.no_grad():
        next(broken.model.parameters()).view(-1)[0] = torch.inf
    with pytest.raises(DataError, match=f"^{re.escape(str(folders[1]))}: got parameters that are not finite numbers"):
        average([load_model(folders[0]), broken])
    with pytest.raises(DataError, match="got no model"):
        average([])


def test_an_output_that_exists_is_kept(folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        assert main(["average", *arguments]) == 2
        return capsys.readouterr().err

    names = [str(each) for each in folders]
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "text").write_text("years of work")
    assert "exists already; replace it with --overwrite" in refused(*names, "--output", str(thesis))
    assert "which is no model folder; expected one, or a" in refused(*names, "--output", str(thesis), "--overwrite")
    assert "thesis/text is a file; expected a folder" in refused(*names, "--output", str(thesis / "text"))
    assert "which is one of the models; expected another" in refused(*names, "--output", names[1], "--overwrite")
    assert f"average: got one model, {names[0]}, expected two or more" in refused(names[0], "--output", "mean")
    assert (thesis / "text").read_text() == "years of work"
    assert main(["average", *names[:2], "--output", names[2], "--overwrite"]) == 0
    assert load_model(folders[2]).meta["averaged_versions"] == [3, 8]
    assert "encoder_norm.bias" in safetensors.torch.load_file(folders[2] / "model.safetensors")
