"""The section `optimizer`."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, TypeAlias

import pydantic
from pydantic import Field

from hvd_async.config.section import Amount, Fraction, Natural, Number, Positive, PositiveAmount, Section, Whole

_ONLY_OF: Mapping[str, tuple[str, ...]] = {
    "sgd": ("momentum", "nesterov"),
    "nadam": ("momentum_decay", "decoupled_weight_decay"),
    "adagrad": ("rate_decay", "initial_accumulator"),
    "torch": ("torch_class", "settings"),
    "muon": ("muon_momentum", "muon_iterations", "muon_scale", "muon_except"),
}
"""Keys that apply to one kind only."""


Settings: TypeAlias = dict[str, bool | Whole | Number | list[Number] | None]
TorchClass: TypeAlias = Literal[
    "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"
]


class ScheduleConfig(Section):
    """The learning rate, a function of the store's version or of the weight of the batches seen, never of a worker's steps."""

    renamed: ClassVar[Mapping[str, str]] = {"tokens": "weight"}

    kind: Literal["inverse_square_root", "linear", "cosine", "constant"] = Field(
        "inverse_square_root",
        description="After warm-up the rate falls with the inverse square root, falls linearly to zero at `total`, falls along"
        " half a cosine to `final` at `total`, or stays.",
    )
    unit: Literal["versions", "weight"] = Field("versions", description="What `warmup` and `total` count.")
    warmup: Natural = Field(0, description="The rate rises linearly from 0 over this many units.")
    total: Positive | None = Field(
        None,
        description="Where `linear` and `cosine` end; refused for others. Required for `linear`; default for `cosine`: the end of"
        " the run, `training.updates` or `training.weight`, as `unit` says.",
    )
    final: Fraction = Field(
        0.0, description="Share of the highest rate at which `cosine` ends, and which it keeps after `total`."
    )

    @property
    def end_of_learning(self) -> int | None:
        """Position from which on the rate is 0; None if the rate never is."""
        return None if self.final else self.total

    @pydantic.model_validator(mode="after")
    def _total_fits(self) -> ScheduleConfig:
        falls = self.kind in ("linear", "cosine")
        if (self.kind == "linear" and self.total is None) or (
            falls and self.total is not None and self.total <= self.warmup
        ):
            raise ValueError(f"total: got {self.total}, expected more than warmup ({self.warmup}) for kind {self.kind}")
        if not falls and self.total is not None:
            raise ValueError(
                f"total: got {self.total}, expected no value for kind {self.kind}; remove it, or use linear or cosine"
            )
        if self.kind != "cosine" and self.final:
            raise ValueError(f"final: got {self.final:g}, expected no value for kind {self.kind}; remove it, or use cosine")
        return self


class GroupConfig(Section):
    """A group of parameters that is updated with settings of its own; what it leaves out is that of `optimizer`.

    A parameter belongs to the first group with a pattern that matches its name, or to none.
    """

    match: Annotated[tuple[str, ...], Field(min_length=1, strict=False)] = Field(
        description="Patterns of names, such as `*.bias`: `*` stands for any text, `?` for one character."
    )
    learning_rate: PositiveAmount | None = Field(None, description="Highest rate.")
    betas: tuple[Fraction, Fraction] | None = Field(None, strict=False, description="Decay of the moments.")
    epsilon: PositiveAmount | None = Field(None, description="Epsilon.")
    momentum: Fraction | None = Field(None, description="Momentum of SGD.")
    nesterov: bool | None = Field(None, description="Nesterov momentum for SGD.")
    momentum_decay: Amount | None = Field(None, description="Decay of NAdam's momentum.")
    rate_decay: Amount | None = Field(None, description="Decay of Adagrad's rate.")
    initial_accumulator: Amount | None = Field(None, description="Value with which Adagrad's sums begin.")
    weight_decay: Amount | None = Field(None, description="Weight decay.")
    decoupled_weight_decay: bool | None = Field(None, description="Decoupled weight decay for NAdam.")
    settings: Settings | None = Field(None, description="All settings of the torch class.")


class OptimizerConfig(Section):
    """The update, made by the store (or alike by each rank in a synchronous strategy)."""

    kind: Literal["adam", "adamw", "sgd", "nadam", "lion", "adagrad", "muon", "torch"] = Field(
        "adam",
        description="The update rule, as in torch.optim (`lion`: Chen et al. 2023), computed by the store's own kernels;"
        " `muon`: matrices by their orthogonalized momentum (Jordan et al. 2024), by products that take much longer"
        " (docs/staleness.md), all else as `adamw`; `torch`: by `torch_class`, which is slower.",
    )
    learning_rate: PositiveAmount = Field(1e-3, description="Highest rate, reached at the end of warm-up.")
    betas: tuple[Fraction, Fraction] = Field(
        (0.9, 0.98),
        strict=False,
        description="Decay of the moments of adam, adamw, nadam and muon (torch: 0.9 and 0.999); for lion (its paper: 0.9 and"
        " 0.99) of the average whose sign is taken, and of the momentum.",
    )
    epsilon: PositiveAmount = Field(
        1e-9, description="Epsilon of adam, adamw, nadam, muon (torch: 1e-8) and adagrad (torch: 1e-10)."
    )
    momentum: Fraction = Field(0.0, description="Momentum of SGD.")
    nesterov: bool = Field(False, description="Nesterov momentum for SGD.")
    momentum_decay: Amount = Field(4e-3, description="Decay of NAdam's momentum; the default is torch's.")
    rate_decay: Amount = Field(
        0.0,
        description="Decay of Adagrad's rate (torch: `lr_decay`): that of version v is divided by"
        " 1 + (v - 1) * `rate_decay`.",
    )
    initial_accumulator: Amount = Field(0.0, description="Value with which Adagrad's sums of squared gradients begin.")
    muon_momentum: Fraction = Field(0.95, description="Momentum of muon's matrices.")
    muon_iterations: Annotated[int, Field(ge=1, le=20)] = Field(
        5, description="Newton-Schulz iterations, by which muon makes the momentum of a matrix orthogonal."
    )
    muon_scale: Literal["adamw", "original"] = Field(
        "adamw",
        description="Size of muon's update of a matrix: `adamw`: that of an update of adamw, so that its rates fit,"
        " 0.2 sqrt(max(rows, columns)) (Liu et al. 2025); `original`: sqrt(max(1, rows / columns)) (Jordan et al. 2024), torch's"
        " default.",
    )
    muon_except: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        ("*embed*", "output.*", "*lm_head*"),
        description="Patterns of names of matrices that muon updates as adamw does: embeddings and output layers. Tensors of"
        " one dimension are no matrices; of one with more than two, all but the first are taken together.",
    )
    weight_decay: Amount = Field(
        0.0, description="Decoupled for adamw, lion and muon; added to the gradient for adam, nadam, sgd and adagrad."
    )
    decoupled_weight_decay: bool = Field(False, description="Decoupled weight decay for nadam.")
    torch_class: TorchClass = Field(
        "RMSprop",
        description="Class of torch.optim for kind torch. Left out are those whose update of an element depends on other"
        " elements (Adafactor; Muon has a kind of its own), or that need the loss (LBFGS) or sparse gradients (SparseAdam).",
    )
    settings: Settings = Field(
        {},
        description="Settings of the class by torch's names, such as `{alpha: 0.9, momentum: 0.9}`, besides `lr` and"
        " `weight_decay`, which are `learning_rate` and `weight_decay`.",
    )
    steps_before: Natural = Field(
        0,
        description="Steps that the optimizer had made before the run, if a script brings its state: for the corrections of"
        " its beginning.",
    )
    clip_norm: PositiveAmount | None = Field(
        None, description="Largest norm of an update's combined gradient; a larger gradient is scaled down to it."
    )
    average_decay: Fraction = Field(
        0.0,
        description="Decay of the exponential moving average of parameters, which is then evaluated and saved"
        " instead of them; 0 turns it off.",
    )
    schedule: ScheduleConfig = Field(ScheduleConfig(), description="The learning rate over time.")
    groups: Annotated[tuple[GroupConfig, ...], Field(strict=False)] = Field(
        (), description="Groups of parameters with settings of their own."
    )

    def is_matrix(self, name: str, shape: Sequence[int]) -> bool:
        """Whether the parameter `name` is one that muon updates as a matrix."""
        is_large = len(shape) > 1 and shape[0] > 1 and math.prod(shape[1:]) > 1
        return self.kind == "muon" and is_large and not any(fnmatch.fnmatchcase(name, each) for each in self.muon_except)

    def patterns_without(self, names: Sequence[str]) -> list[str]:
        """Return the patterns of `muon_except` that match none of `names`; those of the default need not match."""
        wanted = [each for each in self.muon_except if each not in OptimizerConfig.model_fields["muon_except"].default]
        return [each for each in wanted if not any(fnmatch.fnmatchcase(name, each) for name in names)]

    def of_groups(self) -> list[OptimizerConfig]:
        """Return the settings of each group of parameters: number 0 has all parameters that no pattern matches."""
        plain = self.model_copy(update={"groups": ()})
        changes = [group.model_dump(exclude={"match"}, exclude_none=True) for group in self.groups]
        return [plain, *(OptimizerConfig.model_validate({**plain.model_dump(), **change}) for change in changes)]

    def group_of(self, name: str) -> int:
        """Return the number of the group of the parameter `name`."""
        found = (
            number
            for number, group in enumerate(self.groups, start=1)
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in group.match)
        )
        return next(found, 0)

    @pydantic.model_validator(mode="after")
    def _options_fit(self) -> OptimizerConfig:
        for kind, keys in _ONLY_OF.items():
            if self.kind != kind and any(getattr(self, key) != OptimizerConfig.model_fields[key].default for key in keys):
                raise ValueError(f"{', '.join(keys)}: expected no value for kind {self.kind}; they apply to {kind} only")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: got true with momentum 0, expected momentum > 0")
        if self.kind == "sgd" and any(
            bool(group.momentum) != bool(self.momentum) for group in self.groups if group.momentum is not None
        ):
            raise ValueError("groups: momentum: expected all groups with momentum, or none: they share their state vectors")
        if reserved := self.settings.keys() & {"lr", "weight_decay", "foreach", "fused", "capturable", "differentiable"}:
            raise ValueError(f"settings: got {', '.join(sorted(reserved))}, expected other settings of {self.torch_class}")
        return self

    @pydantic.model_validator(mode="after")
    def _groups_fit(self) -> OptimizerConfig:
        if self.groups:
            self.of_groups()
        return self
