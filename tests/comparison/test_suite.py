"""The runs of a suite, and errors found before any run starts."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import pytest

from hvd_async.comparison.plan import is_outdated, read_plan, settings_of
from hvd_async.comparison.suite import Spec, Suite
from hvd_async.comparison.target import WantedTarget
from hvd_async.config import EmulationConfig, RunConfig, dotted, dump_yaml, load_config, parse_config, read_yaml
from hvd_async.errors import ConfigError, DataError
from tests.comparison.tiny import tiny, write, write_base


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with the base of suites, but without text, which a suite does not read."""
    write_base(tmp_path, tmp_path / "text")
    return tmp_path


def suite_of(folder: pathlib.Path, **changes: Any) -> Suite:
    return Suite(write(folder, tiny(**changes)), pathlib.Path("out"))


def one_variant(**overrides: Any) -> dict[str, Any]:
    return {"variants": {"horovod": {}, "N = 1": overrides}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # The keys of a suite.
        ({"variantes": {}}, "suite.yaml: variantes: unknown key; did you mean 'variants'?"),
        ({"xyz": {}}, "suite.yaml: xyz: unknown key; expected one of base, baseline, budget, "),
        ({"budget": {"wieght": 3}}, "budget.wieght: unknown key; did you mean 'weight'?"),
        ({"budget": {"tokens": 3}}, "budget.tokens: unknown key; it is called 'weight' now"),
        ({"baseline": "sync"}, "suite.yaml: baseline: got 'sync', expected one of horovod, N = 1"),
        ({"seeds": []}, "suite.yaml: seeds: got none, expected at least one"),
        ({"environments": {}}, "suite.yaml: environments: got none, expected at least one"),
        ({"seeds": [0]}, "seeds.0: got 0, expected: greater than or equal to 1"),
        ({"seeds": 3}, "seeds: got 3"),
        ({"rates": [0.1, 0.0]}, "suite.yaml: rates.1: got 0.0, expected: greater than 0"),
        ({"rates": [float("inf")]}, "rates.0: got inf"),
        ({"workers": 2**63}, "suite.yaml: workers: got 9223372036854775808, expected: less than or equal to 100000"),
        (one_variant(workers=2**63), "N = 1: workers: got 9223372036854775808, expected a whole number from 1 to 100,000"),
        ({"seeds": [10**26]}, f"suite.yaml: seeds.0: got {10**26}, expected: less than 9223372036854775808"),
        (
            {"environments": {"a\nhvd-async: b": {}}},
            r"environments: got 'a\nhvd-async: b', expected a one-line name without control characters",
        ),
        ({"workers": 0}, "workers: got 0, expected: greater than or equal to 1"),
        (
            {"launcher": "slurm"},
            "launcher: got 'slurm', expected: 'mpirun', 'srun', 'horovodrun-mpi', 'horovodrun-gloo' or 'simulate'",
        ),
        ({"launch_arguments": ["--hosts", "a:4"]}, "launch_arguments: got arguments with launcher simulate, expected none"),
        (
            {"launcher": "mpirun", "launch_arguments": ["--workers=3"]},
            "launch_arguments: got --workers=3, expected other arguments; a suite sets it for each run",
        ),
        (
            {"launcher": "horovodrun-gloo"},
            "suite.yaml: N = 1: strategy.kind: got async with launcher horovodrun-gloo, which has no MPI, expected",
        ),
        (
            {"environments": {"a": {"emulation.slow_workers": {7: 2.0}}}},
            "a: horovod: emulation.slow_workers: got worker 7, expected 0 to 1",
        ),
        (
            {"launcher": "mpirun", "environments": {"a": {"emulation.spread": "gamma", "emulation.deviation": 0.1}}},
            "a: horovod: emulation.spread: got gamma in a real run without emulation.seconds, expected emulation.seconds",
        ),
        (
            {"target": {"bleu": 20.0}, "set": {"task.metrics": []}},
            "suite.yaml: horovod: target: got bleu, expected a metric that the task measures: loss",
        ),
        ({"budget": {}}, "budget: got none of them, expected exactly one of weight, updates and seconds"),
        ({"budget": {"weight": 1, "updates": 1}}, "budget: got weight, updates, expected exactly one"),
        ({"budget": {"seconds": 0.0}}, "budget.seconds: got 0.0, expected: greater than 0"),
        ({"target": {"loss": 2.0, "f1": 20.0}}, "target: got loss, f1, expected exactly one metric with its value"),
        ({"target": {}}, "target: got no metric, expected exactly one metric with its value"),
        ({"target": {"F1": 0.5}}, "target: got the name 'F1' of a metric, expected lower-case letters, digits and _"),
        ({"target": {"accuracy": "high"}}, "target.accuracy: got 'high', expected: a number"),
        ({"target": {"accuracy": float("nan")}}, "target.accuracy: got nan, expected: a finite number"),
        ({"measure_every": 0}, "measure_every: got 0"),
        ({"variants": {"horovod": None}}, "variants.horovod: got None"),
        # Names.
        (
            {"variants": {"horovod": {}, "Horovod!": {}}},
            "suite.yaml: variants: got 'horovod' and 'Horovod!', whose runs would share a folder ('horovod')",
        ),
        ({"variants": {"horovod": {}, "???": {}}}, "variants: got '???', expected at least one letter a to z or digit"),
        (
            {"environments": {"a b": {}, "a, b": {}}},
            "environments: got 'a b' and 'a, b', whose runs would share a folder",
        ),
        ({"rates": [0.1, 0.1000000001]}, "rates: got 0.1 and 0.1000000001, whose runs would share a folder ('0.1')"),
        ({"seeds": [2, 2]}, "seeds: got 2 and 2, whose runs would share a folder ('2')"),
        # Keys that a suite sets itself.
        ({"set": {"seed": 1}}, "suite.yaml: set: got seed, expected other keys; a suite sets it for each run"),
        (one_variant(output="x"), "suite.yaml: variants: N = 1: got output, expected other keys"),
        ({"set": {"training.epochs": 1}}, "set: got training.epochs, expected other keys"),
        ({"set": {"training": {"seconds": 1.0}}}, "set: got training.seconds, expected other keys"),
        (
            {"environments": {"a": {"validation": {"every": 1}}}},
            "environments: a: got validation.every, expected other keys",
        ),
        ({"set": {"validation.patience": 1}}, "set: got validation.patience, expected other keys"),
        (one_variant(**{"simulation.workers": 3}), "variants: N = 1: got simulation.workers, expected other keys"),
        ({"set": {"workers": 3}}, "set: got workers, expected other keys"),
        (
            {"rates": [0.1], "environments": {"a": {"optimizer": {"learning_rate": 1.0}}}},
            "environments: a: got optimizer.learning_rate, expected other keys",
        ),
        # Numbers of workers.
        (one_variant(workers=0), "variants: N = 1: workers: got 0, expected a whole number from 1 to 100,000"),
        (
            {"environments": {"a": {"workers": True}}},
            "environments: a: workers: got True, expected a whole number from 1 to 100,000",
        ),
        (
            {"environments": {"a": {"workers": 1.5}}},
            "environments: a: workers: got 1.5, expected a whole number from 1 to 100,000",
        ),
        # Keys that must be the same for all variants.
        *(
            (
                one_variant(**{key: value}),
                f"N = 1: got {key}, expected it in `set` or `environments`, since variants are compared on equal terms",
            )
            for key, value in {
                "task.data.folder": "x",
                "task": {"factory": "mine:make"},
                "task.vocabulary.size": 400,
                "task.metrics": ["bleu"],
                "task.decoding.beam": 1,
                "emulation": {},
            }.items()
        ),
        # Errors in the configuration of a run, named with the run.
        ({"base": "nothing.yaml"}, "nothing.yaml: no such file; expected the YAML configuration of a run"),
        ({"set": {"training.epoch": 1}}, "suite.yaml: set: training.epoch: unknown key; "),
        ({"settings": {"even": {}}}, "suite.yaml: settings: unknown key; it is called 'environments' now"),
        (
            one_variant(**{"strategy.kin": "ddp"}),
            "suite.yaml: variants: N = 1: strategy.kin: unknown key; did you mean 'kind'?",
        ),
        (one_variant(**{"strategy.kind": "hvd"}), "suite.yaml: variants: N = 1: strategy.kind: got 'hvd'"),
        (
            {"environments": {"even": {}, "uneven": {"emulation.slow_workers": {0: 0.5}}}},
            "suite.yaml: environments: uneven: emulation.slow_workers.0: got 0.5",
        ),
    ],
)
def test_an_error_is_reported_before_any_run_starts(folder: pathlib.Path, change: dict[str, Any], message: str) -> None:
    path = write(folder, tiny(**change))
    with pytest.raises(ConfigError) as raised:
        Suite(path, folder / "out")
    assert message in str(raised.value)
    assert not (folder / "out").exists()


