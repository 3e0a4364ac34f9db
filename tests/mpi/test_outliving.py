"""Runs that go on without a worker that dies, fails, hangs or is stopped, on real ranks under an mpirun that keeps the others."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from hvd_async.replay.replay import ReplayOptions, replay
from tests.comparison.processes import until
from tests.mpi.runs import events_of, losses_of, run_toy, summary_of
from tests.mpi.toy import Settings, ToyTask, make_config
from tests.ranks import Completed, cut, mpi_family, run_ranks

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.skipif(mpi_family() != "openmpi", reason="only Open MPI's mpirun keeps the other ranks"),
]
NUM_BATCHES = 60
LOCKSTEP = {"lockstep": True}
REASONS = {
    "sigkill": "is dead: its process",
    "sigsegv": "is dead: its process",
    "exception": "failed; its message says why",
    "sigstop": "is stopped for",
    "pause": "hangs: a step or an evaluation took longer than strategy.hang_timeout_seconds",
}


def run(
    folder: pathlib.Path,
    *faults: dict[str, Any],
    num_ranks: int = 4,
    push: Any = None,
    hosts: Sequence[str] = (),
    resume: bool = False,
    emulation: Any = None,
    hidden: int = 8,
    **strategy: Any,
) -> Completed:
    config = make_config(
        folder,
        strategy={"kind": "async", **strategy},
        push=push or {},
        training={"epochs": 2, "checkpoint_every": 5},
        emulation=emulation or {},
    )
    settings = Settings(config, NUM_BATCHES, [*faults], uneven=3, resume=resume, hidden=hidden)
    return run_toy(num_ranks, settings, mpirun_args=("--with-ft", "ulfm"), hosts=hosts)


def check_books(folder: pathlib.Path, hidden: int = 8) -> None:
    """Check that each batch is in one update, that versions have no gap, and that a replay gives the same bits."""
    applied = [arrival["batch"] for arrival in events_of(folder, "arrival") if "version" in arrival]
    assert sorted(applied) == list(range(NUM_BATCHES))
    versions = [update["version"] for update in events_of(folder, "update")]
    assert versions == list(range(1, len(versions) + 1))
    replay(folder, lambda config: ToyTask(Settings({}, hidden=hidden), 0), ReplayOptions(), lambda line: None)


def slow(*values: object) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [
        ("sigkill", {"arrivals_per_update": "workers"}),
        ("exception", LOCKSTEP),
        slow("sigkill", {"arrivals_per_update": 1}),
        slow("sigkill", LOCKSTEP),
        slow("sigkill", {"max_staleness": 1}),
        slow("sigsegv", {"provisional": True}),
        slow("exception", {"arrivals_per_update": 1}),
        slow("sigstop", {"worker_timeout_seconds": 1.0, "max_staleness": 1}),
        slow("pause", {"hang_timeout_seconds": 0.7, **LOCKSTEP}),
    ],
    ids=str,
)
def test_the_others_go_on_without_a_worker(tmp_path: pathlib.Path, kind: str, strategy: dict[str, Any]) -> None:
    done = run(tmp_path / "run", {"rank": 2, "step": 3, "kind": kind}, **strategy).check()
    assert f"fault {kind} fired on rank 2" in done.stderr
    check_books(tmp_path / "run")
    (lost,) = events_of(tmp_path / "run", "lost")
    assert lost["worker"] == 1 and REASONS[kind] in lost["reason"]
    summary = summary_of(tmp_path / "run")
    assert (summary["status"], summary["lost_workers"], summary["missing"]) == ("finished", 1, 0)
    assert "; the run goes on without it" in done.stdout and done.stdout.count("ZeroDivisionError") == 0
    assert done.stderr.count("hvd-async: rank 2: ZeroDivisionError: injected") == (kind == "exception")
    if strategy == LOCKSTEP:  # of three workers, then of two
        sizes = [update["arrivals"] for update in events_of(tmp_path / "run", "update")]
        assert sizes == sorted(sizes, reverse=True) and set(sizes[:-1]) == {3, 2}


@pytest.mark.parametrize("write", range(0, 12, 3))
@pytest.mark.slow
def test_a_push_that_its_worker_did_not_finish_is_computed_again(tmp_path: pathlib.Path, write: int) -> None:
    done = run(tmp_path / "run", {"rank": 2, "step": 3, "kind": "sigkill", "write": write}).check()
    assert "fault sigkill fired on rank 2" in done.stderr
    check_books(tmp_path / "run")
    assert [event["worker"] for event in events_of(tmp_path / "run", "lost")] == [1]


@pytest.mark.parametrize(
    ("push", "in_evaluation"),
    [({"overlap": True}, False), slow({}, True), slow({"dtype": "bfloat16", "keep": 0.5, "error_feedback": True}, False)],
    ids=str,
)
def test_two_workers_die(tmp_path: pathlib.Path, push: dict[str, Any], in_evaluation: bool) -> None:
    faults = [{"rank": rank, "step": step, "kind": "sigkill"} for rank, step in ((1, 2), (3, 9))]
    if in_evaluation:
        faults[0] |= {"step": 0, "in_evaluation": True}
    run(tmp_path / "run", *faults, push=push).check()
    check_books(tmp_path / "run")
    assert sorted(event["worker"] for event in events_of(tmp_path / "run", "lost")) == [0, 2]


def dying_member(rank: int, write: int | None) -> list[dict[str, Any]]:
    """Return the death of a worker of a node that pushes together; with `write` it is late, so that it pushes."""
    late = [] if write is None else [{"rank": rank, "step": 3, "kind": "pause"}]
    return [*late, {"rank": rank, "step": 3, "kind": "sigkill", "write": write}]


@pytest.mark.parametrize("write", [None, slow(0), slow(2), slow(6)])
@pytest.mark.parametrize("strategy", [{"provisional": True}, slow(LOCKSTEP), slow({"max_staleness": 1})], ids=str)
def test_the_workers_of_a_node_that_push_together_go_on_without_one(
    tmp_path: pathlib.Path, strategy: dict[str, Any], write: int | None
) -> None:
    """With `write`, the worker dies while it pushes the sum of all; otherwise it is the one that has the node's block."""
    rank = 1 if write is None else 2
    faults = dying_member(rank, write)
    push = {
        "node_sum": True,
        "dtype": "bfloat16",
        "keep": 0.5,
        "error_feedback": True,
        "overlap": "lockstep" not in strategy,
    }
    run(tmp_path / "run", *faults, push=push, **strategy).check()
    check_books(tmp_path / "run")
    assert [event["worker"] for event in events_of(tmp_path / "run", "lost")] == [rank - 1]


