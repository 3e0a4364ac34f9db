"""The section `optimizer`."""

from __future__ import annotations

from typing import Literal

import pydantic
from pydantic import Field

from hvd_async.config.section import Amount, Fraction, Natural, Positive, PositiveAmount, Section


class ScheduleConfig(Section):
    """The learning rate, a function of the store's version or of the target tokens seen, never of a worker's steps."""

    kind: Literal["inverse_square_root", "linear", "constant"] = Field(
        "inverse_square_root",
        description="After warm-up the rate falls with the inverse square root, falls linearly to zero at `total`, or"
        " stays.",
    )
    unit: Literal["versions", "tokens"] = Field("versions", description="What `warmup` and `total` count.")
    warmup: Natural = Field(0, description="The rate rises linearly from 0 over this many units.")
    total: Positive | None = Field(
        None, description="Where `linear` reaches zero; required for `linear`, refused otherwise."
    )

    @pydantic.model_validator(mode="after")
    def _total_fits(self) -> ScheduleConfig:
        if self.kind == "linear" and (self.total is None or self.total <= self.warmup):
            raise ValueError(f"total: got {self.total}, expected more than warmup ({self.warmup}) for kind linear")
        if self.kind != "linear" and self.total is not None:
            raise ValueError(f"total: got {self.total}, expected no value for kind {self.kind}; remove it or use linear")
        return self


class OptimizerConfig(Section):
    """The update, made by the store (or alike by each rank in a synchronous strategy)."""

    kind: Literal["adam", "adamw", "sgd"] = Field(
        "adam", description="The update rule, as in torch.optim, computed by the store's own kernels."
    )
    learning_rate: PositiveAmount = Field(1e-3, description="Highest rate, reached at the end of warm-up.")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.98), strict=False, description="Decay of Adam's moments.")
    epsilon: PositiveAmount = Field(1e-9, description="Adam's epsilon.")
    momentum: Fraction = Field(0.0, description="Momentum of SGD.")
    nesterov: bool = Field(False, description="Nesterov momentum for SGD.")
    weight_decay: Amount = Field(0.0, description="Decoupled for adamw; added to the gradient for adam and sgd.")
    clip_norm: PositiveAmount | None = Field(
        None, description="Largest norm of an update's combined gradient; a larger gradient is scaled down to it."
    )
    average_decay: Fraction = Field(
        0.0,
        description="Decay of the exponential moving average of parameters, which is then evaluated and exported"
        " instead of them; 0 turns it off.",
    )
    schedule: ScheduleConfig = Field(ScheduleConfig(), description="The learning rate over time.")

    @pydantic.model_validator(mode="after")
    def _options_fit(self) -> OptimizerConfig:
        if self.kind != "sgd" and (self.momentum or self.nesterov):
            raise ValueError(f"momentum, nesterov: expected no value for kind {self.kind}; they apply to sgd only")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: got true with momentum 0, expected momentum > 0")
        return self
