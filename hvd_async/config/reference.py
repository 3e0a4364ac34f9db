"""The reference of all configuration keys, generated from the configuration models.

`python -m hvd_async.config.reference > docs/configuration.md` renews the page.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from hvd_async.config import ArrivalsFrom, RunConfig, Section, dump_yaml_line
from hvd_async.config.section import sections_in
from hvd_async.config.task import BRANCHES
from hvd_async.system.limits import MOST, MOST_FLOAT32
from hvd_async.system.text_tables import markdown_table

_INTRODUCTION = """\
# Configuration

For users who write or change the YAML file of a run: every key, its type, its default and its meaning.

- `--set key.path=value` on the command line overrides a key; the value is YAML: `--set strategy.arrivals_per_update=4`. `null`
  stands for none, also against the file: `--set validation.every=null`.
- Unknown keys, values out of range and keys that do not go together are errors. All errors are reported at once, before any
  rank starts work.
- A key that has no effect with the other settings, such as `strategy.max_staleness` with `strategy.kind: ddp`, is no error, since
  suites and `--set` change some keys of one file. A run prints a line for each such key when it starts, unless the key has
  its default.
- The complete configuration, defaults included, is saved with the run as `config.yaml`. No environment variable changes it.
- Files are YAML 1.2: numbers may be written as `1e-3`, `010` is 10, only `true` and `false` are truth values (`no` is text), a
  key occurs once in its section, and there are no tags and no merging with `<<`. Whole numbers above 10^15, other numbers above
  those of float32, infinity and NaN are refused.
- In paths, `~` and `~user` at the beginning stand for the home folder of that user.

This page is generated from `hvd_async/config/`; `python -m hvd_async.config.reference > docs/configuration.md` renews it.
"""
_NAMES: dict[Any, str] = {Any: "any", int: "whole number", float: "number", str: "text", bool: "`true` or `false`"}
_BOUNDS = {annotated_types.Ge: ">= {}", annotated_types.Gt: "> {}", annotated_types.Le: "<= {}", annotated_types.Lt: "< {}"}


def reference() -> str:
    """Return the text of docs/configuration.md."""
    own = [(key, field) for key, field in RunConfig.model_fields.items()]
    pages = [_INTRODUCTION, f"## Top level\n\n{inspect.getdoc(RunConfig)}\n\n{_table(own)}"]
    pages += [
        f"## {path}\n\n{inspect.getdoc(section)}\n\n{_table(_keys(section))}" for path, section in _sections(RunConfig)
    ]
    entry = f"### An entry of a schedule of `arrivals_per_update`\n\n{_table(_keys(ArrivalsFrom))}"
    position = next(i for i, page in enumerate(pages) if page.startswith("## strategy\n"))
    pages.insert(position + 1, entry)
    return "\n".join(pages)


def _sections(model: type[Section], prefix: str = "") -> Iterator[tuple[str, type[Section]]]:
    for key, field in model.model_fields.items():
        if (section := _section(field)) is not None:
            yield prefix + key, section
            yield from _sections(section, f"{prefix}{key}.")
        for kind in _kinds(field):
            yield f"{prefix}{key}, kind {kind.model_fields['kind'].annotation.__args__[0]}", kind  # type: ignore[union-attr]  # a kind is a Literal
            yield from _sections(kind, f"{prefix}{key}.")


def _section(field: FieldInfo) -> type[Section] | None:
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _kinds(field: FieldInfo) -> list[type[Section]]:
    """Return the sections of which `field` may be one, if there are several."""
    found = [section for section in BRANCHES.values() if section in sections_in(field.annotation)]
    return found if len(found) > 1 else []


def _keys(model: type[Section]) -> list[tuple[str, FieldInfo]]:
    return list(model.model_fields.items())


def _table(keys: Sequence[tuple[str, FieldInfo]]) -> str:
    rows = [
        (f"`{key}`", _type_in_words(field.annotation, field.metadata), _default(field), field.description or "")
        for key, field in keys
        if _section(field) is None and not _kinds(field)
    ]
    head = ("key", "type", "default", "meaning")
    table = markdown_table([head, *([cell.replace("|", "\\|") for cell in row] for row in rows)], left=range(len(head)))
    below = [f"`{key}`" for key, field in keys if _section(field) is not None or _kinds(field)]
    note = f"\n\nFurther keys are in {', '.join(below)}, below." if below else ""
    return table + note + "\n"


def _type_in_words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Return `annotation`, with its bounds, in words for a reader who knows YAML but not Python."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_in_words(arguments[0], [*_flatten(arguments[1:]), *metadata])
    if origin in (Union, types.UnionType):
        return _choice([_type_in_words(member) for member in arguments if member is not type(None)])
    if origin is Literal:
        return _choice([f"`{value}`" for value in arguments])
    if origin is tuple and arguments[-1] is Ellipsis:
        entry = arguments[0]
        if inspect.isclass(entry) and issubclass(entry, Section):
            return f"a list of `{{{', '.join(entry.model_fields)}}}`"
        words = _type_in_words(entry)
        return f"a list of {words}{'s' if words in _NAMES.values() else ''}"
    if origin is tuple:
        return f"a list of {len(arguments)}: {_choice(sorted({_type_in_words(a) for a in arguments}))}"
    if origin is list:
        return f"a list of {_type_in_words(arguments[0])}s"
    if origin is dict:
        return f"a map from {_type_in_words(arguments[0])} to {_type_in_words(arguments[1])}"
    bounds = [(text, _bound(one, kind)) for one in metadata for kind, text in _BOUNDS.items() if isinstance(one, kind)]
    # The introduction states the bounds of all numbers.
    said = ", ".join(text.format(_number(bound)) for text, bound in bounds if abs(bound) not in (MOST, MOST_FLOAT32))
    return " ".join([_NAMES[annotation], said]).strip()


def _flatten(metadata: Sequence[Any]) -> list[Any]:
    """Return `metadata` with the bounds that pydantic hides in the field of an `Annotated[..., Field(...)]`."""
    flat: list[Any] = []
    for one in metadata:
        flat += one.metadata if isinstance(one, FieldInfo) else [one]
    return flat


def _bound(constraint: Any, kind: type) -> float:
    value: float = getattr(constraint, kind.__name__.lower())
    return value


def _number(value: float) -> str:
    is_power = isinstance(value, int) and abs(value) == 2**63
    return ("-" if value < 0 else "") + "2^63" if is_power else f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _choice(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.default
    if default is None:
        return "none"
    return f"`{dump_yaml_line(default)}`"


def main() -> None:
    """Print the page."""
    print(reference(), end="")


if __name__ == "__main__":
    main()
