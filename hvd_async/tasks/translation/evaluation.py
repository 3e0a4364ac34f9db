"""The measures of an evaluation of translation: sums that add up over shards of the validation data, and their scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from hvd_async.tasks.metric import LOSS, Metric
from hvd_async.tasks.translation.scoring import METRICS

_LOSS = Metric(LOSS, "loss", unit="nats per token", digits=3)
# The sums in front: negative log likelihood in nats without label smoothing, target tokens, sentences translated.
_NUM_FIRST = 3


class Measures:
    """The scores that evaluations give: the loss per target token, and sacreBLEU's corpus scores named `names`.

    A vector of `size` numbers holds what an evaluation counted; vectors of parts of the data are summed element by element.
    """

    def __init__(self, names: Sequence[str] = (), note: str = "") -> None:
        """`names`: keys of `scoring.METRICS`. `note`: which sentences are translated, and how, in half a sentence."""
        self._scorers: dict[str, Any] = {name: METRICS[name].make() for name in names}
        # An evaluation of one short sentence shows how many numbers sacreBLEU counts for each score.
        self._sizes = {name: len(_counted(scorer, ["a"], ["a"])) for name, scorer in self._scorers.items()}
        self.size = _NUM_FIRST + sum(self._sizes.values())
        self.metrics: tuple[Metric, ...] = (_LOSS, *(_metric(name, scorer, note) for name, scorer in self._scorers.items()))

    def vector(
        self, loss_sum: float, num_tokens: int, hypotheses: Sequence[str] = (), references: Sequence[str] = ()
    ) -> list[float]:
        """Return what was counted: `loss_sum` nats over `num_tokens` target tokens, and detokenized translations, if there are
        any, beside their references."""
        counts = [loss_sum, float(num_tokens), float(len(hypotheses))]
        for name, scorer in self._scorers.items():
            counts += _counted(scorer, hypotheses, references) if hypotheses else [0.0] * self._sizes[name]
        return counts

    def scores(self, vector: Sequence[float]) -> dict[str, float]:
        """Return the loss, NaN if nothing was measured, and the other scores if something was translated.

        Raises `ValueError` for a vector of another size.
        """
        if len(vector) != self.size:
            raise ValueError(f"got {len(vector)} numbers, expected {self.size}")
        loss_sum, num_tokens, num_sentences = vector[:_NUM_FIRST]
        found = {LOSS: loss_sum / num_tokens if num_tokens else math.nan}
        if num_sentences:
            found |= {name: self._score(name, counts) for name, counts in self._parts(vector)}
        return found

    def _score(self, name: str, counts: Sequence[float]) -> float:
        # chrF and BLEU count whole numbers, which doubles hold exactly.
        whole = [round(count) if float(count).is_integer() else count for count in counts]
        return float(self._scorers[name]._compute_score_from_stats(whole).score)

    def _parts(self, vector: Sequence[float]) -> Iterator[tuple[str, Sequence[float]]]:
        begin = _NUM_FIRST
        for name, size in self._sizes.items():
            yield name, vector[begin : begin + size]
            begin += size


def _counted(scorer: Any, hypotheses: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return what sacreBLEU's `scorer` counts in all `hypotheses` together."""
    # The two methods used here are those that each score of sacreBLEU has to define. They are not public: a test holds the
    # result against sacreBLEU's own.
    each = scorer._extract_corpus_statistics(list(hypotheses), [list(references)])
    return [float(sum(column)) for column in zip(*each, strict=True)]


def _metric(name: str, scorer: Any, note: str) -> Metric:
    text = METRICS[name]
    notes = ", ".join(filter(None, [note, f"sacreBLEU signature {scorer.get_signature()}"]))
    return Metric(name, text.title, digits=1, is_higher_better=text.is_higher_better, note=notes)
