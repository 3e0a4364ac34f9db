"""Known clusters are recovered from the logs of simulated runs, and runs are predicted from their own logs."""

from __future__ import annotations

import json
import pathlib
import random
from collections import Counter
from typing import Any

import pytest
import yaml

from hvd_async.cli import make_parser
from hvd_async.config import EmulationConfig, SimulationConfig
from hvd_async.errors import DataError
from hvd_async.simulation.calibration import calibrate, total_variation
from hvd_async.simulation.fitting import fit_steps
from tests.simulation.simulated import run

UNEVEN = {
    "seconds": 0.05,
    "seconds_per_weight": 0.01,
    "spread": "log_normal",
    "deviation": 0.2,
    "slow_workers": {0: 2.0, 2: 1.5},
}
CLUSTER = {
    "workers": 4,
    "arrival_seconds": 0.004,
    "update_seconds": 0.01,
    "memory": {"push_latency_seconds": 0.003, "pull_latency_seconds": 0.002},
}


def test_steps_are_split_into_factors_weight_and_spread() -> None:
    draw = random.Random(1)
    steps: dict[int, list[tuple[float, float]]] = {0: [], 1: []}
    for worker, factor in ((0, 1.0), (1, 2.5)):
        for _ in range(3000):
            weight = draw.randrange(100, 1000)
            seconds = factor * (0.2 + 0.001 * weight) * draw.lognormvariate(-0.125 * 0.25**2 * 4, 0.25)
            steps[worker].append((weight, seconds))
    fit = fit_steps(steps)
    assert fit.seconds == pytest.approx(0.2, rel=0.1)
    assert fit.seconds_per_weight == pytest.approx(0.001, rel=0.05)
    assert fit.deviation == pytest.approx(0.25, rel=0.03)
    assert fit.factors == pytest.approx({0: 1.0, 1: 2.5}, rel=0.03)


@pytest.mark.parametrize("strategy", [{"arrivals_per_update": 2}, {"arrivals_per_update": "workers"}])
def test_an_asynchronous_cluster_is_recovered_from_its_log(tmp_path: pathlib.Path, strategy: dict[str, Any]) -> None:
    run(tmp_path / "run", 800, strategy={"kind": "async", **strategy}, emulation=UNEVEN, simulation=CLUSTER)
    fitted = calibrate(tmp_path / "run")
    emulation, simulation = fitted.emulation, fitted.simulation
    factors = [emulation["slow_workers"].get(worker, 1.0) for worker in range(4)]
    assert factors == pytest.approx([2.0, 1.0, 1.5, 1.0], rel=0.05)
    assert emulation["deviation"] == pytest.approx(0.2, rel=0.1)
    assert simulation["arrival_seconds"] == pytest.approx(0.004, rel=0.15)
    assert simulation["update_seconds"] == pytest.approx(0.01, rel=0.15)
    assert simulation["memory"]["push_latency_seconds"] == pytest.approx(0.003, rel=0.05)
    assert simulation["memory"]["pull_latency_seconds"] == pytest.approx(0.002, rel=0.1)
    for prediction in fitted.predictions:
        assert abs(prediction.error) < 0.05
        assert prediction.distance < 0.05


@pytest.mark.parametrize("strategy", [{"lockstep": True}, {"arrivals_per_update": 1, "max_staleness": 2}])
def test_a_run_whose_workers_wait_for_each_other_is_predicted(tmp_path: pathlib.Path, strategy: dict[str, Any]) -> None:
    run(tmp_path / "run", 400, strategy={"kind": "async", **strategy}, emulation=UNEVEN, simulation=CLUSTER)
    for prediction in calibrate(tmp_path / "run").predictions:
        assert abs(prediction.error) < 0.05
        assert prediction.distance < 0.05


@pytest.mark.parametrize("workers", [1, 3])
def test_a_synchronous_cluster_is_recovered_from_its_log(tmp_path: pathlib.Path, workers: int) -> None:
    emulation = {key: value for key, value in UNEVEN.items() if key != "slow_workers"}
    memory = {"push_latency_seconds": 0.005}
    cluster = {"workers": workers, "update_seconds": 0.01, "memory": memory}
    run(tmp_path / "run", 300, strategy={"kind": "horovod"}, emulation=emulation, simulation=cluster)
    fitted = calibrate(tmp_path / "run")
    assert fitted.simulation["update_seconds"] == pytest.approx(0.01, rel=0.02)
    if workers > 1:
        assert fitted.simulation["memory"]["push_latency_seconds"] == pytest.approx(0.005, rel=0.02)
    for prediction in fitted.predictions:
        assert abs(prediction.error) < 0.05 and prediction.distance == 0.0


def test_a_calibration_is_written_as_sections_of_a_configuration(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "run", 100, strategy={"kind": "async"}, emulation=UNEVEN, simulation=CLUSTER)
    capsys.readouterr()
    command = ["simulate", "--calibrate", str(tmp_path / "run"), "--output", str(tmp_path / "fitted.yaml")]
    arguments = make_parser().parse_args(command)
    assert arguments.run(arguments) == 0
    sections = yaml.safe_load((tmp_path / "fitted.yaml").read_text())
    EmulationConfig.model_validate(sections["emulation"])
    SimulationConfig.model_validate(sections["simulation"])
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("predicted")]) == 2


def test_a_folder_without_a_run_or_with_a_short_one_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"got no config\.yaml"):
        calibrate(tmp_path)
    run(tmp_path / "run", 8, strategy={"kind": "async"})
    with pytest.raises(DataError, match="got 8 arrivals, expected the log of a run with 20 or more"):
        calibrate(tmp_path / "run")
    run(tmp_path / "two", 24, strategy={"kind": "async"}, simulation={"workers": 12})
    with pytest.raises(DataError, match="too few for a rate"):
        calibrate(tmp_path / "two")
    events = tmp_path / "run" / "events.jsonl"
    run(tmp_path / "whole", 40, strategy={"kind": "async"})
    lines = (tmp_path / "whole" / "events.jsonl").read_text().splitlines()
    damaged = [{key: value for key, value in json.loads(line).items() if key != "step_seconds"} for line in lines]
    events.write_text("".join(json.dumps(event) + "\n" for event in damaged))
    with pytest.raises(DataError, match="an event is damaged"):
        calibrate(tmp_path / "run")


def test_total_variation_is_half_the_difference() -> None:
    assert total_variation(Counter({0: 1, 1: 1}), Counter({1: 5, 2: 5})) == 0.5
    assert total_variation(Counter({0: 3}), Counter({0: 9})) == 0.0
    assert total_variation(Counter({0: 3}), Counter({1: 1})) == 1.0