def test_a_variant_that_would_be_single_by_default_is_refused(folder: pathlib.Path) -> None:
    write_base(folder, folder / "text", strategy={"arrivals_per_update": 2})
    text = (folder / "base.yaml").read_text()
    (folder / "base.yaml").write_text(text.replace("  kind: async\n", ""))
    variants = {"horovod": {"strategy.kind": "horovod"}, "async": {}}
    path = write(folder, tiny(variants=variants))
    with pytest.raises(
        ConfigError, match=r"suite.yaml: async: strategy.kind: not given, and so single, which has one of the 2"
    ):
        Suite(path, folder / "out")
    write(folder, tiny(variants={**variants, "async": {"strategy.kind": "single"}}))
    Suite(path, folder / "out")
    write(folder, tiny(variants=variants, workers=1))
    Suite(path, folder / "out")


def test_several_errors_in_the_base_are_reported_line_by_line(folder: pathlib.Path) -> None:
    write_base(folder, folder / "text", batching={"tokens": 0}, modell={})
    with pytest.raises(ConfigError) as raised:
        suite_of(folder)
    lines = str(raised.value).splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"{folder / 'suite.yaml'}: horovod: {folder / 'base.yaml'}: ") for line in lines)


@pytest.mark.parametrize(
    ("text", "message"), [(None, "no such file"), ("- 1", "got a list, expected the keys"), ("a: [", "not YAML")]
)
def test_a_file_that_is_no_suite_is_refused(folder: pathlib.Path, text: str | None, message: str) -> None:
    path = folder / "suite.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        Suite(path, folder / "out")


