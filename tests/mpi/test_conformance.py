"""Shards, node sums, overlap and push formats in every combination, on real ranks, under delays at every point of the
protocol. Every other combination pulls provisional parameters.

All of them must satisfy the invariants of the plain store: `check_conservation` of the conservation tests, on one host
and on two.
"""

from __future__ import annotations

import itertools
import pathlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch

from hvd_async.config import parse_config
from tests.mpi.runs import checkpoint_checksum, events_of, losses_of, run_toy, summary_of
from tests.mpi.test_conservation import NUM_BATCHES, check_conservation
from tests.mpi.toy import Settings, make_config

pytestmark = pytest.mark.mpi

FORMATS: dict[str, dict[str, object]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16", "error_feedback": True},
    "float16": {"dtype": "float16"},
    "few": {"keep": 0.05, "error_feedback": True},
}
BYTES_PER_ELEMENT = {"float32": 4, "bfloat16": 2, "float16": 2}
# Enough elements for several shards: 5 blocks.
HIDDEN = 2000


def combinations() -> Iterator[tuple[int, bool, bool, str]]:
    """Yield combinations: number of shards, node sum, overlap, format."""
    return itertools.product((1, 2, 3), (False, True), (False, True), FORMATS)


def make_settings(folder: pathlib.Path, combination: tuple[int, bool, bool, str], seed: int, **strategy: object) -> Settings:
    shards, node_sum, overlap, form = combination
    pulls: dict[str, object] = {"arrivals_per_update": 3, "provisional": True} if seed % 2 else {"arrivals_per_update": 2}
    configuration = make_config(
        folder / name_of(combination),
        strategy={"kind": "async", **pulls, **strategy},
        store={"shards": shards},
        push={**FORMATS[form], "node_sum": node_sum, "overlap": overlap},
        optimizer={"learning_rate": 0.002},
        validation={"every": 7},
    )
    return Settings(configuration, num_batches=NUM_BATCHES, uneven=seed, delays=seed, hidden=HIDDEN)


def name_of(combination: Sequence[object]) -> str:
    return "-".join(map(str, combination))


def check(
    folder: pathlib.Path, combination: tuple[int, bool, bool, str], strategy: Mapping[str, object], num_hosts: int
) -> None:
    _, node_sum, overlap, form = combination
    check_conservation(folder, dict(strategy))
    arrivals = events_of(folder, "arrival")
    (start,) = events_of(folder, "start")
    size = start["parameters"]
    pushes = [arrival["sent_bytes"] for arrival in arrivals if arrival["sent_bytes"]]
    workers_of = {arrival["worker"] for arrival in arrivals}
    is_shared = node_sum and len(workers_of) > num_hosts  # otherwise every node has one worker
    assert 0 < len(pushes) < len(arrivals) if is_shared else len(pushes) == len(arrivals)
    if form == "few":
        assert max(pushes) <= 8 * round(0.05 * size + 64) and min(pushes) > 0
    else:
        assert min(pushes) >= BYTES_PER_ELEMENT[form] * size
    if overlap:  # every gradient except a worker's first is computed before the pull that follows the previous gradient
        assert max(arrival["staleness"] for arrival in arrivals) >= 1
    losses = losses_of(folder)
    # It learns at some time: gradients may be very stale on a slow machine, so that losses rise again, and single ones jump. The
    # first update is of the initial parameters.
    medians = [statistics.median(losses[start : start + 5]) for start in range(len(losses) - 4)]
    assert min(medians) < 0.65 * losses[0], "it does not learn"
    assert summary_of(folder)["measurements"]


def run_all(
    tmp_path: pathlib.Path,
    wanted: Sequence[tuple[int, bool, bool, str]],
    timeout: float,
    hosts: Sequence[str] = (),
    **strategy: Any,
) -> None:
    settings = [make_settings(tmp_path, each, seed, **strategy) for seed, each in enumerate(wanted)]
    run_toy(5, *settings, timeout=timeout, hosts=hosts).check()
    for each in wanted:
        check(tmp_path / name_of(each), each, strategy, max(1, len(hosts)))


