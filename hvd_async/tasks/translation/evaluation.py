"""Statistics of an evaluation of translation, which add up over shards of the validation data, and their scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from sacrebleu.metrics.bleu import BLEU

from hvd_async.tasks.metric import Metric

_ORDERS = 4
METRICS = (
    Metric("loss", "loss", unit="nats per token", digits=3),
    Metric(
        *("bleu", "BLEU"),
        digits=1,
        is_higher_better=True,
        note="of the first `task.bleu_sentences`, searched with `task.decoding.validation_beam`",
    ),
)


@dataclass(frozen=True)
class Evaluation:
    """Sufficient statistics of loss and BLEU; `a + b` is the evaluation of both parts together."""

    loss_sum: float = 0.0
    """Negative log likelihood in nats, without label smoothing, over `num_tokens`."""
    num_tokens: int = 0
    correct: tuple[int, ...] = (0,) * _ORDERS
    """Matching n-grams, n = 1 to 4."""
    total: tuple[int, ...] = (0,) * _ORDERS
    """N-grams of the hypotheses, n = 1 to 4."""
    system_length: int = 0
    """Words of the hypotheses."""
    reference_length: int = 0
    """Words of the references."""

    size: ClassVar[int] = 4 + 2 * _ORDERS
    """Length of `to_vector()`."""

    def __add__(self, other: Evaluation) -> Evaluation:
        return Evaluation.from_vector([a + b for a, b in zip(self.to_vector(), other.to_vector(), strict=True)])

    def scores(self) -> dict[str, float]:
        """Return loss and, if something was translated, BLEU."""
        bleu = self.bleu
        return {"loss": self.loss} if bleu is None else {"loss": self.loss, "bleu": bleu}

    def to_vector(self) -> list[float]:
        """Return all statistics as `size` numbers, to be summed element by element."""
        counts = (self.num_tokens, *self.correct, *self.total, self.system_length, self.reference_length)
        return [self.loss_sum, *map(float, counts)]

    @classmethod
    def from_vector(cls, vector: Sequence[float]) -> Evaluation:
        """Return the evaluation with these statistics; the inverse of `to_vector`."""
        if len(vector) != cls.size:
            raise ValueError(f"got {len(vector)} numbers, expected {cls.size}")
        loss_sum, *rest = vector
        counts = [round(number) for number in rest]
        correct, total = tuple(counts[1 : 1 + _ORDERS]), tuple(counts[1 + _ORDERS : 1 + 2 * _ORDERS])
        return cls(loss_sum, counts[0], correct, total, counts[-2], counts[-1])

    @classmethod
    def of_texts(cls, hypotheses: Sequence[str], references: Sequence[str]) -> Evaluation:
        """Return the BLEU statistics of detokenized `hypotheses`, without a loss."""
        if not hypotheses:
            return cls()
        score = BLEU().corpus_score(list(hypotheses), [list(references)])
        return cls(
            correct=tuple(int(count) for count in score.counts),
            total=tuple(int(count) for count in score.totals),
            system_length=int(score.sys_len),
            reference_length=int(score.ref_len),
        )

    @property
    def loss(self) -> float:
        """Loss in nats per target token; NaN if nothing was measured."""
        return self.loss_sum / self.num_tokens if self.num_tokens else math.nan

    @property
    def bleu(self) -> float | None:
        """Corpus BLEU, 0 to 100, as sacreBLEU computes it by default; None if nothing was translated."""
        if not self.reference_length:
            return None
        score = BLEU.compute_bleu(
            list(self.correct), list(self.total), self.system_length, self.reference_length, smooth_method="exp"
        )
        return float(score.score)
