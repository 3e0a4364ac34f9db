"""Search for the best translations: greedy, and beam search with length normalisation.

A hypothesis is a sequence of tokens that ends with the end of sentence. Its score is the sum of its log probabilities,
end included, divided by (number of tokens, end included) ^ penalty. Padding, unknown and begin of sentence are never
chosen. A hypothesis that reaches its sentence's length limit must end there. A score that is not a number, as from a
diverged model, counts as minus infinity: a hypothesis with only such continuations ends.
"""

from __future__ import annotations

import bisect
import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from hvd_async.config import DecodingConfig
from hvd_async.errors import DataError
from hvd_async.tasks.translation.batching import pad_sources
from hvd_async.tasks.translation.model import Predictor
from hvd_async.tasks.translation.vocabulary import BOS, EOS, PAD, UNK
from hvd_async.vectors.threads import arithmetic_threads

_SPARE_LENGTH = 10
_NEVER = [PAD, UNK, BOS]


Result = TypeVar("Result")


@dataclass(frozen=True)
class Hypothesis:
    """A translation that has ended."""

    tokens: list[int]
    """Pieces, without begin and end."""
    log_probability: float
    """Sum over the tokens and the end of sentence, in nats; minus infinity if the search found nothing."""
    score: float
    """`log_probability` / (number of tokens, end included) ^ penalty."""


def translate(
    model: Predictor,
    sources: Sequence[Sequence[int]],
    config: DecodingConfig,
    *,
    beam: int,
    threads: int | None = None,
) -> list[list[int]]:
    """Return the best translation found for each of `sources`, in their order. Sources and results have no begin and no
    end.

    `threads`: translate this many batches at a time, each with one thread; results do not depend on it. None: one batch
    after another, each with torch's threads. Uses `model` as it is: the caller sets eval mode. Raises `DataError` for a
    source that is too long for the model.
    """
    if beam > 1:
        found = n_best(model, sources, config, beam=beam, num_best=1, threads=threads)
        return [best.tokens for best, *_ in found]

    def search(chosen: list[int]) -> list[list[int]]:
        batch = [sources[i] for i in chosen]
        return greedy_search(model, batch, length_limits(model, batch, config))

    check_lengths(model, sources)
    return in_batches([len(source) for source in sources], config, search, threads)


def n_best(
    model: Predictor,
    sources: Sequence[Sequence[int]],
    config: DecodingConfig,
    *,
    beam: int,
    num_best: int,
    threads: int | None = None,
) -> list[list[Hypothesis]]:
    """Return the `num_best` best translations that `beam_search` finds for each of `sources`, best first.

    Each source has at least one, and fewer than `num_best` if the search finds no more. Other arguments and errors as for
    `translate`.
    """

    def search(chosen: list[int]) -> list[list[Hypothesis]]:
        batch = [sources[i] for i in chosen]
        options = SearchOptions(beam, config.length_penalty, num_best)
        return beam_search(model, batch, length_limits(model, batch, config), options)

    check_lengths(model, sources)
    return in_batches([len(source) for source in sources], config, search, threads)


def check_lengths(model: Predictor, sentences: Sequence[Sequence[int]], name: str = "sentence") -> None:
    """Raise `DataError` for the first of `sentences` that is too long for the model; `name` says what they are."""
    for number, sentence in enumerate(sentences, start=1):
        if fault := length_fault(model, sentence):
            raise DataError(f"{name} {number}: {fault}")


def length_fault(model: Predictor, source: Sequence[int]) -> str:
    """Return what is wrong with the length of `source`, in words; empty if the model can read it."""
    limit = model.max_positions - 1  # the end of sentence takes a position
    return "" if len(source) <= limit else f"got {len(source)} tokens, expected at most {limit} (task.model.max_positions)"


def length_limits(model: Predictor, batch: Sequence[Sequence[int]], config: DecodingConfig) -> list[int]:
    """Return the most tokens that the translation of each sentence may have, without the end of sentence."""
    limit = model.max_positions - 1
    return [min(limit, _SPARE_LENGTH + int(config.max_length_ratio * len(source))) for source in batch]


def in_batches(
    lengths: Sequence[int], config: DecodingConfig, work: Callable[[list[int]], Sequence[Result]], threads: int | None
) -> list[Result]:
    """Return the results of `work` for all sentences, in their order; `work` gets the numbers of a batch of sentences.

    Batches have sentences of similar length, at most `config.batch_sentences` and, padding included, `config.batch_tokens`; a
    longer sentence is a batch alone. `threads` as for `translate`.
    """
    batches = _batches(lengths, config)
    results: dict[int, Result] = {}
    with _spread(threads) as pool:
        each = map(work, batches) if pool is None else pool.map(work, batches)
        for chosen, found in zip(batches, each, strict=True):
            results.update(zip(chosen, found, strict=True))
    return [results[i] for i in range(len(lengths))]


