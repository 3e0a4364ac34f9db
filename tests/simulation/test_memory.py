"""The memory of ranks, by hand, in planning; and runs that are refused before anything is allocated."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from hvd_async.__main__ import main
from hvd_async.simulation.memory import RankMemory, memory_of
from hvd_async.simulation.planning import plan, table_of
from hvd_async.tasks.translation.builtin.grammar import write_corpus
from hvd_async.vectors.arithmetic import BLOCK
from tests.simulation.simulated import parse

SIZE = 1000 * BLOCK
VECTOR = 4 * SIZE
# Parameters; 3 published copies; 2 provisional vectors; the pending sum twice and both moments; for a checkpoint a copy of the
# parameters, the sum and both moments; 4 vectors on their way to disk.
STORE = 1 + 3 + 2 + 4 + 4 + 4
ASYNC = {"kind": "async", "arrivals_per_update": "workers", "provisional": True}


def memory(tmp_path: pathlib.Path, num_workers: int = 4, **sections: Any) -> RankMemory:
    sections.setdefault("optimizer", {"kind": "adam"})
    sections.setdefault("strategy", ASYNC)
    return memory_of(parse(tmp_path / "run", **sections), SIZE, num_workers)


@pytest.mark.parametrize("num_workers", [1, 4, 64])
def test_a_store_has_a_slot_for_each_worker_and_a_worker_two_vectors(tmp_path: pathlib.Path, num_workers: int) -> None:
    found = memory(tmp_path, num_workers)
    assert found.store / VECTOR == pytest.approx(STORE + num_workers, rel=0.01)
    assert found.worker == 2 * VECTOR


@pytest.mark.parametrize(
    ("sections", "vectors"),
    [
        ({"push": {"dtype": "bfloat16"}}, STORE + 2),
        ({"store": {"published_buffers": 2}}, STORE + 3),
        ({"store": {"recoverable": False}}, STORE + 3),
        ({"strategy": {**ASYNC, "provisional": False}}, STORE + 2),
        ({"optimizer": {"kind": "sgd"}}, STORE),
        ({"strategy": {**ASYNC, "placement": "colocated"}}, STORE + 5),
        ({"push": {"node_sum": True}, "simulation": {"workers_per_node": 2}}, STORE + 2),
    ],
)
def test_the_memory_of_a_store_follows_its_settings(tmp_path: pathlib.Path, sections: dict[str, Any], vectors: int) -> None:
    assert memory(tmp_path, **sections).store / VECTOR == pytest.approx(vectors, rel=0.01)


def test_two_shards_share_what_a_store_holds(tmp_path: pathlib.Path) -> None:
    whole, half = memory(tmp_path), memory(tmp_path, store={"shards": 2})
    apart = (1 + 4 + 4) * VECTOR  # the model, a checkpoint and what is on its way to disk are those of rank 0 alone
    assert (half.store - apart) / (whole.store - apart) == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize(("kind", "vectors"), [("horovod", 5), ("ddp", 6)])
def test_a_synchronous_rank_has_its_gradient_a_sum_and_both_moments(tmp_path: pathlib.Path, kind: str, vectors: int) -> None:
    assert memory(tmp_path, strategy={"kind": kind}).worker == vectors * VECTOR


def test_planning_shows_memory(tmp_path: pathlib.Path) -> None:
    simulation = {"parameters": SIZE, "weight": 1}
    config = parse(tmp_path / "run", strategy=ASYNC, optimizer={"kind": "adam"}, simulation=simulation)
    lines = table_of(plan(config, [4, 8], None), "images").splitlines()
    assert lines[-2].split("  ")[-1].strip() == "20 bytes" and lines[-2].split()[0] == "4"
    assert [line.split()[3:5] for line in lines[-2:]] == [["88", "bytes"], ["104", "bytes"]]


@pytest.mark.parametrize("kind", ["single", "async"])
def test_a_model_that_does_not_fit_is_refused_before_it_is_made(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    write_corpus(tmp_path / "text", train=120, validation=8, test=8)
    config = tmp_path / "run.yaml"
    config.write_text(
        f"""output: {tmp_path / "run"}
task:
  data: {{folder: {tmp_path / "text"}}}
  vocabulary: {{size: 300}}
  model: {{encoder_layers: 4, decoder_layers: 4, width: 65536, feed_forward: 65536, heads: 8}}
training: {{epochs: 1, device: cpu}}
"""
    )
    command = ["train", str(config)] if kind == "single" else ["launch", str(config), "--workers", "2", "--set"]
    assert main([*command, *(["strategy.kind=async"] if kind == "async" else [])]) == 4
    assert kind == "async" or " GiB (the model's parameters and gradient)" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
