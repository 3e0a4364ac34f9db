"""A vocabulary for each side: through training, export, translation, scores, ensembles, means and further training."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hvd_async.__main__ import main
from hvd_async.config import RunConfig, dump_config
from hvd_async.errors import ConfigError, DataError
from hvd_async.tasks.registry import check_data, estimate
from hvd_async.tasks.translation.builtin.grammar import write_corpus
from hvd_async.tasks.translation.corpus import PreparedCorpus, prepare
from hvd_async.tasks.translation.export import load_model
from hvd_async.tasks.translation.task import TranslationTask
from hvd_async.tasks.translation.text import read_split
from hvd_async.tasks.translation.translator import Translator
from tests.translation.models import write_model
from tests.translation.settings import make_config

SEPARATE: dict[str, Any] = {"vocabulary": {"shared": False, "size": 150}, "model": {"tie_embeddings": "decoder"}}
FILES = {"model.safetensors", "config.yaml", "meta.json", "vocabulary.source.model", "vocabulary.target.model"}
LINES = ["The dog sees the cat.", "", "A child sleeps."]


def separate(folder: Path, **changes: Any) -> RunConfig:
    merged = {
        key: {**SEPARATE.get(key, {}), **value} if isinstance(value, dict) else value for key, value in changes.items()
    }
    return make_config(folder, **{**SEPARATE, **merged})


@pytest.fixture(scope="module")
def pair(folder: Path) -> PreparedCorpus:
    return prepare(separate(folder))


@pytest.fixture
def models(folder: Path, pair: PreparedCorpus, tmp_path: Path) -> list[Path]:
    return [write_model(tmp_path / f"m{seed}", separate(folder), pair, seed) for seed in (1, 2)]


def test_each_side_has_pieces_of_its_own(folder: Path, pair: PreparedCorpus, corpus: PreparedCorpus) -> None:
    vocabularies = pair.vocabularies
    assert vocabularies.sizes == (150, 150) and not vocabularies.are_shared and corpus.vocabularies.are_shared
    assert not vocabularies.source.is_same(vocabularies.target)
    assert not vocabularies.is_same(corpus.vocabularies) and vocabularies.is_same(prepare(separate(folder)).vocabularies)
    text = read_split(folder, "train", "en", "de")
    everything = range(len(pair.train))
    assert vocabularies.source.decode([pair.train.source(i).tolist() for i in everything]) == text.sources
    assert vocabularies.target.decode([pair.train.target(i).tolist() for i in everything]) == text.targets
    pieces = set(vocabularies.source.pieces(range(4, 150)))
    assert all(
        any(piece in line.replace(" ", "\u2581") or piece[0] == "\u2581" for line in text.sources) for piece in pieces
    )


@pytest.mark.parametrize("kind", ["transformer", "gru"])
def test_a_run_trains_exports_replays_and_is_scored(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    config = separate(folder, output=str(tmp_path / "run"), model={"kind": kind}, training={"device": "cpu", "threads": 1})
    (tmp_path / "run.yaml").write_text(dump_config(config))
    assert main(["train", str(tmp_path / "run.yaml")]) == 0
    model = tmp_path / "run/models/last"
    assert {path.name for path in model.iterdir()} == FILES
    assert main(["replay", str(tmp_path / "run"), "--output", str(tmp_path / "replayed")]) == 0
    for name in FILES - {"config.yaml"}:
        assert (tmp_path / "replayed" / name).read_bytes() == (model / name).read_bytes(), name
    capsys.readouterr()
    validation = [str(folder / f"val.{language}") for language in ("en", "de")]
    scored = ["score", str(model), "--source", validation[0], "--reference", validation[1]]
    assert main([*scored, "--likelihood"]) == 0
    loss = json.loads((tmp_path / "run/summary.json").read_text())["last"]["scores"]["loss"]
    (nats,) = re.findall(r": (\S+) nats per piece", capsys.readouterr().out)
    assert float(nats) == pytest.approx(loss, abs=1e-5)  # the references are cut as in the run
    assert main(scored) == 0 and capsys.readouterr().out.startswith("BLEU ")


def test_sides_may_have_vocabularies_of_different_sizes_and_kinds(
    folder: Path, pair: PreparedCorpus, tmp_path: Path
) -> None:
    pair.vocabularies.source.save(tmp_path / "s.model")
    prepare(make_config(folder)).vocabularies.target.save(tmp_path / "t.model")
    files = {"source_file": str(tmp_path / "s.model"), "target_file": str(tmp_path / "t.model")}
    config = separate(
        folder, vocabulary=files, data={"prepared": str(tmp_path / "prepared")}, model={"tie_embeddings": "none"}
    )
    check_data(config)
    task = TranslationTask(config, prepare(config))
    model = task.build_model()
    assert model.source_embedding.weight.shape == (150, 16) and model.target_embedding.weight.shape == (200, 16)
    assert model.output.weight.shape == (200, 16)
    assert estimate(config)[0] == sum(each.numel() for each in model.parameters())
    assert f"vocabulary: 150 and 200 pieces of {tmp_path / 's.model'} and {tmp_path / 't.model'}; " in "\n".join(
        task.describe_data()
    )
    loss, num_tokens = task.loss(model, task.batch(0, "cpu"))
    assert loss.isfinite() and num_tokens > 0
    folder_of_model = write_model(tmp_path / "model", config, prepare(config), seed=1)
    assert load_model(folder_of_model).vocabularies.sizes == (150, 200)
    assert len(Translator.load(folder_of_model).translate(LINES)) == 3


def test_ensembles_and_means_take_models_with_such_vocabularies(
    models: list[Path], model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.en").write_text("".join(f"{line}\n" for line in LINES))
    command = ["translate", *map(str, models), "--input", str(tmp_path / "a.en")]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines() == Translator.load(*models).translate(LINES)
    mean = tmp_path / "mean"
    assert main(["average", *map(str, models), "--output", str(mean)]) == 0
    assert {path.name for path in mean.iterdir()} == FILES
    assert main(["average", *map(str, models), "--output", str(mean), "--overwrite"]) == 0
    capsys.readouterr()
    assert main(["translate", str(models[0]), str(model_folder), "--input", str(tmp_path / "a.en")]) == 3
    assert capsys.readouterr().err == (
        f"hvd-async: {model_folder}: got another vocabulary (200 pieces), expected that of {models[0]} (150 and 150 pieces);"
        " train with the same text, task.vocabulary and seed\n"
    )


def test_training_begins_with_both_vocabularies_of_a_model(models: list[Path], model_folder: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "text", train=100, validation=8, test=5, seed=9)
    config = separate(tmp_path / "text", init_from=str(models[0]))
    task = TranslationTask(config, prepare(config))
    first = load_model(models[0])
    assert task._corpus.vocabularies.is_same(first.vocabularies)
    for mine, theirs in zip(task.build_model().parameters(), first.model.parameters(), strict=True):
        assert mine.equal(theirs)
    with pytest.raises(
        DataError, match=r"task\.vocabulary\.shared: got false, expected true: .* has one vocabulary for both sides"
    ):
        check_data(separate(tmp_path / "text", init_from=str(model_folder)))
    with pytest.raises(
        DataError, match=r"task\.vocabulary\.shared: got true, expected false: .* has a vocabulary for each side"
    ):
        check_data(make_config(tmp_path / "text", init_from=str(models[0])))


def test_dropout_cuts_each_side_with_its_own_pieces(folder: Path, pair: PreparedCorpus) -> None:
    task = TranslationTask(separate(folder, vocabulary={"bpe_dropout": 0.3}), pair)
    plain, cut = TranslationTask(separate(folder), pair).batch(0, "cpu"), task.batch(0, "cpu")
    for one, other, vocabulary in (
        (plain.source, cut.source, pair.vocabularies.source),
        (plain.target_output, cut.target_output, pair.vocabularies.target),
    ):
        assert one.shape != other.shape and vocabulary.decode(one.tolist()) == vocabulary.decode(other.tolist())


@pytest.mark.parametrize("missing", ["vocabulary.source.model", "vocabulary.target.model"])
def test_a_model_without_one_of_its_vocabularies_is_refused(models: list[Path], missing: str) -> None:
    (models[0] / missing).unlink()
    with pytest.raises(DataError, match=rf"{re.escape(missing)}: no such file; expected a trained model with"):
        load_model(models[0])


def test_vocabularies_that_do_not_fit_the_configuration_are_refused(
    models: list[Path], model_folder: Path, tmp_path: Path
) -> None:
    (models[0] / "config.yaml").write_bytes((model_folder / "config.yaml").read_bytes())
    with pytest.raises(
        DataError, match=r"got a vocabulary for each side, expected one vocabulary for both sides, as its config\.yaml says"
    ):
        load_model(models[0])


@pytest.mark.parametrize(
    ("vocabulary", "tie", "message"),
    [
        (
            {"shared": False},
            "all",
            "task: model.tie_embeddings: got all with vocabulary.shared false, expected decoder or none",
        ),
        (
            {"shared": False, "file": "a"},
            "none",
            "task.vocabulary: file: got one with shared false, expected source_file and",
        ),
        (
            {"source_file": "a", "target_file": "b"},
            "none",
            "task.vocabulary: source_file: got a file with shared true, expected",
        ),
        (
            {"shared": False, "target_file": "b"},
            "none",
            "task.vocabulary: target_file: got a file for one side, expected both",
        ),
    ],
)
def test_keys_that_do_not_go_together_are_refused(folder: Path, vocabulary: Any, tie: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_config(folder, vocabulary=vocabulary, model={"tie_embeddings": tie})


def test_a_size_that_one_side_does_not_allow_names_the_side(tmp_path: Path) -> None:
    for language, lines in (("en", ["a b", "b a"]), ("de", ["der alte Hund schläft", "die Katze rennt"])):
        for split in ("train", "val"):
            (tmp_path / f"{split}.{language}").write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(
        DataError, match=r"task\.vocabulary\.size: got 150, expected at most \d+ for so small a text \(on the source"
    ):
        prepare(separate(tmp_path))
