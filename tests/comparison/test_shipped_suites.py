"""The suites in configs/suites: each is valid as shipped, and serves its purpose."""

from __future__ import annotations

import itertools
import pathlib

import pytest

from hvd_async.comparison.plan import settings_of
from hvd_async.comparison.suite import Suite

FOLDER = pathlib.Path(__file__).parents[2] / "configs/suites"
SUITES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
WITH_A_TWIN = ("baselines", "batch-size-or-staleness", "arrivals", "learning-rate", "policies", "architecture")


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_is_valid_and_its_runs_differ(name: str, tmp_path: pathlib.Path) -> None:
    suite = Suite(FOLDER / f"{name}.yaml", tmp_path)
    names = [spec.name for spec in suite.specs]
    assert len(set(names)) == len(names)
    settings = [settings_of(suite.configs[spec]) for spec in suite.specs]
    assert all(one != other for one, other in itertools.combinations(settings, 2)), "two runs are the same"


@pytest.mark.parametrize("name", WITH_A_TWIN)
def test_a_suite_has_a_small_twin_on_the_builtin_corpus(name: str, tmp_path: pathlib.Path) -> None:
    large, small = (Suite(FOLDER / f"{prefix}{name}.yaml", tmp_path) for prefix in ("", "demo-"))
    assert large.config.launcher == small.config.launcher
    assert {small.configs[spec].translation.data.folder for spec in small.specs} == {"data/builtin"}
    assert set(small.config.environments) <= set(large.config.environments) or set(small.config.environments) == {"all"}
