"""Batches from sentence lengths: which sentences go together, in which order, and how they become tensors.

These are pure functions of lengths, settings, seed and number: every rank computes the same plan, and ranks need only
agree on an index.
"""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hvd_async.config import MOST_EPOCHS, BatchingConfig
from hvd_async.errors import ConfigError
from hvd_async.tasks.translation.vocabulary import BOS, EOS, PAD

Ints = npt.NDArray[np.integer]
Indices = npt.NDArray[np.int64]

_CACHED_EPOCHS = 2  # workers near the end of an epoch claim from two epochs at once


def epoch_batches(
    source_lengths: Ints, target_lengths: Ints, config: BatchingConfig, seed: int, epoch: int
) -> list[Indices]:
    """Return the sentence numbers of each batch of an epoch, every sentence exactly once.

    A permutation drawn from (seed, epoch) is cut into windows of about `config.bucket_batches` batches; each window is
    sorted by length and cut into batches; then all batches are shuffled. Lengths are in pieces, without the end of
    sentence, which is added here. A batch holds at most `config.tokens` tokens on its larger side, padding included,
    except that a longer sentence is a batch alone.
    """
    rng = np.random.default_rng((seed % 2**64, epoch))
    permutation = rng.permutation(len(source_lengths))
    source, target = source_lengths.astype(np.int64) + 1, target_lengths.astype(np.int64) + 1
    larger = np.maximum(source, target)
    per_batch = min(config.max_sentences, max(1.0, config.tokens / larger.mean())) if len(larger) else 1.0
    window = max(1, round(per_batch * config.bucket_batches))
    batches: list[Indices] = []
    for start in range(0, len(permutation), window):
        batches += _cut(_by_length(permutation[start : start + window], source, target), larger, config)
    return [batches[i] for i in rng.permutation(len(batches))]


def _by_length(indices: Indices, source: Indices, target: Indices) -> Indices:
    """Sort by the larger side, which the budget limits, then by how much longer the source is than the target.

    The second order alternately rises and falls, so that neighbours are alike on the smaller side, too, where the larger
    changes.
    """
    larger, difference = np.maximum(source, target)[indices], (source - target)[indices]
    return indices[np.lexsort((np.where(larger % 2 == 0, difference, -difference), larger))]


def _cut(indices: Indices, larger: Indices, config: BatchingConfig) -> list[Indices]:
    """Cut before the sentence with which a batch would exceed the budget."""
    batches, first, longest = [], 0, 0
    for position, length in enumerate(larger[indices].tolist()):
        longest = max(longest, length)
        count = position - first + 1
        if count > 1 and (count * longest > config.tokens or count > config.max_sentences):
            batches.append(indices[first:position])
            first, longest = position, length
    if first < len(indices):
        batches.append(indices[first:])
    return batches


def padding_share(batches: Sequence[Indices], source_lengths: Ints, target_lengths: Ints) -> float:
    """Return the share of all positions, both sides together, that are padding: 0 is none."""
    real = padded = 0
    for batch in batches:
        for lengths in (source_lengths[batch], target_lengths[batch]):
            real += int(lengths.sum()) + len(batch)
            padded += len(batch) * (int(lengths.max()) + 1)
    return 1.0 - real / padded if padded else 0.0


