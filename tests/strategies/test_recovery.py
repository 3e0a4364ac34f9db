"""What a run says at its start if the death of its store would cost updates."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import pytest

from hvd_async.cluster.topology import RankPlan
from hvd_async.config.optimizer import OptimizerConfig
from hvd_async.strategies.recovery import obstacle_to_recovery
from hvd_async.system.launch_page import KEEPER_VARIABLE, LaunchPage

STORE = RankPlan(rank=0, host="a", local_rank=0, role="store", worker=None, device="cpu", threads=1, shard=0)
SHARD = dataclasses.replace(STORE, rank=1, local_rank=1, shard=1)
WORKER = dataclasses.replace(STORE, rank=2, host="b", role="worker", worker=0, shard=None)
ADAM = OptimizerConfig()


@pytest.fixture
def environ() -> Iterator[dict[str, str]]:
    """Variables that a `launch` on this host sets."""
    page = LaunchPage()
    try:
        yield {KEEPER_VARIABLE: page.variable}
    finally:
        page.close()


def test_with_launch_on_the_stores_host_nothing_is_lost(environ: dict[str, str]) -> None:
    assert obstacle_to_recovery([STORE, SHARD, WORKER], ADAM, environ) == ""


@pytest.mark.parametrize("value", [None, "", "{}", "[1]", "nonsense", '{"process": 1}'])
def test_without_launch_it_names_launch(value: str | None) -> None:
    assert "only `hvd-async launch`" in obstacle_to_recovery(
        [STORE], ADAM, {} if value is None else {KEEPER_VARIABLE: value}
    )


def test_a_launch_on_another_host_does_not_count(environ: dict[str, str]) -> None:
    place = json.loads(environ[KEEPER_VARIABLE])
    elsewhere = json.dumps({**place, "scope": place["scope"] + 1})
    assert "only `hvd-async launch`" in obstacle_to_recovery([STORE], ADAM, {KEEPER_VARIABLE: elsewhere})


def test_it_names_what_is_in_the_way(environ: dict[str, str]) -> None:
    on_gpu = dataclasses.replace(STORE, store_device="cuda:0")
    assert obstacle_to_recovery([on_gpu, WORKER], ADAM, environ) == "the store is on a GPU"
    torch_class = OptimizerConfig.model_validate({"kind": "torch", "torch_class": "Adamax"})
    assert obstacle_to_recovery([STORE, WORKER], torch_class, environ) == "optimizer.kind is torch"
    far = dataclasses.replace(SHARD, host="b")
    assert obstacle_to_recovery([STORE, far, WORKER], ADAM, environ) == "its shards are on several hosts"
