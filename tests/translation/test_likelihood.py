"""Log probabilities of given translations, against a forward pass of each sentence alone and against the validation loss."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from hvd_async.__main__ import main
from hvd_async.config import DecodingConfig, RunConfig
from hvd_async.errors import DataError
from hvd_async.tasks.translation.batching import collate
from hvd_async.tasks.translation.corpus import PreparedCorpus
from hvd_async.tasks.translation.decoding import n_best
from hvd_async.tasks.translation.likelihood import Likelihood, log_probabilities, nats_per_piece, perplexity
from hvd_async.tasks.translation.task import TranslationTask
from hvd_async.tasks.translation.translator import Translator
from tests.translation.models import SOURCES, Kind, make_model

TARGETS = [[5, 6], [4, 4, 4], [], [6], [5, 4, 6, 4, 5, 6]]


@pytest.mark.parametrize("kind", ["transformer", "gru"])
@pytest.mark.parametrize("threads", [None, 2])
def test_each_token_has_the_log_probability_of_its_sentence_alone(kind: Kind, threads: int | None) -> None:
    model = make_model(kind, 2)
    found = log_probabilities(model, SOURCES, TARGETS, DecodingConfig(batch_sentences=3), threads=threads)
    for source, target, logs in zip(SOURCES, TARGETS, found, strict=True):
        batch = collate([source], [target])
        with torch.no_grad():
            expected = torch.log_softmax(model(batch.source, None, batch.target_input), dim=1)
        assert logs == pytest.approx([float(row[token]) for row, token in zip(expected, [*target, 3], strict=True)])


def test_the_perplexity_of_the_validation_split_is_that_of_the_validation_loss(
    model_folder: Path, config: RunConfig, corpus: PreparedCorpus
) -> None:
    translator = Translator.load(model_folder)
    likelihoods = translator.likelihoods(corpus.validation_sources, corpus.validation_targets)
    task = TranslationTask(config, corpus)
    loss = task.scores(task.evaluate(translator.models[0].model))["loss"]
    assert perplexity(likelihoods) == pytest.approx(math.exp(loss), rel=1e-5)
    for text, one in zip(corpus.validation_targets, likelihoods, strict=True):
        assert "".join(one.pieces[:-1]).replace("\u2581", " ").strip() == text and "eos" in one.pieces[-1]


@pytest.mark.parametrize("kind", ["transformer", "gru"])
def test_the_best_translations_are_as_probable_as_the_search_says(kind: Kind) -> None:
    model = make_model(kind, 6)
    for source, found in zip(SOURCES, n_best(model, SOURCES, DecodingConfig(), beam=5, num_best=5), strict=True):
        forced = log_probabilities(model, [source] * len(found), [one.tokens for one in found], DecodingConfig())
        assert [sum(logs) for logs in forced] == pytest.approx([one.log_probability for one in found])


def test_references_are_checked(model_folder: Path) -> None:
    translator = Translator.load(model_folder)
    with pytest.raises(DataError, match=r"^references: got 1, expected 2, one for each source$"):
        translator.likelihoods(["a", "b"], ["c"])
    with pytest.raises(DataError, match=r"^reference 2: got \d+ tokens, expected at most"):
        translator.likelihoods(["a", "b"], ["", "cat " * 600])


def test_a_perplexity_counts_pieces_and_may_be_infinite() -> None:
    found = [Likelihood(["a", "e"], [-1.0, -2.0]), Likelihood(["e"], [-3.0])]
    assert perplexity(found) == pytest.approx(math.exp(2.0)) and found[0].log_probability == -3.0
    assert perplexity([Likelihood(["e"], [-1e5])]) == math.inf
    assert perplexity([Likelihood(["e"], [-math.inf])]) == math.inf
    assert math.isnan(perplexity([])) and nats_per_piece(found) == pytest.approx(2.0)


def test_score_prints_the_perplexity_and_writes_each_piece(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, reference, output = tmp_path / "a.en", tmp_path / "a.de", tmp_path / "a.tsv"
    sources, references = ["The dog sees the cat.", "We sleep."], ["Der Hund", "Wir \u6f22"]
    source.write_text("\n".join(sources) + "\n")
    reference.write_text("\n".join(references) + "\n")
    command = ["score", str(model_folder), "--source", str(source), "--reference", str(reference), "--likelihood"]
    assert main([*command, "--output", str(output)]) == 0
    expected = Translator.load(model_folder).likelihoods(sources, references)
    num = sum(len(one.pieces) for one in expected)
    text = capsys.readouterr().out
    assert text.startswith(
        f"perplexity {perplexity(expected):.4f}: {math.log(perplexity(expected)):.6f} nats per piece, {num} "
    )
    assert text.endswith(" pieces of 2 references, ends included, 1 of them unknown\n")
    for number, (row, one) in enumerate(zip(output.read_text().splitlines(), expected, strict=True), start=1):
        line, total, pieces, logs = row.split("\t")
        assert (line, pieces.split(" ")) == (str(number), one.pieces)
        assert float(total) == pytest.approx(one.log_probability, abs=1e-5)
        assert [float(log) for log in logs.split(" ")] == pytest.approx(one.log_probabilities, abs=1e-5)
    assert main([*command, "--beam", "2"]) == 2
    assert "--beam has no effect with --likelihood, which translates nothing; remove" in capsys.readouterr().err
