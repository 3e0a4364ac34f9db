"""Scores of translations as publications report them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.significance import PairedTest, Result

from hvd_async.errors import ConfigError
from hvd_async.system.printable import shortened

NUM_SAMPLES = 1000
"""Samples of a paired bootstrap."""
DEFAULT_METRICS = ("bleu", "chrf")
COMET = "comet"
"""The score of `comet.comet_of`, which takes a model and the source, too."""


def bootstrap_seed() -> int | None:
    """Return the seed of a paired bootstrap: that of sacreBLEU, which the variable SACREBLEU_SEED may change; None if it is not
    fixed. Raises `ConfigError` for another value of the variable than a whole number or `none`."""
    seed = os.environ.get("SACREBLEU_SEED", "12345").lower()
    if seed != "none" and not (seed.isascii() and seed.isdecimal()):
        raise ConfigError(f"SACREBLEU_SEED: got {shortened(seed)}, expected a whole number, 0 or more, or none")
    return None if seed == "none" else int(seed)


@dataclass(frozen=True)
class TextMetric:
    """A score of whole texts by sacreBLEU, with its default settings."""

    title: str
    make: Callable[..., Any]
    """Makes sacreBLEU's metric; `references=` for one that is used several times."""
    is_higher_better: bool = True


METRICS: Mapping[str, TextMetric] = {
    "bleu": TextMetric("BLEU", BLEU),
    "chrf": TextMetric("chrF", CHRF),
    "ter": TextMetric("TER", TER, is_higher_better=False),
}
"""What texts can be scored by."""


@dataclass(frozen=True)
class TextScore:
    """A corpus score, detokenized, with the signature that says how it was computed."""

    value: float
    signature: str


@dataclass(frozen=True)
class Difference:
    """A score less that of another system on the same text, and the probability of a difference as large if both were equally
    good, by a paired bootstrap (Koehn 2004, as sacreBLEU implements it)."""

    value: float
    p: float


def parse_metrics(text: str) -> tuple[str, ...]:
    """Return the names in a comma-separated list. Raises `ConfigError` for a name that is neither `COMET` nor of `METRICS`."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    known = (*METRICS, COMET)
    for name in names:
        if name not in known:
            raise ConfigError(f"--metrics: got {name!r}, expected names from {', '.join(known)} with commas between them")
    return names


def score_texts(
    hypotheses: Sequence[str], references: Sequence[str], metrics: Sequence[str] = DEFAULT_METRICS
) -> dict[str, TextScore]:
    """Return the score of `hypotheses` by each of `metrics`, against one reference each.

    Raises `ValueError` on unequal counts.
    """
    if len(hypotheses) != len(references) or not references:
        raise ValueError(
            f"got {len(hypotheses)} hypotheses and {len(references)} references, expected as many, at least one"
        )
    scores = {}
    for name in metrics:
        metric = METRICS[name].make()
        value = metric.corpus_score(list(hypotheses), [list(references)]).score
        scores[name] = TextScore(float(value), str(metric.get_signature()))
    return scores


def difference_of(
    hypotheses: Sequence[str], others: Sequence[str], references: Sequence[str], metrics: Sequence[str] = DEFAULT_METRICS
) -> dict[str, Difference]:
    """Compare `hypotheses` with the translations `others` of another system by each of `metrics`. Raises `ValueError` on
    unequal counts."""
    if not len(hypotheses) == len(others) == len(references) or not references:
        raise ValueError(
            f"got {len(hypotheses)} and {len(others)} hypotheses and {len(references)} references, expected as many, at least one"
        )
    systems: list[tuple[str, Sequence[str]]] = [("other", list(others)), ("own", list(hypotheses))]
    found = {}
    for name in metrics:
        metric = METRICS[name].make(references=[list(references)])
        _, columns = PairedTest(systems, {name: metric}, references=None, test_type="bs", n_samples=NUM_SAMPLES)()
        [results] = (results for title, results in columns.items() if title != "System")
        found[name] = _difference(results)
    return found


def _difference(results: Sequence[str | Result]) -> Difference:
    """Return the difference of the second result from the first."""
    other, own = results
    assert isinstance(other, Result) and isinstance(own, Result) and own.p_value is not None
    value = float(own.score - other.score)
    # sacreBLEU does not attribute a difference of 0 to chance, and gives 0.001.
    return Difference(value, float(own.p_value) if value else 1.0)
