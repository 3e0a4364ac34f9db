"""The Transformer (Vaswani et al. 2017), made to train fast on few cores: few large matrix products, no wasted positions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from hvd_async.config import ModelConfig
from hvd_async.tasks.translation.attention import attention
from hvd_async.tasks.translation.dropout import Dropout
from hvd_async.tasks.translation.model import DecoderState, TranslationModel


@dataclass
class TransformerState:
    """The state of decoding with a Transformer, see `DecoderState`; H heads of size D, t steps done."""

    keys_values: list[Tensor]
    """Per layer: [B, t, 2 * W] self-attention keys and values so far, as projected; steps append and select long rows."""
    memory_keys: list[Tensor]
    """Per layer: [N, H, S, D] keys of the encoded source."""
    memory_values: list[Tensor]
    """Per layer: [N, H, S, D]."""
    source_mask: Tensor | None
    """[N, S] bool, True at tokens; None where nothing is padded."""
    length: int = 0
    """Steps done, the position of the next token."""

    def select(self, rows: Tensor, sentences: Tensor | None = None) -> TransformerState:
        selected = TransformerState(
            keys_values=_select(self.keys_values, rows),
            memory_keys=self.memory_keys,
            memory_values=self.memory_values,
            source_mask=self.source_mask,
            length=self.length,
        )
        if sentences is not None:
            selected.memory_keys = _select(self.memory_keys, sentences)
            selected.memory_values = _select(self.memory_values, sentences)
            selected.source_mask = None if self.source_mask is None else self.source_mask.index_select(0, sentences)
        return selected


def _select(tensors: list[Tensor], rows: Tensor) -> list[Tensor]:
    return [tensor.index_select(0, rows) for tensor in tensors]


class Attention(nn.Module):
    """The parts of multi-head attention: projections to heads, the attention itself, the projection back. W is the width."""

    def __init__(self, config: ModelConfig) -> None:
        """Make the output projection; subclasses make the projections of queries, keys and values."""
        super().__init__()
        self.heads = config.heads
        self.dropout = config.attention_dropout
        self.output = _linear(config.width, config.width)

    def split(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """[B, T, parts * W] -> `parts` views [B, H, T, D]."""
        batch, length, _ = projected.shape
        return projected.view(batch, length, parts, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
        """[B, H, T, D] queries over [B, H, S, D] keys and values -> [B, T, W]. `mask`: [B, S] bool, True where to attend."""
        dropout = self.dropout if self.training else 0.0
        attended = attention(query, key, value, mask, dropout_p=dropout, is_causal=causal)
        output: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return output


class SelfAttention(Attention):
    """Attention of a sequence to itself; one projection makes queries, keys and values."""

    def __init__(self, config: ModelConfig) -> None:
        """Make the projections."""
        super().__init__(config)
        self.query_key_value = _linear(config.width, config.width, parts=3)

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """[B, T, W] -> [B, T, W]."""
        query, key, value = self.split(self.query_key_value(x), 3)
        return self.attend(query, key, value, mask, causal)

    def step(self, x: Tensor, state: TransformerState, layer: int) -> Tensor:
        """One position, [B, 1, W] -> [B, 1, W]; its key and value are added to `state`."""
        width = x.shape[2]
        projected: Tensor = self.query_key_value(x)
        state.keys_values[layer] = torch.cat([state.keys_values[layer], projected[:, :, width:]], dim=1)
        (query,) = self.split(projected[:, :, :width], 1)
        key, value = self.split(state.keys_values[layer], 2)
        return self.attend(query, key, value, mask=None)


class CrossAttention(Attention):
    """Attention of the target to the encoded source; one projection makes keys and values."""

    def __init__(self, config: ModelConfig) -> None:
        """Make the projections."""
        super().__init__(config)
        self.query = _linear(config.width, config.width)
        self.key_value = _linear(config.width, config.width, parts=2)

    def project_memory(self, memory: Tensor) -> tuple[Tensor, ...]:
        """[B, S, W] -> keys and values, [B, H, S, D] each."""
        return self.split(self.key_value(memory), 2)

    def forward(self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """[B, T, W] over keys and values of `project_memory` -> [B, T, W]."""
        (query,) = self.split(self.query(x), 1)
        return self.attend(query, key, value, mask)


class FeedForward(nn.Sequential):
    """Two linear maps with a ReLU between them, applied alike at each position."""

    def __init__(self, config: ModelConfig) -> None:
        """Make both maps."""
        super().__init__(
            _linear(config.width, config.feed_forward), nn.ReLU(inplace=True), _linear(config.feed_forward, config.width)
        )


class Layer(nn.Module):
    """Residual connections with normalisation before or after the block, for encoder and decoder layers."""

    def __init__(self, config: ModelConfig, num_blocks: int) -> None:
        """Make one normalisation for each of the layer's blocks."""
        super().__init__()
        self.is_pre_norm = config.norm == "pre"
        self.norms = nn.ModuleList(nn.LayerNorm(config.width) for _ in range(num_blocks))
        self.dropout = Dropout(config.dropout)

    def before(self, block: int, x: Tensor) -> Tensor:
        """Return the input of the block: [B, T, W] -> [B, T, W]."""
        read: Tensor = self.norms[block](x) if self.is_pre_norm else x
        return read

    def after(self, block: int, x: Tensor, output: Tensor) -> Tensor:
        """Add the block's `output` to its input `x`, both [B, T, W]."""
        added = self.dropout.added(x, output)
        return added if self.is_pre_norm else self.norms[block](added)


