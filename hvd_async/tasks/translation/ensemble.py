"""Several models that predict together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hvd_async.tasks.translation.model import DecoderState, TranslationModel


@dataclass
class EnsembleState:
    """The states of the models of an ensemble; see `DecoderState`."""

    states: list[DecoderState]

    @property
    def length(self) -> int:
        """Steps done, the position of the next token."""
        return self.states[0].length

    def select(self, rows: Tensor, sentences: Tensor | None = None) -> EnsembleState:
        return EnsembleState([state.select(rows, sentences) for state in self.states])


class Ensemble:
    """Models with equal vocabularies whose probabilities are averaged: p(token) = mean of the models' p(token).

    A mean of probabilities is a distribution again, so that log probabilities and perplexities of an ensemble compare with those
    of one model. A mean of logarithms would not be one. The models are on one device, in eval mode.
    """

    def __init__(self, models: Sequence[TranslationModel]) -> None:
        """Use `models` as they are, at least one."""
        self.models = list(models)

    @property
    def device(self) -> torch.device:
        """Device of the models."""
        return self.models[0].device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first model's parameters."""
        return self.models[0].dtype

    @property
    def max_positions(self) -> int:
        """Longest sequence of tokens that every model can read or write."""
        return min(model.max_positions for model in self.models)

    def begin(self, source: Tensor, source_mask: Tensor | None) -> EnsembleState:
        """Return the states before the first step, from the source as in `Batch`."""
        return EnsembleState([model.begin(source, source_mask) for model in self.models])

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Return the log probabilities [B, V] that follow `tokens` ([B] int64). Advances `state`."""
        assert isinstance(state, EnsembleState)
        return _mean([model.step(tokens, own) for model, own in zip(self.models, state.states, strict=True)])

    def __call__(
        self, source: Tensor, source_mask: Tensor | None, target_input: Tensor, target_positions: Tensor | None = None
    ) -> Tensor:
        """Return the log probabilities at the requested target positions (all if None), [num, V]; arguments as in `Batch`."""
        return _mean([model(source, source_mask, target_input, target_positions) for model in self.models])


def _mean(logits: Sequence[Tensor]) -> Tensor:
    """Return the logarithm of the mean of the models' probabilities, [num, V], from their logits."""
    log_probs = torch.stack([torch.log_softmax(each, dim=1) for each in logits])
    return torch.logsumexp(log_probs, dim=0) - math.log(len(logits))
