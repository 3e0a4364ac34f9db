"""Search for the best translation: greedy, and beam search with length normalisation.

A hypothesis is a sequence of tokens that ends with the end of sentence. Its score is the sum of its log probabilities,
end included, divided by (number of tokens, end included) ^ penalty. Padding, unknown and begin of sentence are never
chosen. A hypothesis that reaches its sentence's length limit must end there. A score that is not a number, as from a
diverged model, counts as minus infinity: a hypothesis with only such continuations ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from hvd_async.config import DecodingConfig
from hvd_async.errors import DataError
from hvd_async.tasks.translation.batching import pad_sources
from hvd_async.tasks.translation.model import TranslationModel
from hvd_async.tasks.translation.vocabulary import BOS, EOS, PAD, UNK
from hvd_async.vectors.threads import arithmetic_threads

_SPARE_LENGTH = 10
_NEVER = [PAD, UNK, BOS]


@torch.no_grad()
def translate(
    model: TranslationModel,
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
    for number, source in enumerate(sources, start=1):
        if fault := length_fault(model, source):
            raise DataError(f"sentence {number}: {fault}")
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    batches = [order[start : start + config.batch_sentences] for start in range(0, len(order), config.batch_sentences)]

    def search(chosen: list[int]) -> list[list[int]]:
        return _search(model, [sources[i] for i in chosen], config, beam)

    results: list[list[int]] = [[] for _ in sources]
    with _spread(threads) as each:
        for chosen, found in zip(batches, each(search, batches), strict=True):
            for i, tokens in zip(chosen, found, strict=True):
                results[i] = tokens
    return results


def length_fault(model: TranslationModel, source: Sequence[int]) -> str:
    """Return what is wrong with the length of `source`, in words; empty if the model can read it."""
    limit = model.config.max_positions - 1  # the end of sentence takes a position
    return "" if len(source) <= limit else f"got {len(source)} tokens, expected at most {limit} (task.model.max_positions)"


@torch.no_grad()  # set here, since the mode is per thread
def _search(model: TranslationModel, batch: Sequence[Sequence[int]], config: DecodingConfig, beam: int) -> list[list[int]]:
    limit = model.config.max_positions - 1
    max_lengths = [min(limit, _SPARE_LENGTH + int(config.max_length_ratio * len(source))) for source in batch]
    if beam == 1:
        return greedy_search(model, batch, max_lengths)
    return beam_search(model, batch, max_lengths, beam=beam, length_penalty=config.length_penalty)


_Each = Callable[[Callable[[list[int]], list[list[int]]], Sequence[list[int]]], Iterator[list[list[int]]]]


@contextlib.contextmanager
def _spread(threads: int | None) -> Iterator[_Each]:
    """Yield a function like `map` that makes this many calls at a time. Threads within an operation meet after each one;
    these never wait."""
    if threads is None:
        yield map
        return
    with arithmetic_threads(1), ThreadPoolExecutor(threads) as pool:  # of threads that start later too
        yield pool.map


@torch.no_grad()
def greedy_search(model: TranslationModel, sources: Sequence[Sequence[int]], max_lengths: Sequence[int]) -> list[list[int]]:
    """Choose the most probable token at each step. `max_lengths`: most tokens of each result, without the end of
    sentence."""
    device = model.device
    source, source_mask = _to_device(sources, device)
    state = model.start(model.encode(source, source_mask), source_mask)
    results: list[list[int]] = [[] for _ in sources]
    live = list(range(len(sources)))
    tokens = torch.full((len(sources),), BOS, device=device)
    for _ in range(max(max_lengths, default=0) + 1):
        if not live:
            break
        best, best_tokens = _without_specials(model.step(tokens, state)).max(dim=1)
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


@dataclass
class _Search:
    """The search for one sentence: the hypotheses that have ended so far."""

    max_length: int
    best: list[int]
    best_score: float = -torch.inf
    num_finished: int = 0

    def finish(self, tokens: list[int], score: float) -> None:
        """Add a hypothesis that has ended; of equal ones the first stays."""
        self.num_finished += 1
        if score > self.best_score:
            self.best, self.best_score = tokens, score


@torch.no_grad()
def beam_search(
    model: TranslationModel,
    sources: Sequence[Sequence[int]],
    max_lengths: Sequence[int],
    *,
    beam: int,
    length_penalty: float,
) -> list[list[int]]:
    """Return the best hypotheses found while keeping the `beam` most probable unfinished ones at each step.

    Among the 2 * beam best continuations of a sentence, an end of sentence among the first `beam` finishes a hypothesis,
    and the first `beam` others continue. A sentence is done when `beam` hypotheses have finished, when none is left, or
    when none that is left can still beat the best finished one. Arguments as for `greedy_search`.
    """
    device = model.device
    source, source_mask = _to_device(sources, device)
    state = model.start(model.encode(source, source_mask), source_mask)
    state = state.select(torch.arange(len(sources), device=device).repeat_interleave(beam))
    searches = [_Search(max_length, []) for max_length in max_lengths]
    live = list(range(len(sources)))
    hypotheses: list[list[list[int]]] = [[[] for _ in range(beam)] for _ in sources]  # [unfinished sentence][beam] -> tokens
    # A sentence's hypotheses are all equal at first: only one of them may be continued.
    scores = torch.full((len(sources), beam), -torch.inf, device=device, dtype=model.dtype)
    scores[:, 0] = 0.0
    tokens = torch.full((len(sources) * beam,), BOS, device=device)
    for _ in range(max(max_lengths, default=0) + 1):
        if not live:
            break
        log_probs = _without_specials(torch.log_softmax(model.step(tokens, state), dim=1))  # [unfinished * beam, V]
        _force_end(log_probs, [searches[sentence].max_length <= state.length - 1 for sentence in live], beam)
        size = log_probs.shape[1]
        top_scores, top = _best_continuations(scores, log_probs, count=2 * beam)
        kept, survivors = [], []
        for row, sentence in enumerate(live):
            ranked = list(zip(top_scores[row].tolist(), top[row].tolist(), strict=True))
            extended = _extend(ranked, hypotheses[row], searches[sentence], beam, size, length_penalty)
            if not _is_done(searches[sentence], extended, beam, length_penalty):
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
    return [search.best for search in searches]


def _best_continuations(scores: Tensor, log_probs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` best continuations of each sentence (all, if fewer), best first: scores, and
    `hypothesis * V + token`, [live, count].

    `scores` is [live, beam], `log_probs` [live * beam, V]. The best of each hypothesis are found first, so that few
    numbers are added.
    """
    (live, beam), size = scores.shape, log_probs.shape[1]
    best, tokens = log_probs.topk(min(count, size), dim=1)
    totals = (scores.flatten()[:, None] + best).view(live, -1)
    top_scores, top = totals.topk(min(count, totals.shape[1]), dim=1)
    origins = torch.arange(beam, device=scores.device).repeat_interleave(best.shape[1])
    return top_scores, origins[top] * size + tokens.view(live, -1).gather(1, top)


