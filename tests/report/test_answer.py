"""The sentence at the top of a report, for every case that it must distinguish."""

from __future__ import annotations

import pathlib
from dataclasses import replace
from typing import Any

import pytest

from hvd_async.comparison.collection import Entry
from hvd_async.comparison.ideal import Ideal
from hvd_async.comparison.results import Row
from hvd_async.comparison.runs import Run
from hvd_async.comparison.statistics import Interval, Reached
from hvd_async.comparison.target import Target
from hvd_async.report.answer import answer
from tests.comparison.made import ACCURACY, BLEU, LOSS, PERPLEXITY, run

TARGET = Target(LOSS, 2.1)
THERE = Reached(10.0, 1000.0, 10.0)
FINAL_LOSS = {"loss": Interval(2.05, 2.0, 2.1, 3)}
SYNC = {"is_baseline": True, "final": {**FINAL_LOSS, "bleu": Interval(30.4, 30.0, 30.8, 3)}, "ideal": Ideal(10.0, 14.5)}
FASTER = {"speed_up": Interval(1 / 0.71, 1 / 0.77, 1 / 0.66, 3)}
FAST = {**FASTER, "final": {**FINAL_LOSS, "bleu": Interval(30.2, 30.0, 30.4, 3)}}
EQUAL = {"difference": {"bleu": Interval(-0.2, -0.9, 0.5, 3)}}
IDEAL = "With these step times (those of horovod), not waiting could increase steps per second at most by a factor of 1.45."


def a_run() -> Run:
    return run((5.0, 3.0), (10.0, 2.0), metrics=(LOSS, BLEU, ACCURACY, PERPLEXITY))


def row(variant: str, num_seeds: int = 3, *, num_failed: int = 0, num_not_reached: int = 0, **fields: Any) -> Row:
    """Return the row of a variant whose runs all reached the target, unless arguments say otherwise."""
    runs = [None] * num_failed + [a_run()] * (num_seeds - num_failed)
    entries = tuple(Entry("even", variant, None, seed, pathlib.Path("r"), run) for seed, run in enumerate(runs, start=1))
    there = tuple(run for run in runs if run is not None)
    whens = (None,) * num_not_reached + (THERE,) * (len(there) - num_not_reached)
    nothing: dict[str, Any] = dict.fromkeys(Row.__dataclass_fields__)
    counts = {"num_diverged": 0, "num_overrun": 0, "num_steps": 300, "refused": {}, "staleness": {}, "worker_shares": {}}
    own = {
        "environment": "even",
        "variant": variant,
        "entries": entries,
        "runs": there,
        "reached": whens,
        "is_baseline": False,
    }
    seconds = Interval(123.4, 123.4, 123.4, 1) if any(whens) else None
    scores = {"final": FINAL_LOSS, "difference": {}, "is_at_the_edge": False}
    return Row(**{**nothing, **counts, **own, **scores, "seconds_to": seconds, **fields})


