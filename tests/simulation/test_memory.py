"""The memory of ranks, by hand, in planning; and runs that are refused before anything is allocated."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from hvd_async.__main__ import main
from hvd_async.cluster.topology import Machine, Placement, assign_roles
from hvd_async.config import OptimizerConfig, PushConfig, StoreConfig, StrategyConfig
from hvd_async.simulation.memory import RankMemory, memory_of
from hvd_async.simulation.planning import plan, table_of
from hvd_async.strategies import synchronous
from hvd_async.strategies.protocol import JobSize
from hvd_async.tasks.translation.builtin.grammar import write_corpus
from hvd_async.vectors.arithmetic import BLOCK
from tests.ranks import run_ranks
from tests.simulation.simulated import parse

SIZE = 1000 * BLOCK
VECTOR = 4 * SIZE
# Parameters; 3 published copies; 2 provisional vectors; the pending sum twice and both moments; for a checkpoint a copy of the
# parameters, the sum and both moments; 2 vectors on their way to disk.
STORE = 1 + 3 + 2 + 4 + 4 + 2
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
    apart = (1 + 4 + 2) * VECTOR  # the model, a checkpoint and what is on its way to disk are those of rank 0 alone
    assert (half.store - apart) / (whole.store - apart) == pytest.approx(0.5, rel=0.01)


def test_the_first_worker_of_a_host_has_what_its_workers_share(tmp_path: pathlib.Path) -> None:
    found = memory(tmp_path, 8, push={"node_sum": True}, simulation={"workers_per_node": 4})
    assert found.worker / VECTOR == pytest.approx(
        2 + 2 + 4, rel=0.01
    )  # model and gradient; the sum and parameters; four slots


@pytest.mark.parametrize(
    ("sections", "workers", "words"),
    [
        ({"strategy": {**ASYNC, "placement": "colocated"}, "store": {"shards": 4}}, 2, "got 4 with 2 ranks"),
        ({"strategy": {**ASYNC, "max_workers": 2}}, 4, "got 2 for 4 workers"),
    ],
)
def test_planning_says_what_real_ranks_could_not_run(
    tmp_path: pathlib.Path, sections: dict[str, Any], workers: int, words: str
) -> None:
    simulation = {"parameters": SIZE, "weight": 1}
    config = parse(tmp_path / "run", optimizer={"kind": "adam"}, simulation=simulation, **sections)
    rows = plan(config, [workers, 1], None) if "max_workers" in sections["strategy"] else plan(config, [workers, 8], None)
    lines = table_of(rows, "images").splitlines()
    assert lines[-1].startswith(f"{workers} workers: ") and words in lines[-1]
    assert lines[-3].split() == [str(workers), "-", "-", "-", "-", *lines[-3].split()[5:]]
    assert rows[1].bytes["store"] is not None


def test_planning_for_a_single_process_has_its_memory(tmp_path: pathlib.Path) -> None:
    simulation = {"parameters": SIZE, "weight": 1}
    config = parse(tmp_path / "run", strategy={"kind": "single"}, optimizer={"kind": "adam"}, simulation=simulation)
    assert plan(config, [4], None)[0].bytes["worker"] == (5 + 6) * VECTOR  # and a checkpoint, on its way to disk


def test_replicas_on_gpus_take_no_memory_of_the_host() -> None:
    plans = assign_roles([Machine("here", (0,), ("a", "b"))] * 2, Placement("ddp", device="cuda"))
    job = JobSize(StrategyConfig(kind="ddp"), StoreConfig(), PushConfig(), OptimizerConfig(kind="adam"), plans, SIZE)
    assert sum(need.num_bytes for need in synchronous.needs(job, 0)) == 6 * VECTOR
    assert synchronous.needs(job, 1) == []


@pytest.mark.parametrize(("kind", "vectors"), [("horovod", 5), ("ddp", 6)])
def test_a_synchronous_rank_has_its_gradient_a_sum_and_both_moments(tmp_path: pathlib.Path, kind: str, vectors: int) -> None:
    assert memory(tmp_path, strategy={"kind": kind}).worker == vectors * VECTOR


def test_planning_shows_memory(tmp_path: pathlib.Path) -> None:
    simulation = {"parameters": SIZE, "weight": 1}
    config = parse(tmp_path / "run", strategy=ASYNC, optimizer={"kind": "adam"}, simulation=simulation)
    lines = table_of(plan(config, [4, 8], None), "images").splitlines()
    assert lines[-2].split("  ")[-1].strip() == "20 bytes" and lines[-2].split()[0] == "4"
    assert [line.split()[3:5] for line in lines[-2:]] == [["80", "bytes"], ["96", "bytes"]]


def write_config(folder: pathlib.Path) -> pathlib.Path:
    write_corpus(folder / "text", train=120, validation=8, test=8)
    config = folder / "run.yaml"
    config.write_text(
        f"""output: {folder / "run"}
task:
  data: {{folder: {folder / "text"}}}
  vocabulary: {{size: 300}}
  model: {{encoder_layers: 1, decoder_layers: 1, width: 256, feed_forward: 1024, heads: 4}}
training: {{epochs: 1, device: cpu}}
"""
    )
    return config


def test_vectors_that_do_not_fit_are_refused_before_there_are_any(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(write_config(tmp_path)), "--set", "strategy.delay=10000"]) == 4
    words = capsys.readouterr().err
    assert "GiB (replica: earlier parameters)" in words and words.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.mpi
def test_a_store_that_does_not_fit_leaves_one_line_and_no_folder(tmp_path: pathlib.Path) -> None:
    flags = [flag for each in ("strategy.kind=async", "strategy.max_workers=20000") for flag in ("--set", each)]
    done = run_ranks(3, "hvd_async", "train", str(write_config(tmp_path)), *flags, timeout=120.0)
    lines = [line for line in done.stderr.splitlines() if line.startswith("hvd-async: ")]
    assert len(lines) == 1 and "GiB (store: 20000 slots in float32)" in lines[0], done.stderr
    assert not lines[0].startswith("hvd-async: rank") and not (tmp_path / "run").exists()
