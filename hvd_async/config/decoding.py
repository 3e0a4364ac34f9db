"""The section `task.decoding`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hvd_async.config.section import Beam, Positive, Section


class DecodingConfig(Section):
    """Search for translations."""

    beam: Beam = Field(5, description="Beam size of `translate` and `score`; 1 is greedy search.")
    validation_beam: Beam = Field(1, description="Beam size in validation.")
    length_penalty: Annotated[float, Field(ge=0.0, le=100.0)] = Field(
        1.0, description="Hypotheses are compared by log probability / length ^ penalty; 0 compares plain sums."
    )
    max_length_ratio: Annotated[float, Field(gt=0.0, le=1000.0)] = Field(
        2.0, description="A translation has at most 10 + ratio x source tokens."
    )
    batch_sentences: Positive = Field(64, description="Sentences translated at once, of similar length.")
    batch_tokens: Positive | None = Field(
        None,
        description="Most source tokens translated at once, padding included; a longer sentence is translated alone. Memory"
        " grows with it and with the beam. Default: `batch_sentences` alone limits a batch.",
    )
