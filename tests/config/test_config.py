"""Configuration files: the values read, and the exact message for each error."""

from __future__ import annotations

import pathlib
from typing import Any

import pydantic
import pytest

from hvd_async.comparison.suite import SuiteConfig
from hvd_async.config import ArrivalsFrom, RunConfig, ValidationConfig, dump_config, load_config, parse_config
from hvd_async.errors import ConfigError
from tests.trees import replaced

SMALLEST: dict[str, Any] = {"output": "runs/x", "task": {"data": {"folder": "data"}}, "training": {"epochs": 1}}
TEXT = "output: runs/x\ntask: {data: {folder: data}}\ntraining: {epochs: 1}\n"


def parse(**sections: Any) -> RunConfig:
    return parse_config(replaced(SMALLEST, sections), source="config.yaml")


def faults(**sections: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(**sections)
    return str(caught.value).splitlines()


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "config.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


# --- Faults -----------------------------------------------------------------------------------------------------------


def test_all_faults_of_a_file_are_reported_at_once() -> None:
    lines = faults(
        sead=3,
        model={"width": 6, "heads": 4},
        optimizer={"learning_rate": "fast", "betas": [0.9, 1.5]},
        strategy={"kind": "asink"},
        validation=3,
    )
    assert lines == [
        "config.yaml: task.model: width: got 6, expected an even multiple of heads (4)",
        "config.yaml: optimizer.learning_rate: got 'fast', expected: a number",
        "config.yaml: optimizer.betas.1: got 1.5, expected: less than 1",
        "config.yaml: strategy.kind: got 'asink', expected: 'single', 'horovod', 'ddp' or 'async'",
        "config.yaml: validation: got 3, expected a section of keys",
        "config.yaml: sead: unknown key; did you mean 'seed'?",
    ]


def test_an_unknown_key_gets_the_nearest_name_of_its_own_section() -> None:
    assert faults(optimizer={"schedule": {"warm_up": 3}}) == [
        "config.yaml: optimizer.schedule.warm_up: unknown key; did you mean 'warmup'?"
    ]


def test_an_unknown_key_that_resembles_no_other_gets_all_names() -> None:
    assert faults(vocabulary={"zzz": 1}) == [
        "config.yaml: task.vocabulary.zzz: unknown key; expected one of"
        " bpe_dropout, bpe_dropout_side, byte_fallback, character_coverage, file, kind, normalization, shared, size, source_file,"
        " symbols, target_file"
    ]


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (["wandbb"], "training.trackers.0: got 'wandbb', expected: 'wandb' or 'mlflow'"),
        (["mlflow", 3], "training.trackers.1: got 3, expected: 'wandb' or 'mlflow'"),
        ("wandb", "training.trackers: got 'wandb', expected: a list"),
        (["wandb", "wandb"], "training.trackers: got wandb more than once, expected each once"),
    ],
)
def test_a_wrong_entry_of_a_list_of_words_is_named(value: object, fault: str) -> None:
    assert faults(training={"trackers": value}) == [f"config.yaml: {fault}"]


A_WORD = "expected 1 to 100 characters that can be printed, without spaces and ▁"


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("metrics", "rouge", "metrics.0: got 'rouge', expected: 'bleu', 'chrf' or 'ter'"),
        ("metrics", True, "metrics: got True, expected: a list"),
        ("metrics", ["bleu", "rouge"], "metrics.1: got 'rouge', expected: 'bleu', 'chrf' or 'ter'"),
        ("metrics", ["ter", "bleu", "ter"], "metrics: got ter more than once, expected each once"),
        (
            "task",
            {"data": {"folder": "x"}, "bleu": False},
            "bleu: unknown key; write metrics: [bleu], or metrics: [] for false",
        ),
        ("vocabulary", {"symbols": ["<a>", "<a>"]}, "vocabulary.symbols: got <a> more than once, expected each once"),
        (
            "vocabulary",
            {"symbols": ["<a>", "b c"]},
            f"vocabulary.symbols.1: got 'b c', {A_WORD}",
        ),
        ("vocabulary", {"symbols": "\0"}, f"vocabulary.symbols.0: got '\\x00', {A_WORD}"),
        (
            "vocabulary",
            {"symbols": ["<0x41>"]},
            "vocabulary.symbols.0: got <0x41>, which names a piece of its own in vocabularies, expected another symbol",
        ),
        ("vocabulary", {"symbols": [""]}, f"vocabulary.symbols.0: got '', {A_WORD}"),
    ],
)
def test_scores_and_symbols_are_lists_without_repetitions(key: str, value: object, fault: str) -> None:
    assert faults(**{key: value}) == [f"config.yaml: task.{fault}"]


