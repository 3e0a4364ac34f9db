"""A small decoder-only Transformer (Radford et al. 2019) over bytes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 256


class GptBlock(nn.Module):
    """Causal self-attention, then two linear maps, each with a residual connection and normalisation before it."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        """Draw the parameters."""
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.inner_norm = nn.LayerNorm(width)
        self.inner = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, W] -> [B, T, W]."""
        batch, length, width = x.shape
        projected = self.query_key_value(self.attention_norm(x)).view(batch, length, 3, self.heads, -1)
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        x = x + self.output(attended.transpose(1, 2).reshape(batch, length, width))
        result: Tensor = x + self.inner(self.inner_norm(x))
        return result


class Gpt(nn.Module):
    """Bytes in, logits of the next byte out; the embedding is also the output matrix."""

    def __init__(self, width: int = 64, layers: int = 2, heads: int = 4, length: int = 64, dropout: float = 0.1) -> None:
        """Draw the parameters."""
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(GptBlock(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight
        for embedding in (self.tokens, self.positions):  # of one size, or positions would drown tokens
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        """[B, T] int64 -> [B, T, 256] logits."""
        x = self.tokens(text) + self.positions(torch.arange(text.shape[1], device=text.device))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits
