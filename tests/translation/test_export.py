from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from hvd_async.config import RunConfig
from hvd_async.errors import DataError
from hvd_async.tasks.translation.corpus import PreparedCorpus
from hvd_async.tasks.translation.export import export_model, load_model
from hvd_async.tasks.translation.transformer import Transformer


@pytest.fixture
def model(config: RunConfig, corpus: PreparedCorpus) -> Transformer:
    torch.manual_seed(1)
    return Transformer(config.translation.model, len(corpus.vocabularies.target))


@pytest.fixture
def exported(tmp_path: Path, model: Transformer, config: RunConfig, corpus: PreparedCorpus) -> Path:
    folder = tmp_path / "model"
    tensors = dict(model.named_parameters())
    export_model(folder, tensors, config, corpus.vocabularies, version=7, extra={"validation_loss": 1.5})
    return folder


def test_a_loaded_model_is_the_exported_one(exported: Path, model: Transformer, config: RunConfig) -> None:
    loaded = load_model(exported)
    assert loaded.config == config
    assert loaded.meta == {"version": 7, "validation_loss": 1.5}
    assert not loaded.model.training
    for (name, expected), found in zip(model.named_parameters(), loaded.model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, msg=name)


def test_a_run_without_a_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/events.jsonl").touch()
    for place in ("run", "run/models/best"):
        with pytest.raises(
            DataError,
            match=rf"{place}: the run .*run has no model yet: .*--resume, or make the model of a version: hvd-async replay",
        ):
            load_model(tmp_path / place)


def test_views_of_one_vector_can_be_exported(
    tmp_path: Path, model: Transformer, config: RunConfig, corpus: PreparedCorpus
) -> None:
    vector = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    views = {}
    for name, parameter in model.named_parameters():
        views[name], vector = vector[: parameter.numel()].view_as(parameter), vector[parameter.numel() :]
    export_model(tmp_path / "model", views, config, corpus.vocabularies, version=0, extra={})
    assert load_model(tmp_path / "model").meta == {"version": 0}


def test_an_older_model_is_replaced_without_leftovers(
    exported: Path, model: Transformer, config: RunConfig, corpus: PreparedCorpus
) -> None:
    export_model(exported, dict(model.named_parameters()), config, corpus.vocabularies, version=8, extra={})
    assert load_model(exported).meta == {"version": 8}
    assert list(exported.parent.iterdir()) == [exported]


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder; expected a trained model, such as runs/NAME/models/best"):
        load_model(tmp_path / "none")


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "vocabulary.model", "meta.json"])
def test_a_missing_file_is_named(exported: Path, name: str) -> None:
    (exported / name).unlink()
    with pytest.raises(DataError, match=f"{name}: no such file"):
        load_model(exported)


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "vocabulary.model", "meta.json"])
def test_a_damaged_file_is_named(exported: Path, name: str) -> None:
    path = exported / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(DataError, match=name):
        load_model(exported)


def test_meta_without_a_version_is_refused(exported: Path) -> None:
    (exported / "meta.json").write_text(json.dumps({"version": "seven"}))
    with pytest.raises(DataError, match=r"meta\.json: damaged: expected an object with the number `version`"):
        load_model(exported)


def test_tensors_of_another_shape_are_refused(exported: Path) -> None:
    tensors = safetensors.torch.load_file(exported / "model.safetensors")
    tensors["encoder_norm.bias"] = torch.zeros(3)
    safetensors.torch.save_file(tensors, exported / "model.safetensors")
    with pytest.raises(DataError, match=r"encoder_norm\.bias: got shape \[3\], expected \[16\]"):
        load_model(exported)


@pytest.mark.parametrize(("change", "side"), [("remove", "missing"), ("add", "unknown to the model")])
def test_missing_and_unknown_tensors_are_refused(exported: Path, change: str, side: str) -> None:
    tensors = safetensors.torch.load_file(exported / "model.safetensors")
    if change == "remove":
        del tensors["encoder_norm.bias"]
    else:
        tensors["stray"] = torch.zeros(1)
    safetensors.torch.save_file(tensors, exported / "model.safetensors")
    with pytest.raises(DataError, match=f"is {side}"):
        load_model(exported)


def test_a_run_given_instead_of_a_model_is_refused_with_its_models(exported: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("last", "best"):
        shutil.copytree(exported, run / "models" / name)
    with pytest.raises(
        DataError,
        match=f"{run}: holds models of runs but is not a model itself; expected {run}/models/best, {run}/models/last",
    ):
        load_model(run)


def test_a_model_that_diverged_is_recognised(exported: Path) -> None:
    loaded = load_model(exported)
    assert loaded.is_finite()
    with torch.no_grad():
        next(loaded.model.parameters()).view(-1)[-1] = torch.nan
    assert not loaded.is_finite()


def test_a_model_larger_than_memory_is_refused_by_the_header_of_its_tensors(exported: Path) -> None:
    path = exported / "config.yaml"
    path.write_text(re.sub("width: 16", f"width: {2**20}", path.read_text()))
    with pytest.raises(DataError, match=rf"model\.safetensors: .*: got shape .*, expected \[.*{2**20}\] by config\.yaml"):
        load_model(exported)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"version": ' + "9" * 5000 + "}", "\udcff"])
def test_a_hostile_description_is_reported_as_damaged(exported: Path, text: str) -> None:
    (exported / "meta.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"meta\.json: damaged: "):
        load_model(exported)


def test_the_name_of_a_tensor_is_printed_on_one_line(exported: Path) -> None:
    tensors = safetensors.torch.load_file(exported / "model.safetensors")
    tensors["a\nhvd-async: \x1b[31mforged"] = torch.zeros(1)
    safetensors.torch.save_file(tensors, exported / "model.safetensors")
    with pytest.raises(DataError) as caught:
        load_model(exported)
    assert "tensor a\\nhvd-async: \\x1b[31mforged is unknown" in str(caught.value) and str(caught.value).isprintable()
