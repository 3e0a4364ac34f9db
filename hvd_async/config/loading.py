"""Configurations from YAML files and overrides; all errors of a file are reported at once."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pydantic

from hvd_async.config import task
from hvd_async.config.run import RunConfig
from hvd_async.config.section import Section, SectionT, sections_in
from hvd_async.config.strategy import BRANCHES
from hvd_async.config.unknown_keys import hint
from hvd_async.config.yaml import dump_yaml, read_yaml, read_yaml_file
from hvd_async.errors import ConfigError
from hvd_async.system.printable import printable, shortened

# pydantic's words, and those that a reader of YAML knows.
_WORDS = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "text",
    "a valid boolean": "true or false",
    "a valid tuple": "a list",
}


def load_config(
    path: str | pathlib.Path, overrides: Sequence[str] = (), origins: Mapping[str, str] | None = None
) -> RunConfig:
    """Read `path` (YAML), apply `overrides` (each `key.path=value`, the value in YAML) and check everything.

    `origins`: where the override of each key was written; None: on the command line, with --set.

    Raises `ConfigError` with one line per error, each `file: key: got, expected`, or with the override in place of the file.
    """
    path = pathlib.Path(path)
    tree = read_tree(path, "configuration of a run")
    if "variants" in tree and "training" not in tree:
        raise ConfigError(
            f"{path}: got a suite, expected the configuration of a run; compute it with `hvd-async compare {path}`"
        )
    for override in overrides:
        apply_override(tree, override)
    return parse_config(tree, str(path), origins_of(overrides) if origins is None else origins)


def read_tree(path: pathlib.Path, purpose: str) -> dict[Any, Any]:
    """Return the keys of the YAML file `path`, the `purpose`, unchecked. Raises `ConfigError` if it has none."""
    tree = read_yaml_file(path, purpose)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: got {_kind(tree)}, expected the keys of the {purpose}")
    return tree


def origins_of(overrides: Sequence[str]) -> dict[str, str]:
    """Return where the key of each of `overrides` was written: on the command line."""
    found: dict[str, str] = {}
    for override in overrides:
        key = override.partition("=")[0].strip()
        found.pop(key, None)  # the later one counts
        found[key] = f"--set {override}"
    return found


def parse_config(tree: Mapping[str, Any], source: str, origins: Mapping[str, str] = MappingProxyType({})) -> RunConfig:
    """Check a configuration given as plain data; `source` names it in errors, or `origins` its keys. Raises `ConfigError`."""
    return check(RunConfig, tree, source, origins)


def check(
    kind: type[SectionT], tree: Mapping[str, Any], source: str, origins: Mapping[str, str] = MappingProxyType({})
) -> SectionT:
    """Return `tree` as a section of class `kind`; `source` names it in errors, or `origins` that of a key. Raises `ConfigError`
    with one line per error."""
    try:
        return kind.model_validate(tree)
    except pydantic.ValidationError as error:
        of_task = tree.get("task") if isinstance(tree, Mapping) else None
        is_translation = task.branch_of(of_task) == "<translation>"
        lines = dict.fromkeys(
            f"{_origin_of(fault, origins, source)}: {_describe(fault, kind, is_translation)}" for fault in error.errors()
        )
        raise ConfigError("\n".join(map(printable, lines))) from None


def _origin_of(fault: Any, origins: Mapping[str, str], source: str) -> str:
    """Return where the key of one of pydantic's errors was written, or one below it that is unknown; else `source`, with the
    origins of other keys of the section that is at fault."""
    key = _key_of(fault)
    if not key and (found := re.match(r"Value error, ([\w.]+): ", fault["msg"])):
        key = found[1]  # a fault of several sections begins with a key
    for written in reversed(list(origins)):
        is_below = fault["type"] == "extra_forbidden" and written.startswith(f"{key}.")
        if key == written or key.startswith(f"{written}.") or is_below:
            return origins[written]
    others = (
        [origins[written] for written in origins if written.startswith(f"{key}.")] if fault["type"] == "value_error" else []
    )
    return f"{source} with {', '.join(others)}" if others else source


def _key_of(fault: Any) -> str:
    return ".".join(str(part) for part in fault["loc"] if not _is_branch_name(part))


def dump_config(config: RunConfig) -> str:
    """Return the YAML text of `config`, with every key; `load_config` reads it back equal."""
    return dump_yaml(config.model_dump())


def apply_override(tree: dict[Any, Any], override: str) -> None:
    """Set in `tree` what `override` says: `key.path=value`, the value in YAML. Raises `ConfigError` if it is none."""
    key, separator, text = override.partition("=")
    set_value(tree, override, key.strip().split("."), text if separator else None)


def set_value(tree: dict[Any, Any], override: str, parts: Sequence[str], text: str | None) -> None:
    """Set the value at the keys `parts`, from the top of `tree` down, to `text` in YAML, as `override` says. Raises
    `ConfigError`, also if `text` is None or a key is empty."""
    if text is None or not all(parts):
        raise ConfigError(f"--set {override}: expected key.path=value, such as strategy.arrivals_per_update=4")
    try:
        value = read_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"--set {override}: the value is not YAML: {error}") from None
    for part in parts[:-1]:
        below = tree.setdefault(part, {})
        if below is None:
            below = tree[part] = {}
        if not isinstance(below, dict):
            raise ConfigError(f"--set {override}: {part} holds {_kind(below)}, expected a section of keys")
        tree = below
    tree[parts[-1]] = value


def _describe(fault: Any, root: type[Section], is_translation: bool) -> str:
    """Return one line for one of pydantic's errors: key, what was found, what is expected."""
    location = [part for part in fault["loc"] if not _is_branch_name(part)]
    key = _key_of(fault) or "(top level)"
    kind, message = fault["type"], fault["msg"]
    if kind == "extra_forbidden":
        section = _section_of(fault["loc"], root)
        if (name := section.renamed.get(str(location[-1]))) is not None:
            return f"{key}: unknown key; " + (f"write {name}" if ":" in name else f"it is called {name!r} now")
        return f"{key}: unknown key; {hint(str(location[-1]), section, root, is_translation)}"
    if kind == "missing":
        examples = _section_of(fault["loc"], root).model_fields[str(location[-1])].examples
        return f"{key}: missing, expected {f'keys, such as {examples[0]}' if examples else 'a value'}"
    if kind == "value_error" and not location:
        return str(message.removeprefix("Value error, "))  # which names keys of several sections
    if kind == "value_error":
        return f"{key}: {message.removeprefix('Value error, ')}"
    if message.startswith("expected "):
        return f"{key}: got {shortened(fault['input'])}, {message}"
    if kind == "literal_error" and (name := _section_of(fault["loc"], root).renamed.get(str(fault["input"]))) is not None:
        return f"{key}: got {shortened(fault['input'])}; it is called {name!r} now"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{key}: got {shortened(fault['input'])}, expected a section of keys"
    message = message[0].lower() + message[1:]
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return f"{key}: got {shortened(fault['input'])}, expected: {message.removeprefix('input should be ')}"