@pytest.mark.parametrize("write", [slow(None), slow(0), 3, slow(7)])
def test_the_workers_of_another_host_that_push_together_go_on_without_one(
    tmp_path: pathlib.Path, two_hosts: tuple[str, str], write: int | None
) -> None:
    """Ranks 3 to 5 are on the other host; rank 1 and 2 push together, too."""
    rank = 3 if write is None else 4
    faults = dying_member(rank, write)
    run(tmp_path / "run", *faults, num_ranks=6, push={"node_sum": True}, hosts=two_hosts, worker_timeout_seconds=5.0).check()
    check_books(tmp_path / "run")
    assert [event["worker"] for event in events_of(tmp_path / "run", "lost")] == [rank - 1]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("sigkill", "its rank on another host has ended"),
        slow("exception", "failed"),
        slow("pause", REASONS["pause"]),
        slow("hold", REASONS["pause"]),
    ],
)
def test_the_others_go_on_without_a_worker_on_another_host(
    tmp_path: pathlib.Path, two_hosts: tuple[str, str], kind: str, reason: str
) -> None:
    """Ranks 2 and 3 are on the other host."""
    fault = {"rank": 3, "step": 3, "kind": kind}
    limits = {
        "worker_timeout_seconds": 3.0,
        "hang_timeout_seconds": 3600.0 if "ended" in reason or kind == "exception" else 0.7,
    }
    # One that comes back must find the store.
    emulation = {"seconds": 0.15} if kind in ("pause", "hold") else None
    done = run(tmp_path / "run", fault, hosts=two_hosts, emulation=emulation, **limits).check()
    assert f"fault {kind} fired on rank 3" in done.stderr
    check_books(tmp_path / "run")
    (lost,) = events_of(tmp_path / "run", "lost")
    assert lost["worker"] == 2 and reason in lost["reason"]


@pytest.mark.parametrize("chunk", [2, slow(0), slow(-1)])
def test_a_gradient_that_did_not_arrive_whole_from_another_host_is_computed_again(
    tmp_path: pathlib.Path, two_hosts: tuple[str, str], chunk: int
) -> None:
    """Rank 3, which is on the other host, dies before it has sent all of four messages, or before they have arrived."""
    hidden = 100_000
    fault = {"rank": 3, "step": 3, "kind": "sigkill", "chunk": chunk}
    done = run(tmp_path / "run", fault, hosts=two_hosts, worker_timeout_seconds=5.0, hidden=hidden).check()
    assert "fault sigkill fired on rank 3" in done.stderr
    check_books(tmp_path / "run", hidden)
    (lost,) = events_of(tmp_path / "run", "lost")
    assert lost["worker"] == 2 and "its rank on another host has ended" in lost["reason"]