CASES = {
    "faster": (
        [row("horovod", **SYNC), row("async, N = 3", **FAST, **EQUAL)],
        "async, N = 3 reached loss 2.100 in 0.71 of the time of horovod (0.66 to 0.77), at equal BLEU to within 1"
        " (30.2 against 30.4; difference -0.9 to +0.5).",
        [IDEAL],
    ),
    "the fastest of several": (
        [
            row("horovod", **SYNC),
            row("slower", **{**FAST, "speed_up": Interval(1.2, 1.1, 1.3, 3)}, **EQUAL),
            row("async", **FAST, **EQUAL),
        ],
        "async reached loss 2.100 in 0.71 of the time of horovod (0.66 to 0.77), at equal BLEU to within 1"
        " (30.2 against 30.4; difference"
        " -0.9 to +0.5).",
        ["async is the fastest of 2, chosen after the fact; the interval does not account for this choice.", IDEAL],
    ),
    "reached with all seeds goes before faster": (
        [
            row("horovod", **SYNC),
            row("lucky", num_not_reached=2, **{**FAST, "speed_up": Interval(9.0, 9.0, 9.0, 1)}, **EQUAL),
            row("async", **FAST, **EQUAL),
        ],
        "async reached loss 2.100 in 0.71 of the time of horovod (0.66 to 0.77), at equal BLEU to within 1"
        " (30.2 against 30.4; difference"
        " -0.9 to +0.5).",
        [
            "async is the fastest of 2, chosen after the fact; the interval does not account for this choice.",
            "lucky reached the target in 1 of 3 runs; times are of these runs alone.",
            IDEAL,
        ],
    ),
    "a wide interval of BLEU": (
        [row("horovod", **SYNC), row("async", **FAST, difference={"bleu": Interval(-0.2, -3.0, 2.6, 3)})],
        "async reached loss 2.100 in 0.71 of the time of horovod (0.66 to 0.77), with no clear difference in BLEU (30.2"
        " against"
        " 30.4; difference -3.0 to +2.6).",
        [IDEAL],
    ),
    "lower BLEU": (
        [row("horovod", **SYNC), row("async", **FAST, difference={"bleu": Interval(-0.2, -0.3, -0.1, 3)})],
        "async reached loss 2.100 in 0.71 of the time of horovod (0.66 to 0.77), with lower BLEU (30.2 against 30.4;"
        " difference"
        " -0.3 to -0.1).",
        [IDEAL],
    ),
    "no BLEU": (
        [row("horovod", is_baseline=True), row("async", **FASTER)],
        "async reached loss 2.100 in 0.71 of the time of horovod (0.66 to 0.77), with a final loss of 2.050 against 2.050.",
        [],
    ),
    "one seed": (
        [
            row("horovod", 1, is_baseline=True, final={**FINAL_LOSS, "bleu": Interval(30.4, 30.4, 30.4, 1)}),
            row(
                *("async", 1),
                speed_up=Interval(1.25, 1.25, 1.25, 1),
                final={**FINAL_LOSS, "bleu": Interval(30.2, 30.2, 30.2, 1)},
                difference={"bleu": Interval(-0.2, -0.2, -0.2, 1)},
            ),
        ],
        "async reached loss 2.100 in 0.80 of the time of horovod (one seed: no interval), with BLEU 30.2 against 30.4.",
        [],
    ),
    "no clear difference": (
        [row("horovod", **SYNC), row("async", **{**FAST, "speed_up": Interval(1.05, 0.95, 1.2, 3)}, **EQUAL)],
        "No clear difference: async reached loss 2.100 in 0.95 of the time of horovod, but the interval (0.83 to 1.05)"
        " contains 1;"
        " at equal BLEU to within 1 (30.2 against 30.4; difference -0.9 to +0.5).",
        [IDEAL],
    ),
    "slower": (
        [row("horovod", **SYNC), row("async", **{**FAST, "speed_up": Interval(0.8, 0.7, 0.9, 3)}, **EQUAL)],
        "No variant was faster than horovod: the fastest other, async, took 1.25 times as long to reach loss 2.100 (1.11"
        " to 1.43),"
        " at equal BLEU to within 1 (30.2 against 30.4; difference -0.9 to +0.5).",
        [IDEAL],
    ),
    "no run reached it": (
        [row("horovod", num_not_reached=3, is_baseline=True), row("async", num_not_reached=3)],
        "No run reached loss 2.100.",
        ["horovod and async did not reach the target."],
    ),
    "only the baseline": (
        [row("horovod", **SYNC), row("async", num_not_reached=3)],
        "Only the baseline, horovod, reached loss 2.100.",
        ["async did not reach the target.", IDEAL],
    ),
    "not the baseline": (
        [row("horovod", num_not_reached=3, is_baseline=True), row("async", num_not_reached=1)],
        "The baseline, horovod, did not reach loss 2.100. async reached loss 2.100 after 123 s (2 of 3 seeds).",
        ["horovod did not reach the target.", "async reached the target in 2 of 3 runs; times are of these runs alone."],
    ),
    "failed and diverged": (
        [
            row("horovod", num_failed=1, **SYNC),
            row("async", num_diverged=1, num_missing=16, **{**FAST, "speed_up": Interval(1.25, 1.2, 1.3, 2)}, **EQUAL),
        ],
        "async reached loss 2.100 in 0.80 of the time of horovod (0.77 to 0.83), at equal BLEU to within 1"
        " (30.2 against 30.4; difference"
        " -0.9 to +0.5).",
        [
            "The ratio is over 2 of 3 seeds: those with which both reached the target.",
            "horovod: 1 of 3 runs failed (seed 1).",
            "async: 1 of 3 runs diverged.",
            "async: 16 batches not computed, since all workers left their loops early; --resume computes the rest.",
            IDEAL,
        ],
    ),
    "the baseline failed": (
        [row("horovod", num_failed=3, is_baseline=True), row("async")],
        "No run of the baseline, horovod, has ended well here: there is nothing to compare with. async reached loss 2.100"
        " after 123 s"
        " (3 of 3 seeds).",
        ["horovod: 3 of 3 runs failed (seeds 1, 2, 3)."],
    ),
    "no baseline in this environment": (
        [row("async")],
        "No run of the baseline, horovod, has ended well here: there is nothing to compare with. async reached loss 2.100"
        " after 123 s"
        " (3 of 3 seeds).",
        [],
    ),
    "the baseline alone": (
        [row("horovod", **SYNC)],
        "There is only horovod here, and nothing to compare it with. horovod reached loss 2.100 after 123 s (3 of 3 seeds).",
        [IDEAL],
    ),
    "all failed": (
        [row("horovod", num_failed=3, is_baseline=True)],
        "No run has ended: there is nothing to compare.",
        ["horovod: 3 of 3 runs failed (seeds 1, 2, 3)."],
    ),
    "at the first measurement": (
        [row("horovod", **SYNC), row("async", reached=(replace(THERE, is_bound=True),) * 3, **FAST, **EQUAL)],
        "async reached loss 2.100 in 0.71 of the time of horovod (0.66 to 0.77), at equal BLEU to within 1"
        " (30.2 against 30.4; difference"
        " -0.9 to +0.5).",
        [
            "async had reached the target by the first measurement: the time is an upper limit, and the ratio is"
            " uncertain. Validate earlier, or set a harder target.",
            IDEAL,
        ],
    ),
    "longer steps and the edge of rates": (
        [row("horovod", num_overrun=30, **SYNC), row("async", rate=0.01, **{**FAST, **EQUAL, "is_at_the_edge": True})],
        "async reached loss 2.100 in 0.71 of the time of horovod (0.66 to 0.77), at equal BLEU to within 1"
        " (30.2 against 30.4; difference"
        " -0.9 to +0.5).",
        [
            "async: the best learning rate, 0.01, is at the edge of those tried.",
            "horovod: 10.0 % of the steps lasted longer than emulated.",
            IDEAL,
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_answer_is_the_right_sentence_with_its_notes(case: str) -> None:
    rows, sentence, notes = CASES[case]
    found = answer(rows, "horovod", TARGET)
    assert found.sentence == sentence
    assert list(found.notes) == notes


@pytest.mark.parametrize(
    ("name", "values", "ends", "words"),
    [
        (
            "accuracy",
            (91.0, 91.4),
            (-0.9, 0.1),
            "at equal accuracy to within 1 (91.0 against 91.4; difference -0.9 to +0.1).",
        ),
        ("accuracy", (91.0, 91.4), (-2.0, 1.2), "with no clear difference in accuracy (91.0 against 91.4;"),
        ("accuracy", (93.0, 91.4), (1.0, 2.2), "with higher accuracy (93.0 against 91.4; difference +1.0 to +2.2)."),
        ("perplexity", (5.25, 5.5), (-0.3, -0.2), "with lower perplexity (5.25 against 5.50; difference -0.30 to -0.20)."),
        (
            "perplexity",
            (5.25, 5.2),
            (-0.04, 0.09),
            "at equal perplexity to within 0.1 (5.25 against 5.20; difference -0.04 to +0.09).",
        ),
        ("perplexity", (5.25, 5.2), (-0.04, 0.11), "with no clear difference in perplexity (5.25 against 5.20;"),
    ],
)
def test_the_final_quality_is_that_of_the_metric_beside_the_loss(
    name: str, values: tuple[float, float], ends: tuple[float, float], words: str
) -> None:
    own, other = (Interval(value, value, value, 3) for value in values)
    base = row("horovod", is_baseline=True, final={**FINAL_LOSS, name: other})
    gap = {name: Interval(sum(ends) / 2, *ends, 3)}
    fast = row("async", **FASTER, final={**FINAL_LOSS, name: own}, difference=gap)
    assert words in answer([base, fast], "horovod", TARGET).sentence


def test_a_metric_that_only_one_of_both_has_is_not_compared() -> None:
    base = row("horovod", is_baseline=True, final={**FINAL_LOSS, "accuracy": Interval(90.0, 90.0, 90.0, 3)})
    sentence = answer([base, row("async", **FASTER)], "horovod", TARGET).sentence
    assert sentence.endswith("with a final loss of 2.050 against 2.050.")


def test_the_bounds_of_both_are_given_if_they_differ() -> None:
    base, fast = row("horovod", **SYNC), row("async", **FAST, **EQUAL, ideal=Ideal(10.0, 24.0))
    assert answer([base, fast], "horovod", TARGET).notes == (
        "Not waiting could increase steps per second at most by a factor of 1.45 with the step times of horovod, and of"
        " 2.40 with those of async, each measured in its own runs.",
    )
    same = row("async", **FAST, **EQUAL, ideal=Ideal(20.0, 29.0))
    assert answer([base, same], "horovod", TARGET).notes == (IDEAL,)


def test_without_a_finite_loss_nothing_can_be_timed() -> None:
    found = answer([row("horovod", is_baseline=True, num_diverged=3, reached=(None,) * 3)], "horovod", None)
    assert found.sentence == "No target: no loss of the baseline is finite, so nothing can be timed."
    assert "horovod: 3 of 3 runs diverged." in found.notes


def test_a_variant_that_diverged_after_the_target_is_reported() -> None:
    rows = [row("horovod", is_baseline=True), row("async", **FASTER, final={}, num_diverged=3)]
    assert answer(rows, "horovod", TARGET).sentence.endswith("(0.66 to 0.77), but async diverged later.")


def test_a_target_of_bleu_is_named() -> None:
    rows = [row("horovod", num_not_reached=3, is_baseline=True)]
    assert (
        answer([*rows, row("async", num_not_reached=3)], "horovod", Target(BLEU, 30.0)).sentence
        == "No run reached BLEU 30.0."
    )
