"""Definitions of the numbers in a report. Pure."""

from __future__ import annotations

from hvd_async.comparison.collection import Collection
from hvd_async.report.document import Terms

_TERMS = (
    (
        "Interval",
        "95 % intervals by Student's t over seeds: of losses and BLEU directly; of ratios, times and"
        " counts in logarithms, which treats a ratio and its inverse alike. One seed has no interval."
        " Ends below 0 are shown as 0. Intervals of several variants are not corrected for their number.",
    ),
    (
        "When the target was reached",
        "Read off the line between the measurements before and after; the first time counts, even if the"
        " loss rises again. Measurements that are not finite are skipped. ≤: the run had reached the"
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
    (
        "Token efficiency",
        "Tokens of the baseline / own tokens to the lowest loss that both reached, seed by seed: 1 if a"
        " token is worth as much.",
    ),
    (
        "Throughput",
        "Own tokens per second / those of the baseline, seed by seed.",
    ),
    (
        "Final loss, final BLEU",
        "Validation of the final model, over the runs that did not diverge. BLEU is that of the first"
        " `validation.bleu_sentences`, searched with `decoding.validation_beam`. BLEU difference: own -"
        " baseline, seed by seed; equal: the whole interval lies within 1.",
    ),
    (
        "Staleness",
        "Versions between the one on which a gradient was computed and the one to which it was applied;"
        " mean over gradients.",
    ),
    (
        "Shares of time",
        "Computing includes the idling of emulated step lengths. Waiting is for the store or for other"
        " workers; in synchronous strategies it includes summing gradients, except for the part that"
        " overlaps the backward pass, before any emulated idling. DDP waits inside the backward pass:"
        " without emulated lengths its waiting cannot be told from computing, and no shares are given."
        " Other: the update of synchronous strategies, reading data, the beginning and the end of the"
        " run.",
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
    return Terms([*_TERMS, _EDGE] if collection.rates else _TERMS)
