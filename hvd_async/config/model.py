"""The section `model`."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from hvd_async.config.section import Fraction, Section

Layers = Annotated[int, Field(ge=1, le=1000)]
Size = Annotated[int, Field(ge=1, le=2**20)]


class ModelConfig(Section):
    """The Transformer (Vaswani et al. 2017), or a GRU with global attention (Luong et al. 2015) to compare it with.

    A GRU ignores `feed_forward`, `heads`, `attention_dropout` and `norm`, so one file can serve both kinds.
    """

    kind: Literal["transformer", "gru"] = Field("transformer", description="The architecture.")
    encoder_layers: Layers = Field(3, description="Layers of the encoder; those of a GRU run in both directions.")
    decoder_layers: Layers = Field(3, description="Layers of the decoder.")
    width: Size = Field(
        256,
        description="Size of embeddings and hidden states: an even multiple of `heads`. For a GRU, an even number;"
        " each direction of the encoder has half of it.",
    )
    feed_forward: Size = Field(1024, description="Inner size of the feed-forward blocks. Transformer only.")
    heads: Size = Field(4, description="Attention heads. Transformer only; a GRU has one.")
    dropout: Fraction = Field(
        0.1,
        description="Dropout after embeddings, attention and feed-forward blocks; in a GRU after embeddings, layers and"
        " attention.",
    )
    attention_dropout: Fraction = Field(0.0, description="Dropout on attention weights. Transformer only.")
    norm: Literal["pre", "post"] = Field(
        "pre", description="Layer normalisation before (`pre`) or after (`post`) a block. Transformer only."
    )
    tie_embeddings: Literal["all", "decoder", "none"] = Field(
        "all",
        description="Which embedding matrices are shared: source, target and output (`all`), target and output"
        " (`decoder`), or `none`.",
    )
    max_positions: Size = Field(512, description="Longest sequence of tokens that the model can read or write.")

    @pydantic.model_validator(mode="after")
    def _width_divides(self) -> ModelConfig:
        if self.kind == "gru":
            if self.width % 2:
                raise ValueError(f"width: got {self.width}, expected an even number for kind gru, half for each direction")
        elif self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width: got {self.width}, expected an even multiple of heads ({self.heads})")
        return self
