"""What every section of a configuration is."""

from __future__ import annotations

from typing import Annotated, TypeVar

import pydantic
from pydantic import Field

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(pydantic.BaseModel):
    """Base of every section: unknown keys are errors, values are immutable and validated strictly."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False)


SectionT = TypeVar("SectionT", bound=Section)
