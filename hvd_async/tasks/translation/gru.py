"""GRUs with global attention (Luong et al. 2015), to check that findings are not specific to the Transformer.

The encoder is bidirectional as in Bahdanau et al. (2015), and the decoder's initial states come from the mean of its
outputs, as in Nematus (Sennrich et al. 2017). There is no input feeding (Luong et al., section 3.3): a hidden state does
not depend on where the previous step attended, so training runs a layer over a whole sentence, and then all attention, at
once.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from hvd_async.config import ModelConfig
from hvd_async.tasks.translation.attention import attention
from hvd_async.tasks.translation.dropout import Dropout
from hvd_async.tasks.translation.model import DecoderState, TranslationModel


@dataclass
class GruState:
    """The state of decoding with a GRU; see `DecoderState`."""

    hidden: list[Tensor]
    """Per layer: [B, W]."""
    memory: Tensor
    """[N, S, W], the encoded source."""
    keys: Tensor
    """[N, S, W], the vectors with which hidden states are compared."""
    source_mask: Tensor | None
    """[N, S] bool, True at tokens; None where nothing is padded."""
    length: int = 0
    """Steps done."""

    def select(self, rows: Tensor, sentences: Tensor | None = None) -> GruState:
        selected = GruState(
            hidden=[layer.index_select(0, rows) for layer in self.hidden],
            memory=self.memory,
            keys=self.keys,
            source_mask=self.source_mask,
            length=self.length,
        )
        if sentences is not None:
            selected.memory = self.memory.index_select(0, sentences)
            selected.keys = self.keys.index_select(0, sentences)
            selected.source_mask = None if self.source_mask is None else self.source_mask.index_select(0, sentences)
        return selected


class Recurrence(nn.GRU):
    """One layer in one direction: [B, T, inputs] -> [B, T, outputs]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Initialise as torch does: uniformly, up to 1 / sqrt(outputs)."""
        super().__init__(inputs, outputs, batch_first=True)

    def run(self, x: Tensor, initial: Tensor | None = None) -> Tensor:
        """Return all states [B, T, outputs], after `initial` ([B, outputs]; None: zero)."""
        states: Tensor
        if not x.is_cuda:
            states = self(x, None if initial is None else initial[None])[0]
            return states
        # Under autocast of any type cuDNN would compute in float16; and cuDNN needs the state to be contiguous.
        with _without_warning(), torch.autocast("cuda", enabled=False):
            states = self(x.float(), None if initial is None else initial[None].float().contiguous())[0]
        return states


@contextlib.contextmanager
def _without_warning() -> Iterator[None]:
    """Silence cuDNN's warning that it copies parameters without memory of their own at each call. They are small, and
    belong in the flat vector."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
        yield


