"""Scores of translations as publications report them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import PairedTest, Result

NUM_SAMPLES = 1000
"""Samples of a paired bootstrap."""


@dataclass(frozen=True)
class Scores:
    """Corpus scores as publications report them, with the signatures that say how they were computed."""

    bleu: float
    bleu_signature: str
    chrf: float
    chrf_signature: str


def score_texts(hypotheses: Sequence[str], references: Sequence[str]) -> Scores:
    """Detokenized sacreBLEU and chrF of `hypotheses`, against one reference each. Raises `ValueError` on unequal counts."""
    if len(hypotheses) != len(references) or not references:
        raise ValueError(
            f"got {len(hypotheses)} hypotheses and {len(references)} references, expected as many, at least one"
        )
    bleu, chrf = BLEU(), CHRF()
    return Scores(
        bleu=float(bleu.corpus_score(list(hypotheses), [list(references)]).score),
        bleu_signature=str(bleu.get_signature()),
        chrf=float(chrf.corpus_score(list(hypotheses), [list(references)]).score),
        chrf_signature=str(chrf.get_signature()),
    )


@dataclass(frozen=True)
class Difference:
    """Scores less those of another system on the same text, and for each the probability of a difference as large if both were
    equally good, by a paired bootstrap (Koehn 2004, as sacreBLEU implements it)."""

    bleu: float
    bleu_p: float
    chrf: float
    chrf_p: float


def difference_of(hypotheses: Sequence[str], others: Sequence[str], references: Sequence[str]) -> Difference:
    """Compare `hypotheses` with the translations `others` of another system. Raises `ValueError` on unequal counts."""
    if not len(hypotheses) == len(others) == len(references) or not references:
        raise ValueError(
            f"got {len(hypotheses)} and {len(others)} hypotheses and {len(references)} references, expected as many, at least one"
        )
    if list(hypotheses) == list(others):
        return Difference(0.0, 1.0, 0.0, 1.0)  # sacreBLEU does not attribute a difference of 0 to chance, and gives 0.001
    systems: list[tuple[str, Sequence[str]]] = [("other", list(others)), ("own", list(hypotheses))]
    metrics = {"BLEU": BLEU(references=[list(references)]), "chrF2": CHRF(references=[list(references)])}
    _, found = PairedTest(systems, metrics, references=None, test_type="bs", n_samples=NUM_SAMPLES)()
    return Difference(*_difference(found["BLEU"]), *_difference(found["chrF2"]))


def _difference(results: Sequence[str | Result]) -> tuple[float, float]:
    """Return the difference of the second result from the first, and its probability."""
    other, own = results
    assert isinstance(other, Result) and isinstance(own, Result) and own.p_value is not None
    return float(own.score - other.score), float(own.p_value)
