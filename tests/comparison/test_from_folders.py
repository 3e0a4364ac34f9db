"""Comparisons of run folders that no suite made."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import Any

import pytest

from hvd_async.comparison.collection import Collection
from hvd_async.comparison.from_folders import gather
from hvd_async.comparison.target import Target, WantedTarget
from hvd_async.config import StrategyConfig
from hvd_async.errors import ConfigError, DataError
from hvd_async.tasks.metric import Metric
from tests.comparison.made import ACCURACY, CONFIG, LOSS, METRICS, run, write_run
from tests.comparison.tiny import PretendedRuns, execute, in_place_of_processes, tiny, write, write_base


def write_losses(
    folder: pathlib.Path, seed: int = 1, kind: str = "async", losses: tuple[float, ...] = (4.0, 2.0), **fields: Any
) -> pathlib.Path:
    """Write a run with these losses after 10, 20, ... seconds, and return its folder."""
    config = CONFIG.model_copy(update={"seed": seed, "output": str(folder), "strategy": StrategyConfig(kind=kind)})  # type: ignore[arg-type]  # one of its kinds
    points = [(10.0 * number, loss) for number, loss in enumerate(losses, start=1)]
    return write_run(run(*points, folder=folder, config=config, **fields))


def variants(collection: Collection) -> dict[str, list[int]]:
    (environment,) = collection.environments or ["all"]
    return {
        name: [entry.seed for entry in collection.chosen(environment, name)] for name in collection.variants(environment)
    }


def gathered(*folders: pathlib.Path, baseline: str | None = None, target: WantedTarget | None = None) -> Collection:
    return gather(folders, baseline, target)


def test_runs_that_differ_only_in_their_seeds_are_one_variant(tmp_path: pathlib.Path) -> None:
    names = (("horovod-s1", 1, "horovod"), ("async-s1", 1, "async"), ("horovod-s2", 2, "horovod"), ("async-s2", 2, "async"))
    found = gathered(*(write_losses(tmp_path / name, seed, kind) for name, seed, kind in names))
    assert variants(found) == {"horovod": [1, 2], "async": [1, 2]}
    assert [entry.folder.name for entry in found.entries] == ["horovod-s1", "horovod-s2", "async-s1", "async-s2"]
    assert found.baseline == "horovod" and found.title == "async against horovod" and found.rates == () and found.text == ""
    assert all(entry.run is not None and entry.is_chosen and entry.rate is None for entry in found.entries)


@pytest.mark.parametrize(
    ("names", "baseline", "title"),
    [
        (["a"], None, "a"),
        (["a", "b"], None, "b against a"),
        (["a", "b"], "b", "a against b"),
        (["a", "b", "c", "d"], None, "b, c and d against a"),
        (["a", "b", "c", "d", "e"], "e", "4 variants against e"),
    ],
)
def test_the_title_names_the_variants_compared(
    tmp_path: pathlib.Path, names: list[str], baseline: str | None, title: str
) -> None:
    assert gathered(*(write_losses(tmp_path / name, 1) for name in names), baseline=baseline).title == title
    timed = gathered(
        *(write_losses(tmp_path / name, 1) for name in names), baseline=baseline, target=WantedTarget("loss", 2.0)
    )
    assert timed.title == title


def test_runs_of_one_seed_are_not_one_variant(tmp_path: pathlib.Path) -> None:
    folders = [write_losses(tmp_path / name, seed) for name, seed in (("a-1", 1), ("a-2", 2), ("b-2", 2), ("b-1", 1))]
    assert variants(gathered(*folders)) == {"a": [1, 2], "b": [2, 1]}
    assert variants(gathered(folders[0], folders[0])) == {"a-1": [1], "a-1 (2)": [1]}


@pytest.mark.parametrize("fields", [{"num_workers": 2}, {"is_simulated": True}])
def test_runs_with_other_workers_and_simulated_runs_are_variants_of_their_own(
    tmp_path: pathlib.Path, fields: dict[str, Any]
) -> None:
    folders = [write_losses(tmp_path / "one", 1), write_losses(tmp_path / "other", 2, **fields)]
    assert variants(gathered(*folders)) == {"one": [1], "other": [2]}


@pytest.mark.parametrize(
    ("names", "variant"),
    [
        (("async-s1", "async-s2"), "async"),
        (("async_seed1", "async_seed2"), "async"),
        (("async-s10", "async-s11"), "async"),
        (("async-4-s1", "async-4-s2"), "async-4"),
        (("N4-1", "N4-2"), "N4"),
        (("losses1", "losses2"), "losses"),
        (("s1", "s2"), "s1"),
        (("1", "2"), "1"),
        (("here", "there"), "here"),
        (("seed 1/run", "seed 2/run"), "run"),
    ],
)
def test_a_variant_is_named_after_its_folders(tmp_path: pathlib.Path, names: tuple[str, str], variant: str) -> None:
    folders = [write_losses(tmp_path / name, seed) for seed, name in enumerate(names, start=1)]
    assert list(variants(gathered(*folders))) == [variant]


def test_a_single_run_has_the_name_of_its_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_losses(tmp_path / "async-s1"))
    found = gathered(pathlib.Path("."))
    assert variants(found) == {"async-s1": [1]}
    assert found.target == Target(LOSS, 2.0, is_given=False)


def test_a_baseline_and_a_target_may_be_chosen(tmp_path: pathlib.Path) -> None:
    folders = [
        write_losses(tmp_path / "a", kind="horovod", losses=(4.0, 2.0)),
        write_losses(tmp_path / "b", kind="ddp", losses=(4.0, 3.0)),
        write_losses(tmp_path / "c", kind="async", losses=(4.0, math.nan)),
    ]
    assert gathered(*folders).target == Target(LOSS, 3.0, is_given=False)
    changed = gathered(*folders, baseline="c")
    assert (changed.baseline, changed.target) == ("c", Target(LOSS, 4.0, is_given=False))
    given = gathered(*folders, baseline="b", target=WantedTarget("accuracy", 20.0))
    assert (given.baseline, given.target) == ("b", Target(ACCURACY, 20.0))


def test_an_unknown_baseline_is_refused(tmp_path: pathlib.Path) -> None:
    folders = [write_losses(tmp_path / "a", kind="horovod"), write_losses(tmp_path / "b")]
    with pytest.raises(ConfigError, match="--baseline: got 'horovod', expected one of a, b"):
        gathered(*folders, baseline="horovod")


def test_a_target_that_no_run_has_measured_is_refused_with_those_that_are_known(tmp_path: pathlib.Path) -> None:
    folders = [write_losses(tmp_path / "a"), write_losses(tmp_path / "b", metrics=(LOSS, Metric("recall", "recall")))]
    with pytest.raises(ConfigError) as raised:
        gathered(*folders, target=WantedTarget("bleu", 20.0))
    assert str(raised.value) == (
        "target: got bleu, which no run has measured, expected one of loss, accuracy, perplexity, recall"
    )


def test_metrics_of_runs_are_joined_by_name(tmp_path: pathlib.Path) -> None:
    other = (
        Metric("loss", "cross entropy", unit="nats per image", digits=4, note="of 7 images"),
        Metric("recall", "recall"),
    )
    mine = (dataclasses.replace(LOSS, note="of 3 images"), *METRICS[1:])
    folders = [write_losses(tmp_path / "a", metrics=mine), write_losses(tmp_path / "b", metrics=other)]
    expected = dataclasses.replace(LOSS, unit="", note="of 3 images; or of 7 images")
    assert {metric.name: metric for metric in gathered(*folders).metrics}["loss"] == expected
    found = gathered(write_losses(tmp_path / "c"), write_losses(tmp_path / "d", metrics=(*other[1:], LOSS)))
    assert found.metrics == (LOSS, *METRICS[:2], other[1])


def test_runs_that_disagree_whether_higher_is_better_are_refused_in_one_line(tmp_path: pathlib.Path) -> None:
    other = (LOSS, dataclasses.replace(ACCURACY, is_higher_better=False))
    folders = [write_losses(tmp_path / "a"), write_losses(tmp_path / "b", metrics=other)]
    with pytest.raises(DataError) as raised:
        gathered(*folders)
    assert str(raised.value) == (
        f"{tmp_path}/b: accuracy: got a metric of which lower is better, expected higher as in {tmp_path}/a; report these runs"
        " separately"
    )


def test_the_folder_of_a_comparison_may_be_given(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_base(tmp_path, tmp_path / "text")
    in_place_of_processes(
        monkeypatch, PretendedRuns(lambda config: (4.0, 2.0) if config.strategy.kind == "horovod" else (3.0,))
    )
    suite = tiny(environments={"a": {}, "b": {}}, target={"loss": 2.5})
    execute(write(tmp_path, suite), tmp_path / "out", only=["horovod", "a"])
    found = gathered(tmp_path / "out")
    assert (found.title, found.baseline, found.source, found.target) == (
        "suite",
        "horovod",
        "suite.yaml",
        Target(LOSS, 2.5),
    )
    assert [(e.environment, e.variant, e.fault) for e in found.entries] == [
        *(("a", "horovod", ""), ("a", "N = 1", "")),
        *(("b", "horovod", ""), ("b", "N = 1", "not run yet")),
    ]
    # Another baseline does not change a target chosen beforehand; another target does.
    changed = gathered(tmp_path / "out", baseline="N = 1")
    assert (changed.baseline, changed.target, changed.text) == ("N = 1", Target(LOSS, 2.5), found.text)
    assert gathered(tmp_path / "out", target=WantedTarget("loss", 3.5)).target == Target(LOSS, 3.5)


def test_a_derived_target_follows_the_baseline_and_is_reached_in_every_environment(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_base(tmp_path, tmp_path / "text")
    losses = {("horovod", 0.1): 2.0, ("async", 0.1): 2.2, ("horovod", 0.2): 3.0, ("async", 0.2): 2.9}
    in_place_of_processes(
        monkeypatch, PretendedRuns(lambda config: (4.0, losses[config.strategy.kind, config.translation.model.dropout]))
    )
    environments = {"a": {"task.model.dropout": 0.1}, "b": {"task.model.dropout": 0.2}}
    execute(write(tmp_path, tiny(environments=environments)), tmp_path / "out")
    assert gathered(tmp_path / "out").target == Target(LOSS, 3.0, is_given=False)
    assert gathered(tmp_path / "out", baseline="N = 1").target == Target(LOSS, 3.0, is_given=False)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"runs": [{}], "target": null}', "\udcff"])
def test_a_damaged_plan_is_named(tmp_path: pathlib.Path, text: str) -> None:
    (tmp_path / "comparison.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=r"comparison.json: cannot be read .*expected the plan of a comparison"):
        gathered(tmp_path)


def test_a_folder_without_a_run_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="expected the folder of a run"):
        gathered(write_losses(tmp_path / "a"), tmp_path)
