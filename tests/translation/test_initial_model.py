"""Training that begins with an exported model, or with a vocabulary of the user's own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

from hvd_async.__main__ import main
from hvd_async.config import RunConfig, dump_config
from hvd_async.errors import ConfigError, DataError
from hvd_async.tasks.registry import check_data, estimate
from hvd_async.tasks.translation.builtin.grammar import write_corpus
from hvd_async.tasks.translation.corpus import PreparedCorpus, prepare
from hvd_async.tasks.translation.export import load_model
from hvd_async.tasks.translation.task import TranslationTask
from tests.mpi.runs import events_of, summary_of
from tests.translation.models import write_model
from tests.translation.settings import make_config


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another corpus, of which a vocabulary trained anew would differ."""
    folder = tmp_path_factory.mktemp("other")
    write_corpus(folder, train=200, validation=8, test=5, seed=9)
    return folder


def make_task(folder: Path, **changes: Any) -> TranslationTask:
    config = make_config(folder, **changes)
    return TranslationTask(config, prepare(config))


def test_training_begins_with_the_parameters_and_the_vocabulary(other: Path, model_folder: Path) -> None:
    first, scratch = load_model(model_folder), make_task(other)
    task = make_task(other, init_from=str(model_folder), model={"dropout": 0.4})
    model = task.build_model()
    for (name, mine), theirs in zip(model.named_parameters(), first.model.parameters(), strict=True):
        assert torch.equal(mine, theirs) and mine.requires_grad, name
    assert model.training and task._corpus.vocabularies.is_same(first.vocabularies)
    assert not task._corpus.vocabularies.is_same(scratch._corpus.vocabularies)
    assert f"training begins with the parameters of {model_folder}" in task.describe_data()


def test_the_fingerprint_is_that_of_what_training_begins_with(
    other: Path, model_folder: Path, config: RunConfig, corpus: PreparedCorpus, tmp_path: Path
) -> None:
    shutil.copytree(model_folder, tmp_path / "moved")
    changed = write_model(tmp_path / "changed", config, corpus, seed=2)
    by_file = {"vocabulary": {"file": str(model_folder / "vocabulary.model")}}
    found = [
        make_task(other, **changes).fingerprint()
        for changes in (
            {},
            by_file,
            {"init_from": str(model_folder)},
            {"init_from": str(tmp_path / "moved")},
            {"init_from": str(changed)},
        )
    ]
    assert found[2] == found[3] and len(set(found)) == 4
    # The settings of a vocabulary that is not trained change nothing.
    assert make_task(other, vocabulary={**by_file["vocabulary"], "size": 300}).fingerprint() == found[1]


def test_a_run_keeps_its_fingerprint_if_the_model_changes_meanwhile(
    other: Path, config: RunConfig, corpus: PreparedCorpus, tmp_path: Path
) -> None:
    """Every checkpoint has it, and the model may be that of a run that goes on."""
    task = make_task(other, init_from=str(write_model(tmp_path / "first", config, corpus, seed=3)))
    before = task.fingerprint()
    write_model(tmp_path / "first", config, corpus, seed=4)
    assert task.fingerprint() == before != make_task(other, init_from=str(tmp_path / "first")).fingerprint()
    shutil.rmtree(tmp_path / "first")
    assert task.fingerprint() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"width": 32}}, r"task\.model\.width: got 32, expected 16, as in .*model"),
        ({"model": {"heads": 1}}, r"task\.model\.heads: got 1, expected 2"),
        ({"model": {"norm": "post"}}, r"task\.model\.norm: got post, expected pre"),
        ({"model": {"kind": "gru"}}, r"task\.model\.kind: got gru, expected transformer"),
    ],
)
def test_a_model_of_another_shape_is_refused(other: Path, model_folder: Path, changes: Any, message: str) -> None:
    task = make_task(other, init_from=str(model_folder), **changes)
    with pytest.raises(ConfigError, match=message):
        task.build_model()


def test_a_model_in_the_runs_own_folder_is_refused_before_anything_is_replaced(folder: Path, tmp_path: Path) -> None:
    for key, value in (
        ("init_from", str(tmp_path / "run/models/best")),
        ("init_from", str(tmp_path / "run")),
        ("vocabulary", {"file": str(tmp_path / "run/x.model")}),
    ):
        with pytest.raises(ConfigError, match=rf"task\.{key}.*: got .*, which lies in the run's own output"):
            make_config(folder, output=str(tmp_path / "run"), **{key: value})
    make_config(folder, output=str(tmp_path / "run"), init_from=str(tmp_path / "runs/models/best"))


