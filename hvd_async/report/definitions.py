"""Definitions of the numbers in a report. Pure."""

from __future__ import annotations

from hvd_async.comparison.collection import Collection, runs_of
from hvd_async.comparison.metrics import weight_unit_of
from hvd_async.report.document import Terms
from hvd_async.report.number_format import singular
from hvd_async.tasks.metric import LOSS, Metric

_OF_TARGET = (
    (
        "Interval",
        "95 % intervals by Student's t over seeds: of scores directly; of ratios, times and counts in"
        " logarithms, which treats a ratio and its inverse alike. One seed has no interval. Intervals of"
        " several variants are not corrected for their number.",
    ),
    (
        "When the target was reached",
        "Read off the line between the measurements before and after; the first time counts, even if the"
        " score becomes worse again. Measurements that are not finite are skipped. ≤: the run had reached the"
        " target at its first measurement, so the value is an upper limit. Means are over the runs that"
        " reached it.",
    ),
    (
        "Seconds",
        "Seconds of training. Measuring the model after the run does not count; with `validation.when: during` it does.",
    ),
    (
        "Speed-up",
        "Seconds of the baseline / own seconds to the target, seed by seed where both reached it. The"
        " sentence at the top states the inverse.",
    ),
)
_ON_THE_WAY = (
    "On the way",
    "The best score of the baseline is that of its best measurement, as a mean over its runs. Speed-up and efficiency there"
    " are those to the score of the line, seed by seed where both reached it: with few runs that did, they flatter.",
)
_OF_TIME = (
    (
        "Staleness",
        "Versions between the one on which a gradient was computed and the one to which it was applied;"
        " mean over gradients. Of a batch that was divided into micro-batches it is that of the first, the oldest; the mean over"
        " micro-batches is given beside it.",
    ),
    (
        "Shares of time",
        "Computing includes the idling of emulated step lengths. Waiting is for the store or for other"
        " workers; in synchronous strategies it includes summing gradients, except for the part that"
        " overlaps the backward pass, before any emulated idling. DDP waits inside the backward pass:"
        " without emulated lengths its waiting cannot be told from computing, and no shares are given."
        " Other: the update of synchronous strategies, the beginning and the end of the run, and in real runs reading data.",
    ),
    (
        "Ideal",
        "Steps per second of all workers if exchanging gradients cost nothing, from the lengths of the"
        " run's own steps, taken as independent. Synchronous: each step lasts as long as the slowest"
        " worker's. Asynchronous: no worker waits.",
    ),
)
_EDGE = (
    "Learning rate",
    "Each variant is shown with the best of the rates that were tried for it. At the edge: no higher, or"
    " no lower, rate was tried, so a better one may lie beyond.",
)


def definitions(collection: Collection) -> Terms:
    """Return the terms that the report of `collection` uses."""
    edge = [_EDGE] if collection.rates else []
    weights = _of_weights(weight_unit_of(runs_of(collection.entries)))
    return Terms([*_OF_TARGET, *weights, _ON_THE_WAY, *map(_final_score, collection.metrics), *_OF_TIME, *edge])


def _of_weights(unit: str) -> list[tuple[str, str]]:
    """Return the terms of ratios of weights."""
    one = singular(unit)
    return [
        (
            f"{one[:1].upper()}{one[1:]} efficiency",
            f"{unit[:1].upper()}{unit[1:]} of the baseline / own {unit} to the lowest loss that both reached, seed by seed:"
            " 1 if each of them is worth as much.",
        ),
        ("Throughput", f"Own {unit} per second / those of the baseline, seed by seed."),
    ]


def _final_score(metric: Metric) -> tuple[str, str]:
    """Return the term for the final score, and for its difference from the baseline."""
    unit, note = (f", {words}" if words else "" for words in (metric.unit and f"in {metric.unit}", metric.note))
    text = f"Validation of the final model, over the runs that did not diverge{unit}{note}. The {metric.better}, the better."
    if metric.name != LOSS:
        text += f" Difference: own - baseline, seed by seed; equal: the whole interval lies within {metric.equal_within:g}."
    return f"Final {metric.title}", text
