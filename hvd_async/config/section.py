"""Base class and number types of the sections of a configuration."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar, get_args

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field

from hvd_async.system.limits import MOST, MOST_BEAM, MOST_FLOAT32, MOST_RANKS, MOST_SECONDS, MOST_THREADS
from hvd_async.system.paths import path_of


def _whole(value: Any) -> Any:
    """Return a number such as `1e6`, which YAML reads as one with a point, as a whole number if it is one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Natural = Annotated[int, Field(ge=0, le=MOST), BeforeValidator(_whole)]
Positive = Annotated[int, Field(ge=1, le=MOST), BeforeValidator(_whole)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Whole = Annotated[int, Field(ge=-MOST, le=MOST)]
Number = Annotated[float, Field(ge=-MOST_FLOAT32, le=MOST_FLOAT32)]
Amount = Annotated[float, Field(ge=0.0, le=MOST_FLOAT32)]
"""A number that may be 0."""
PositiveAmount = Annotated[float, Field(gt=0.0, le=MOST_FLOAT32)]
Seconds = Annotated[float, Field(ge=0.0, le=MOST_SECONDS)]
PositiveSeconds = Annotated[float, Field(gt=0.0, le=MOST_SECONDS)]
Threads = Annotated[int, Field(ge=1, le=MOST_THREADS)]
Beam = Annotated[int, Field(ge=1, le=MOST_BEAM)]
Ranks = Annotated[int, Field(ge=1, le=MOST_RANKS)]
PathText = Annotated[str, AfterValidator(path_of)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


def _device_of(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", text):
        raise ValueError(f"got {text!r}, expected auto, cpu, cuda or cuda:<index>")
    return text


def as_list(value: Any) -> Any:
    """Return a single text as a list of one."""
    return (value,) if isinstance(value, str) else value


def _each_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if repeated := [value for value, count in Counter(values).items() if count > 1]:
        raise ValueError(f"got {repeated[0]} more than once, expected each once")
    return values


EachOnce = AfterValidator(_each_once)
"""For a list in which nothing may be repeated."""
Device = Annotated[str, AfterValidator(_device_of)]


class Section(pydantic.BaseModel):
    """Base of every section: unknown keys are errors, values are immutable and validated strictly."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False)
    renamed: ClassVar[Mapping[str, str]] = {}
    """Former names of keys and of choices, and their present names, which the error about a former name gives."""


SectionT = TypeVar("SectionT", bound=Section)


def sections_in(annotation: Any) -> list[type[Section]]:
    """Return the sections of which `annotation` is made; of `Section | None` the section."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for each in get_args(annotation) for section in sections_in(each)]
