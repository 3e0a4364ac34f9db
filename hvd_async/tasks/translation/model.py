"""The interface of a translation model to training, search and export, and the choice of its architecture."""

from __future__ import annotations

import abc
from typing import Protocol

import torch
from torch import Tensor, nn

from hvd_async.config import ModelConfig


class DecoderState(Protocol):
    """The state of decoding between steps: N sentences with K hypotheses each (B = N * K rows, those of a sentence side
    by side). Tensors that depend on the source alone are stored once for all hypotheses of a sentence."""

    @property
    def length(self) -> int:
        """Steps done, the position of the next token."""

    def select(self, rows: Tensor, sentences: Tensor | None = None) -> DecoderState:
        """Return the state of `sentences` ([new N] int64; None: all, in their order) with the hypotheses `rows` ([new N *
        new K] int64).

        Both may repeat, reorder or leave out; each row must be a hypothesis of the sentence at its place.
        """


class Predictor(Protocol):
    """The part of a model, or of an ensemble of models, that search and scoring need. V is the size of the target's
    vocabulary."""

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters, and of what is predicted."""

    @property
    def max_positions(self) -> int:
        """Longest sequence of tokens that can be read or written, begin or end of sentence included."""

    def begin(self, source: Tensor, source_mask: Tensor | None) -> DecoderState:
        """Return the state before the first step, from the source as in `Batch`."""

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Return the logits [B, V] that follow `tokens` ([B] int64, the newest of each hypothesis). Advances `state`."""

    def __call__(
        self, source: Tensor, source_mask: Tensor | None, target_input: Tensor, target_positions: Tensor | None = None
    ) -> Tensor:
        """Return the logits at the requested target positions (all if None), [num, V]; arguments as in `Batch`."""


class TranslationModel(nn.Module, abc.ABC):
    """Encoder, decoder and the embeddings, which may be one matrix. W is the width, V the vocabulary's size."""

    config: ModelConfig
    output: nn.Linear
    """Projection from the decoder's hidden states to logits; a subclass sets it to `make_output()` after it has made its
    layers."""

    def __init__(self, config: ModelConfig, vocabulary_size: int, source_size: int | None = None) -> None:
        """Draw the embeddings from torch's global random source; the caller seeds it. `source_size`: of the source's vocabulary,
        if it is not the target's."""
        super().__init__()
        self.config = config
        self.source_embedding = nn.Embedding(source_size or vocabulary_size, config.width)
        is_joint = config.tie_embeddings == "all"
        self.target_embedding = self.source_embedding if is_joint else nn.Embedding(vocabulary_size, config.width)

    def make_output(self) -> nn.Linear:
        """Return the output projection, tied as configured. Draws it and the embeddings, which models scale to unit
        variance."""
        vocabulary_size, width = self.target_embedding.weight.shape
        output = nn.Linear(width, vocabulary_size, bias=False)
        nn.init.xavier_uniform_(output.weight)
        if self.config.tie_embeddings != "none":
            output.weight = self.target_embedding.weight
        for embedding in (self.source_embedding, self.target_embedding):
            nn.init.normal_(embedding.weight, std=width**-0.5)
        return output

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.output.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return self.output.weight.dtype

    @property
    def max_positions(self) -> int:
        """Longest sequence of tokens that the model can read or write."""
        return self.config.max_positions

    def begin(self, source: Tensor, source_mask: Tensor | None) -> DecoderState:
        """Encode the source ([B, S] int64, and its mask as in `Batch`); return the state before the first step."""
        return self.start(self.encode(source, source_mask), source_mask)

    def forward(
        self, source: Tensor, source_mask: Tensor | None, target_input: Tensor, target_positions: Tensor | None = None
    ) -> Tensor:
        """Return logits at the requested target positions (all if None), [num, V]; arguments as in `Batch`.

        Logits are the largest tensor of a step, so none are computed for padding.
        """
        hidden = self.decode(target_input, self.encode(source, source_mask), source_mask).flatten(0, 1)
        if target_positions is not None:
            hidden = hidden.index_select(0, target_positions)
        logits: Tensor = self.output(hidden)
        return logits

    @abc.abstractmethod
    def encode(self, source: Tensor, source_mask: Tensor | None) -> Tensor:
        """[B, S] int64 tokens -> [B, S, W]; values at padding do not matter."""

    @abc.abstractmethod
    def decode(self, target_input: Tensor, memory: Tensor, source_mask: Tensor | None) -> Tensor:
        """[B, T] int64 tokens and the encoded source [B, S, W] -> hidden states [B, T, W], for `output`."""

    @abc.abstractmethod
    def start(self, memory: Tensor, source_mask: Tensor | None) -> DecoderState:
        """Return the state before the first step, from the encoded source [B, S, W]."""

    @abc.abstractmethod
    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Return the logits [B, V] that follow `tokens` ([B] int64, the newest of each hypothesis). Advances `state`,
        which must come from this model's `start`."""