@pytest.mark.parametrize("kind", ["hold", slow("pause")])
def test_no_worker_is_dead_that_holds_pythons_lock_or_computes_for_longer_than_the_timeout(
    tmp_path: pathlib.Path, two_hosts: tuple[str, str], kind: str
) -> None:
    faults = [{"rank": rank, "step": rank, "kind": kind} for rank in (1, 3)]
    done = run(tmp_path / "run", *faults, hosts=two_hosts, worker_timeout_seconds=0.9).check()
    assert all(f"fault {kind} fired on rank {fault['rank']}" in done.stderr for fault in faults)
    check_books(tmp_path / "run")
    assert events_of(tmp_path / "run", "lost") == []


@pytest.mark.slow
def test_the_loss_of_a_whole_host_ends_the_run_which_is_then_resumed(
    tmp_path: pathlib.Path, two_hosts: tuple[str, str]
) -> None:
    """Open MPI's mpirun ends the job when one of its own helpers is lost. By step 12 there is a checkpoint."""
    done = run(tmp_path / "run", {"rank": 3, "step": 12, "kind": "node"}, hosts=two_hosts, lockstep=True)
    assert done.returncode != 0 and not done.timed_out
    run(tmp_path / "run", num_ranks=3, resume=True, lockstep=True).check()
    check_books(tmp_path / "run")


@pytest.mark.slow
def test_a_worker_on_another_host_that_is_silent_but_may_live_ends_the_run(
    tmp_path: pathlib.Path, two_hosts: tuple[str, str]
) -> None:
    fault = {"rank": 3, "step": 3, "kind": "sigstop"}
    done = run(tmp_path / "run", fault, hosts=two_hosts, worker_timeout_seconds=2.0)
    assert done.returncode != 0 and not done.timed_out
    assert "worker 2 gave no sign of life for" in done.stderr and "or the network is broken; the store's" in done.stderr
    assert any((tmp_path / "run/checkpoints").iterdir())


def test_with_too_few_workers_left_everything_is_saved(tmp_path: pathlib.Path) -> None:
    done = run(tmp_path / "run", {"rank": 1, "step": 6, "kind": "sigkill"}, num_ranks=3, min_workers=2)
    assert done.returncode != 0 and not done.timed_out
    assert "1 worker is left, expected at least 2 (strategy.min_workers); the store's state is saved" in done.stderr
    assert len(losses_of(tmp_path / "run")) > 0 and any((tmp_path / "run/checkpoints").iterdir())


def test_without_launch_the_run_says_that_it_ends_with_a_worker_and_what_the_store_takes_with_it(
    tmp_path: pathlib.Path,
) -> None:
    config = make_config(tmp_path / "run", strategy={"kind": "async"})
    done = run_toy(2, Settings(config, 4)).check()
    assert "the run ends if a worker dies: only Open MPI's mpirun with --with-ft ulfm" in done.stdout
    assert "without what came after it: only `hvd-async launch`, on the store's host, keeps its memory" in done.stdout


def test_ranks_of_which_mpi_makes_no_group_go_on_alone() -> None:
    done = run_ranks(3, "tests.mpi.lonely", timeout=60, mpirun_args=("--with-ft", "ulfm"))
    assert not done.timed_out, str(done)
    for number in (0, 1):
        assert f"rank {number}: 0 of 1, ['mine']" in done.stdout, str(done)


@pytest.mark.slow
def test_a_link_that_is_cut_for_a_second_costs_nothing(tmp_path: pathlib.Path, two_hosts: tuple[str, str]) -> None:
    """Ranks 2 and 3 are on the other host."""
    limits = {"worker_timeout_seconds": 5.0, "store_timeout_seconds": 10.0}
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(run, tmp_path / "run", hosts=two_hosts, emulation={"seconds": 0.2}, **limits)
        until(lambda: ((tmp_path / "run/events.jsonl").exists() and len(losses_of(tmp_path / "run")) > 3) or job.done())
        with cut(two_hosts[1]):
            assert not job.done()
            time.sleep(1.0)
        job.result().check()
    check_books(tmp_path / "run")
    assert events_of(tmp_path / "run", "lost") == []
