"""How probable a model finds given translations, without a search."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hvd_async.config import DecodingConfig
from hvd_async.tasks.translation.batching import collate
from hvd_async.tasks.translation.criterion import output_tokens
from hvd_async.tasks.translation.decoding import check_lengths, in_batches
from hvd_async.tasks.translation.model import Predictor

_MOST_TOKENS = 2000  # of a batch: the logits of all its positions are in memory at once


@dataclass(frozen=True)
class Likelihood:
    """How probable a model finds a given translation, piece by piece."""

    pieces: list[str]
    """The pieces into which the vocabulary cuts the translation, and the end of sentence."""
    log_probabilities: list[float]
    """Log probability of each piece, given the source and the pieces before it, in nats."""

    @property
    def log_probability(self) -> float:
        """Log probability of the whole translation, its end included, in nats."""
        return math.fsum(self.log_probabilities)


def nats_per_piece(likelihoods: Sequence[Likelihood]) -> float:
    """Return the mean negative log probability over all pieces of all translations, ends included; NaN without a translation."""
    num_pieces = sum(len(each.log_probabilities) for each in likelihoods)
    return -math.fsum(each.log_probability for each in likelihoods) / num_pieces if num_pieces else math.nan


def perplexity(likelihoods: Sequence[Likelihood]) -> float:
    """Return e to the `nats_per_piece`; infinity if that is too large."""
    try:
        return math.exp(nats_per_piece(likelihoods))
    except OverflowError:
        return math.inf


@torch.no_grad()
def log_probabilities(
    model: Predictor,
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    config: DecodingConfig,
    *,
    threads: int | None = None,
) -> list[list[float]]:
    """Return the log probability of each token of each of `targets`, and of its end, given its source. In nats.

    `sources` and `targets` have no begin and no end, and are equally many. `threads` as for `decoding.translate`. Uses `model` as
    it is: the caller sets eval mode. Raises `DataError` for a sentence that is too long for the model.
    """
    check_lengths(model, sources, "source")
    check_lengths(model, targets, "reference")

    @torch.no_grad()  # set here, since the mode is per thread
    def work(chosen: list[int]) -> list[list[float]]:
        batch = collate([sources[i] for i in chosen], [targets[i] for i in chosen]).to(model.device)
        logits = model(batch.source, batch.source_mask, batch.target_input, batch.target_positions)
        found = torch.log_softmax(logits, dim=1).gather(1, output_tokens(batch)[:, None]).squeeze(1)
        values = iter(found.tolist())
        return [list(itertools.islice(values, len(targets[i]) + 1)) for i in chosen]

    lengths = [max(len(source), len(target)) for source, target in zip(sources, targets, strict=True)]
    limits = config.model_copy(update={"batch_tokens": config.batch_tokens or _MOST_TOKENS})
    return in_batches(lengths, limits, work, threads)
