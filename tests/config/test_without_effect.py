"""Keys that are given and have no effect with the other settings: which are told, and that no key is forgotten."""

from __future__ import annotations

import fnmatch
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from hvd_async.__main__ import main
from hvd_async.config import (
    RunConfig,
    Section,
    TranslationConfig,
    dump_config,
    keys_without_effect,
    load_config,
    parse_config,
    read_yaml,
)
from hvd_async.config.section import sections_in
from hvd_async.config.without_effect import ALWAYS, DEMANDS
from hvd_async.errors import ConfigError
from hvd_async.tasks.translation.builtin.grammar import write_corpus
from tests.mpi.runs import write_config
from tests.trees import replaced

ROOT = pathlib.Path(__file__).parents[2]
TEXT: dict[str, Any] = {"data": {"folder": "data"}}
SMALLEST: dict[str, Any] = {"output": "runs/x", "task": TEXT, "training": {"epochs": 1}}
COMPLETE = ("strategy", "push", "store", "optimizer")
ASYNC_ONLY = {
    "strategy": {
        "arrivals_per_update": 3,
        "lockstep": True,
        "synchronous_versions": 2,
        "max_staleness": 4,
        "on_stale": "drop",
        "staleness_policy": "inverse",
        "delay_compensation": 0.1,
        "provisional": True,
        "micro_batches": 2,
        "pending": "drop",
        "on_worker_failure": "stop",
        "min_workers": 2,
        "max_workers": 5,
        "joins_from": "network",
        "placement": "colocated",
        "store_timeout_seconds": 5.0,
    },
    "store": {"shards": 2, "published_buffers": 2, "device": "cpu", "recoverable": False},
    "push": {"dtype": "bfloat16", "keep": 0.1, "error_feedback": True, "node_sum": True, "overlap": True},
}


def told(**sections: Any) -> list[str]:
    return keys_without_effect(parse_config(replaced(SMALLEST, sections), source="config.yaml"))


