"""The YAML that is read and written: YAML 1.2, without anything that grows, hides or crashes."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import annotated_types
import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from hvd_async.config import RunConfig, Section, dump_config, dump_yaml, dump_yaml_line, load_config, parse_config, read_yaml
from hvd_async.errors import ConfigError

MINIMUM: dict[str, Any] = {"output": "runs/x", "task": {"data": {"folder": "data"}}, "training": {"updates": 1}}
ODD = [
    *("010", "0x_", "1_000", "1e-3", ".inf", "no", "~", "null", "", " x ", "2026-11-31", "12:30:00", "<<", "=", "a: b", "#"),
    *("- a", "---", "...", "!t", "&a", "*a", "%", "@", "`", "'", '"', "\t", "\n", "a\nb\n", "\x07", "\x1b[31m", "\x85"),
    *("\u2028", "\ufeff", "é", "😀"),
]
TEXT = st.sampled_from(ODD) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
SCALARS = TEXT | st.none() | st.booleans() | st.integers(-(10**90), 10**90) | st.floats(allow_nan=False)
DATA = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT.filter(lambda key: key != "<<"), inner, max_size=4),
)


@settings(deadline=None)
@given(DATA)
def test_written_data_read_back_equal(data: Any) -> None:
    for text in (dump_yaml(data), dump_yaml_line(data), dump_yaml({"key": data})):
        read = read_yaml(text)
        assert repr(read["key"] if text.startswith("key:") and read != data else read) == repr(data)
    assert "\n" not in dump_yaml_line(data)


@settings(deadline=None)
@given(TEXT)
def test_written_text_is_text_to_readers_of_yaml_1_1_too(text: str) -> None:
    assert yaml.safe_load(dump_yaml({"key": text})) == {"key": text}


def keys(section: type[Section], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, list[Any]]]:
    """Yield each key of a configuration, with its annotation and bounds."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from keys(field.annotation, (*prefix, name))
        else:
            yield (*prefix, name), field.annotation, list(field.metadata)


def values(annotation: Any, metadata: list[Any]) -> st.SearchStrategy[Any]:
    """Return a strategy for values near the bounds of a key, and for odd ones."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        flat = [one for each in more for one in (getattr(each, "metadata", None) or [each])]
        return values(inner, [*flat, *metadata])
    bounds = [
        bound
        for one in metadata
        for kind in (annotated_types.Ge, annotated_types.Gt, annotated_types.Le, annotated_types.Lt)
        if isinstance(one, kind) and isinstance(bound := getattr(one, kind.__name__.lower()), (int, float))
    ]
    if annotation is str:
        return TEXT
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        return st.sampled_from([int(bound) for bound in bounds] or [0]) | st.integers(-3, 10**16)
    if annotation is float:
        return st.sampled_from([float(bound) for bound in bounds] or [0.0]) | st.floats(0.0, 1e16)
    if get_origin(annotation) is dict:
        return st.dictionaries(st.integers(0, 9), st.floats(1.0, 9.0), max_size=3)
    branches = [values(branch, metadata) for branch in get_args(annotation) if branch is not type(None)]
    literal = [st.just(annotation)] if isinstance(annotation, str) else []
    return st.one_of(*branches, *literal, st.none()) if branches or literal else st.none()


KEYS = list(keys(RunConfig))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(st.data())
def test_a_configuration_reads_back_equal_whatever_the_value_of_a_key(data: st.DataObject) -> None:
    path, annotation, metadata = data.draw(st.sampled_from(KEYS))
    tree: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in MINIMUM.items()}
    place = tree
    for name in path[:-1]:
        place = place.setdefault(name, {})
    place[path[-1]] = data.draw(values(annotation, metadata))
    try:
        config = parse_config(tree, "config.yaml")
    except ConfigError as error:
        assert all(line.isprintable() for line in str(error).split("\n"))
        assume(False)
    assert parse_config(read_yaml(dump_config(config)), "config.yaml") == config


@settings(deadline=None)
@given(st.text(max_size=60) | st.text("[]{}&*!<>:-#?|'\"\\\n \tab0", max_size=60))
def test_any_text_gives_data_or_an_error_of_one_line(text: str) -> None:
    try:
        read_yaml(text)
    except ConfigError as error:
        assert str(error) and len(str(error).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("-0", 0),
        ("1_000", "1_000"),
        ("0x_", "0x_"),
        ("1e-3", 0.001),
        ("5.", 5.0),
        ("-.INF", -math.inf),
        ("no", "no"),
        ("True", True),
        ("~", None),
        ("", None),
        ("2026-11-31", "2026-11-31"),
        ("190:20:30", "190:20:30"),
        ("=", "="),
    ],
)
def test_scalars_are_those_of_the_core_schema(text: str, value: Any) -> None:
    read = read_yaml(f"a: {text}")["a"]
    assert read == value and type(read) is type(value)


BOMB = "\n".join(["a0: &a0 [x,x,x,x,x,x,x,x,x]", *(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: got the key 'a' twice in one section, expected it once"),
        ("s: {k: 1, k: 2}", "line 1, column 11: got the key 'k' twice in one section, expected it once"),
        ("1: a\n0x1: b", "line 2, column 1: got the key 1 twice in one section, expected it once"),
        ('a: !!int ""', "line 1, column 4: got the tag 'int', expected plain values without tags"),
        ("a: !!bool abc", "line 1, column 4: got the tag 'bool', expected plain values without tags"),
        ("!!python/object:os.system {}", "line 1, column 1: got the tag 'python/object:os.system', expected plain values"),
        ("a: " + "9" * 4400, "line 1, column 4: got a number of 4,400 digits, expected 100 at most"),
        ("[" * 3000, "line 1, column 51: got sections within sections, more than 50 deep"),
        ("x: &a [1]\n<<: *a", "line 2, column 1: got the key '<<', which YAML 1.2 does not merge; write the keys out"),
        ("a: &a [*a]", "line 1, column 8: got an alias within what it stands for"),
        ("? [1]\n: 2", "line 1, column 3: got a list or a section as a key, expected text or a number"),
        ('a: "\\0"', "line 1, column 4: got '\\x00', with a character that is not text"),
        ('a: "\\ud800"', "line 1, column 4: got '\\ud800', with a character that is not text"),
        ("a: b\0", "character 5: got '\\x00', expected text without control characters"),
        (BOMB, "line 6, column 5: got more than 100,000 values, those that aliases repeat included"),
    ],
)
def test_refusals_give_the_line_and_column(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_yaml(text)
    assert str(raised.value).startswith(reason) and len(str(raised.value)) < 200


def test_an_alias_stands_for_the_value_it_names() -> None:
    assert read_yaml("a: &x {k: [1]}\nb: *x") == {"a": {"k": [1]}, "b": {"k": [1]}}


def test_a_file_that_is_no_configuration_is_not_read_to_its_end(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="got more than 4 MiB, expected the YAML configuration of a run"):
        load_config(pathlib.Path("/dev/zero"))
    (tmp_path / "config.yaml").write_text('output: "r\n')
    with pytest.raises(
        ConfigError, match=r"config\.yaml: not YAML: line 2, column 1: while scanning a quoted scalar: found"
    ):
        load_config(tmp_path / "config.yaml")


def test_a_long_value_is_not_printed_in_full() -> None:
    with pytest.raises(ConfigError) as raised:
        parse_config({**MINIMUM, "seed": list(range(10**5))}, "config.yaml")
    assert len(str(raised.value)) < 300
