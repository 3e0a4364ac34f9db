"""How the numbers of a report are made, for whoever doubts one. Pure."""

from __future__ import annotations

from hvd_async.comparison.collection import Collection
from hvd_async.report.document import Terms

_TERMS = (
    (
        "Interval",
        "95 %, by Student's t over seeds: of losses and BLEU as they are, of ratios, times and counts of their"
        " logarithms, so that a ratio and its inverse are treated alike. With one seed there is none. An end below 0"
        " is shown as 0. Intervals of several variants do not allow for there being several.",
    ),
    (
        "When the target was reached",
        "Read off the line between the measurements before and after; the first time counts, though the loss may rise"
        " again. Measurements that are not finite are passed over. ≤: the run was there at its first measurement, so"
        " that this is the most that it can have been. Means are of the runs that reached it.",
    ),
    (
        "Seconds",
        "Of training, without measuring the model where that is done after the run; with `validation.when: during` it"
        " is in them.",
    ),
    (
        "Speed-up",
        "Seconds of the baseline / own seconds to the target, seed by seed where both reached it. The sentence at the"
        " top has its inverse.",
    ),
    (
        "Token efficiency",
        "Tokens of the baseline / own tokens to the lowest loss that both reached, seed by seed: 1 where a token is"
        " worth as much.",
    ),
    (
        "Throughput",
        "Own tokens per second / those of the baseline, seed by seed.",
    ),
    (
        "Final loss, final BLEU",
        "Validation of the model at the end of the run, of the runs that did not diverge. BLEU is of the first"
        " `validation.bleu_sentences`, searched for with `decoding.validation_beam`. BLEU difference: own - baseline,"
        " seed by seed; equal: the whole interval lies within 1.",
    ),
    (
        "Staleness",
        "Versions between the one on which a gradient was computed and the one to which it was applied; mean over"
        " gradients.",
    ),
    (
        "Shares of time",
        "Computing includes the idling of emulated lengths. Waiting is for the store or for others; in synchronous"
        " strategies it includes the sum of gradients, as far as it did not go on during the backward pass, before any"
        " emulated idling. DDP waits inside the backward pass: without emulated lengths its waiting cannot be told"
        " from computing, and no shares are given. Other: the update of synchronous strategies, reading data, the"
        " beginning and the end of the run.",
    ),
    (
        "Ideal",
        "Steps per second of all workers if exchanging gradients cost nothing, from the lengths of the run's own"
        " steps, taken as independent. Synchronous: each step lasts as long as the slowest worker's. Asynchronous:"
        " nobody waits.",
    ),
)
_EDGE = (
    "Learning rate",
    "Of those that were tried, each variant is shown with the one that was best for it. At the edge: no higher, or no lower, rate"
    " was tried, so that a better one may lie beyond.",
)


def definitions(collection: Collection) -> Terms:
    """The terms that the report of `collection` uses."""
    return Terms([*_TERMS, _EDGE] if collection.rates else _TERMS)
