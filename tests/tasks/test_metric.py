"""Metrics: their names, and how people read scores."""

from __future__ import annotations

from typing import Any

import pytest

from hvd_async.tasks.metric import Metric, MetricError, describe, metrics_from_json, metrics_to_json
from tests.comparison.made import ACCURACY, LOSS, PERPLEXITY


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "F1"}, "got the name 'F1' of a metric, expected lower-case letters, digits and _"),
        ({"name": "a-b"}, "got the name 'a-b' of a metric"),
        ({"name": 3}, "got the name 3 of a metric"),
        ({"title": None}, "metric top_5: title: got None, expected text"),
        ({"is_higher_better": "yes"}, "metric top_5: is_higher_better: got 'yes', expected a bool"),
        ({"digits": "2"}, "metric top_5: got '2' digits, expected 0 to 9"),
        ({"digits": -1}, "metric top_5: got -1 digits, expected 0 to 9"),
        ({"digits": 10}, "metric top_5: got 10 digits"),
    ],
)
def test_an_invalid_metric_is_refused(fields: dict[str, Any], words: str) -> None:
    assert Metric("top_5", "accuracy").digits == 3
    with pytest.raises(MetricError, match=words):
        Metric(**{"name": "top_5", "title": "accuracy", **fields})


def test_scores_and_differences_have_the_decimals_of_their_metric() -> None:
    assert (LOSS.text(2.0), ACCURACY.text(91.25, 1), PERPLEXITY.difference_text(0.5)) == ("2.000", "91.25", "+0.50")
    assert (ACCURACY.text(-0.04), ACCURACY.difference_text(-0.04), ACCURACY.difference_text(0.0)) == ("0.0", "0.0", "0.0")
    assert ACCURACY.is_shown_as_zero(0.04) and not ACCURACY.is_shown_as_zero(0.06)
    assert (LOSS.equal_within, ACCURACY.equal_within, Metric("rank", "rank", digits=0).equal_within) == (0.01, 1.0, 10.0)


def test_better_scores_cost_less() -> None:
    assert ACCURACY.cost(92.0) < ACCURACY.cost(90.0) and LOSS.cost(2.0) < LOSS.cost(3.0)
    assert (ACCURACY.better, ACCURACY.best, LOSS.better, LOSS.best) == ("higher", "highest", "lower", "lowest")


def test_scores_are_described_in_the_order_of_their_metrics() -> None:
    scores = {"accuracy": 91.0, "loss": 2.0}
    assert describe(scores, [LOSS, PERPLEXITY, ACCURACY], ", ") == "validation loss 2.0000, accuracy 91.00"


def test_metrics_of_a_summary_are_read_back_and_made_printable() -> None:
    metrics = (LOSS, ACCURACY, PERPLEXITY)
    assert metrics_from_json(metrics_to_json(metrics)) == metrics
    assert metrics_from_json([{"name": "loss", "title": "a\nb"}]) == (Metric("loss", r"a\nb"),)
    for damaged in ({"name": "loss"}, {"name": 1, "title": "a"}, {"name": "loss", "title": "a", "digits": 1.0}):
        with pytest.raises((TypeError, ValueError)):
            metrics_from_json([damaged])