class EncoderLayer(Layer):
    """Self-attention, then feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        """Make the blocks."""
        super().__init__(config, num_blocks=2)
        self.self_attention = SelfAttention(config)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[B, S, W] -> [B, S, W]."""
        x = self.after(0, x, self.self_attention(self.before(0, x), mask, causal=False))
        return self.after(1, x, self.feed_forward(self.before(1, x)))


class DecoderLayer(Layer):
    """Self-attention, attention to the source, then feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        """Make the blocks."""
        super().__init__(config, num_blocks=3)
        self.self_attention = SelfAttention(config)
        self.cross_attention = CrossAttention(config)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, memory: Tensor, source_mask: Tensor | None) -> Tensor:
        """[B, T, W] and the encoded source [B, S, W] -> [B, T, W].

        Padding is at the right of the target, where no earlier position sees it: the causal order is mask enough.
        """
        key, value = self.cross_attention.project_memory(memory)
        x = self.after(0, x, self.self_attention(self.before(0, x), None, causal=True))
        return self._attend_and_feed(x, key, value, source_mask)

    def step(self, x: Tensor, state: TransformerState, layer: int) -> Tensor:
        """One position, [B, 1, W] -> [B, 1, W], as `forward` would compute it after the positions in `state`."""
        x = self.after(0, x, self.self_attention.step(self.before(0, x), state, layer))
        key, value = state.memory_keys[layer], state.memory_values[layer]
        by_sentence = x.view(len(key), -1, x.shape[2])  # [N, K, W]: attention to the source treats hypotheses like positions
        return self._attend_and_feed(by_sentence, key, value, state.source_mask).view(x.shape)

    def _attend_and_feed(self, x: Tensor, key: Tensor, value: Tensor, source_mask: Tensor | None) -> Tensor:
        x = self.after(1, x, self.cross_attention(self.before(1, x), key, value, source_mask))
        return self.after(2, x, self.feed_forward(self.before(2, x)))


class Transformer(TranslationModel):
    """Encoder, decoder and the embeddings, which may be one matrix. V is the size of the target's vocabulary."""

    positions: Tensor
    """[max_positions, W], a buffer that is not saved."""

    def __init__(self, config: ModelConfig, vocabulary_size: int, source_size: int | None = None) -> None:
        """Draw the initial parameters from torch's global random source; the caller seeds it."""
        super().__init__(config, vocabulary_size, source_size)
        width = config.width
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        is_pre_norm = config.norm == "pre"  # otherwise nothing would normalise the sum of the last layer
        self.encoder_norm = nn.LayerNorm(width) if is_pre_norm else nn.Identity()
        self.decoder_norm = nn.LayerNorm(width) if is_pre_norm else nn.Identity()
        self.output = self.make_output()
        self.dropout = Dropout(config.dropout)
        self.register_buffer("positions", sinusoids(config.max_positions, width), persistent=False)

    def encode(self, source: Tensor, source_mask: Tensor | None) -> Tensor:
        """[B, S] int64 tokens -> [B, S, W]."""
        x = self._embed(self.source_embedding, source, first=0)
        for layer in self.encoder:
            x = layer(x, source_mask)
        normed: Tensor = self.encoder_norm(x)
        return normed

    def decode(self, target_input: Tensor, memory: Tensor, source_mask: Tensor | None) -> Tensor:
        """[B, T] int64 tokens and the encoded source [B, S, W] -> hidden states [B, T, W], for `output`."""
        x = self._embed(self.target_embedding, target_input, first=0)
        for layer in self.decoder:
            x = layer(x, memory, source_mask)
        normed: Tensor = self.decoder_norm(x)
        return normed

    def start(self, memory: Tensor, source_mask: Tensor | None) -> TransformerState:
        """Return the state before the first step, from the encoded source [B, S, W]."""
        empty = memory.new_zeros(len(memory), 0, 2 * self.config.width)
        projected = [layer.cross_attention.project_memory(memory) for layer in self._decoder_layers()]
        return TransformerState(
            keys_values=[empty] * len(self.decoder),
            memory_keys=[key for key, _ in projected],
            memory_values=[value for _, value in projected],
            source_mask=source_mask,
        )

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Return the logits [B, V] that follow `tokens` ([B] int64, the newest of each hypothesis). Advances `state`."""
        assert isinstance(state, TransformerState)
        x = self._embed(self.target_embedding, tokens[:, None], first=state.length)
        for number, layer in enumerate(self._decoder_layers()):
            x = layer.step(x, state, number)
        state.length += 1
        logits: Tensor = self.output(self.decoder_norm(x)).squeeze(1)
        return logits

    def _decoder_layers(self) -> list[DecoderLayer]:
        return [cast(DecoderLayer, layer) for layer in self.decoder]

    def _embed(self, embedding: nn.Embedding, tokens: Tensor, first: int) -> Tensor:
        """[B, T] int64 -> [B, T, W]; the first column is at position `first`."""
        scaled = embedding(tokens) * math.sqrt(self.config.width)
        embedded: Tensor = self.dropout(scaled + self.positions[first : first + tokens.shape[1]])
        return embedded


def _linear(inputs: int, outputs: int, parts: int = 1) -> nn.Linear:
    """Return `parts` projections as one matrix, each initialised separately by Xavier, which depends on the matrix's
    shape."""
    linear = nn.Linear(inputs, parts * outputs)
    nn.init.zeros_(linear.bias)
    for weight in linear.weight.detach().chunk(parts):
        nn.init.xavier_uniform_(weight)
    return linear


def sinusoids(num_positions: int, width: int) -> Tensor:
    """Return [num_positions, width] float32: sines in the even columns, cosines in the odd ones, wavelengths 2 pi to
    20000 pi. On the device `meta` only their shape, since torch would load its compiler for more."""
    if torch.get_default_device().type == "meta":
        return torch.empty(num_positions, width)
    position = torch.arange(num_positions, dtype=torch.float64)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(10000.0) / width))
    return torch.stack([torch.sin(position * rate), torch.cos(position * rate)], dim=2).flatten(1).float()
