"""The one grammar of all YAML that is read and written: the core schema of YAML 1.2, with bounds on size.

PyYAML's own loaders read YAML 1.1, where `010` is 8, `no` is false and `1e-3` is text, and accept repeated keys, of which
the last wins.
"""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import yaml

from hvd_async.errors import ConfigError

_MOST_BYTES = 4 << 20
_MOST_NODES = 100_000
_DEEPEST = 50
_MOST_DIGITS = 100
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")
_TAG = "tag:yaml.org,2002:"
_CORE = (  # section 10.3.2 of the specification
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)


def read_yaml(text: str) -> Any:
    """Return the plain data in `text`. Raises `ConfigError` with a one-line reason that names no file."""
    try:
        node = _Loader(text).get_single_node()
        return None if node is None else _value(node)
    except yaml.YAMLError as error:
        raise ConfigError(_reason(error)) from None
    except ValueError as error:  # raised by PyYAML's scanner for an escape beyond all characters
        raise ConfigError(" ".join(str(error).split())) from None


def read_yaml_file(path: pathlib.Path, purpose: str) -> Any:
    """Return the plain data in the file `path`, the YAML `purpose`. Raises `ConfigError`."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        text = content.decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; expected the YAML {purpose}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: not UTF-8 at byte {error.start}; expected the YAML {purpose}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{path}: got more than {_MOST_BYTES >> 20} MiB, expected the YAML {purpose}")
    try:
        return read_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None


def dump_yaml(value: Any) -> str:
    """Return plain data as YAML, one key a line; `read_yaml` and readers of YAML 1.1 read it back equal."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)


def dump_yaml_line(value: Any) -> str:
    """Return plain data as one line of YAML."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


class _Loader(
    yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser, yaml.composer.Composer, yaml.resolver.BaseResolver
):
    """Composes nodes; nodes repeated by an alias count each time."""

    def __init__(self, text: str) -> None:
        yaml.reader.Reader.__init__(self, text)
        yaml.scanner.Scanner.__init__(self)
        yaml.parser.Parser.__init__(self)
        yaml.composer.Composer.__init__(self)
        yaml.resolver.BaseResolver.__init__(self)
        self._depth = 0
        self._extents: dict[int, tuple[int, int]] = {}  # by id of a node: number of nodes in it, and their depth

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML's stubs give it no types
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._extents:
                raise _refusal("an alias within what it stands for", event.start_mark)
            return node
        if (tag := getattr(event, "tag", None)) is not None:
            raise _refusal(f"the tag {tag.removeprefix(_TAG)!r}, expected plain values without tags", event.start_mark)
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _too_deep(event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        extents = [self._extents[id(child)] for child in _children(node)]
        size, depth = 1 + sum(size for size, _ in extents), 1 + max((depth for _, depth in extents), default=0)
        if size > _MOST_NODES:
            raise _refusal(f"more than {_MOST_NODES:,} values, those that aliases repeat included", event.start_mark)
        if depth > _DEEPEST:
            raise _too_deep(event)
        self._extents[id(node)] = size, depth
        return node


class _Dumper(yaml.SafeDumper):
    """Dumper that quotes whatever YAML 1.2, or YAML 1.1 (by SafeDumper's own resolvers), would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, _pattern, _first in _CORE:
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)
_Dumper.add_representer(
    str,
    # Other styles fold long lines and change some spaces; this one writes each unusual character as an escape.
    lambda dumper, text: dumper.represent_scalar(f"{_TAG}str", text, style=None if text.isprintable() else '"'),
)


def _children(node: yaml.Node | None) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _value(node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node)
    if isinstance(node, yaml.SequenceNode):
        return [_value(child) for child in node.value]
    text, kind = node.value, node.tag.removeprefix(_TAG)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return _whole(text, node)
    if kind == "float":
        return float(re.sub(r"\.(?=[in])", "", text.lower()))  # Python has no dot before inf and nan
    if _NOT_TEXT.search(text):
        raise _refusal(f"{text!r}, with a character that is not text", node.start_mark)
    return text


def _whole(text: str, node: yaml.Node) -> int:
    if len(text) > _MOST_DIGITS:
        raise _refusal(f"a number of {len(text):,} digits, expected {_MOST_DIGITS} at most", node.start_mark)
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text[2:] if base != 10 else text, base)


def _mapping(node: yaml.MappingNode) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _refusal("a list or a section as a key, expected text or a number", key_node.start_mark)
        key = _value(key_node)
        if key == "<<":
            raise _refusal("the key '<<', which YAML 1.2 does not merge; write the keys out", key_node.start_mark)
        if key in found:
            raise _refusal(f"the key {key!r} twice in one section, expected it once", key_node.start_mark)
        found[key] = _value(value_node)
    return found


def _too_deep(event: Any) -> yaml.MarkedYAMLError:
    return _refusal(f"sections within sections, more than {_DEEPEST} deep", event.start_mark)


def _refusal(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, f"got {problem}", mark)


def _reason(error: yaml.YAMLError) -> str:
    """Return the error in one line, with its place in the text."""
    if isinstance(error, yaml.reader.ReaderError):
        return f"character {error.position + 1}: got {chr(error.character)!r}, expected text without control characters"
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        words = ": ".join(part for part in (error.context, error.problem) if part)
        return f"line {mark.line + 1}, column {mark.column + 1}: {words}" if mark is not None else words
    return " ".join(str(error).split())