def test_what_is_not_there_is_named_with_its_key(folder: Path, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run/models/best").mkdir(parents=True)
    (tmp_path / "run/models/best/model.safetensors").touch()
    for place, message in (("nowhere", "no such folder"), ("run", "holds models of runs")):
        config = make_config(folder, init_from=str(tmp_path / place))
        for use in (check_data, estimate, prepare):
            with pytest.raises(DataError, match=rf"task\.init_from: .*{place}: {message}"):
                use(config)
    with pytest.raises(DataError, match=r"task\.vocabulary\.file: .*: no such file"):
        check_data(make_config(folder, vocabulary={"file": str(tmp_path / "nowhere")}))


def test_parameters_are_counted_with_the_given_vocabulary(folder: Path, model_folder: Path) -> None:
    size = len(load_model(model_folder).vocabularies.target)
    right, wrong = (estimate(make_config(folder, vocabulary={"size": number}))[0] for number in (size, 900))
    assert estimate(make_config(folder, vocabulary={"size": 900}, init_from=str(model_folder)))[0] == right < wrong


def test_another_vocabulary_is_refused(other: Path, folder: Path, model_folder: Path, tmp_path: Path) -> None:
    make_task(other)._corpus.vocabularies.target.save(tmp_path / "own.model")
    task = make_task(other, init_from=str(model_folder), vocabulary={"file": str(tmp_path / "own.model")})
    with pytest.raises(ConfigError, match=r"got another vocabulary than that of .*; leave it out"):
        task.build_model()


def test_a_vocabulary_of_ones_own_is_used(other: Path, tmp_path: Path) -> None:
    train = {
        "input": f"{other}/train.en,{other}/train.de",
        "vocab_size": 150,
        "hard_vocab_limit": False,
        "minloglevel": 2,
        "model_prefix": str(tmp_path / "own"),
    }
    sentencepiece.SentencePieceTrainer.train(**train, pad_id=0, unk_id=1, bos_id=2, eos_id=3)
    task = make_task(other, vocabulary={"file": str(tmp_path / "own.model")})
    assert len(task._corpus.vocabularies.target) <= 150
    assert any(
        line.startswith(f"vocabulary: {len(task._corpus.vocabularies.target)} pieces of ") for line in task.describe_data()
    )

    sentencepiece.SentencePieceTrainer.train(**train)
    with pytest.raises(DataError, match=r"= \(-1, 0, 1, 2\), expected \(0, 1, 2, 3\); train .*--pad_id=0 --unk_id=1"):
        make_task(other, vocabulary={"file": str(tmp_path / "own.model")})
    with pytest.raises(DataError, match=r"nowhere\.model: no such file"):
        make_task(other, vocabulary={"file": str(tmp_path / "nowhere.model")})


def test_a_run_goes_on_from_the_model_of_another_run(
    folder: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make_config(folder, metrics=[], training={"epochs": 3}, optimizer={"learning_rate": 0.01})
    (tmp_path / "first.yaml").write_text(dump_config(first))
    assert main(["simulate", str(tmp_path / "first.yaml"), "--set", f"output={tmp_path / 'first'}"]) == 0
    command = [
        "simulate",
        str(tmp_path / "first.yaml"),
        "--set",
        f"task.data.folder={other}",
        "--set",
        "training.epochs=null",
    ]
    command += ["--set", "training.updates=1"]
    model = f"task.init_from={tmp_path / 'first/models/last'}"
    assert main([*command, "--set", f"output={tmp_path / 'scratch'}"]) == 0
    assert main([*command, "--set", f"output={tmp_path / 'second'}", "--set", model]) == 0
    losses = [summary_of(tmp_path / name)["last"]["scores"]["loss"] for name in ("first", "scratch", "second")]
    assert losses[2] < losses[1] - 0.5 and losses[2] < losses[0] + 0.5
    assert (
        events_of(tmp_path / "second", "start")[0]["data_fingerprint"]
        != events_of(tmp_path / "scratch", "start")[0]["data_fingerprint"]
    )
    capsys.readouterr()
    assert main(["replay", str(tmp_path / "second")]) == 0
    assert main([*command, "--set", f"output={tmp_path / 'third'}", "--set", f"task.init_from={tmp_path}"]) == 3
    assert capsys.readouterr().err.count("\n") == 1