def test_a_single_score_and_a_single_symbol_need_no_list() -> None:
    tree = {"output": "x", "training": {"epochs": 1}}
    task = {"data": {"folder": "x"}, "metrics": "chrf", "vocabulary": {"symbols": "<2de>"}}
    config = parse_config({**tree, "task": task}, "made")
    assert config.translation.metrics == ("chrf",) and config.translation.vocabulary.symbols == ("<2de>",)


def test_a_whole_number_may_be_written_with_an_exponent() -> None:
    config = parse_config({"output": "x", "training": {"weight": 1e6}, "task": {"data": {"folder": "x"}}}, "made")
    assert config.training.weight == 1_000_000 and isinstance(config.training.weight, int)
    assert faults(training={"epochs": 1.5}) == ["config.yaml: training.epochs: got 1.5, expected: a whole number"]


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"output": "x", "training": {"epochs": 1}, "task": {"data": {}}}, source="a.yaml")
    assert str(caught.value) == "a.yaml: task.data.folder: missing, expected a value"
    with pytest.raises(ConfigError) as caught:
        parse_config({"output": "x", "task": {"data": {"folder": "text"}}}, source="a.yaml")
    assert str(caught.value) == "a.yaml: training: missing, expected keys, such as `training: {epochs: 10}`"


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "many", None, {"version": 0}])
def test_wrong_arrivals_per_update_are_reported_in_one_line(value: object) -> None:
    assert faults(strategy={"arrivals_per_update": value}) == [
        f"config.yaml: strategy.arrivals_per_update: got {value!r},"
        " expected a whole number >= 1, 'workers', or a list of {version, arrivals}"
    ]


def test_faults_in_a_schedule_of_arrivals_name_the_key_of_the_entry() -> None:
    schedule = [{"version": -1, "arrivals": 0}, {"version": 3, "arivals": 2}, {"version": 4, "arrivals": [1]}]
    assert faults(strategy={"arrivals_per_update": schedule}) == [
        "config.yaml: strategy.arrivals_per_update.0.version: got -1, expected: greater than or equal to 0",
        "config.yaml: strategy.arrivals_per_update.0.arrivals: got 0, expected a whole number >= 1 or 'workers'",
        "config.yaml: strategy.arrivals_per_update.1.arrivals: missing, expected a value",
        "config.yaml: strategy.arrivals_per_update.1.arivals: unknown key; did you mean 'arrivals'?",
        "config.yaml: strategy.arrivals_per_update.2.arrivals: got [1], expected a whole number >= 1 or 'workers'",
    ]


@pytest.mark.parametrize("elsewhere", [{"kind": "ddp"}, {"lockstep": True}, {"arrivals_per_update": 1}])
def test_rules_for_provisional_parameters_do_not_apply_to_runs_without_them(elsewhere: dict[str, Any]) -> None:
    strategy = parse(strategy={"kind": "async", "provisional": True, "reduction": "sum", **elsewhere}).strategy
    assert strategy.provisional is None and not strategy.has_provisional


def test_a_configuration_saved_without_provisional_parameters_keeps_their_default() -> None:
    saved = parse(strategy={"kind": "horovod"}).model_dump()
    saved["strategy"]["kind"] = "async"
    assert parse_config(saved, source="saved").strategy.has_provisional


def test_a_loaded_configuration_states_whether_there_are_provisional_parameters() -> None:
    config = parse(strategy={"kind": "async", "arrivals_per_update": 4})
    assert config.strategy.provisional is True and "  provisional: true\n" in dump_config(config)
    assert parse_config(config.model_dump(), source="again") == config
    assert parse(strategy={"kind": "async", "reduction": "sum"}).strategy.provisional is False