def test_a_variant_overrides_its_environment_which_overrides_the_common_settings(folder: pathlib.Path) -> None:
    suite = suite_of(
        folder,
        set={"optimizer.clip_norm": 1.0, "optimizer.epsilon": 1e-6, "task.model.dropout": 0.3},
        environments={"a": {"optimizer.clip_norm": 2.0, "optimizer.epsilon": 1e-5}, "b": {}},
        variants={"horovod": {"strategy.kind": "horovod"}, "N = 1": {"optimizer.clip_norm": 3.0}},
    )
    found = {
        (s.environment, s.variant): (
            c.optimizer.clip_norm,
            c.optimizer.epsilon,
            c.translation.model.dropout,
            c.strategy.kind,
        )
        for s in suite.specs
        for c in [suite.configs[s]]
    }
    assert found == {
        ("a", "horovod"): (2.0, 1e-5, 0.3, "horovod"),
        ("a", "N = 1"): (3.0, 1e-5, 0.3, "async"),
        ("b", "horovod"): (1.0, 1e-6, 0.3, "horovod"),
        ("b", "N = 1"): (3.0, 1e-6, 0.3, "async"),
    }


def test_a_key_of_a_variant_is_not_undone_by_a_section_of_an_environment(folder: pathlib.Path) -> None:
    suite = suite_of(
        folder,
        set={"strategy.kind": "single"},
        environments={"a": {"strategy": {"kind": "ddp"}}},
        variants={"horovod": {"strategy.kind": "horovod"}, "ddp": {}},
    )
    assert [suite.configs[spec].strategy.kind for spec in suite.specs] == ["horovod", "ddp"]


