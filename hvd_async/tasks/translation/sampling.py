"""Translations drawn at random, token by token, as probable as the model finds them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hvd_async.config import DecodingConfig
from hvd_async.errors import ConfigError
from hvd_async.tasks.translation.decoding import (
    Hypothesis,
    check_lengths,
    in_batches,
    length_limits,
    to_device,
    without_specials,
)
from hvd_async.tasks.translation.model import Predictor
from hvd_async.tasks.translation.vocabulary import BOS, EOS

_SEED_RANGE = 2**64


@dataclass(frozen=True)
class Sampling:
    """How translations are drawn.

    The draws of a sentence depend on the seed and on the number of the sentence alone, not on other sentences or threads.
    """

    temperature: float = 1.0
    """Log probabilities are divided by it: below 1 probable tokens become more probable, near 0 sampling is greedy search."""
    top_k: int | None = None
    """Draw among the most probable tokens only, this many; None: among all."""
    seed: int = 1
    """Equal seeds draw equal translations."""
    num_samples: int = 1
    """Translations of each sentence."""
    first: int = 0
    """Number of the first sentence, for text that is translated part by part."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` for a number out of range, or something else in its place."""
        for name, least in (("top_k", 1), ("num_samples", 1), ("first", 0)):
            number = getattr(self, name)
            if not ((number is None and name == "top_k") or (isinstance(number, int) and number >= least)):
                raise ConfigError(f"{name}: got {number!r}, expected a whole number, {least} or more")
        if not isinstance(self.seed, int):
            raise ConfigError(f"seed: got {self.seed!r}, expected a whole number")
        if not isinstance(self.temperature, int | float):
            raise ConfigError(f"temperature: got {self.temperature!r}, expected a number above 0")
        if not 0.0 < self.temperature < math.inf:
            raise ConfigError(f"temperature: got {self.temperature:g}, expected a number above 0")


def sample(
    model: Predictor,
    sources: Sequence[Sequence[int]],
    config: DecodingConfig,
    sampling: Sampling,
    *,
    threads: int | None = None,
) -> list[list[Hypothesis]]:
    """Return `sampling.num_samples` translations of each of `sources`, in the order in which they are drawn.

    Log probabilities and scores are those of the model, whatever the temperature. Other arguments and errors as for
    `decoding.translate`.
    """

    def draw(chosen: list[int]) -> list[list[Hypothesis]]:
        batch = [sources[i] for i in chosen]
        limits = length_limits(model, batch, config)
        numbers = _random_numbers([sampling.first + i for i in chosen], max(limits) + 1, sampling)
        drawn = _draw(model, batch, limits, numbers, sampling)
        finished = [Hypothesis(tokens, log, log / (len(tokens) + 1) ** config.length_penalty) for tokens, log in drawn]
        count = sampling.num_samples
        return [finished[start : start + count] for start in range(0, len(finished), count)]

    check_lengths(model, sources)
    return in_batches([len(source) for source in sources], config, draw, threads)


def _random_numbers(sentences: Sequence[int], steps: int, sampling: Sampling) -> Tensor:
    """Return uniform numbers in [0, 1) for each sample of each sentence and each step: [num, steps] float64."""
    seed, samples = sampling.seed % _SEED_RANGE, range(sampling.num_samples)
    # In float32 the largest is so far below 1 that its product with a float64 is less than that.
    drawn = [np.random.default_rng((seed, i, k)).random(steps, dtype=np.float32) for i in sentences for k in samples]
    return torch.from_numpy(np.stack(drawn)).double()


@torch.no_grad()
def _draw(
    model: Predictor,
    sources: Sequence[Sequence[int]],
    max_lengths: Sequence[int],
    numbers: Tensor,
    sampling: Sampling,
) -> list[tuple[list[int], float]]:
    """Return tokens and log probability of the samples, those of a sentence side by side. `numbers`: [num, steps]."""
    device = model.device
    source, source_mask = to_device(sources, device)
    # Each sample is a sentence of its own from here on, since its samples end at different steps.
    rows = torch.arange(len(sources), device=device).repeat_interleave(sampling.num_samples)
    state = model.begin(source, source_mask).select(rows, rows)
    limits = [limit for limit in max_lengths for _ in range(sampling.num_samples)]
    results: list[list[int]] = [[] for _ in limits]
    totals = [0.0] * len(limits)
    live = list(range(len(limits)))
    tokens = torch.full((len(limits),), BOS, device=device)
    for step in range(max(limits) + 1):
        if not live:
            break
        log_probs = torch.log_softmax(model.step(tokens, state), dim=1)
        drawn = _tokens(log_probs.clone(), numbers[live, step].to(device), sampling)
        at_limit = torch.tensor([len(results[sample]) >= limits[sample] for sample in live], device=device)
        drawn = drawn.masked_fill(at_limit, EOS)
        gained = log_probs.gather(1, drawn[:, None]).squeeze(1)
        gained = gained.masked_fill(gained.isnan(), -torch.inf)
        kept, chosen = [], drawn.tolist()
        for row, (sample, token, log_probability) in enumerate(zip(live, chosen, gained.tolist(), strict=True)):
            totals[sample] += log_probability
            if token != EOS:
                results[sample].append(token)
                kept.append(row)
        if len(kept) < len(live):
            left = torch.tensor(kept, dtype=torch.int64, device=device)
            state = state.select(left, sentences=left)
            live = [live[row] for row in kept]
        tokens = torch.tensor([chosen[row] for row in kept], dtype=torch.int64, device=device)
    return list(zip(results, totals, strict=True))


def _tokens(log_probs: Tensor, numbers: Tensor, sampling: Sampling) -> Tensor:
    """Return one token of each row, [rows] int64, drawn by `numbers` ([rows]); an end of sentence where no token is possible.

    Changes `log_probs` ([rows, V]).
    """
    scores = without_specials(log_probs)
    if sampling.top_k is not None and sampling.top_k < scores.shape[1]:
        best, tokens = scores.topk(sampling.top_k, dim=1)
        scores = torch.full_like(scores, -torch.inf).scatter_(1, tokens, best)
    largest = scores.amax(dim=1, keepdim=True)
    is_possible = (largest > -torch.inf).squeeze(1)
    # Less the largest before the division: a small temperature would make infinities.
    weights = ((scores - largest).double() / sampling.temperature).exp().nan_to_num(nan=0.0)
    cumulative = weights.cumsum(dim=1)
    places = torch.searchsorted(cumulative, numbers[:, None] * cumulative[:, -1:], right=True).squeeze(1)
    return places.clamp(max=scores.shape[1] - 1).masked_fill(~is_possible, EOS)