def test_a_bound_that_waits_is_refused_in_lock_step() -> None:
    lockstep = {"kind": "async", "lockstep": True, "max_staleness": 2}
    assert faults(strategy=lockstep) == [
        "config.yaml: strategy: max_staleness: got 2 with lockstep true and on_stale wait, expected none; in lock-step each"
        " worker already waits for its update"
    ]
    assert parse(strategy={**lockstep, "on_stale": "drop"}).strategy.max_staleness == 2
    assert parse(strategy={**lockstep, "kind": "single"}).strategy.max_staleness == 2


@pytest.mark.parametrize("versions", [[], [1], [0, 3, 2], [0, 2, 2]])
def test_a_schedule_of_arrivals_rises_from_version_0(versions: list[int]) -> None:
    schedule = [{"version": version, "arrivals": 1} for version in versions]
    assert faults(strategy={"arrivals_per_update": schedule}) == [
        f"config.yaml: strategy.arrivals_per_update: got versions {versions}, expected a rising list that starts at 0"
    ]


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"model": {"width": 12, "heads": 4}}, "task.model: width: got 12, expected an even multiple of heads (4)"),
        (
            {"model": {"kind": "gru", "width": 7}},
            "task.model: width: got 7, expected an even number for kind gru, half for each direction",
        ),
        (
            {"optimizer": {"schedule": {"kind": "linear"}}},
            "optimizer.schedule: total: got None, expected more than warmup (0) for kind linear",
        ),
        (
            {"optimizer": {"schedule": {"kind": "linear", "warmup": 5, "total": 5}}},
            "optimizer.schedule: total: got 5, expected more than warmup (5) for kind linear",
        ),
        (
            {"optimizer": {"schedule": {"kind": "constant", "total": 5}}},
            "optimizer.schedule: total: got 5, expected no value for kind constant; remove it, or use linear or cosine",
        ),
        (
            {"optimizer": {"schedule": {"kind": "linear", "total": 5, "final": 0.5}}},
            "optimizer.schedule: final: got 0.5, expected no value for kind linear; remove it, or use cosine",
        ),
        (
            {"optimizer": {"schedule": {"kind": "cosine", "warmup": 5, "total": 5}}},
            "optimizer.schedule: total: got 5, expected more than warmup (5) for kind cosine",
        ),
        (
            {"optimizer": {"schedule": {"kind": "cosine", "warmup": 5}}, "training": {"updates": 5}},
            "training.updates: got 5, expected more than optimizer.schedule.warmup (5): the cosine begins after it",
        ),
        (
            {"optimizer": {"schedule": {"kind": "cosine"}}, "training": {"seconds": 5.0}},
            "optimizer.schedule.total: got none in a run bounded by training.seconds, expected the versions at"
            " which the cosine ends, or training.updates; with unit versions no other bound says how long the run is",
        ),
        (
            {"optimizer": {"schedule": {"kind": "cosine", "unit": "weight"}}, "training": {"epochs": 5}},
            "optimizer.schedule.total: got none in a run bounded by training.epochs, expected the weight at which"
            " the cosine ends, or training.weight; with unit weight no other bound says how long the run is",
        ),
        (
            {"optimizer": {"schedule": {"kind": "cosine", "total": 5}}, "training": {"updates": 6}},
            "training.updates: got 6, expected at most optimizer.schedule.total (5); beyond it the rate is 0"
            " and nothing is learned",
        ),
        (
            {"optimizer": {"schedule": {"kind": "linear", "total": 5}}, "training": {"updates": 6}},
            "training.updates: got 6, expected at most optimizer.schedule.total (5); beyond it the rate is 0"
            " and nothing is learned",
        ),
        (
            {"optimizer": {"schedule": {"kind": "linear", "unit": "weight", "total": 5}}, "training": {"weight": 6}},
            "training.weight: got 6, expected at most optimizer.schedule.total (5); beyond it the rate is 0"
            " and nothing is learned",
        ),
        (
            {"optimizer": {"momentum": 0.9}},
            "optimizer: momentum, nesterov: expected no value for kind adam; they apply to sgd only",
        ),
        (
            {"optimizer": {"kind": "adamw", "decoupled_weight_decay": True}},
            "optimizer: momentum_decay, decoupled_weight_decay: expected no value for kind adamw; they apply to nadam only",
        ),
        (
            {"optimizer": {"kind": "lion", "groups": [{"match": ["*"], "rate_decay": 0.5}]}},
            "optimizer: rate_decay, initial_accumulator: expected no value for kind lion; they apply to adagrad only",
        ),
        (
            {"optimizer": {"kind": "sgd", "nesterov": True}},
            "optimizer: nesterov: got true with momentum 0, expected momentum > 0",
        ),
        (
            {"training": {"updates": 5, "device": "tpu"}},
            "training.device: got 'tpu', expected auto, cpu, cuda or cuda:<index>",
        ),
        ({"store": {"device": "cuda:"}}, "store.device: got 'cuda:', expected auto, cpu, cuda or cuda:<index>"),
        (
            {"store": {"device": "cuda", "shards": 2}},
            "store: device: got cuda with shards 2, expected cpu; the first shard reads the state of the others in the"
            " memory of"
            " their hosts",
        ),
        (
            {"strategy": {"kind": "async", "provisional": True, "reduction": "sum"}},
            "strategy: provisional: got true with reduction sum, expected false, or reduction weight_mean; the sum of"
            " some arrivals makes a shorter step than the sum of all",
        ),
        (
            {"strategy": {"kind": "horovod", "delay_pattern": "turns"}},
            "strategy: delay_pattern: got turns with delay 0, expected a delay of 1 or more",
        ),
        (
            {"strategy": {"kind": "async", "provisional": True, "staleness_policy": "delay_compensation"}},
            "strategy: provisional: got true with staleness_policy delay_compensation, expected false, or policy none or"
            " inverse; the correction is measured from the version, not from the parameters on which the gradient was"
            " computed",
        ),
        ({"task": {"data": {"folder": "x", "train": []}}}, "task.data.train: got no name, expected at least one"),
        ({"task": {"data": {"folder": "x", "train": [1]}}}, "task.data.train.0: got 1, expected: text"),
        ({"training": {}}, "training: got none of them, expected exactly one of epochs, weight, updates, seconds"),
        (
            {"training": {"epochs": 1, "updates": 2}},
            "training: got epochs and updates, expected exactly one of epochs, weight, updates, seconds; epochs: null takes"
            " one away",
        ),
        (
            {"validation": {"patience": 2}},
            "validation: patience: expected when: during, a value for every or every_epochs, and every_weight: null",
        ),
        (
            {"vocabulary": {"kind": "unigram", "bpe_dropout": 0.1}},
            "task.vocabulary: bpe_dropout: got 0.1 with kind unigram, expected 0, or kind bpe, which makes pieces by merges",
        ),
        (
            {"vocabulary": {"bpe_dropout_side": "source"}},
            "task.vocabulary: bpe_dropout_side: got source with bpe_dropout 0, expected bpe_dropout > 0",
        ),
        (
            {"validation": {"score": "chrf"}},
            "validation.score: got chrf, expected loss or bleu; task.metrics: [chrf] measures it",
        ),
        (
            {"validation": {"score": "bleu"}, "task": {"data": {"folder": "x"}, "metrics": []}},
            "validation.score: got bleu, expected loss; task.metrics: [bleu] measures it",
        ),
        (
            {"validation": {"patience": 2, "every": 5, "when": "after"}},
            "validation: patience: expected when: during, a value for every or every_epochs, and every_weight: null",
        ),
    ],
)
def test_keys_that_do_not_go_together_are_refused(sections: dict[str, Any], line: str) -> None:
    assert faults(**sections) == [f"config.yaml: {line}"]


