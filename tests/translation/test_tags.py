"""One model for several languages: tags in the source, which stay whole, say into which one to translate."""

from __future__ import annotations

from pathlib import Path

import pytest

from hvd_async.__main__ import main
from hvd_async.config import dump_config
from hvd_async.tasks.translation.corpus import PreparedCorpus, prepare
from hvd_async.tasks.translation.task import TranslationTask
from tests.translation.settings import make_config

WORDS = ("one", "two", "three", "four", "five", "six")
OF_TAG = {
    "<2de>": ("eins", "zwei", "drei", "vier", "fünf", "sechs"),
    "<2fr>": ("un", "deux", "trois", "quatre", "cinq", "six"),
}


def test_a_tag_says_into_which_language_to_translate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = []
    for number, (tag, translations) in enumerate(OF_TAG.items()):
        pairs = [
            (f"{tag} {one} {two}", f"{translations[i]} {translations[j]}")
            for i, one in enumerate(WORDS)
            for j, two in enumerate(WORDS)
        ]
        names.append(f"train{number}")
        for side, ending in enumerate(("en", "de")):
            text = "".join(f"{pair[side]}\n" for pair in pairs)
            (tmp_path / f"{names[-1]}.{ending}").write_text(text * 3)
            (tmp_path / f"val.{ending}").write_text(text)
    config = make_config(
        tmp_path,
        data={"train": names},
        vocabulary={"size": 80, "symbols": list(OF_TAG)},
        model={"width": 32},
        optimizer={"learning_rate": 0.02},
        training={"epochs": 40, "device": "cpu", "tensorboard": False},
        validation={"every": None},
    )
    (tmp_path / "run.yaml").write_text(dump_config(config))
    assert main(["train", str(tmp_path / "run.yaml")]) == 0
    assert "symbols that the training text lacks" not in capsys.readouterr().out
    (tmp_path / "text").write_text("".join(f"{tag} three five\n" for tag in OF_TAG))
    capsys.readouterr()
    assert main(["translate", str(tmp_path / "run/models/last"), "--input", str(tmp_path / "text")]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{words[2]} {words[4]}" for words in OF_TAG.values()]


def test_symbols_that_the_text_lacks_are_told(folder: Path) -> None:
    config = make_config(folder, vocabulary={"size": 220, "symbols": ["<2de>", "."]})
    lines = TranslationTask(config, prepare(config)).describe_data()
    assert "symbols that the training text lacks: <2de> (task.vocabulary.symbols)" in lines


def test_symbols_have_no_effect_on_a_given_vocabulary(folder: Path, corpus: PreparedCorpus, tmp_path: Path) -> None:
    corpus.vocabularies.source.save(tmp_path / "own.model")
    config = make_config(folder, vocabulary={"file": str(tmp_path / "own.model"), "symbols": ["<2de>"]})
    lines = TranslationTask(config, prepare(config)).describe_data()
    assert any("are unused" in line for line in lines) and not any("training text lacks" in line for line in lines)
