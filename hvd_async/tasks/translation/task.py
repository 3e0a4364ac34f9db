"""Translation as training sees it: a model to build, numbered batches, a loss, an evaluation, an export."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hvd_async.config import RunConfig, TranslationConfig
from hvd_async.errors import ConfigError, DataError
from hvd_async.system.printable import printable
from hvd_async.system.random_numbers import numbers_apart
from hvd_async.tasks.evaluating import device_of, evaluating
from hvd_async.tasks.metric import Metric
from hvd_async.tasks.translation.architectures import build_model, check_memory
from hvd_async.tasks.translation.batching import Batch, BatchPlan, Indices, Ints, collate, padding_share
from hvd_async.tasks.translation.bpe_dropout import BpeDropout
from hvd_async.tasks.translation.corpus import SIDES, ParallelArrays, PreparedCorpus, Tokens
from hvd_async.tasks.translation.criterion import cross_entropy_sum, output_tokens
from hvd_async.tasks.translation.decoding import translate
from hvd_async.tasks.translation.evaluation import Measures
from hvd_async.tasks.translation.export import export_model
from hvd_async.tasks.translation.initial_model import begin_with_parameters, fingerprint_with_model
from hvd_async.tasks.translation.model import TranslationModel
from hvd_async.tasks.translation.model_folder import given_vocabularies

_MEASURED_SENTENCES = 300
"""Sentences on which the dropout of merges is checked and measured at the start of a run."""


class TranslationTask:
    """The translation task, one per run and process. Model and numbered batches follow from configuration and corpus
    alone, so all ranks agree on them without communication."""

    weight_unit = "tokens"

    def __init__(self, config: RunConfig, corpus: PreparedCorpus) -> None:
        """Plan the batches. Raises `ConfigError` or `DataError` for sentences longer than the model can read, and for
        `bpe_dropout` with a vocabulary that is not made by merges."""
        self._config = config
        self._corpus = corpus
        self._measures = Measures(config.translation.metrics, _how_translated(config.translation, len(corpus.validation)))
        # Once: every checkpoint has it, and the model's folder may change while the run trains.
        self._fingerprint = fingerprint_with_model(corpus.fingerprint, config.translation)
        _check_lengths(config, corpus)
        train, validation = corpus.train, corpus.validation
        self._dropouts = _make_dropouts(config, corpus)
        self._plan = BatchPlan(train.source_lengths, train.target_lengths, config.translation.batching, config.seed)
        self._validation_batches = _in_order_of_length(validation, config.translation.batching.tokens)

    def build_model(self) -> TranslationModel:
        """Return a new model on the CPU, its parameters drawn from the run's seed, or those of `task.init_from`; torch's random
        state is restored.

        Raises `ConfigError` for a model that does not fit into memory, and as `begin_with_parameters` does.
        """
        source_size, target_size = self._corpus.vocabularies.sizes
        check_memory(self._config.translation.model, target_size, source_size)
        with numbers_apart(self._config.seed):
            model = build_model(self._config.translation.model, target_size, source_size)
        begin_with_parameters(model, self._config, self._corpus.vocabularies)
        return model

    def num_batches(self) -> int | None:
        """Return the number of batches of the whole run; None if updates or seconds bound the run, which takes as many as
        it needs."""
        training = self._config.training
        if training.epochs is not None:
            return self._plan.num_batches(training.epochs)
        return None if training.weight is None else self._batches_for_tokens

    @functools.cached_property
    def _batches_for_tokens(self) -> int:
        """The number of batches that hold `training.weight` target tokens. With dropout on that side, they are cut to be
        counted."""
        wanted = self._config.training.weight
        assert wanted is not None
        planned = self._plan.batches_for_tokens(wanted)  # raises an error for too many epochs
        if "target" not in self._dropouts:
            return planned
        count = num_tokens = 0
        while num_tokens < wanted:
            targets = self._training_sentences(count, self._plan[count], "target")
            num_tokens += sum(len(each) + 1 for each in targets)
            count += 1
        return count

    def batch(self, index: int, device: torch.device | str) -> Batch:
        """Return batch `index` (from 0, across epochs), on `device`."""
        return self._collated(index, self._plan[index], device)

    def micro_batches(self, index: int, number: int, device: torch.device | str) -> list[Batch]:
        """Return batch `index`, on `device`, as `number` batches, or as one for each sentence if it has fewer: every
        `number`-th sentence, so that each has short ones and long ones."""
        numbers = self._plan[index]
        return [self._collated(index, numbers[start::number], device) for start in range(min(number, len(numbers)))]

    def _collated(self, index: int, numbers: Indices, device: torch.device | str) -> Batch:
        """Return the sentences `numbers` of batch `index` as a batch."""
        sides = [self._training_sentences(index, numbers, side) for side in SIDES]
        return collate(*sides).to(device)

    def _training_sentences(self, index: int, numbers: Indices, side: str) -> list[Tokens]:
        """Return the tokens of one side of the sentences `numbers` of the batch `index`, cut for its epoch."""
        train = self._corpus.train
        sentences = [train.sentence(side, i) for i in numbers]
        if side not in self._dropouts:
            return sentences
        longest = self._config.translation.data.max_tokens_per_sentence
        return self._dropouts[side].cut(sentences, numbers.tolist(), self._plan.epoch_of(index), SIDES.index(side), longest)

    def epoch_of(self, index: int) -> int:
        """Return the epoch, from 0, to which batch `index` belongs."""
        return self._plan.epoch_of(index)

    def weight(self, batch: Batch) -> int:
        """Return the number of target tokens of `batch`, ends included."""
        return batch.num_tokens

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Return the summed training loss, a scalar float32 in nats with label smoothing, and its number of target
        tokens.

        `model` is that of `build_model`, or a wrapper that passes arguments on.
        """
        is_mixed = self._config.training.precision == "bfloat16"
        with torch.autocast(batch.source.device.type, dtype=torch.bfloat16, enabled=is_mixed):
            loss_sum = self._loss_sum(model, batch, self._config.translation.label_smoothing)
        return loss_sum, batch.num_tokens

    def recomputed_buffers(self, model: torch.nn.Module) -> Collection[str]:
        """Return nothing: no buffer of the models changes."""
        return ()

    @property
    def metrics(self) -> Sequence[Metric]:
        """Loss, and the scores that the configuration asks for."""
        return self._measures.metrics

    @property
    def num_statistics(self) -> int:
        """Length of the vector of an evaluation."""
        return self._measures.size

    def scores(self, statistics: Sequence[float]) -> dict[str, float]:
        """Return the loss, and the other scores if something was translated."""
        return self._measures.scores(statistics)

    def evaluate(self, model: nn.Module, shard: int = 0, num_shards: int = 1) -> Sequence[float]:
        """Measure this shard of the validation split; the sum over all shards measures the whole.

        Measures the loss on each `num_shards`-th batch and the configured scores on each `num_shards`-th sentence, both
        from `shard` on, in float32 whatever the precision of training, so that runs compare. Restores the model's mode.
        """
        device = device_of(model)
        loss_sum, num_tokens = torch.zeros((), dtype=torch.float64), 0
        with evaluating(model):
            for indices in self._validation_batches[shard::num_shards]:
                batch = self._collate(self._corpus.validation, indices).to(device)
                loss_sum += self._loss_sum(model, batch, label_smoothing=0.0).cpu()
                num_tokens += batch.num_tokens
        if not self._config.translation.metrics:
            return self._measures.vector(float(loss_sum), num_tokens)
        sentences = range(len(self._corpus.validation))[: self._config.translation.metric_sentences][shard::num_shards]
        references = [self._corpus.validation_targets[i] for i in sentences]
        return self._measures.vector(float(loss_sum), num_tokens, self._translate(model, sentences), references)

    def show_samples(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the first validation sentences with their references and translations, as many as `task.samples` says."""
        indices = range(len(self._corpus.validation))[: self._config.translation.num_samples]
        texts = (self._corpus.validation_sources, self._corpus.validation_targets, self._translate(model, indices))
        return [
            {"line": i + 1, "source": source, "reference": reference, "translation": translation}
            for i, (source, reference, translation) in enumerate(zip(*(each[: len(indices)] for each in texts), strict=True))
        ]

    def fingerprint(self) -> str:
        """Return a hash of the text, the vocabulary's settings, the pairs left out, and the parameters that training begins
        with."""
        return self._fingerprint

    def describe_data(self) -> list[str]:
        """Return lines about the data for a user: sizes, what was left out, and the share of padding in a first epoch."""
        train, skipped = self._corpus.train, self._corpus.skipped
        share = padding_share(self._plan.batches_of(0), train.source_lengths, train.target_lengths)
        data = self._config.translation.data
        left_out = f"; left out: {skipped.train_too_long} too long, {skipped.train_empty} with an empty side"
        if data.max_ratio is not None:
            left_out += f", {skipped.train_unequal} with sides of unequal lengths"
        if data.drop_duplicates:
            left_out += f", {skipped.train_repeated} repeated"
        lines = [f"{len(train):,} training pairs, padding {share:.1%} of the tokens{left_out}"]
        if (first := self._config.translation.init_from) is not None:
            lines.append(f"training begins with the parameters of {first}")
        if given := given_vocabularies(self._config.translation):
            lines.append(
                f"vocabulary: {self._corpus.vocabularies} of {' and '.join(map(str, given))}; the keys of task.vocabulary that"
                " shape one are unused"
            )
        if self._dropouts:
            lines.append(self._describe_dropout())
        if skipped.validation_empty:
            lines.append(f"{skipped.validation_empty:,} validation pairs left out, with an empty side")
        losses, vocabulary = self._corpus.losses, self._config.translation.vocabulary
        coverage = f" (task.vocabulary.character_coverage: {vocabulary.character_coverage:g})" if not given else ""
        normalization = f" (task.vocabulary.normalization: {vocabulary.normalization})" if not given else ""
        if not given and (unused := self._corpus.unused_symbols(vocabulary.symbols)):
            lines.append(
                f"symbols that the training text lacks: {', '.join(map(printable, unused))} (task.vocabulary.symbols)"
            )
        if losses.unknown_pieces:
            lines.append(f"{losses.unknown_pieces:,} pieces of the training text are unknown to the vocabulary{coverage}")
        if losses.normalized_lines:
            lines.append(f"normalisation changes {losses.normalized_lines:,} lines of the training text{normalization}")
        return lines

    def _describe_dropout(self) -> str:
        """Return a line on how much longer sentences are, measured on the first ones in the first epoch."""
        train, longest = self._corpus.train, self._config.translation.data.max_tokens_per_sentence
        numbers = range(len(train))[:_MEASURED_SENTENCES]
        parts = []
        for side, dropout in self._dropouts.items():
            whole = [train.sentence(side, i) for i in numbers]
            cut = dropout.cut(whole, numbers, 0, SIDES.index(side), longest)
            parts.append(f"{sum(map(len, cut)) / sum(map(len, whole)):.2f} times the {side} pieces")
        share = self._config.translation.vocabulary.bpe_dropout
        return f"BPE dropout {share:g}: {' and '.join(parts)}; batches are planned without it"

    def export(self, folder: Path, named_tensors: Mapping[str, Tensor], version: int, scores: Mapping[str, float]) -> None:
        """Write the model folder of `export_model` for the parameters of `version`, with their validation scores."""
        vocabularies, extra = self._corpus.vocabularies, {f"validation_{name}": score for name, score in scores.items()}
        export_model(folder, named_tensors, self._config, vocabularies, version=version, extra=extra)

    def _loss_sum(self, model: nn.Module, batch: Batch, label_smoothing: float) -> Tensor:
        logits: Tensor = model(batch.source, batch.source_mask, batch.target_input, batch.target_positions)
        return cross_entropy_sum(logits, output_tokens(batch), label_smoothing)

    def _translate(self, model: nn.Module, indices: range) -> list[str]:
        if not isinstance(model, TranslationModel):
            raise TypeError(f"got {type(model).__name__}, expected the model of build_model, without a wrapper")
        sources = [self._corpus.validation.source(i).tolist() for i in indices]
        decoding = self._config.translation.decoding
        with evaluating(model):
            return self._corpus.vocabularies.target.decode(
                translate(model, sources, decoding, beam=decoding.validation_beam)
            )

    def _collate(self, arrays: ParallelArrays, indices: Ints) -> Batch:
        return collate([arrays.source(i) for i in indices], [arrays.target(i) for i in indices])


def _make_dropouts(config: RunConfig, corpus: PreparedCorpus) -> dict[str, BpeDropout]:
    """Return what cuts training text anew, by the sides that the configuration asks for. Raises `DataError` if a vocabulary is
    not made by merges."""
    found = {}
    for side in config.translation.vocabulary.dropout_sides:
        vocabulary = corpus.vocabularies.source if side == "source" else corpus.vocabularies.target
        found[side] = BpeDropout(vocabulary, config.translation.vocabulary.bpe_dropout, config.seed)
        found[side].check([corpus.train.sentence(side, i) for i in range(len(corpus.train))[:_MEASURED_SENTENCES]])
    return found


def _check_lengths(config: RunConfig, corpus: PreparedCorpus) -> None:
    """Check lengths: both sides of a batch have one position more than the sentence has tokens."""
    data, positions = config.translation.data, config.translation.model.max_positions
    longest = data.max_tokens_per_sentence
    if longest + 1 > positions:
        raise ConfigError(
            f"task.model.max_positions: got {positions}, expected more than task.data.max_tokens_per_sentence"
            f" ({longest}), since the end of sentence takes a position"
        )
    lengths = np.maximum(corpus.validation.source_lengths, corpus.validation.target_lengths)
    if lengths.max() + 1 > positions:
        raise DataError(
            f"{data.validation}: pair {int(lengths.argmax()) + 1}: got {int(lengths.max())} tokens, expected at most"
            f" {positions - 1} (task.model.max_positions)"
        )


def _how_translated(config: TranslationConfig, num_sentences: int) -> str:
    """Return which of `num_sentences` sentences evaluations translate, and how, in half a sentence."""
    number, beam = config.metric_sentences, config.decoding.validation_beam
    is_all = number is None or number >= num_sentences
    sentences = f"all {num_sentences:,} sentences" if is_all else f"the first {number:,} sentences"
    return f"of {sentences}, {'greedy search' if beam == 1 else f'beam {beam}'}"


def _in_order_of_length(arrays: ParallelArrays, tokens: int) -> list[Ints]:
    """Return batches of sentences sorted by length, within a budget of padded tokens (or a longer sentence alone)."""
    larger = np.maximum(arrays.source_lengths, arrays.target_lengths) + 1
    batches: list[Ints] = []
    order = np.argsort(larger, kind="stable")
    while len(order):
        # Lengths rise: the first k sentences fit the budget if k times the k-th length does.
        count = max(1, int(np.searchsorted(larger[order] * np.arange(1, len(order) + 1), tokens, side="right")))
        batches.append(order[:count])
        order = order[count:]
    return batches
