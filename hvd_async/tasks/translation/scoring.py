"""Scores of translations as publications report them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF


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