@pytest.mark.parametrize(("unit", "bound"), [("versions", "updates"), ("weight", "weight")])
def test_a_cosine_ends_with_the_run_unless_it_says_where(unit: str, bound: str) -> None:
    schedule = {"kind": "cosine", "unit": unit, "warmup": 2}
    config = parse(optimizer={"schedule": schedule}, training={bound: 9})
    assert config.optimizer.schedule.total == 9 and "    total: 9\n" in dump_config(config)
    assert parse_config(config.model_dump(), source="again") == config
    assert (
        parse(optimizer={"schedule": {**schedule, "total": 7, "final": 0.1}}, training={bound: 9}).optimizer.schedule.total
        == 7
    )
    assert parse(optimizer={"schedule": {**schedule, "total": 7}}, training={"seconds": 9.0}).optimizer.schedule.total == 7


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_are_finite(value: float) -> None:
    assert len(faults(optimizer={"learning_rate": value})) == 1


def test_the_width_of_a_gru_need_not_fit_heads() -> None:
    assert parse(model={"kind": "gru", "width": 6, "heads": 4}).translation.model.width == 6
    assert parse().translation.model.kind == "transformer"


def test_a_single_name_of_a_training_split_is_a_list_of_one() -> None:
    one, listed = (
        parse_config({**SMALLEST, "task": {"data": {"folder": "data", "train": train}}}, "") for train in ("a", ["a"])
    )
    assert one == listed and one.translation.data.train == ("a",)
    assert parse_config(SMALLEST, "").translation.data.train == ("train",)