def test_a_suite_sets_each_runs_length_measurements_seed_and_rate(folder: pathlib.Path) -> None:
    suite = suite_of(folder, rates=[0.5], seeds=[7])
    config = suite.configs[Spec("all", "N = 1", 0.5, 7)]
    assert (config.training.weight, config.training.updates, config.training.epochs) == (2000, None, None)
    assert (config.validation.every_weight, config.validation.every, config.validation.when) == (500, None, "after")
    assert (config.seed, config.optimizer.learning_rate, config.output) == (7, 0.5, "out/runs/n_1-0.5-s7")
    assert config.simulation.workers == 2


@pytest.mark.parametrize("budget", [{"updates": 3}, {"seconds": 2.5}])
def test_a_budget_is_the_only_bound(folder: pathlib.Path, budget: dict[str, Any]) -> None:
    config = suite_of(folder, budget=budget).configs[Spec("all", "horovod", None, 1)].training
    assert {name: value for name in ("epochs", "weight", "updates", "seconds") if (value := getattr(config, name))} == budget


def test_the_number_of_workers_is_taken_from_the_variant_the_environment_or_the_suite(folder: pathlib.Path) -> None:
    variants = {"horovod": {}, "more": {"workers": 8}, "one": {"strategy.kind": "single"}}
    suite = suite_of(folder, variants=variants, environments={"few": {}, "many": {"workers": 4}}, launcher="mpirun")
    found = {}
    for spec, planned in zip(suite.specs, suite.plan.runs, strict=True):
        words = suite.command(spec)
        found[spec.environment, spec.variant] = int(words[words.index("--workers") + 1])
        assert planned.num_workers == found[spec.environment, spec.variant] and planned.is_simulated is False
    few, many = [("few", name) for name in variants], [("many", name) for name in variants]
    assert found == {**dict(zip(few, (2, 8, 1), strict=True)), **dict(zip(many, (4, 8, 1), strict=True))}


def overrides(folder: pathlib.Path, *, simulated: bool) -> list[str]:
    workers = ["--set", "simulation.workers=2"] if simulated else []
    return [
        *(str(folder / "base.yaml"), "--set", "task.label_smoothing=0.0"),
        *("--set", "strategy.arrivals_per_update=1", *workers, "--set", "optimizer.learning_rate=0.001"),
        *("--set", "training.epochs=null", "--set", "training.weight=2000"),
        *("--set", "training.updates=null", "--set", "training.seconds=null"),
        *("--set", "validation.every=null", "--set", "validation.every_epochs=null", "--set", "validation.patience=null"),
        *("--set", "validation.when=after"),
        *("--set", "validation.every_weight=500", "--set", "seed=1", "--set", "output=out/runs/n_1-0.001-s1"),
    ]


def test_a_simulated_run_is_started_with_simulate(folder: pathlib.Path) -> None:
    suite = suite_of(folder, rates=[0.001])
    assert suite.command(Spec("all", "N = 1", 0.001, 1)) == ["simulate", *overrides(folder, simulated=True), "--overwrite"]


@pytest.mark.parametrize("launcher", ["mpirun", "srun", "horovodrun-mpi"])
def test_a_real_run_is_started_with_launch(folder: pathlib.Path, launcher: str) -> None:
    suite = suite_of(folder, rates=[0.001], launcher=launcher, launch_arguments=["--hosts", "a:1,b:1"])
    spec = Spec("all", "N = 1", 0.001, 1)
    where = ["--workers", "2", "--launcher", launcher, "--hosts", "a:1,b:1"]
    assert suite.command(spec) == ["launch", *overrides(folder, simulated=False), "--overwrite", *where]
    assert suite.command(spec, resume=True) == ["launch", *overrides(folder, simulated=False), "--resume", *where]


