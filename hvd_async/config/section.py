"""What every section of a configuration is."""

from __future__ import annotations

from typing import Annotated, TypeVar

import pydantic
from pydantic import AfterValidator, Field

from hvd_async.paths import path_of

# Larger numbers are slips, and would end in a library as a crash: more than this no run has of anything.
MOST = 10**15
MOST_FLOAT32 = 3.4e38
MOST_RANKS = 100_000
Natural = Annotated[int, Field(ge=0, le=MOST)]
Positive = Annotated[int, Field(ge=1, le=MOST)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Amount = Annotated[float, Field(ge=0.0, le=MOST_FLOAT32)]
"""A number that may be 0."""
PositiveAmount = Annotated[float, Field(gt=0.0, le=MOST_FLOAT32)]
Seconds = Annotated[float, Field(ge=0.0, le=1e9)]
"""Up to thirty years, which clocks and time limits of libraries can hold."""
PositiveSeconds = Annotated[float, Field(gt=0.0, le=1e9)]
Threads = Annotated[int, Field(ge=1, le=1024)]
Beam = Annotated[int, Field(ge=1, le=1000)]
Ranks = Annotated[int, Field(ge=1, le=MOST_RANKS)]
PathText = Annotated[str, AfterValidator(path_of)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Section(pydantic.BaseModel):
    """Base of every section: unknown keys are errors, values are immutable and validated strictly."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False)


SectionT = TypeVar("SectionT", bound=Section)