@pytest.mark.parametrize("shards", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 3])
def test_every_combination_conserves_arrivals(tmp_path: pathlib.Path, shards: int) -> None:
    run_all(tmp_path, [each for each in combinations() if each[0] == shards], timeout=240)


def test_a_synchronous_start_conserves_arrivals_in_combination(tmp_path: pathlib.Path) -> None:
    wanted = [(1, False, True, "float32"), (1, True, True, "bfloat16"), (2, True, False, "few"), (2, False, True, "float16")]
    run_all(tmp_path, wanted, timeout=120, synchronous_versions=4)


@pytest.mark.parametrize("bound", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_bound_that_waits_holds_in_combination(tmp_path: pathlib.Path, bound: int) -> None:
    wanted = [
        (1, False, True, "float32"),
        (2, False, False, "bfloat16"),
        (2, True, True, "few"),
        (3, True, False, "float16"),
    ]
    run_all(tmp_path, wanted, timeout=120, max_staleness=bound)


# Each pair of two values occurs in one of these combinations.
PAIRS = [
    (1, False, False, "float32"),
    (1, True, True, "bfloat16"),
    (1, False, True, "few"),
    (2, True, False, "float32"),
    (2, False, True, "float16"),
    (2, True, True, "few"),
    (3, False, False, "bfloat16"),
    (3, True, True, "float16"),
]


def test_combinations_conserve_arrivals_on_two_hosts(tmp_path: pathlib.Path, two_hosts: tuple[str, str]) -> None:
    run_all(tmp_path, PAIRS, timeout=240, hosts=two_hosts)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_combination_conserves_arrivals_on_two_hosts(tmp_path: pathlib.Path, two_hosts: tuple[str, str]) -> None:
    run_all(tmp_path, list(combinations()), timeout=800, hosts=two_hosts)


def test_muon_updates_whole_matrices_in_one_shard_as_in_two(tmp_path: pathlib.Path) -> None:
    for shards in (1, 2):
        configuration = make_config(
            tmp_path / str(shards),
            strategy={"kind": "async", "lockstep": True, "placement": "colocated"},
            store={"shards": shards},
            optimizer={"kind": "muon", "clip_norm": 0.05, "average_decay": 0.9, "weight_decay": 0.01, "muon_except": []},
            validation={"every": 4},
        )
        run_toy(3, Settings(configuration, num_batches=30, hidden=HIDDEN)).check()
    assert checkpoint_checksum(tmp_path / "1") == checkpoint_checksum(tmp_path / "2")
    assert losses_of(tmp_path / "2")[-1] < losses_of(tmp_path / "2")[0]


@pytest.mark.parametrize(
    "form", [name if name == "few" else pytest.param(name, marks=pytest.mark.slow) for name in sorted(FORMATS)]
)
def test_the_number_of_shards_changes_no_bit(tmp_path: pathlib.Path, form: str) -> None:
    """Runs repeat in lock-step, and, with error feedback, with a single worker. Clipping, whose norm spans all shards,
    and a moving average are included.
    """
    has_memory = "error_feedback" in FORMATS[form]
    for shards in (1, 2, 3):
        configuration = make_config(
            tmp_path / str(shards),
            strategy={"kind": "async", "lockstep": True, "placement": "dedicated" if has_memory else "colocated"},
            store={"shards": shards},
            push=FORMATS[form],
            optimizer={"clip_norm": 0.05, "average_decay": 0.9, "kind": "adamw", "weight_decay": 0.01},
            validation={"every": 4},
        )
        settings = Settings(configuration, num_batches=30, hidden=HIDDEN)
        run_toy(shards + 1 if has_memory else 3, settings).check()
    assert checkpoint_checksum(tmp_path / "1") == checkpoint_checksum(tmp_path / "2") == checkpoint_checksum(tmp_path / "3")
    norms = [event["gradient_norm"] for event in events_of(tmp_path / "3", "update")]
    assert max(norms) > 0.05  # some gradients were clipped
    assert norms == [event["gradient_norm"] for event in events_of(tmp_path / "1", "update")]


def test_in_lock_step_a_node_makes_the_same_sum_as_the_store(tmp_path: pathlib.Path) -> None:
    runs = []
    for node_sum in (False, True):
        configuration = make_config(
            tmp_path / str(node_sum), strategy={"kind": "async", "lockstep": True}, push={"node_sum": node_sum}
        )
        runs.append(Settings(configuration, num_batches=30, hidden=HIDDEN))
    run_toy(4, *runs).check()
    assert checkpoint_checksum(tmp_path / "True") == checkpoint_checksum(tmp_path / "False")
    assert [update["arrivals"] for update in events_of(tmp_path / "True", "update")] == [3] * 10


@pytest.mark.parametrize("kind", ["adam", pytest.param("muon", marks=pytest.mark.slow)])
def test_a_run_of_several_shards_resumes_to_the_last_bit_with_another_number(tmp_path: pathlib.Path, kind: str) -> None:
    def settings(name: str, shards: int, num_batches: int, resume: bool = False) -> Settings:
        configuration = make_config(
            tmp_path / name,
            strategy={"kind": "async", "lockstep": True, "placement": "colocated"},
            store={"shards": shards},
            optimizer={"kind": kind, "average_decay": 0.9, **({"muon_except": []} if kind == "muon" else {})},
            training={"checkpoint_every": 3},
        )
        return Settings(configuration, num_batches=num_batches, hidden=HIDDEN, resume=resume)

    run_toy(
        3, settings("whole", 1, 30), settings("parts", 2, 15), settings("parts", 3, 30, resume=True), timeout=120
    ).check()
    assert checkpoint_checksum(tmp_path / "parts") == checkpoint_checksum(tmp_path / "whole")


def test_an_overlapped_worker_alone_is_one_version_behind_and_no_more(tmp_path: pathlib.Path) -> None:
    """Compare with the same arithmetic done by hand: gradient k is computed on version max(0, k - 1)."""
    configuration = make_config(
        tmp_path / "run",
        strategy={"kind": "async", "arrivals_per_update": 1, "reduction": "sum"},
        push={"overlap": True},
        optimizer={"kind": "sgd", "learning_rate": 0.01, "schedule": {"kind": "constant"}},
    )
    settings = Settings(configuration, num_batches=20, dropout=0.0)
    run_toy(2, settings).check()
    arrivals = events_of(tmp_path / "run", "arrival")
    assert [arrival["staleness"] for arrival in arrivals] == [0] + [1] * 19

    from hvd_async.vectors.flat import FlatParameters
    from tests.mpi.toy import ToyTask

    task = ToyTask(settings, 1)
    model = task.build_model()
    flat = FlatParameters(model)
    versions = [flat.parameters.clone()]
    for batch in range(20):
        flat.parameters.copy_(versions[max(0, batch - 1)])
        flat.zero_gradient()
        task.loss(model, task.batch(batch, "cpu"))[0].backward()
        versions.append(versions[-1] - flat.collect_gradient() * 0.01)
    from tests.runs.saved import load_latest_checkpoint

    checkpoint = load_latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None and torch.equal(checkpoint.tensors["parameters"], versions[-1])


def test_overlap_is_refused_with_strategies_that_cannot_overlap(tmp_path: pathlib.Path) -> None:
    from hvd_async.errors import ConfigError

    for strategy in ({"lockstep": True}, {"max_staleness": 0}):
        with pytest.raises(ConfigError, match=r"push\.overlap: got true with strategy\."):
            parse_config(
                make_config(tmp_path, strategy={"kind": "async", **strategy}, push={"overlap": True}), source="test"
            )