def test_values_are_not_converted() -> None:
    assert faults(seed="1", training={"epochs": 1, "allow_sharing": 1}) == [
        "config.yaml: seed: got '1', expected: a whole number",
        "config.yaml: training.allow_sharing: got 1, expected: true or false",
    ]


# --- Files and overrides ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", ".1e-2", "+1e-3", "0.001"])
def test_exponents_are_numbers(file: pathlib.Path, text: str) -> None:
    file.write_text(TEXT + f"optimizer: {{learning_rate: {text}}}\n", encoding="utf-8")
    assert load_config(file).optimizer.learning_rate == 0.001


def test_overrides_are_yaml_and_the_last_one_wins(file: pathlib.Path) -> None:
    config = load_config(
        file,
        [
            "strategy.arrivals_per_update=4",
            "optimizer.schedule.warmup=7",
            "optimizer.learning_rate=2e-3",
            "training.epochs=2",
            "training.epochs=null",
            "training.updates=9",
            "emulation.slow_workers={0: 2.0}",
            "output=runs/a=b",
        ],
    )
    assert config.strategy.arrivals_per_update == 4
    assert config.optimizer.schedule.warmup == 7 and config.optimizer.learning_rate == 0.002
    assert (config.training.epochs, config.training.updates) == (None, 9)
    assert config.emulation.slow_workers == {0: 2.0}
    assert config.output == "runs/a=b"
    assert config.translation.data.folder == "data"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set seed: expected key.path=value, such as strategy.arrivals_per_update=4"),
        ("=3", "--set =3: expected key.path=value, such as strategy.arrivals_per_update=4"),
        ("model..width=3", "--set model..width=3: expected key.path=value, such as strategy.arrivals_per_update=4"),
        ("output.x=3", "--set output.x=3: output holds text, expected a section of keys"),
    ],
)
def test_an_override_that_cannot_be_read_is_refused(file: pathlib.Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(file, [override])
    assert str(caught.value) == message


def test_an_override_whose_value_is_not_yaml_is_refused(file: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match=r"--set seed=\[: the value is not YAML: "):
        load_config(file, ["seed=["])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["micro_batches=0"], "strategy.micro_batches: got 0, expected: greater than or equal to 1"),
        (["micro_batches=9"], "strategy.micro_batches: got 9, expected: less than or equal to 8"),
        (
            ["staleness_policy=delay_compensation"],
            "micro_batches: got 2 with staleness_policy delay_compensation, expected 1",
        ),
        (["push.overlap=true"], "strategy.micro_batches: got 2 with push.overlap, expected 1 or push.overlap false: with"),
        (
            ["push.node_sum=true"],
            "strategy.micro_batches: got 2 with push.node_sum, expected 1 or push.node_sum false: with",
        ),
        (["kind=horovod", "push.overlap=true", "staleness_policy=delay_compensation"], None),
    ],
)
def test_micro_batches_go_with_what_leaves_a_worker_to_itself(
    file: pathlib.Path, changes: list[str], words: str | None
) -> None:
    keys = [change if "." in change else f"strategy.{change}" for change in changes]
    overrides = ["strategy.kind=async", "strategy.micro_batches=2", *keys]
    if words is None:
        assert load_config(file, overrides).strategy.num_micro_batches == 1
        return
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides)
    assert words in str(caught.value)