def test_long_values_and_numbers_as_keys_reach_a_run_unchanged(folder: pathlib.Path) -> None:
    text = " ".join(["a folder: # 'of'"] * 30)
    slow = {0: 2.0, **dict.fromkeys(range(1, 40), 1.5)}
    environments = {
        "wide": {"workers": 40, "emulation.slow_workers": slow, "task.data.folder": text, "optimizer.epsilon": 1e-09}
    }
    config = suite_of(folder, environments=environments).configs[Spec("wide", "horovod", None, 1)]
    assert config.emulation.slow_workers == slow and config.translation.data.folder == text
    assert config.optimizer.epsilon == 1e-9 and config.simulation.workers == 40


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (Spec("all", "horovod", None, 1), "horovod-s1"),
        (Spec("two, even", "N = 1", None, 2), "two_even-n_1-s2"),
        (Spec("all", "async, N = workers", 0.012, 1), "async_n_workers-0.012-s1"),
        (Spec("even", "(plain) DDP!", 1e-05, 10), "even-plain_ddp-1e-05-s10"),
        (Spec("all", "horovod", 1.0, 1), "horovod-1-s1"),
    ],
)
def test_a_folder_is_named_after_its_run(spec: Spec, name: str) -> None:
    assert spec.name == name


def test_the_plan_has_the_order_of_the_file_and_is_read_back_unchanged(folder: pathlib.Path) -> None:
    suite = suite_of(folder, environments={"b": {}, "a": {}}, rates=[0.2, 0.1], seeds=[2, 1], target={"loss": 3.0})
    expected = [
        Spec(environment, variant, rate, seed)
        for environment in ("b", "a")
        for variant in ("horovod", "N = 1")
        for rate in (0.2, 0.1)
        for seed in (2, 1)
    ]
    assert suite.specs == expected
    runs = suite.plan.runs
    assert [(run.environment, run.variant, run.rate, run.seed, run.name) for run in runs] == [
        (s.environment, s.variant, s.rate, s.seed, s.name) for s in expected
    ]
    for run, spec in zip(runs, expected, strict=True):
        planned = parse_config(read_yaml(run.config), "planned")
        assert settings_of(planned) == settings_of(suite.configs[spec]) and planned.output == run.name
    assert (suite.plan.title, suite.plan.source, suite.plan.target) == ("suite", "suite.yaml", WantedTarget("loss", 3.0))
    assert suite.plan.text == (folder / "suite.yaml").read_text()
    suite.plan.write(folder / "out")
    assert read_plan(folder / "out") == suite.plan


def test_the_target_may_be_any_metric_and_is_read_back_unchanged(folder: pathlib.Path) -> None:
    suite = suite_of(folder, target={"bleu": 3}, set={"task.metrics": ["bleu"]})
    assert suite.plan.target == WantedTarget("bleu", 3.0)
    suite.plan.write(folder / "out")
    assert read_plan(folder / "out") == suite.plan


@pytest.mark.parametrize(
    ("nested", "flat"),
    [
        ({"optimizer": {"clip_norm": 2.0}}, {"optimizer.clip_norm": 2.0}),
        (
            {"optimizer": {"schedule": {"warmup": 7}, "clip_norm": 2.0}},
            {"optimizer.schedule.warmup": 7, "optimizer.clip_norm": 2.0},
        ),
        ({"optimizer.schedule": {"warmup": 7}}, {"optimizer.schedule.warmup": 7}),
        ({"task.vocabulary": {"kind": "unigram"}}, {"task.vocabulary.kind": "unigram"}),
        ({"task": {"vocabulary": {"kind": "unigram"}}}, {"task.vocabulary.kind": "unigram"}),
        ({"task": {"kind": "translation", "label_smoothing": 0.2}}, {"task.label_smoothing": 0.2}),
        (
            {"task": {"model": {"dropout": 0.3}, "label_smoothing": 0.2}},
            {"task.model.dropout": 0.3, "task.label_smoothing": 0.2},
        ),
    ],
)
def test_a_section_changes_the_keys_that_it_names(
    folder: pathlib.Path, nested: dict[str, Any], flat: dict[str, Any]
) -> None:
    first, second = (suite_of(folder, set=overrides) for overrides in (nested, flat))
    assert first.configs == second.configs and first.configs != suite_of(folder).configs