def _extend(
    ranked: list[tuple[float, int]],
    hypotheses: list[list[int]],
    search: _Search,
    beam: int,
    size: int,
    length_penalty: float,
) -> list[tuple[float, int, list[int]]]:
    """Finish and continue one sentence's hypotheses; return (score, hypothesis, tokens) of at most `beam` that continue.

    `ranked`: score and `hypothesis * size + token` of the best continuations, best first.
    """
    extended: list[tuple[float, int, list[int]]] = []
    for rank, (score, index) in enumerate(ranked):
        origin, token = divmod(index, size)
        if score == -torch.inf or len(extended) == beam:
            break
        if token != EOS:
            extended.append((score, origin, [*hypotheses[origin], token]))
        elif rank < beam:
            search.finish(hypotheses[origin], score / (len(hypotheses[origin]) + 1) ** length_penalty)
    return extended


def _is_done(search: _Search, extended: list[tuple[float, int, list[int]]], beam: int, length_penalty: float) -> bool:
    if not extended or search.num_finished >= beam:
        return True
    # A score only falls as tokens are added, and its largest divisor is that at the length limit.
    return bool(extended[0][0] / (search.max_length + 1) ** length_penalty <= search.best_score)


def _without_specials(scores: Tensor) -> Tensor:
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


def _to_device(sources: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    source, source_mask = pad_sources(sources)
    return source.to(device), None if source_mask is None else source_mask.to(device)