def _batches(lengths: Sequence[int], config: DecodingConfig) -> list[list[int]]:
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    batches: list[list[int]] = []
    most = config.batch_tokens or math.inf
    for i in order:
        # The newest is the longest; the end of sentence takes a position.
        is_full = not batches or len(batches[-1]) == config.batch_sentences
        if is_full or (len(batches[-1]) + 1) * (lengths[i] + 1) > most:
            batches.append([])
        batches[-1].append(i)
    return batches


@contextlib.contextmanager
def _spread(threads: int | None) -> Iterator[ThreadPoolExecutor | None]:
    """Yield this many threads, or None. Threads within an operation meet after each one; these never wait."""
    if threads is None:
        yield None
        return
    with arithmetic_threads(1), ThreadPoolExecutor(threads) as pool:  # of threads that start later too
        yield pool


@torch.no_grad()
def greedy_search(model: Predictor, sources: Sequence[Sequence[int]], max_lengths: Sequence[int]) -> list[list[int]]:
    """Choose the most probable token at each step. `max_lengths`: most tokens of each result, without the end of
    sentence."""
    device = model.device
    source, source_mask = to_device(sources, device)
    state = model.begin(source, source_mask)
    results: list[list[int]] = [[] for _ in sources]
    live = list(range(len(sources)))
    tokens = torch.full((len(sources),), BOS, device=device)
    for _ in range(max(max_lengths, default=0) + 1):
        if not live:
            break
        best, best_tokens = _most_probable(model.step(tokens, state))
        chosen = best_tokens.masked_fill(best == -torch.inf, EOS).tolist()
        kept = []
        for row, (sentence, token) in enumerate(zip(live, chosen, strict=True)):
            if token != EOS and len(results[sentence]) < max_lengths[sentence]:
                results[sentence].append(token)
                kept.append(row)
        if len(kept) < len(live):
            rows = torch.tensor(kept, dtype=torch.int64, device=device)
            state = state.select(rows, sentences=rows)
            live = [live[row] for row in kept]
        tokens = torch.tensor([chosen[row] for row in kept], dtype=torch.int64, device=device)
    return results


@dataclass(frozen=True)
class SearchOptions:
    """How wide a beam search is, and what it returns."""

    beam: int
    """Unfinished hypotheses of each sentence."""
    length_penalty: float
    num_best: int = 1
    """Hypotheses to return for each sentence; at most `beam`."""


@dataclass
class _Search:
    """The search for one sentence: the best hypotheses that have ended so far, best first."""

    max_length: int
    options: SearchOptions
    best: list[Hypothesis] = field(default_factory=list)
    num_finished: int = 0

    def finish(self, tokens: list[int], log_probability: float) -> None:
        """Add a hypothesis that has ended; of equal ones the first stays first."""
        self.num_finished += 1
        score = log_probability / (len(tokens) + 1) ** self.options.length_penalty
        if score > self.worst_score:
            bisect.insort(self.best, Hypothesis(tokens, log_probability, score), key=lambda one: -one.score)
            del self.best[self.options.num_best :]

    @property
    def worst_score(self) -> float:
        """Score that a hypothesis must beat to be returned."""
        return self.best[-1].score if len(self.best) == self.options.num_best else -torch.inf

    def result(self) -> list[Hypothesis]:
        """Return the hypotheses found; an empty one if there is none."""
        return self.best or [Hypothesis([], -torch.inf, -torch.inf)]