class GruEncoderLayer(nn.Module):
    """Two recurrences, from left to right and from right to left, each of half the width."""

    def __init__(self, config: ModelConfig) -> None:
        """Make both recurrences."""
        super().__init__()
        self.left_to_right = Recurrence(config.width, config.width // 2)
        self.right_to_left = Recurrence(config.width, config.width // 2)

    def forward(self, x: Tensor, order: Tensor) -> Tensor:
        """[B, S, W] -> [B, S, W]; `order` is that of `reversal`.

        Padding is still at the right after the reversal, where no token's state depends on it. A packed sequence does the
        same more slowly, and needs the lengths on the CPU.
        """
        backwards = self.right_to_left.run(_reordered(x, order))
        return torch.cat([self.left_to_right.run(x), _reordered(backwards, order)], dim=2)


def reversal(source: Tensor, source_mask: Tensor | None) -> Tensor:
    """Return the position to read at each position, so that tokens are reversed and padding stays: [B or 1, S, 1] int64.

    Reordering twice restores the order. `source` is [B, S, ...].
    """
    position = torch.arange(source.shape[1], device=source.device)
    if source_mask is None:
        return position.flip(0)[None, :, None]
    lengths = source_mask.sum(dim=1, keepdim=True)
    return torch.where(source_mask, lengths - 1 - position, position)[:, :, None]


def _reordered(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(1, order.expand(x.shape))


class GlobalAttention(nn.Module):
    """Luong et al.'s attention over all source positions, with the score "general", and the attentional vector."""

    def __init__(self, config: ModelConfig) -> None:
        """Make the bilinear form of the score, and the projection of context and hidden state."""
        super().__init__()
        self.score = nn.Linear(config.width, config.width, bias=False)
        self.combine = nn.Linear(2 * config.width, config.width, bias=False)
        for linear in (self.score, self.combine):
            nn.init.xavier_uniform_(linear.weight)

    def project_memory(self, memory: Tensor) -> Tensor:
        """Return the vectors with which hidden states are compared, so that the form is applied once for each source
        position: [B, S, W]."""
        keys: Tensor = self.score(memory)
        return keys

    def forward(self, hidden: Tensor, keys: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """Return tanh(W [context; hidden]), [B, T, W], for hidden states [B, T, W]. `mask`: [B, S] bool, True where to
        attend."""
        context = attention(hidden[:, None], keys[:, None], memory[:, None], mask, scale=1.0)
        return torch.tanh(self.combine(torch.cat([context.squeeze(1), hidden], dim=2)))


class AttentionalGru(TranslationModel):
    """Encoder, decoder, attention and the embeddings. V is the size of the target's vocabulary."""

    def __init__(self, config: ModelConfig, vocabulary_size: int, source_size: int | None = None) -> None:
        """Draw the initial parameters from torch's global random source; the caller seeds it."""
        super().__init__(config, vocabulary_size, source_size)
        width = config.width
        self.encoder = nn.ModuleList(GruEncoderLayer(config) for _ in range(config.encoder_layers))
        self.initial = nn.Linear(width, config.decoder_layers * width)
        self.decoder = nn.ModuleList(Recurrence(width, width) for _ in range(config.decoder_layers))
        self.attention = GlobalAttention(config)
        self.output = self.make_output()
        self.dropout = Dropout(config.dropout)

    def encode(self, source: Tensor, source_mask: Tensor | None) -> Tensor:
        """[B, S] int64 tokens -> [B, S, W]."""
        x = self._embed(self.source_embedding, source)
        order = reversal(source, source_mask)
        for layer in self.encoder:
            x = self.dropout(layer(x, order))
        return x

    def decode(self, target_input: Tensor, memory: Tensor, source_mask: Tensor | None) -> Tensor:
        """[B, T] int64 tokens and the encoded source [B, S, W] -> attentional vectors [B, T, W], for `output`.

        Padding is at the right of the target, where no earlier position sees it.
        """
        return self._advance(target_input, self.start(memory, source_mask))

    def start(self, memory: Tensor, source_mask: Tensor | None) -> GruState:
        """Return the state before the first step, from the encoded source [B, S, W]."""
        if source_mask is None:
            mean = memory.mean(dim=1)
        else:
            mean = (memory * source_mask[:, :, None]).sum(dim=1) / source_mask.sum(dim=1, keepdim=True)
        initial = torch.tanh(self.initial(mean)).to(memory.dtype)  # under autocast a GRU would mix two precisions
        return GruState(
            hidden=list(initial.chunk(len(self.decoder), dim=1)),
            memory=memory,
            keys=self.attention.project_memory(memory),
            source_mask=source_mask,
        )

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Return the logits [B, V] that follow `tokens` ([B] int64, the newest of each hypothesis). Advances `state`."""
        assert isinstance(state, GruState)
        logits: Tensor = self.output(self._advance(tokens[:, None], state)).squeeze(1)
        return logits

    def _advance(self, tokens: Tensor, state: GruState) -> Tensor:
        """[B, T] int64 tokens -> attentional vectors [B, T, W]. Advances `state` by T steps."""
        x = self._embed(self.target_embedding, tokens)
        for number, layer in enumerate(self._decoder_layers()):
            states = layer.run(x, state.hidden[number])
            state.hidden[number] = states[:, -1]
            x = self.dropout(states)
        state.length += tokens.shape[1]
        by_sentence = x.reshape(
            len(state.memory), -1, x.shape[2]
        )  # [N, K * T, W]: attention treats hypotheses like positions
        attentional = self.attention(by_sentence, state.keys, state.memory, state.source_mask)
        dropped: Tensor = self.dropout(attentional.view(x.shape))
        return dropped

    def _decoder_layers(self) -> list[Recurrence]:
        return [cast(Recurrence, layer) for layer in self.decoder]

    def _embed(self, embedding: nn.Embedding, tokens: Tensor) -> Tensor:
        """[B, T] int64 -> [B, T, W], initially of unit variance."""
        embedded: Tensor = self.dropout(embedding(tokens) * math.sqrt(self.config.width))
        return embedded