class BatchPlan:
    """The endless sequence of batches: sentence numbers by global index, a function of (lengths, config, seed) alone.

    Epochs follow one another without a gap. They may differ in their number of batches, as sentences are combined
    differently. An epoch is planned when it is first asked for. Its batches are kept while it is one of the last two
    epochs used, its number of batches for good.
    """

    def __init__(self, source_lengths: Ints, target_lengths: Ints, config: BatchingConfig, seed: int) -> None:
        """Plan for these lengths in pieces, [num_sentences] each. Raises `ConfigError` if there is no sentence."""
        if len(source_lengths) == 0 or len(source_lengths) != len(target_lengths):
            raise ConfigError(
                f"batching: got {len(source_lengths)} source and {len(target_lengths)} target sentences,"
                " expected equal numbers, at least one"
            )
        self._source_lengths = source_lengths
        self._target_lengths = target_lengths
        self._config = config
        self._seed = seed
        self._starts = [0]  # global index of the first batch of each epoch planned so far, and of the next epoch
        self._kept: OrderedDict[int, list[Indices]] = OrderedDict()

    def __getitem__(self, index: int) -> Indices:
        """Sentence numbers of the batch `index`, [num_sentences] int64. Raises `IndexError` below 0."""
        epoch = self.epoch_of(index)
        return self.batches_of(epoch)[index - self._starts[epoch]]

    def epoch_of(self, index: int) -> int:
        """Return the epoch, from 0, to which batch `index` belongs. Raises `IndexError` below 0."""
        if index < 0:
            raise IndexError(f"batch {index}: expected 0 or more")
        while index >= self._starts[-1]:
            self.batches_of(len(self._starts) - 1)
        return bisect.bisect_right(self._starts, index) - 1

    def num_batches(self, epochs: int) -> int:
        """Return the number of batches in the first `epochs` epochs."""
        while len(self._starts) <= epochs:
            self.batches_of(len(self._starts) - 1)
        return self._starts[epochs]

    def batches_for_tokens(self, tokens: int) -> int:
        """Return the smallest number of batches, from the first on, that hold at least `tokens` target tokens, ends
        included.

        Raises `ConfigError` for more epochs than a run may have.
        """
        per_epoch = int(self._target_lengths.sum(dtype=np.int64)) + len(self._target_lengths)
        whole_epochs = max(0, tokens - 1) // per_epoch
        if whole_epochs > MOST_EPOCHS:
            raise ConfigError(
                f"training.weight: got {tokens}, which is {whole_epochs:,} epochs of {per_epoch:,} tokens,"
                f" expected at most {MOST_EPOCHS:,} epochs; bound the run by training.updates or seconds"
            )
        count, left = self.num_batches(whole_epochs), tokens - whole_epochs * per_epoch
        for batch in self.batches_of(whole_epochs):
            if left <= 0:
                break
            left -= int(self._target_lengths[batch].sum(dtype=np.int64)) + len(batch)
            count += 1
        return count

    def batches_of(self, epoch: int) -> list[Indices]:
        """Return the batches of an epoch, in order."""
        if epoch not in self._kept:
            self._kept[epoch] = epoch_batches(self._source_lengths, self._target_lengths, self._config, self._seed, epoch)
            if epoch == len(self._starts) - 1:
                self._starts.append(self._starts[-1] + len(self._kept[epoch]))
            if len(self._kept) > _CACHED_EPOCHS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(epoch)
        return self._kept[epoch]


@dataclass(frozen=True)
class Batch:
    """Sentence pairs as tensors, padded at the right. T includes the begin (input) or the end (output) of sentence."""

    source: Tensor
    """[batch, S] int64, each sentence with its end of sentence."""
    source_mask: Tensor | None
    """[batch, S] bool, True at tokens, False at padding; None if nothing is padded, which makes attention faster."""
    target_input: Tensor
    """[batch, T] int64, starting with the begin of sentence."""
    target_output: Tensor
    """[batch, T] int64: `target_input` shifted by one position, ending with the end of sentence."""
    target_positions: Tensor | None
    """[num_tokens] int64, positions in the flattened `target_output` that are not padding; None if nothing is padded."""
    num_tokens: int
    """Tokens of `target_output` that are not padding: the number over which losses are summed."""

    def __len__(self) -> int:
        return len(self.source)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with its tensors on `device`."""
        return Batch(
            source=self.source.to(device),
            source_mask=None if self.source_mask is None else self.source_mask.to(device),
            target_input=self.target_input.to(device),
            target_output=self.target_output.to(device),
            target_positions=None if self.target_positions is None else self.target_positions.to(device),
            num_tokens=self.num_tokens,
        )


def collate(sources: Sequence[Ints | Sequence[int]], targets: Sequence[Ints | Sequence[int]]) -> Batch:
    """Return one batch, on the CPU, from the pieces of its sentences, without begin and end."""
    source, source_mask = pad_sources(sources)
    lengths = np.array([len(target) for target in targets])
    target_input = np.full((len(targets), int(lengths.max()) + 1), PAD, dtype=np.int64)
    target_output = target_input.copy()
    target_input[:, 0] = BOS
    for row, target in enumerate(targets):
        target_input[row, 1 : len(target) + 1] = target
        target_output[row, : len(target)] = target
        target_output[row, len(target)] = EOS
    num_tokens = int(lengths.sum()) + len(targets)
    is_padded = num_tokens < target_output.size
    return Batch(
        source=source,
        source_mask=source_mask,
        target_input=torch.from_numpy(target_input),
        target_output=torch.from_numpy(target_output),
        target_positions=torch.from_numpy(np.flatnonzero(target_output != PAD)) if is_padded else None,
        num_tokens=num_tokens,
    )


def pad_sources(sources: Sequence[Ints | Sequence[int]]) -> tuple[Tensor, Tensor | None]:
    """Return sentences, each with its end, and their mask: [batch, S] int64, and [batch, S] bool or None as in `Batch`."""
    lengths = np.array([len(source) + 1 for source in sources])
    padded = np.full((len(sources), int(lengths.max())), PAD, dtype=np.int64)
    for row, source in enumerate(sources):
        padded[row, : len(source)] = source
        padded[row, len(source)] = EOS
    if lengths.min() == lengths.max():
        return torch.from_numpy(padded), None
    return torch.from_numpy(padded), torch.from_numpy(np.arange(padded.shape[1]) < lengths[:, None])