@pytest.mark.parametrize(
    "variant", [{"optimizer": {"kind": "sgd", "clip_norm": 0.5}}, {"optimizer.kind": "sgd", "optimizer.clip_norm": 0.5}]
)
@pytest.mark.parametrize("override", ["variants.a.optimizer={kind: lion}", "variants.a.optimizer.kind=lion"])
def test_a_section_on_the_command_line_changes_the_keys_that_it_names(
    folder: pathlib.Path, variant: dict[str, Any], override: str
) -> None:
    suite = changed(folder, override, variants={"horovod": {}, "a": variant})
    found = [config.optimizer for spec, config in suite.configs.items() if spec.variant == "a"]
    assert found and all((optimizer.kind, optimizer.clip_norm) == ("lion", 0.5) for optimizer in found)


@pytest.mark.parametrize("overrides", [(), ("variants.a.optimizer.clip_norm=1.0",)])
def test_a_key_that_is_given_twice_is_refused(folder: pathlib.Path, overrides: tuple[str, ...]) -> None:
    twice = {"optimizer.kind": "sgd", "optimizer": {"kind": "adagrad"}}
    with pytest.raises(ConfigError, match=r"variants\.a: got optimizer\.kind twice, expected it once"):
        changed(folder, *overrides, variants={"horovod": {}, "a": twice})


def test_an_empty_section_and_a_map_that_is_no_section_replace_what_was_there(folder: pathlib.Path) -> None:
    environments = {
        "a": {"emulation": {"slow_workers": {0: 2.0}, "seconds_per_weight": 0.1}},
        "b": {"emulation.slow_workers": {1: 2.0}},
    }
    suite = suite_of(
        folder, set={"emulation": {"slow_workers": {0: 3.0}}}, environments={**environments, "c": {"emulation": {}}}
    )
    found = {spec.environment: config.emulation for spec, config in suite.configs.items()}
    assert [dict(found[name].slow_workers) for name in "abc"] == [{0: 2.0}, {1: 2.0}, {}] and found[
        "a"
    ].seconds_per_weight == 0.1
    assert found["c"] == EmulationConfig()


def test_a_task_that_names_its_kind_replaces_the_base_s() -> None:
    task = {"factory": "mine:make", "options": {"a": {"b": 1}}}
    assert dotted({"task": task, "task.options": {"a": {"b": 2}}}, RunConfig) == {
        "task": task,
        "task.options": {"a": {"b": 2}},
    }


def begun(suite: Suite, output: pathlib.Path, **keys: Any) -> pathlib.Path:
    """Write the configuration of the suite's first run, without `keys`, as a run does when it begins."""
    planned = suite.plan.runs[0]
    tree = read_yaml(planned.config)
    for section, names in keys.items():
        for name in names:
            del tree[section][name]
    path = output / "runs" / planned.name / "config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(dump_yaml(tree))
    return path


def test_runs_count_if_their_configurations_are_equal_whatever_keys_were_added_since(folder: pathlib.Path) -> None:
    suite = suite_of(folder)
    path = begun(
        suite, folder / "out", training=["trackers"], optimizer=["average_decay"]
    )  # as of a version before these keys
    assert not is_outdated(folder / "out", suite.plan.runs[0])
    suite.plan.write(folder / "out")
    plan = json.loads((folder / "out/comparison.json").read_text())
    older = read_yaml(plan["runs"][0]["config"])
    del older["strategy"]["delay_compensation"]
    assert not is_outdated(folder / "out", dataclasses.replace(suite.plan.runs[0], config=dump_yaml(older)))
    path.write_text(path.read_text().replace("clip_norm:", "clip_nor:"))  # unknown to this version
    assert is_outdated(folder / "out", suite.plan.runs[0])


def test_a_plan_of_another_version_is_refused_with_the_way_on(folder: pathlib.Path) -> None:
    suite_of(folder).plan.write(folder / "out")
    path = folder / "out/comparison.json"
    path.write_text(path.read_text().replace('"config":', '"config_hash":'))
    with pytest.raises(DataError, match="expected the plan of a comparison by this version; `compare` writes it anew"):
        read_plan(folder / "out")