def test_an_override_fills_an_empty_section(file: pathlib.Path) -> None:
    file.write_text(TEXT + "push:\n", encoding="utf-8")
    assert load_config(file, ["push.overlap=true"]).push.overlap


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not YAML"),
        ("- 1", "got a list, expected the keys"),
        ("", "got nothing, expected the keys"),
        ("7", "got 7, expected"),
    ],
)
def test_a_file_without_keys_is_refused(file: pathlib.Path, text: str, message: str) -> None:
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_config(file)


def test_a_missing_file_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="no such file; expected the YAML configuration of a run"):
        load_config(tmp_path / "none.yaml")


def test_a_file_that_is_not_text_is_refused(file: pathlib.Path) -> None:
    file.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(file)


# --- Values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {
            "seed": -3,
            "strategy": {
                "kind": "async",
                "arrivals_per_update": [{"version": 0, "arrivals": 1}, {"version": 9, "arrivals": "workers"}],
            },
            "optimizer": {"epsilon": 1e-9, "betas": [0.5, 0.25], "schedule": {"kind": "linear", "total": 7}},
            "emulation": {"slow_workers": {1: 2.5}},
            "task": {
                "data": {"folder": "späte Daten: #1"},
            },
        },
    ],
    ids=["defaults", "everything"],
)
def test_a_configuration_that_is_dumped_and_loaded_is_unchanged(tmp_path: pathlib.Path, sections: dict[str, Any]) -> None:
    config = parse(**sections)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


def test_a_dump_names_every_key() -> None:
    lines = dump_config(parse()).splitlines()
    assert "  published_buffers: 3" in lines and "    prepared: null" in lines and "    warmup: 0" in lines


def test_a_schedule_of_arrivals_becomes_entries() -> None:
    schedule = [{"version": 0, "arrivals": 1}, {"version": 5, "arrivals": "workers"}]
    assert parse(strategy={"arrivals_per_update": schedule}).strategy.arrivals_per_update == (
        ArrivalsFrom(version=0, arrivals=1),
        ArrivalsFrom(version=5, arrivals="workers"),
    )


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        parse().seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "path", sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.yaml")), ids=lambda p: p.name
)
def test_the_shipped_configurations_are_valid(path: pathlib.Path) -> None:
    load_config(path)


# --- Bounds and paths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "key", "value", "most"),
    [
        ("task.model", "width", 10**18, "1048576"),
        ("task.model", "encoder_layers", 10**40, "1000"),
        ("task.vocabulary", "size", 5 * 10**11, "1000000"),
        ("task.batching", "tokens", 10**16, "1000000000000000"),
        ("optimizer", "learning_rate", 1e300, "34" + "0" * 37),
        ("strategy", "store_timeout_seconds", 1e300, "1000000000"),
        ("store", "shards", 10**6, "10000"),
        ("task.decoding", "beam", 10**6, "1000"),
        ("simulation", "workers", 2**63, "100000"),
        ("emulation", "seconds", 1e12, "1000000000"),
    ],
)
def test_numbers_beyond_the_bounds_are_refused(section: str, key: str, value: float, most: str) -> None:
    (line,) = faults(**{section.removeprefix("task."): {key: value}})
    assert line == f"config.yaml: {section}.{key}: got {value!r}, expected: less than or equal to {most}"


def test_threads_and_seed_stay_within_the_range_of_libraries() -> None:
    assert faults(training={"epochs": 1, "threads": 100_000}, seed=10**26) == [
        f"config.yaml: seed: got {10**26}, expected: less than 9223372036854775808",
        "config.yaml: training.threads: got 100000, expected: less than or equal to 1024",
    ]