def keys_below(section: type[Section], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner = sections_in(field.annotation)
        is_list = "tuple" in str(field.annotation)
        if inner and f"{prefix}{name}" != "strategy.arrivals_per_update":
            for each in inner:
                yield from keys_below(each, f"{prefix}{name}.{'0.' if is_list else ''}")
        else:
            yield f"{prefix}{name}"


ALL_KEYS = tuple(keys_below(RunConfig, ""))


@pytest.mark.parametrize("key", [key for key in ALL_KEYS if key.partition(".")[0] in COMPLETE])
def test_every_key_says_when_it_has_an_effect(key: str) -> None:
    has_demands = any(fnmatch.fnmatchcase(key, pattern) for pattern in DEMANDS)
    has_always = any(fnmatch.fnmatchcase(key, pattern) for pattern in ALWAYS)
    assert has_demands != has_always, "add the key to DEMANDS or to ALWAYS"


@pytest.mark.parametrize("pattern", sorted({*DEMANDS, *ALWAYS}))
def test_every_pattern_is_of_a_key(pattern: str) -> None:
    assert fnmatch.filter(ALL_KEYS, pattern)


@pytest.mark.parametrize("kind", ["single", "ddp", "horovod"])
def test_synchronous_strategies_have_none_of_the_keys_of_async(kind: str) -> None:
    sections = replaced(ASYNC_ONLY, {"strategy": {**ASYNC_ONLY["strategy"], "kind": kind}})
    keys = [f"{section}.{key}" for section, values in ASYNC_ONLY.items() for key in values if key != "device"]  # its default
    assert told(**sections) == [f"{key}: has no effect with strategy.kind: {kind}" for key in keys]


@pytest.mark.parametrize(
    ("sections", "lines"),
    [
        ({}, []),
        ({"strategy": {"kind": "async", "max_staleness": 4, "on_stale": "drop"}, "push": {"overlap": True}}, []),
        (
            {"strategy": {"kind": "async", "on_stale": "drop"}},
            ["strategy.on_stale: has no effect without strategy.max_staleness"],
        ),
        (
            {"strategy": {"kind": "async", "delay_compensation": 0.1}},
            ["strategy.delay_compensation: has no effect with strategy.staleness_policy: none"],
        ),
        (
            {"strategy": {"kind": "async", "provisional": False, "arrivals_per_update": 1}},
            ["strategy.provisional: has no effect with strategy.arrivals_per_update: 1"],
        ),
        ({"strategy": {"kind": "async", "provisional": None, "arrivals_per_update": 1}}, []),
        (
            {"strategy": {"worker_timeout_seconds": 5.0}},
            ["strategy.worker_timeout_seconds: has no effect with strategy.kind: single"],
        ),
        (
            {"strategy": {"kind": "async"}, "store": {"recoverable": False}, "optimizer": {"kind": "torch"}},
            ["store.recoverable: has no effect with optimizer.kind: torch"],
        ),
        ({"optimizer": {"kind": "sgd", "betas": [0.9, 0.99]}}, ["optimizer.betas: has no effect with optimizer.kind: sgd"]),
        ({"optimizer": {"kind": "lion", "betas": [0.9, 0.99]}}, []),
        (
            {"optimizer": {"kind": "sgd", "groups": [{"match": ["*"], "learning_rate": 0.1, "epsilon": 0.1}]}},
            ["optimizer.groups.0.epsilon: has no effect with optimizer.kind: sgd"],
        ),
        (
            {"optimizer": {"kind": "nadam", "decoupled_weight_decay": True}},
            [
                "optimizer.decoupled_weight_decay: has no effect with optimizer.weight_decay: 0.0 and without optimizer.groups"
            ],
        ),
        (
            {"optimizer": {"schedule": {"kind": "constant", "unit": "weight"}}},
            [
                "optimizer.schedule.unit: has no effect with optimizer.schedule.kind: constant and with"
                " optimizer.schedule.warmup: 0"
            ],
        ),
        ({"optimizer": {"schedule": {"kind": "constant", "unit": "weight", "warmup": 5}}}, []),
        (
            {"task": {**TEXT, "metrics": [], "metric_sentences": 5}},
            ["task.metric_sentences: has no effect without task.metrics"],
        ),
        (
            {"task": {**TEXT, "metrics": [], "decoding": {"validation_beam": 3}}},
            ["task.decoding.validation_beam: has no effect without task.metrics and without task.samples"],
        ),
        ({"task": {**TEXT, "metrics": [], "samples": 2, "decoding": {"validation_beam": 3}}}, []),
        (
            {"task": {**TEXT, "vocabulary": {"file": "mine.model", "size": 100}}},
            ["task.vocabulary.size: has no effect with task.vocabulary.file: mine.model"],
        ),
        (
            {"task": {**TEXT, "model": {"kind": "gru", "heads": 2}}},
            ["task.model.heads: has no effect with task.model.kind: gru"],
        ),
    ],
)
def test_a_key_without_effect_is_told_with_the_setting_that_takes_it(sections: dict[str, Any], lines: list[str]) -> None:
    assert told(**sections) == lines


@pytest.mark.parametrize("kind", ["single", "ddp", "async"])
def test_a_saved_configuration_tells_no_more_than_the_file_it_was_read_from(kind: str) -> None:
    config = parse_config(replaced(SMALLEST, {"strategy": {"kind": kind}, "store": {"shards": 2}}), source="config.yaml")
    saved = parse_config(read_yaml(dump_config(config)), source="saved")
    assert keys_without_effect(saved) == keys_without_effect(config)
    assert len(keys_without_effect(config)) == (kind != "async")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
@pytest.mark.parametrize("kind", ["single", "ddp", "async"])
def test_shipped_configurations_have_no_key_without_effect(path: pathlib.Path, kind: str) -> None:
    config = load_config(path, (f"strategy.kind={kind}",))
    assert isinstance(config.task, TranslationConfig) and keys_without_effect(config) == []


def test_a_run_and_a_simulation_print_them_once(tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_corpus(tmp_path / "text", train=60, validation=8, test=8)
    path = write_config(tmp_path, strategy={"max_staleness": 3}, training={"weight": None, "updates": 2}, metrics=[])
    line = "strategy.max_staleness: has no effect with strategy.kind: single"
    for words in (["train"], ["simulate", "--set", f"output={tmp_path}/simulated"], ["simulate", "--timing-only"]):
        assert main([words[0], str(path), *words[1:]]) == 0
        assert capfd.readouterr().out.count(line) == 1, words


def test_more_least_workers_than_workers_are_refused_before_ranks_start(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(tmp_path, strategy={"kind": "async", "min_workers": 3}, metrics=[])
    words = ["launch", str(path), "--mpi", "openmpi"]
    for more in (["--dry-run", "-w", "2"], ["-w", "2"], ["--slurm", "-w", "2"]):
        assert main([*words, *more]) == ConfigError.exit_status
        assert "strategy.min_workers: got 3 in a run of 2 workers, expected at most 2" in capsys.readouterr().err
    assert main([*words, "--dry-run", "-w", "3"]) == 0