@torch.no_grad()
def beam_search(
    model: Predictor, sources: Sequence[Sequence[int]], max_lengths: Sequence[int], options: SearchOptions
) -> list[list[Hypothesis]]:
    """Return the best hypotheses found, best first, while keeping the `beam` most probable unfinished ones at each step.

    Among the 2 * beam best continuations of a sentence, an end of sentence among the first `beam` finishes a hypothesis,
    and the first `beam` others continue. A sentence is done when `beam` hypotheses have finished, when none is left, or
    when none that is left can still beat the finished ones that are returned. Arguments as for `greedy_search`.
    """
    beam = options.beam
    device = model.device
    source, source_mask = to_device(sources, device)
    state = model.begin(source, source_mask)
    state = state.select(torch.arange(len(sources), device=device).repeat_interleave(beam))
    searches = [_Search(max_length, options) for max_length in max_lengths]
    live = list(range(len(sources)))
    hypotheses: list[list[list[int]]] = [[[] for _ in range(beam)] for _ in sources]  # [unfinished sentence][beam] -> tokens
    # A sentence's hypotheses are all equal at first: only one of them may be continued.
    scores = torch.full((len(sources), beam), -torch.inf, device=device, dtype=model.dtype)
    scores[:, 0] = 0.0
    tokens = torch.full((len(sources) * beam,), BOS, device=device)
    for _ in range(max(max_lengths, default=0) + 1):
        if not live:
            break
        log_probs = torch.log_softmax(model.step(tokens, state), dim=1)  # [unfinished * beam, V]
        log_probs[:, _NEVER] = -torch.inf
        _force_end(log_probs, [searches[sentence].max_length <= state.length - 1 for sentence in live], beam)
        size = log_probs.shape[1]
        top_scores, top = _best_continuations(scores, log_probs, count=2 * beam)
        kept, survivors = [], []
        for row, sentence in enumerate(live):
            ranked = list(zip(top_scores[row].tolist(), top[row].tolist(), strict=True))
            extended = _extend(ranked, hypotheses[row], searches[sentence], size)
            if not _is_done(searches[sentence], extended):
                extended += [(-torch.inf, 0, [EOS])] * (beam - len(extended))  # rows to fill the tensor, never continued
                kept.append(row)
                survivors.append(extended)
        rows = [row * beam + origin for row, extended in zip(kept, survivors, strict=True) for _, origin, _ in extended]
        sentences = torch.tensor(kept, dtype=torch.int64, device=device) if len(kept) < len(live) else None
        state = state.select(torch.tensor(rows, dtype=torch.int64, device=device), sentences)
        live = [live[row] for row in kept]
        hypotheses = [[tokens for _, _, tokens in extended] for extended in survivors]
        scores = scores.new_tensor([[score for score, _, _ in extended] for extended in survivors])
        tokens = torch.tensor([h[-1] for extended in hypotheses for h in extended], dtype=torch.int64, device=device)
    return [search.result() for search in searches]


def _best_continuations(scores: Tensor, log_probs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` best continuations of each sentence (all, if fewer), best first: scores, and
    `hypothesis * V + token`, [live, count].

    `scores` is [live, beam], `log_probs` [live * beam, V], where a row is NaN as a whole or not at all. The best of each
    hypothesis are found first, so that few numbers are added, and few are looked at for NaN, which counts as the best.
    """
    (live, beam), size = scores.shape, log_probs.shape[1]
    best, tokens = log_probs.topk(min(count, size), dim=1)
    totals = (scores.flatten()[:, None] + best.masked_fill_(best.isnan(), -torch.inf)).view(live, -1)
    top_scores, top = totals.topk(min(count, totals.shape[1]), dim=1)
    origins = torch.arange(beam, device=scores.device).repeat_interleave(best.shape[1])
    return top_scores, origins[top] * size + tokens.view(live, -1).gather(1, top)


def _extend(
    ranked: list[tuple[float, int]], hypotheses: list[list[int]], search: _Search, size: int
) -> list[tuple[float, int, list[int]]]:
    """Finish and continue one sentence's hypotheses; return (score, hypothesis, tokens) of at most `beam` that continue.

    `ranked`: score and `hypothesis * size + token` of the best continuations, best first.
    """
    beam = search.options.beam
    extended: list[tuple[float, int, list[int]]] = []
    for rank, (score, index) in enumerate(ranked):
        origin, token = divmod(index, size)
        if score == -torch.inf or len(extended) == beam:
            break
        if token != EOS:
            extended.append((score, origin, [*hypotheses[origin], token]))
        elif rank < beam:
            search.finish(hypotheses[origin], score)
    return extended


def _is_done(search: _Search, extended: list[tuple[float, int, list[int]]]) -> bool:
    if not extended or search.num_finished >= search.options.beam:
        return True
    # A score only falls as tokens are added, and its largest divisor is that at the length limit.
    return bool(extended[0][0] / (search.max_length + 1) ** search.options.length_penalty <= search.worst_score)


def _most_probable(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the highest of each row of `logits` ([rows, V], changed) that may be chosen, and its token. A NaN, which torch takes
    for the highest, is looked for only where one was found."""
    logits[:, _NEVER] = -torch.inf
    best, tokens = logits.max(dim=1)
    return without_specials(logits).max(dim=1) if bool(best.isnan().any()) else (best, tokens)


def without_specials(scores: Tensor) -> Tensor:
    """Set tokens that are never chosen, and scores that are NaN, to minus infinity; changes and returns `scores` ([rows,
    V])."""
    scores[:, _NEVER] = -torch.inf
    return scores.masked_fill_(scores.isnan(), -torch.inf)


def _force_end(log_probs: Tensor, at_limit: list[bool], beam: int) -> None:
    """Allow only the end of sentence to hypotheses of sentences at their limit; changes `log_probs`."""
    if any(at_limit):
        rows = torch.tensor(at_limit, device=log_probs.device).repeat_interleave(beam)
        ends = log_probs[rows, EOS]
        log_probs[rows] = -torch.inf
        log_probs[rows, EOS] = ends


def to_device(sources: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return sentences with their ends, and their mask, as `pad_sources` makes them, on `device`."""
    source, source_mask = pad_sources(sources)
    return source.to(device), None if source_mask is None else source_mask.to(device)
