"""The section `emulation`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import pydantic
from pydantic import Field

from hvd_async.config.section import PathText, PositiveSeconds, Seconds, Section
from hvd_async.system.limits import MOST_RANKS


class EmulationConfig(Section):
    """Steps of a chosen length: uneven workers on even hardware, and the workers of a simulation.

    In a real run a worker idles after its real step until the step has lasted the configured time; in
    `hvd-async simulate` no worker idles. The k-th step of a worker has the same length in both.
    """

    renamed: ClassVar[Mapping[str, str]] = {"seconds_per_token": "seconds_per_weight"}

    slow_workers: dict[Annotated[int, Field(ge=0, lt=MOST_RANKS)], Annotated[float, Field(ge=1.0, le=1e6)]] = Field(
        {}, description="Worker number (0, 1, ...) -> factor by which its steps are longer, e.g. `{0: 2.0}`."
    )
    seconds: PositiveSeconds | None = Field(
        None, description="Seconds of a step. Default: those of the real step in a real run, 0.1 in a simulation."
    )
    seconds_per_weight: Seconds = Field(0.0, description="Seconds that each unit of the batch's weight adds to `seconds`.")
    seconds_per_micro_batch: Seconds = Field(
        0.0,
        description="Seconds that each micro-batch after the first adds to a step: what the same work takes longer in parts."
        " `hvd-async bench step --micro-batches M` measures it.",
    )
    spread: Literal["none", "log_normal", "gamma"] = Field(
        "none", description="Each step's length is multiplied by a factor drawn from this distribution, whose mean is 1."
    )
    deviation: Annotated[float, Field(ge=0.0, le=10.0)] = Field(
        0.0,
        description="Spread of the factors: the standard deviation of their logarithm (`log_normal`), or of the"
        " factors themselves, relative to the mean (`gamma`).",
    )
    pause_probability: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.0, description="Share of the steps that include a pause."
    )
    pause_seconds: Seconds = Field(0.0, description="Seconds of such a pause.")
    trace: PathText | None = Field(
        None,
        description='File of step times, used instead of `seconds`: lines `{"worker": 0, "seconds": 0.12}`, or the'
        " `events.jsonl` of a run. Each worker repeats its own list; a worker without one takes the list"
        " of its number modulo the traced workers.",
    )

    @pydantic.model_validator(mode="after")
    def _lengths_fit(self) -> EmulationConfig:
        if (self.spread == "none") != (self.deviation == 0.0):
            raise ValueError(
                f"deviation: got {self.deviation:g} with spread {self.spread}, expected > 0 with log_normal or gamma, else 0"
            )
        if 0.0 < self.deviation < 1e-6:
            raise ValueError(f"deviation: got {self.deviation:g}, expected 0, or 1e-6 and more")
        if (self.pause_probability == 0.0) != (self.pause_seconds == 0.0):
            raise ValueError("pause_probability, pause_seconds: got one of them, expected both or neither")
        if self.trace is not None and self.seconds is not None:
            raise ValueError("trace: got a file as well as seconds, expected only one of them")
        return self
