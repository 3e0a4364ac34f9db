"""The models whose steps are measured: those of a task, or of a known size with a batch of random sentences, since only sizes
matter for speed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from hvd_async.config import ModelConfig, RunConfig, StrategyConfig
from hvd_async.system.random_numbers import numbers_apart
from hvd_async.tasks.gradient import batches_of, check_micro_batches
from hvd_async.tasks.registry import make_task
from hvd_async.tasks.translation.architectures import build_model
from hvd_async.tasks.translation.batching import Batch, collate
from hvd_async.tasks.translation.criterion import cross_entropy_sum, output_tokens

_FIRST_WORD = 4  # lower numbers are padding, unknown, begin and end


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """A model, and a batch of `tokens` target tokens in sentences of `length`, ends included."""

    config: ModelConfig
    vocabulary: int
    tokens: int
    length: int


SIZES = {
    # The model of configs/multi30k.yaml.
    "multi30k": ModelSize(
        ModelConfig(encoder_layers=3, decoder_layers=3, width=256, feed_forward=1024, heads=4), 6000, 500, 14
    ),
    # The base model of Vaswani et al. (2017), 60 million parameters with a vocabulary of 32000.
    "base": ModelSize(
        ModelConfig(encoder_layers=6, decoder_layers=6, width=512, feed_forward=2048, heads=8), 32000, 4096, 32
    ),
}


class BenchStep(Protocol):
    """Forward and backward pass of one batch, or of parts of it."""

    @property
    def model(self) -> torch.nn.Module:
        """The model."""

    @property
    def size_in_words(self) -> str:
        """The size of the batch, such as `490 tokens`."""

    def batches(self, number: int) -> Sequence[Any]:
        """Return the batch in `number` parts; as itself if `number` is 1. Raises `ConfigError` if it cannot be divided."""

    def __call__(self, batch: Any) -> tuple[float, float]:
        """Add the gradient of the summed loss of one of these to the model's; return the loss and its weight."""


class TaskStep:
    """The first batch of a task. Implements `BenchStep`."""

    def __init__(self, config: RunConfig, device: str = "cpu") -> None:
        """Make the task of `config`, its model, and the batch, which goes to `device`."""
        self._task = make_task(config)
        self.model = self._task.build_model()
        self._device = device
        self._batch = self._task.batch(0, device)

    @property
    def size_in_words(self) -> str:
        """The size of the batch, such as `32 images`."""
        return f"{self._task.weight(self._batch):g} {self._task.weight_unit}"

    def batches(self, number: int) -> Sequence[Any]:
        """Return the batch in `number` parts. Raises `ConfigError` for a task that cannot divide it."""
        if number == 1:
            return [self._batch]
        check_micro_batches(self._task, StrategyConfig(kind="async", micro_batches=number))
        return batches_of(self._task, 0, number, self._device)

    def __call__(self, batch: Any) -> tuple[float, float]:
        """Add the gradient of the summed loss of `batch` to the model's; return the loss and its weight."""
        loss, weight = self._task.loss(self.model, batch)
        loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        return float(loss.detach()), weight


class ModelStep:
    """A model of `SIZES`, with random sentences. Implements `BenchStep`."""

    def __init__(self, size: ModelSize, device: str = "cpu") -> None:
        """Draw parameters, and the batch, which goes to `device`. torch's random state is unchanged."""
        with numbers_apart(1):
            self.model = build_model(size.config, size.vocabulary)
        self._size = size
        self._device = device

    @property
    def size_in_words(self) -> str:
        """The size of the batch, such as `490 tokens`."""
        return f"{random_batches(self._size)[0].num_tokens} tokens"

    def batches(self, number: int) -> Sequence[Batch]:
        """Return the batch in `number` parts."""
        return [part.to(self._device) for part in random_batches(self._size, number)]

    def __call__(self, batch: Batch) -> tuple[float, float]:
        """Add the gradient of the summed loss of `batch` to the model's; return the loss and its number of target tokens."""
        logits = self.model(batch.source, batch.source_mask, batch.target_input, batch.target_positions)
        loss = cross_entropy_sum(logits, output_tokens(batch), label_smoothing=0.1)
        loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        return float(loss.detach()), batch.num_tokens


def random_batches(size: ModelSize, number: int = 1) -> list[Batch]:
    """Return sentences of `size.length` random words, without padding, with about `size.tokens` target tokens in all, as `number`
    batches, or fewer if there are fewer sentences."""
    rng = np.random.default_rng(1)
    num = max(1, size.tokens // size.length)
    words = rng.integers(_FIRST_WORD, size.vocabulary, size=(2, num, size.length - 1))
    return [collate(*(list(side[start::number]) for side in words)) for start in range(min(number, num))]
