from __future__ import annotations

import math

import pytest
import sacrebleu

from hvd_async.tasks.translation.evaluation import Evaluation
from hvd_async.tasks.translation.scoring import score_texts

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
