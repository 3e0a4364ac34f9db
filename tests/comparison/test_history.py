"""Time spent by workers, from logs written by hand and from simulated and real runs."""

from __future__ import annotations

import itertools
import pathlib

import pytest

from hvd_async.comparison.history import Span, read_history
from hvd_async.comparison.runs import Run, read_run
from hvd_async.config import StrategyConfig
from hvd_async.errors import DataError
from tests.comparison.made import CONFIG, arrival, run, update, write_run
from tests.mpi.runs import run_toy
from tests.mpi.toy import Settings, make_config
from tests.simulation import simulated


def made(folder: pathlib.Path, *events: dict[str, object], num_workers: int = 1, kind: str = "async") -> Run:
    config = CONFIG.model_copy(update={"strategy": StrategyConfig(kind=kind)})  # type: ignore[arg-type]  # one of its kinds
    found = run((10.0, 4.0), folder=folder, num_workers=num_workers, config=config)
    write_run(found, events)
    return found


def test_shares_are_fractions_of_the_workers_total_time(tmp_path: pathlib.Path) -> None:
    events = [arrival(0, 4.0, 4.0), arrival(1, 5.0, 4.0), arrival(0, 9.0, 3.0, push=0.5, wait=1.0, pull=0.25)]
    history = read_history(made(tmp_path, *events, num_workers=2))
    shares = history.shares()
    assert (shares.computing, shares.pushing, shares.waiting, shares.pulling) == (11 / 20, 0.025, 0.05, 0.0125)
    assert shares.other == pytest.approx(1 - 11 / 20 - 0.0875)
    assert history.shares(1).computing == 0.4 and history.shares(1).waiting == 0.0
    assert history.step_seconds() == {0: [4.0, 3.0], 1: [4.0]}


def test_an_exchange_follows_its_step_and_a_push_ends_when_the_gradient_is_received(tmp_path: pathlib.Path) -> None:
    events = [arrival(0, 4.5, 4.0), update(5.0, 0.25), arrival(0, 9.0, 3.0, push=0.5, wait=1.0, pull=0.25)]
    assert read_history(made(tmp_path, *events)).spans(0.0, 10.0) == [
        Span(0, "computing", 0.0, 4.0),
        Span(0, "pushing", 4.0, 4.5),
        Span(0, "waiting", 4.5, 5.5),
        Span(None, "updating", 4.75, 5.0),
        Span(0, "pulling", 5.5, 5.75),
        Span(0, "computing", 6.0, 9.0),
    ]


def test_spans_are_cut_to_the_window(tmp_path: pathlib.Path) -> None:
    events = [arrival(0, 4.0, 4.0), update(4.5, 0.25)]
    assert read_history(made(tmp_path, *events)).spans(3.0, 4.4) == [
        Span(0, "computing", 3.0, 4.0),
        Span(None, "updating", 4.25, 4.4),
    ]
    assert read_history(made(tmp_path, *events)).spans(5.0, 6.0) == []


def test_with_an_allreduce_all_workers_wait_for_the_slowest(tmp_path: pathlib.Path) -> None:
    first = [arrival(0, 2.5, 1.0), arrival(1, 2.5, 2.0)]
    second = [arrival(0, 5.0, 2.0, wait=1.5), arrival(1, 5.0, 2.0, wait=0.5)]
    spans = read_history(made(tmp_path, *first, *second, num_workers=2, kind="horovod")).spans(0.0, 5.0)
    assert spans == [
        Span(0, "computing", 0.0, 1.0),
        Span(1, "computing", 0.0, 2.0),
        Span(0, "waiting", 1.0, 2.5),
        Span(1, "waiting", 2.0, 2.5),
        Span(0, "computing", 2.5, 4.5),
        Span(1, "computing", 2.5, 4.5),
        Span(0, "waiting", 4.5, 5.0),
        Span(1, "waiting", 4.5, 5.0),
    ]


def test_a_log_of_another_version_is_refused(tmp_path: pathlib.Path) -> None:
    event = arrival(0, 4.5, 4.0)
    del event["received_seconds"]
    with pytest.raises(
        DataError, match=r"events.jsonl: an event is damaged, or from an older hvd_async .*'received_seconds'"
    ):
        read_history(made(tmp_path, event))


def check_spans_do_not_overlap(found: Run) -> None:
    history = read_history(found)
    assert len(history.steps) == sum(found.staleness.values()) and len(history.updates) == found.updates
    for worker in range(found.num_workers):
        spans = [span for span in history.spans(0.0, found.seconds) if span.worker == worker]
        assert spans and all(0.0 <= span.start <= span.end <= found.seconds for span in spans)
        for one, following in itertools.pairwise(spans):
            assert following.start > one.end - 0.005  # in a real run, a difference between two clocks
        shares = history.shares(worker)
        assert shares.computing > 0 and -0.01 < shares.other < 0.7


@pytest.mark.parametrize("strategy", [{"kind": "async"}, {"kind": "async", "lockstep": True}, {"kind": "ddp"}])
def test_all_time_of_simulated_runs_is_accounted_for(tmp_path: pathlib.Path, strategy: dict[str, object]) -> None:
    simulated.run(tmp_path / "run", strategy=strategy, emulation=simulated.UNEVEN, simulation={"workers": 3})
    found = read_run(tmp_path / "run")
    check_spans_do_not_overlap(found)
    assert read_history(found).shares().other < 0.25  # the end of the run, when only the slow worker computes


@pytest.mark.mpi
def test_all_time_of_a_real_run_is_accounted_for(tmp_path: pathlib.Path) -> None:
    emulation = {"seconds": 0.05, "slow_workers": {0: 2.0}}
    real = make_config(tmp_path / "run", strategy={"kind": "async"}, emulation=emulation)
    run_toy(3, Settings(real, num_batches=30)).check()
    check_spans_do_not_overlap(read_run(tmp_path / "run"))
