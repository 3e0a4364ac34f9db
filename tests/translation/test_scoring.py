from __future__ import annotations

import math

import pytest
import sacrebleu

from hvd_async.tasks.translation.evaluation import Evaluation
from hvd_async.tasks.translation.scoring import Difference, difference_of, score_texts

HYPOTHESES = ["The cat sat on the mat.", "A dog runs in the garden.", "Nobody knows why the sun is green."]
REFERENCES = ["The cat sat on a mat.", "A dog is running in the garden.", "Nobody knows why the sky is blue."]


def test_bleu_of_all_parts_combined_is_that_of_the_whole_corpus() -> None:
    parts = [Evaluation.of_texts(HYPOTHESES[i::2], REFERENCES[i::2]) for i in range(2)]
    assert (parts[0] + parts[1]).bleu == pytest.approx(sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score)


def test_bleu_without_a_match_of_some_order_is_smoothed_like_in_sacrebleu() -> None:
    assert Evaluation.of_texts(["a cat"], ["the cat"]).bleu == sacrebleu.corpus_bleu(["a cat"], [["the cat"]]).score


def test_losses_add_up_by_tokens() -> None:
    total = Evaluation(loss_sum=6.0, num_tokens=2) + Evaluation(loss_sum=2.0, num_tokens=2)
    assert total.loss == 2.0
    assert total.bleu is None


def test_an_empty_evaluation_is_nan() -> None:
    assert math.isnan(Evaluation().loss)
    assert Evaluation.of_texts([], []) == Evaluation()


def test_a_vector_carries_all_statistics() -> None:
    evaluation = Evaluation(1.5, 3, (4, 3, 2, 1), (8, 7, 6, 5), 8, 9)
    vector = evaluation.to_vector()
    assert vector == [1.5, 3, 4, 3, 2, 1, 8, 7, 6, 5, 8, 9]
    assert len(vector) == Evaluation.size
    assert Evaluation.from_vector(vector) == evaluation


def test_a_vector_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="got 2 numbers, expected 12"):
        Evaluation.from_vector([1.0, 2.0])


def test_texts_are_scored_with_signatures() -> None:
    scores = score_texts(HYPOTHESES, REFERENCES)
    assert scores.bleu == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert scores.chrf == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    assert "tok:13a" in scores.bleu_signature
    assert "nc:6" in scores.chrf_signature


def test_unequal_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="got 1 hypotheses and 3 references"):
        score_texts(["a"], REFERENCES)


def test_a_difference_is_that_of_the_scores_with_the_probability_of_a_paired_bootstrap() -> None:
    references = [f"the {word} has {number} old legs" for number in range(20) for word in ("cat", "dog", "cow")]
    worse = [line.replace("old", "new") if number % 3 else line for number, line in enumerate(references)]
    than = difference_of(references, worse, references)
    bleu, chrf = sacrebleu.corpus_bleu(worse, [references]).score, sacrebleu.corpus_chrf(worse, [references]).score
    assert (than.bleu, than.chrf) == (pytest.approx(100.0 - bleu), pytest.approx(100.0 - chrf))
    assert than.bleu_p < 0.01 and than.chrf_p < 0.01
    back = difference_of(worse, references, references)
    assert (back.bleu, back.bleu_p) == (pytest.approx(-than.bleu), pytest.approx(than.bleu_p, abs=0.01))


def test_equal_translations_do_not_differ() -> None:
    assert difference_of(HYPOTHESES, HYPOTHESES, REFERENCES) == Difference(0.0, 1.0, 0.0, 1.0)


def test_other_translations_of_another_text_are_refused() -> None:
    with pytest.raises(ValueError, match="got 3 and 1 hypotheses and 3 references"):
        difference_of(HYPOTHESES, ["a"], REFERENCES)