def _is_branch_name(part: Any) -> bool:
    """Whether `part` is the member of a union, which pydantic puts into the location; it is not a key of the file."""
    return part in BRANCHES or part in task.BRANCHES


def _section_of(location: Sequence[Any], root: type[Section]) -> type[Section]:
    """Return the section in which the key at `location` was looked for."""
    section: type[Section] = root
    annotation: Any = root
    for part in location[:-1]:
        if part in task.BRANCHES:
            section = task.BRANCHES[part]
        elif isinstance(part, int):
            section = next(iter(sections_in(annotation)), section)
        elif not _is_branch_name(part):
            annotation = section.model_fields[part].annotation
            section = next(iter(sections_in(annotation)), section)
    return section


def dotted(overrides: Mapping[Any, Any], root: type[Section] | None, prefix: str = "") -> dict[str, Any]:
    """Return `overrides` of the section `root` with the keys of sections in place of maps: `{optimizer: {kind: muon}}` becomes
    `{optimizer.kind: muon}`, which leaves the section's other keys as they are.

    An empty map stays, which takes all keys away, and so do the values of keys that are no sections. Keys of `task` are those of
    `TranslationConfig`, unless a map for it names another kind. Raises `ValueError` for a key that is given twice.
    """
    found: dict[str, Any] = {}
    for key, value in overrides.items():
        name = f"{prefix}{str(key).strip()}"
        section = _section_at(str(key).strip(), value, root)
        is_section = section is not None and isinstance(value, Mapping) and value
        for each, below in (dotted(value, section, f"{name}.") if is_section else {name: value}).items():
            if each in found:
                raise ValueError(f"got {each} twice, expected it once")
            found[each] = below
    return found


def _section_at(key: str, value: Any, root: type[Section] | None) -> type[Section] | None:
    """Return the section that the dotted `key` with this `value` names in `root`; None if it names another key, or one that is
    unknown."""
    section = root
    for part in key.split("."):
        field = None if section is None else section.model_fields.get(part)
        sections = [] if field is None else sections_in(field.annotation)
        section = sections[0] if len(sections) == 1 else None
        if task.TranslationConfig in sections:
            tree = value if key == part and isinstance(value, Mapping) else {}
            is_other = "factory" in tree or tree.get("kind", "translation") != "translation"
            section = None if is_other else task.TranslationConfig
    return section


def _kind(value: Any) -> str:
    names = {dict: "a section", list: "a list", str: "text", type(None): "nothing"}
    return names.get(type(value), shortened(value))