@pytest.mark.parametrize(
    "settings",
    [
        *(
            "task.init_from=a",
            "task.vocabulary.file=a",
            "task.data.max_ratio=2",
            "task.decoding.batch_tokens=9",
            "task.samples=2",
        ),
        *("task.data.train=[train,more]", "validation.score=bleu", "task.vocabulary.bpe_dropout=0.1", "seed=77"),
        "task={data: {folder: data}, vocabulary: {shared: false}, model: {tie_embeddings: none}}",
        "optimizer.schedule={kind: cosine, total: 9000, final: 0.5}",
    ],
)
def test_a_setting_that_affects_results_counts(settings: str) -> None:
    demo = pathlib.Path(__file__).parents[2] / "configs/demo.yaml"
    assert settings_of(load_config(demo, [settings])) != settings_of(load_config(demo))


@pytest.mark.parametrize("settings", ["output=x", "training.log_every_seconds=3", "training.trackers=[wandb]"])
def test_where_and_how_a_run_reports_does_not_count(settings: str) -> None:
    demo = pathlib.Path(__file__).parents[2] / "configs/demo.yaml"
    assert settings_of(load_config(demo, [settings])) == settings_of(load_config(demo))


def test_settings_do_not_depend_on_the_output_folder(folder: pathlib.Path) -> None:
    path = write(folder, tiny())
    here, there = (Suite(path, output).plan for output in (folder / "here", folder / "there"))
    assert here == there


def test_a_run_is_no_suite(folder: pathlib.Path) -> None:
    path = folder / "base.yaml"
    with pytest.raises(ConfigError) as raised:
        Suite(path, folder / "out")
    assert str(raised.value) == (
        f"{path}: got the configuration of a run, expected a suite; compute it with `hvd-async launch {path}`, or name it as the"
        " `base` of a suite"
    )


def changed(folder: pathlib.Path, *overrides: str, **changes: Any) -> Suite:
    return Suite(write(folder, tiny(**changes)), pathlib.Path("out"), overrides)


def test_keys_of_a_suite_can_be_changed_from_outside_the_file(folder: pathlib.Path) -> None:
    suite = changed(folder, "budget.weight=7", "seeds=[2, 3]", "set.optimizer.kind=sgd", "variants.N = 1.push.overlap=true")
    assert suite.config.budget.weight == 7
    assert [spec.seed for spec in suite.specs] == [2, 3, 2, 3]
    first, last = suite.configs[suite.specs[0]], suite.configs[suite.specs[-1]]
    assert (first.optimizer.kind, last.optimizer.kind) == ("sgd", "sgd")
    assert first.optimizer.learning_rate == suite_of(folder).configs[suite_of(folder).specs[0]].optimizer.learning_rate
    assert (first.push.overlap, last.push.overlap) == (False, True)
    assert last.strategy.arrivals_per_update == 1  # the other overrides of the variant stay
    assert suite.plan.text.endswith(
        "# changed: seeds=[2, 3]\n# changed: set.optimizer.kind=sgd\n# changed: variants.N = 1.push.overlap=true\n"
    )


def test_a_name_with_dots_is_found_whole(folder: pathlib.Path) -> None:
    variants: dict[str, Any] = {"horovod": {}, "a": {}, "a.b": {}}
    suite = changed(folder, "variants.a.b.push.overlap=true", "variants.a={push.dtype: bfloat16}", variants=variants)
    assert suite.config.variants == {"horovod": {}, "a": {"push.dtype": "bfloat16"}, "a.b": {"push.overlap": True}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("budget.weight", "--set budget.weight: expected key.path=value"),
        ("budget.wieght=3", "budget.wieght: unknown key; did you mean 'weight'?"),
        ("variants.x.push.overlap=true", "variants of the suite: 'horovod', 'N = 1'"),
        ("environments.x.push.overlap=true", "environments of the suite: it has none"),
        ("variants.N = 1.=true", "expected key.path=value"),
        ("set.seed=3", "set: got seed, expected other keys"),
        ("seeds=[", "--set seeds=[: the value is not YAML"),
        ("seeds.x=1", "--set seeds.x=1: seeds holds a list, expected a section of keys"),
    ],
)
def test_changes_that_do_not_fit_are_refused(folder: pathlib.Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        changed(folder, override, seeds=[1])
    assert message in str(caught.value) and "\n" not in str(caught.value)
