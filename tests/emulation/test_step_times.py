"""Step times: the same for all readers, in any order."""

from __future__ import annotations

import json
import math
import pathlib
import statistics
import time
from typing import Any

import pytest

from hvd_async.config import EmulationConfig
from hvd_async.emulation.idling import Emulation, check_emulation
from hvd_async.emulation.step_times import StepTimes
from hvd_async.errors import ConfigError


def times(num_workers: int = 4, seed: int = 1, **settings: Any) -> StepTimes:
    return StepTimes(EmulationConfig(**settings), seed, num_workers)


def test_a_step_is_factor_times_base_and_weight() -> None:
    one = times(seconds=0.5, seconds_per_weight=0.01, slow_workers={1: 3.0})
    assert one.seconds(0, 0, 100) == 1.5
    assert one.seconds(1, 7, 100) == 4.5
    one = times(seconds=0.5, seconds_per_micro_batch=0.25, slow_workers={1: 3.0})
    assert [one.seconds(0, 0, 100), one.seconds(0, 1, 100, 3), one.seconds(1, 0, 100, 3)] == [0.5, 1.0, 3.0]


@pytest.mark.parametrize("spread", ["log_normal", "gamma"])
def test_factors_have_mean_one_and_the_configured_deviation(spread: Any) -> None:
    one = times(seconds=2.0, spread=spread, deviation=0.4)
    draws = [one.seconds(worker, step, 0) / 2.0 for step in range(20_000) for worker in range(4)]
    assert statistics.mean(draws) == pytest.approx(1.0, abs=0.01)
    deviation = statistics.stdev(map(math.log, draws) if spread == "log_normal" else draws)
    assert deviation == pytest.approx(0.4, rel=0.02)


def test_pauses_occur_as_often_as_configured() -> None:
    one = times(seconds=1.0, pause_probability=0.25, pause_seconds=5.0)
    draws = [one.seconds(0, step, 0) for step in range(4000)]
    assert set(draws) == {1.0, 6.0}
    assert draws.count(6.0) / 4000 == pytest.approx(0.25, abs=0.03)


def test_draws_depend_only_on_seed_worker_and_step() -> None:
    settings: dict[str, Any] = {"seconds": 1.0, "spread": "gamma", "deviation": 0.3}
    forward, backward = times(**settings), times(**settings)
    steps = [(worker, step) for worker in range(4) for step in (0, 1, 40_000, 100_000)]
    assert [forward.seconds(*which, 0) for which in steps] == [backward.seconds(*which, 0) for which in reversed(steps)][
        ::-1
    ]
    assert times(seed=2, **settings).seconds(0, 0, 0) != times(seed=1, **settings).seconds(0, 0, 0)


def test_draws_that_all_workers_have_passed_are_forgotten() -> None:
    one = times(num_workers=1 << 16, seconds=1.0, spread="gamma", deviation=0.3)  # a block for each step
    for step in range(3):
        for worker in range(1 << 16):
            one.seconds(worker, step, 0)
    assert not one._blocks


def test_a_trace_is_repeated_and_shared(tmp_path: pathlib.Path) -> None:
    trace = tmp_path / "trace.jsonl"
    events = [
        {"event": "start", "version": 0},
        {"event": "arrival", "worker": 0, "step_seconds": 0.1},
        {"event": "arrival", "worker": 2, "step_seconds": 0.3},
        {"event": "arrival", "worker": 0, "step_seconds": 0.2},
    ]
    trace.write_text("".join(json.dumps(event) + "\n" for event in events))
    one = times(trace=str(trace), slow_workers={3: 2.0})
    assert [one.seconds(0, step, 0) for step in range(3)] == [0.1, 0.2, 0.1]
    assert [one.seconds(worker, 0, 0) for worker in (1, 2, 3)] == [0.3, 0.1, 0.6]
    trace.write_text('{"worker": 5, "seconds": 0.7}\n')
    assert times(trace=str(trace)).seconds(0, 9, 0) == 0.7


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "got no step times"),
        ('{"worker": 0}\n', ":1: got '{\"worker\": 0}', expected"),
        ("5\n", ":1: got '5'"),
        ('{"worker": 0, "seconds": -1}\n', ":1: got -1.0 seconds"),
    ],
)
def test_a_trace_without_step_times_is_refused(tmp_path: pathlib.Path, content: str, fault: str) -> None:
    (tmp_path / "trace").write_text(content)
    with pytest.raises(ConfigError, match=r"emulation\.trace") as caught:
        times(trace=str(tmp_path / "trace"))
    assert fault in str(caught.value)


def test_settings_that_would_make_a_real_step_shorter_are_refused() -> None:
    for settings in ({"spread": "gamma", "deviation": 0.1}, {"seconds_per_weight": 0.1}):
        config = EmulationConfig(**settings)
        with pytest.raises(ConfigError, match=r"expected emulation\.seconds longer than the real step"):
            check_emulation(config, 2)
        check_emulation(EmulationConfig(seconds=1.0, **settings), 2)
    with pytest.raises(ConfigError, match="slow_workers: got worker 5, expected 0 to 1"):
        check_emulation(EmulationConfig(slow_workers={5: 2.0}), 2)


@pytest.mark.parametrize(
    ("settings", "idled"),
    [
        ({"seconds": 0.5, "slow_workers": {1: 2.0}}, [0.375, 0.0, 0.0625]),  # up to a share of 1 s
        ({"slow_workers": {1: 3.0}}, [0.25, 0.75, 0.125]),  # twice the work of the share
        ({"slow_workers": {1: 1.0}}, [0.0, 0.0, 0.0]),
    ],
)
def test_a_worker_idles_after_each_share_of_its_step(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], idled: list[float]
) -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    emulation = Emulation(EmulationConfig(**settings), 1, 1, 2)
    for _ in range(2):  # two steps, each of three shares
        now, found = 0.0, []
        for work, share in ((0.125, 0.5), (0.375, 0.75), (0.0625, 1.0)):
            now += work
            before = now
            emulation.delay(now, 10, share)
            found.append(now - before)
        assert found == idled
    assert (emulation.num_steps, emulation.num_overrun) == (2, 0)


def test_a_worker_idles_for_the_rest_of_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    idled: list[float] = []
    monkeypatch.setattr(time, "sleep", idled.append)
    Emulation(EmulationConfig(slow_workers={1: 3.0}), 1, 1, 2).delay(0.5, 10)
    emulation = Emulation(EmulationConfig(seconds=0.5, slow_workers={1: 2.0}), 1, 1, 2)
    for real in (0.25, 1.5):
        emulation.delay(real, 10)
    assert idled == [1.0, 0.75]
    assert (emulation.num_overrun, emulation.num_steps) == (1, 2)
    Emulation(EmulationConfig(seconds=0.5), None, 1, 2).delay(0.1, 10)
    assert len(idled) == 2
