from __future__ import annotations

import math
from typing import get_args

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from hvd_async.config.task import TextScore
from hvd_async.errors import ConfigError
from hvd_async.store.wire.layout import MAX_STATISTICS
from hvd_async.tasks.translation.evaluation import Measures
from hvd_async.tasks.translation.scoring import METRICS, Difference, difference_of, parse_metrics, score_texts

HYPOTHESES = ["The cat sat on the mat.", "A dog runs in the garden.", "Nobody knows why the sun is green."]
REFERENCES = ["The cat sat on a mat.", "A dog is running in the garden.", "Nobody knows why the sky is blue."]


# Words in common, punctuation, and sentences without a match.
TEXTS = st.lists(st.sampled_from(["the", "cat", "sat", "mat.", "Katze", "é", "7", "-"]), min_size=1, max_size=9).map(
    " ".join
)
ALL = ("bleu", "chrf", "ter")
CORPUS_SCORES = {"bleu": sacrebleu.corpus_bleu, "chrf": sacrebleu.corpus_chrf, "ter": sacrebleu.corpus_ter}


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8), st.integers(1, 3), st.permutations(ALL))
def test_scores_of_all_parts_added_up_are_those_of_the_whole_corpus(
    pairs: list[tuple[str, str]], num_parts: int, names: list[str]
) -> None:
    measures = Measures(names)
    hypotheses, references = ([pair[side] for pair in pairs] for side in range(2))
    parts = [measures.vector(1.5, 2, hypotheses[i::num_parts], references[i::num_parts]) for i in range(num_parts)]
    scores = measures.scores([sum(column) for column in zip(*parts, strict=True)])
    assert scores.pop("loss") == 0.75 and list(scores) == names
    assert scores == {name: CORPUS_SCORES[name](hypotheses, [references]).score for name in names}


def test_losses_add_up_by_tokens() -> None:
    measures = Measures(["bleu"])
    parts = measures.vector(6.0, 2), measures.vector(2.0, 2)
    assert measures.scores([sum(column) for column in zip(*parts, strict=True)]) == {"loss": 2.0}


def test_without_data_the_loss_is_nan() -> None:
    assert math.isnan(Measures().scores(Measures().vector(0.0, 0))["loss"])


def test_a_vector_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="got 2 numbers, expected 13"):
        Measures(["bleu"]).scores([1.0, 2.0])


def test_each_score_that_a_run_may_measure_is_one_that_texts_are_scored_by() -> None:
    assert set(get_args(TextScore)) == set(METRICS)
    assert Measures(get_args(TextScore)).size <= MAX_STATISTICS


def test_texts_are_scored_with_signatures() -> None:
    scores = score_texts(HYPOTHESES, REFERENCES)
    assert list(scores) == ["bleu", "chrf"]
    assert scores["bleu"].value == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert scores["chrf"].value == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    assert "tok:13a" in scores["bleu"].signature
    assert "nc:6" in scores["chrf"].signature
    [(name, score)] = score_texts(HYPOTHESES, REFERENCES, ["ter"]).items()
    assert (name, score.value) == ("ter", sacrebleu.corpus_ter(HYPOTHESES, [REFERENCES]).score)
    assert "tok:tercom" in score.signature


def test_a_title_is_that_of_sacrebleu_and_lower_is_better_where_errors_are_counted() -> None:
    for name, metric in METRICS.items():
        best, worst = (score_texts(texts, REFERENCES, [name])[name].value for texts in (REFERENCES, HYPOTHESES))
        assert (best > worst) == metric.is_higher_better
        assert metric.title == type(metric.make()).__name__.replace("CHRF", "chrF")


def test_unequal_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="got 1 hypotheses and 3 references"):
        score_texts(["a"], REFERENCES)


def test_a_difference_is_that_of_the_scores_with_the_probability_of_a_paired_bootstrap() -> None:
    references = [f"the {word} has {number} old legs" for number in range(20) for word in ("cat", "dog", "cow")]
    worse = [line.replace("old", "new") if number % 3 else line for number, line in enumerate(references)]
    than = difference_of(references, worse, references, [*METRICS])
    expected = {name: score_texts(references, references, [name])[name].value for name in METRICS}
    for name, score in score_texts(worse, references, [*METRICS]).items():
        assert than[name].value == pytest.approx(expected[name] - score.value) and than[name].p < 0.01
    assert than["bleu"].value > 0.0 and than["ter"].value < 0.0
    back = difference_of(worse, references, references, ["bleu"])["bleu"]
    assert (back.value, back.p) == (pytest.approx(-than["bleu"].value), pytest.approx(than["bleu"].p, abs=0.01))


@pytest.mark.parametrize("name", METRICS)
def test_equal_translations_do_not_differ(name: str) -> None:
    assert difference_of(HYPOTHESES, HYPOTHESES, REFERENCES, [name]) == {name: Difference(0.0, 1.0)}


def test_texts_that_a_metric_does_not_tell_apart_do_not_differ() -> None:
    shouted = [line.upper() for line in HYPOTHESES]
    found = difference_of(HYPOTHESES, shouted, REFERENCES, ["bleu", "ter"])
    assert found["ter"] == Difference(0.0, 1.0) and found["bleu"].value > 0.0  # TER ignores case


@pytest.mark.parametrize(("text", "names"), [("ter", ("ter",)), ("chrf, bleu,chrf", ("chrf", "bleu"))])
def test_metrics_are_named_with_commas(text: str, names: tuple[str, ...]) -> None:
    assert parse_metrics(text) == names


@pytest.mark.parametrize("text", ["", "BLEU", "bleu;ter", "bleu,"])
def test_an_unknown_metric_is_refused(text: str) -> None:
    with pytest.raises(
        ConfigError, match=r"^--metrics: got '.*', expected names from bleu, chrf, ter, comet with commas between them$"
    ):
        parse_metrics(text)


def test_other_translations_of_another_text_are_refused() -> None:
    with pytest.raises(ValueError, match="got 3 and 1 hypotheses and 3 references"):
        difference_of(HYPOTHESES, ["a"], REFERENCES)