def test_every_number_of_a_configuration_has_both_bounds() -> None:
    """A number without bounds, also in a mapping or list, would reach a library unchecked."""

    def unbounded(schema: Any, path: str) -> list[str]:
        if isinstance(schema, list):
            return [found for part in schema for found in unbounded(part, path)]
        if not isinstance(schema, dict):
            return []
        found = [each for key, part in schema.items() if key != "default" for each in unbounded(part, f"{path}.{key}")]
        if (
            schema.get("type") in ("integer", "number")
            and "enum" not in schema
            and not (
                ("minimum" in schema or "exclusiveMinimum" in schema)
                and ("maximum" in schema or "exclusiveMaximum" in schema)
            )
        ):
            found.append(path)
        return found

    assert unbounded(RunConfig.model_json_schema(), "") == []
    assert unbounded(SuiteConfig.model_json_schema(), "") == []


@pytest.mark.parametrize("key", ["output", "task.data.folder", "task.data.prepared", "emulation.trace"])
def test_a_tilde_is_the_home_folder_in_every_path(file: pathlib.Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    value: Any = load_config(file, [f"{key}=~/a~b"]).model_dump()
    for part in key.split("."):
        value = value[part]
    assert value == "/home/anna/a~b"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "got an empty path, expected a file or folder; the current folder is '.'"),
        (
            "a\nhvd-async: b",
            "got 'a\\nhvd-async: b', expected a path in UTF-8 without control characters; rename it",
        ),
        ("a\x1b[31m", "got 'a\\x1b[31m', expected a path in UTF-8 without control characters; rename it"),
        ("caf\udce9", "got 'caf\\udce9', expected a path in UTF-8 without control characters; rename it"),
        ("a\0", "got 'a\\x00', expected a path in UTF-8 without control characters; rename it"),
        (
            "~nobody-of-that-name/x",
            "got '~nobody-of-that-name/x', whose home folder is unknown; write it out, or './~nobody-of-that-name/x' for a"
            " name with a tilde",
        ),
    ],
)
def test_paths_that_cannot_be_used_are_refused(path: str, reason: str) -> None:
    assert faults(output=path, data={"folder": path}) == [
        f"config.yaml: output: {reason}",
        f"config.yaml: task.data.folder: {reason}",
    ]


def test_a_suite_is_not_taken_for_a_run(file: pathlib.Path) -> None:
    file.write_text("base: b.yaml\nvariants: {}\n")
    with pytest.raises(ConfigError) as raised:
        load_config(file)
    assert str(raised.value) == (
        f"{file}: got a suite, expected the configuration of a run; compute it with `hvd-async compare {file}`"
    )


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("training", "digest_every", 5, "unknown key; it is called 'hash_every' now"),
        ("training", "tokens", 1000, "unknown key; it is called 'weight' now"),
        ("validation", "every_tokens", 1000, "unknown key; it is called 'every_weight' now"),
        ("emulation", "seconds_per_token", 0.1, "unknown key; it is called 'seconds_per_weight' now"),
        ("simulation", "tokens", 100, "unknown key; it is called 'weight' now"),
        ("strategy", "reduction", "token_mean", "got 'token_mean'; it is called 'weight_mean' now"),
        ("optimizer.schedule", "unit", "tokens", "got 'tokens'; it is called 'weight' now"),
        ("optimizer.schedule", "unit", "token", "got 'token', expected: 'versions' or 'weight'"),
    ],
)
def test_a_key_or_choice_that_was_renamed_is_reported_with_its_new_name(
    section: str, key: str, value: object, words: str
) -> None:
    tree: dict[str, Any] = {"output": "x", "task": {"data": {"folder": "data"}}, "training": {"epochs": 1}}
    place = tree
    for part in section.split("."):
        place = place.setdefault(part, {})
    place[key] = value
    with pytest.raises(ConfigError) as caught:
        parse_config(tree, source="run.yaml")
    assert str(caught.value) == f"run.yaml: {section}.{key}: {words}"


@pytest.mark.parametrize(
    ("before", "weight", "is_due"),
    [(0.0, 9.5, False), (9.5, 10.0, True), (10.0, 19.5, False), (19.5, 40.0, True), (40.0, 40.0, False)],
)
def test_the_first_version_after_each_multiple_of_a_weight_is_due(before: float, weight: float, is_due: bool) -> None:
    assert ValidationConfig(every_weight=10, when="after").is_due(3, before, weight) == is_due
