"""Differences between configurations."""

from __future__ import annotations

from typing import Any

import pytest

from hvd_async.comparison.differences import differing_keys, own_leaves
from hvd_async.config import RunConfig, parse_config
from tests.trees import replaced


def config(**sections: Any) -> RunConfig:
    tree = {"output": "run", "task": {"data": {"folder": "text"}}, "training": {"epochs": 1}, "strategy": {"kind": "async"}}
    return parse_config(replaced(tree, sections), source="made")


def strategy(**keys: Any) -> RunConfig:
    return config(strategy={"kind": "async", **keys})


def test_seeds_and_folders_do_not_count_as_differences() -> None:
    assert differing_keys([]) == []
    assert differing_keys([config()]) == []
    assert differing_keys([config(seed=1, output="a"), config(seed=2, output="b")]) == []


def test_keys_are_listed_with_their_sections_in_the_order_of_the_configuration() -> None:
    one = config(optimizer={"learning_rate": 0.1, "schedule": {"warmup": 10}}, model={"dropout": 0.2})
    assert differing_keys([config(), one]) == ["task.model.dropout", "optimizer.learning_rate", "optimizer.schedule.warmup"]


def test_one_differing_run_is_enough() -> None:
    assert differing_keys([config(), config(), config(model={"dropout": 0.2})]) == ["task.model.dropout"]


def test_a_mapping_of_workers_is_a_value() -> None:
    even, uneven = config(), config(emulation={"slow_workers": {0: 2.0, 3: 1.5}})
    assert differing_keys([even, uneven]) == ["emulation.slow_workers"]
    assert (
        own_leaves(uneven)["emulation.slow_workers"] == {0: 2.0, 3: 1.5} and own_leaves(even)["emulation.slow_workers"] == {}
    )


def test_a_list_is_a_value() -> None:
    schedule = [{"version": 0, "arrivals": 1}, {"version": 9, "arrivals": 2}]
    assert differing_keys([config(), strategy(arrivals_per_update=schedule)]) == ["strategy.arrivals_per_update"]


@pytest.mark.parametrize(
    ("one", "other", "keys"),
    [
        ({}, {"provisional": True}, []),  # true is the default
        ({}, {"provisional": False}, ["strategy.provisional"]),
        ({"arrivals_per_update": 1, "provisional": True}, {"arrivals_per_update": 1, "provisional": False}, []),
        ({"lockstep": True}, {"lockstep": True, "provisional": False}, []),
        ({"kind": "ddp"}, {"kind": "ddp", "provisional": False}, []),
        ({"kind": "ddp"}, {"kind": "horovod"}, ["strategy.kind"]),
        ({"kind": "ddp"}, {}, ["strategy.kind", "strategy.provisional"]),
    ],
)
def test_provisional_parameters_differ_only_if_they_take_effect(
    one: dict[str, Any], other: dict[str, Any], keys: list[str]
) -> None:
    assert differing_keys([strategy(**one), strategy(**other)]) == keys
