"""Ensembles: a mean of probabilities, which the search and forced scores take alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hvd_async.__main__ import main
from hvd_async.config import DecodingConfig, RunConfig
from hvd_async.errors import ConfigError, DataError
from hvd_async.tasks.translation.batching import collate
from hvd_async.tasks.translation.corpus import PreparedCorpus, prepare
from hvd_async.tasks.translation.decoding import n_best, translate
from hvd_async.tasks.translation.ensemble import Ensemble
from hvd_async.tasks.translation.likelihood import log_probabilities
from hvd_async.tasks.translation.sampling import Sampling, sample
from hvd_async.tasks.translation.translator import Translator
from tests.translation.models import SOURCES, Kind, make_model, write_model
from tests.translation.settings import make_config

LINES = ["The dog sees the cat.", "", "We sleep."]


@pytest.mark.parametrize("kind", ["transformer", "gru"])
@pytest.mark.parametrize("copies", [1, 2, 3])
def test_an_ensemble_of_a_model_with_itself_is_the_model(kind: Kind, copies: int) -> None:
    model = make_model(kind, 4)
    ensemble = Ensemble([model] * copies)
    for beam in (1, 4):
        assert translate(ensemble, SOURCES, DecodingConfig(), beam=beam) == translate(
            model, SOURCES, DecodingConfig(), beam=beam
        )
    expected = n_best(model, SOURCES, DecodingConfig(), beam=4, num_best=4)
    for mine, theirs in zip(n_best(ensemble, SOURCES, DecodingConfig(), beam=4, num_best=4), expected, strict=True):
        assert [one.tokens for one in mine] == [one.tokens for one in theirs]
        assert [one.score for one in mine] == pytest.approx([one.score for one in theirs])
    drawn = [[one.tokens for [one] in sample(each, SOURCES, DecodingConfig(), Sampling())] for each in (ensemble, model)]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("kinds", [("transformer", "transformer"), ("transformer", "gru")])
def test_probabilities_are_the_mean_of_those_of_the_models(kinds: tuple[Kind, Kind]) -> None:
    models = [make_model(kind, seed) for seed, kind in enumerate(kinds)]
    found = n_best(Ensemble(models), SOURCES, DecodingConfig(length_penalty=0.0), beam=3, num_best=3)
    for source, hypotheses in zip(SOURCES, found, strict=True):
        for one in hypotheses:
            batch = collate([source], [one.tokens])
            with torch.no_grad():
                means = sum(torch.softmax(model(batch.source, None, batch.target_input), dim=1) for model in models) / 2
            targets = torch.tensor([*one.tokens, 3])[:, None]
            expected = means.gather(1, targets).log().squeeze(1)
            assert one.score == pytest.approx(float(expected.sum()))
            [forced] = log_probabilities(Ensemble(models), [source], [one.tokens], DecodingConfig())
            assert forced == pytest.approx(expected.tolist())


def test_what_an_ensemble_predicts_is_a_distribution() -> None:
    ensemble = Ensemble([make_model("transformer", 1), make_model("gru", 2), make_model("gru", 3)])
    source, before = torch.tensor([[4, 5, 3]]), torch.tensor([[2, 6]])
    with torch.no_grad():
        predicted = ensemble(source, None, before)
        state = ensemble.begin(source, None)
        steps = torch.cat([ensemble.step(before[:, i], state) for i in range(2)])
    assert predicted.exp().sum(dim=1).tolist() == pytest.approx([1.0, 1.0])
    torch.testing.assert_close(steps, predicted)
    assert state.length == 2


def test_the_order_of_the_models_does_not_matter_and_both_count() -> None:
    models = [make_model("transformer", seed) for seed in (1, 2)]
    scores = [
        [best.score for best, *_ in n_best(Ensemble(chosen), SOURCES, DecodingConfig(), beam=3, num_best=1)]
        for chosen in (models, models[::-1], models[:1], models[1:])
    ]
    assert scores[0] == pytest.approx(scores[1])
    assert scores[0] != pytest.approx(scores[2]) and scores[0] != pytest.approx(scores[3])


def test_the_shortest_limit_of_the_models_counts() -> None:
    ensemble = Ensemble([make_model("gru", 1, max_positions=9), make_model("gru", 1, max_positions=6)])
    with pytest.raises(DataError, match="sentence 1: got 6 tokens, expected at most 5"):
        translate(ensemble, [[4] * 6], DecodingConfig(), beam=2)


def test_the_verbs_take_several_models(
    model_folder: Path, config: RunConfig, corpus: PreparedCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_model(tmp_path / "other", config, corpus, seed=2)
    source = tmp_path / "a.en"
    source.write_text("".join(f"{line}\n" for line in LINES))
    assert main(["translate", str(model_folder), str(other), "--input", str(source), "--n-best", "1"]) == 0
    rows = [row.split("\t") for row in capsys.readouterr().out.splitlines()]
    expected = Translator.load(model_folder, other).n_best(LINES, 1)
    assert [row[2] for row in rows] == [one.text for [one] in expected]
    assert [float(row[1]) for row in rows] == pytest.approx([one.score for [one] in expected], rel=1e-4)
    assert expected != Translator.load(model_folder).n_best(LINES, 1)
    scored = ["score", str(model_folder), str(other), "--source", str(source), "--reference", str(source), "--likelihood"]
    assert main(scored) == 0 and capsys.readouterr().out.startswith("perplexity ")


def test_other_vocabularies_are_refused(
    model_folder: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(folder, vocabulary={"size": 210}, data={"prepared": str(tmp_path / "prepared")})
    other = write_model(tmp_path / "other", config, prepare(config), seed=2)
    for command in (["translate"], ["average", "--output", str(tmp_path / "mean")]):
        assert main([command[0], str(model_folder), str(other), *command[1:]]) == 3
        assert capsys.readouterr().err == (
            f"hvd-async: {other}: got another vocabulary (210 pieces), expected that of {model_folder} (200 pieces);"
            " train with the same text, task.vocabulary and seed\n"
        )
    with pytest.raises(ConfigError, match=r"^models: got none, expected at least one$"):
        Translator()
