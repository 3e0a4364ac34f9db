"""The configuration of a script: a file, keywords, and what the launcher passes on; every mistake is one line."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from hvd_async.errors import ConfigError
from hvd_async.launcher.program_variables import BEGIN, CONFIG, OVERRIDES, program_variables
from hvd_async.script.settings import script_config, script_options


def configured(config: Any = None, environ: dict[str, str] | None = None, **keywords: Any) -> Any:
    return script_config("runs/x", config, {"epochs": 1, **keywords}, environ or {})


def test_what_the_optimizer_of_a_script_decides_is_refused_in_its_settings() -> None:
    for key in ("learning_rate", "kind", "weight_decay", "groups"):
        with pytest.raises(
            ConfigError, match=rf"optimizer.{key}: got a value for a script, expected none: the optimizer that"
        ):
            script_config("x", None, {"optimizer": {key: 1, "clip_norm": 1.0}}, {})
    optimizer = {"clip_norm": 1.0, "schedule": {"warmup": 5}}
    kept = script_config("x", None, {"strategy": "single", "epochs": 1, "optimizer": optimizer}, {}).optimizer
    assert kept.clip_norm == 1.0 and kept.schedule.warmup == 5


def test_an_unknown_keyword_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"init: epoch: unknown keyword; did you mean 'epochs'\? Expected a section"):
        script_config("x", None, {"epoch": 1}, {})


def test_keywords_are_sections_single_keys_or_the_kind_of_the_strategy() -> None:
    config = configured(strategy="async", arrivals_per_update=4, push={"dtype": "bfloat16"}, seed=3, checkpoint_every=7)
    assert (config.strategy.kind, config.strategy.arrivals_per_update) == ("async", 4)
    assert (config.push.dtype, config.seed, config.training.checkpoint_every) == ("bfloat16", 3, 7)
    assert (config.output, config.task.kind, config.training.epochs) == ("runs/x", "script", 1)
    assert config.optimizer.schedule.kind == "constant"
    assert configured(optimizer={"schedule": {"warmup": 3}}).optimizer.schedule.kind == "constant"
    linear = {"schedule": {"kind": "linear", "total": 9}}
    assert configured(optimizer=linear).optimizer.schedule.kind == "linear"


def test_the_launcher_counts_more_than_keywords_and_keywords_more_than_a_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("strategy: {kind: async, max_staleness: 3}\nseed: 5\n")
    found = configured(str(path), max_staleness=4)
    assert (found.strategy.max_staleness, found.seed) == (4, 5)
    environ = dict(program_variables(str(path), ["strategy.max_staleness=9"], ""))
    assert configured(max_staleness=4, environ=environ).strategy.max_staleness == 9
    assert configured({"seed": 6}, environ=environ).seed == 5


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"zzz": 1}, "init: zzz: unknown keyword; expected a section"),
        ({"strategy": "asink"}, r"init: strategy\.kind: got 'asink', expected: 'single', 'horovod', 'ddp' or 'async'"),
        ({"arrivals_per_update": 0}, r"init: strategy\.arrivals_per_update: got 0"),
        ({"task": {"factory": "a:b"}}, "task.factory: got a value for a script, expected none: the script is the task"),
        ({"optimizer": "adam"}, "init: optimizer: got 'adam', expected a section of keys"),
        ({"optimizer": []}, r"init: optimizer: got \[\], expected a section of keys"),
        ({"config": 3}, "config: got 3, expected a YAML file, or a dict of sections"),
        ({"config": ["a"]}, "config: got list, expected a YAML file, or a dict of sections"),
        ({"epochs": None}, "training: got none of them, expected exactly one of epochs"),
    ],
)
def test_wrong_keywords_are_named(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(**keywords)


def test_an_output_that_is_no_path_is_named() -> None:
    with pytest.raises(ConfigError, match="init: output: got 3, expected: text"):
        script_config(3, None, {"strategy": "single", "epochs": 1}, {})  # type: ignore[arg-type]  # the mistake


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        configured("nowhere.yaml")


@pytest.mark.parametrize(
    ("resume", "overwrite", "begin", "expected"),
    [
        (False, False, "", (False, False, False)),
        (True, False, "", (True, False, False)),
        ("auto", False, "", (False, False, True)),
        (False, True, "", (False, True, False)),
        (False, True, "resume", (True, False, False)),
        (True, False, "overwrite", (False, True, False)),
        (True, False, "new", (False, False, False)),
    ],
)
def test_how_a_run_begins(resume: Any, overwrite: bool, begin: str, expected: tuple[bool, bool, bool]) -> None:
    options = script_options(resume, overwrite, {BEGIN: begin} if begin else {})
    assert (options.resume, options.overwrite, options.auto_resume) == expected


def test_contradictions_are_refused() -> None:
    with pytest.raises(ConfigError, match="resume, overwrite: got both"):
        script_options(True, True, {})
    with pytest.raises(ConfigError, match="resume: got 'yes'"):
        script_options("yes", False, {})
    with pytest.raises(ConfigError, match="overwrite: got 'yes', expected True or False"):
        script_options(False, "yes", {})  # type: ignore[arg-type]  # the mistake
    with pytest.raises(ConfigError, match="HVD_ASYNC_BEGIN: got 'x'"):
        script_options(False, False, {BEGIN: "x"})


def test_the_variables_hold_what_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")  # as the package sets it
    assert program_variables(None, [], "") == {OVERRIDES: "[]", "GOMP_SPINCOUNT": "1000"}
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")  # the user's own, which the launcher forwards
    assert program_variables(None, [], "") == {OVERRIDES: "[]"}
    found = program_variables("/a/b.yaml", ["a=1", "b='ü'"], "resume")
    assert json.loads(found[OVERRIDES]) == ["a=1", "b='ü'"] and (found[CONFIG], found[BEGIN]) == ("/a/b.yaml", "resume")
