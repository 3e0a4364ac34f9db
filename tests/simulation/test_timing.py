"""Simulations without gradients: the same events as with gradients, and consequences of a cost model computed by hand."""

from __future__ import annotations

import csv
import pathlib
from typing import Any

import pytest

from hvd_async.cli import make_parser
from hvd_async.config import RunConfig
from hvd_async.emulation.step_times import StepTimes
from hvd_async.errors import ConfigError
from hvd_async.simulation.cluster import Cluster
from hvd_async.simulation.costs import costs, num_workers
from hvd_async.simulation.counting_store import BatchWeights, CountingStore
from hvd_async.simulation.planning import plan, table_of, write_plan
from hvd_async.simulation.predict import ClusterRates, Size, predict
from hvd_async.simulation.shared_state import Timing, World, make_clock
from hvd_async.tasks.registry import estimate
from hvd_async.vectors.flat import FlatParameters
from tests.mpi.runs import events_of
from tests.mpi.toy import Settings, ToyTask
from tests.simulation.simulated import UNEVEN, parse, run

# Weights of batches 0, 1, ... of the toy.
WEIGHTS = BatchWeights([3, 4, 5, 6, 7])
NODES = {"workers": 5, "workers_per_node": 2, "arrival_seconds": 0.02, "update_seconds": 0.05}
CASES: dict[str, dict[str, Any]] = {
    "plain": {"strategy": {"arrivals_per_update": 1}},
    "workers": {},
    "seven": {"strategy": {"arrivals_per_update": 7, "pending": "drop"}},
    "schedule": {
        "strategy": {"arrivals_per_update": [{"version": 0, "arrivals": 1}, {"version": 5, "arrivals": "workers"}]}
    },
    "lock-step": {"strategy": {"lockstep": True}},
    "lock-step-of-two": {"strategy": {"lockstep": True, "arrivals_per_update": 2}},
    "warm-start": {"strategy": {"arrivals_per_update": 1, "synchronous_versions": 3}},
    "wait": {"strategy": {"arrivals_per_update": 1, "max_staleness": 2}},
    "drop": {"strategy": {"arrivals_per_update": 1, "max_staleness": 2, "on_stale": "drop"}},
    "compensated": {"strategy": {"arrivals_per_update": 2, "staleness_policy": "delay_compensation"}},
    "overlap": {"strategy": {"arrivals_per_update": 1}, "push": {"overlap": True}},
    "overlap-wait": {"strategy": {"arrivals_per_update": 1, "max_staleness": 2}, "push": {"overlap": True}},
    "node-sum": {"strategy": {"arrivals_per_update": 2}, "push": {"node_sum": True}},
    "node-sum-overlap": {"strategy": {"arrivals_per_update": 1}, "push": {"node_sum": True, "overlap": True}},
    "last-version": {"strategy": {"arrivals_per_update": 2}, "training": {"epochs": None, "updates": 9}},
    "provisional": {"strategy": {"provisional": True}},
    "provisional-node-sum": {"strategy": {"provisional": True, "arrivals_per_update": 4}, "push": {"node_sum": True}},
    "provisional-overlap": {"strategy": {"provisional": True, "synchronous_versions": 2}, "push": {"overlap": True}},
    "sparse": {"push": {"keep": 0.3, "error_feedback": True}},
}
EVENTS = list[tuple[float, int, int, int, int | None]]


def sections_of(case: dict[str, Any], emulation: dict[str, Any] = UNEVEN) -> dict[str, Any]:
    strategy = {"kind": "async", **case.get("strategy", {})}
    uneven = {**emulation, "seconds_per_weight": 0.01}
    return {"simulation": NODES, "emulation": uneven, **case, "strategy": strategy}


def counted(config: RunConfig, num_batches: int | None) -> EVENTS:
    """Return the outcome of every arrival, simulated without gradients."""
    size = FlatParameters(ToyTask(Settings({}), 0).build_model()).size
    workers = num_workers(config)
    times = StepTimes(config.emulation, config.seed, workers, default=0.1)
    clock = make_clock(config, times, workers)
    store = CountingStore(config.strategy, workers, WEIGHTS, config.training.updates, record=clock.read)
    Cluster(World(config, Timing(costs(config, size), times, clock), store), num_batches).run()
    return sorted((round(one.seconds, 6), one.worker, one.batch, one.base_version, one.version) for one in store.decisions)


def computed(folder: pathlib.Path, **sections: Any) -> EVENTS:
    """Return the outcome of every arrival of a simulated run with gradients, of 60 batches."""
    run(folder, 60, **sections)
    return sorted(
        (event["seconds"], event["worker"], event["batch"], event["base_version"], event.get("version"))
        for event in events_of(folder, "arrival")
    )


@pytest.mark.parametrize("name", sorted(CASES))
def test_without_gradients_every_arrival_has_the_same_outcome_at_the_same_time(tmp_path: pathlib.Path, name: str) -> None:
    sections = sections_of(CASES[name])
    expected = computed(tmp_path / "run", **sections)
    config = parse(tmp_path / "run", **sections)
    num_batches = None if config.training.updates else 60
    assert counted(config, num_batches) == expected
    if num_batches is not None:
        assert len(expected) == 60


@pytest.mark.parametrize("name", ["plain", "workers", "lock-step", "wait"])
def test_ties_are_broken_alike_with_and_without_gradients(tmp_path: pathlib.Path, name: str) -> None:
    sections = sections_of(CASES[name], {"seconds": 0.5})
    expected = computed(tmp_path / "run", **sections)
    assert counted(parse(tmp_path / "run", **sections), 60) == expected


def outcome(tmp_path: pathlib.Path, *, arrivals: int = 4000, parameters: int = 1_000_000, **sections: Any) -> ClusterRates:
    sections = {"strategy": {"kind": "async", "arrivals_per_update": 1}, **sections}
    return predict(parse(tmp_path, **sections), Size(parameters, arrivals, BatchWeights([100])))


def test_workers_that_do_not_wait_are_as_fast_as_their_steps(tmp_path: pathlib.Path) -> None:
    memory = {"push_latency_seconds": 0.0, "pull_latency_seconds": 0.0, "bytes_per_second": 1e15}
    cluster = {"workers": 8, "memory": memory, "arrival_seconds": 0.0, "update_seconds": 0.0}
    one = outcome(tmp_path, simulation=cluster, emulation={"seconds": 0.5, "slow_workers": {0: 2.0}})
    assert one.arrivals_per_second == pytest.approx(7 / 0.5 + 1 / 1.0, rel=0.01)
    assert one.weight_per_second == pytest.approx(100 * one.arrivals_per_second)
    assert one.limit == "computing"


def test_a_saturated_link_passes_one_gradient_after_the_other(tmp_path: pathlib.Path) -> None:
    cluster = {
        "workers": 64,
        "workers_per_node": 1,
        "store_node_trains": False,
        "arrival_seconds": 0.0,
        "update_seconds": 0.0,
    }
    one = outcome(tmp_path, simulation=cluster, emulation={"seconds": 0.01})
    assert one.limit == "store's link"
    assert one.arrivals_per_second == pytest.approx(1.25e9 / 4e6, rel=0.01)
    for changes in ({"store": {"shards": 2}}, {"push": {"dtype": "bfloat16"}}):
        # A push takes half the bytes on each link of the store; pulls stay whole.
        faster = outcome(tmp_path, simulation=cluster, emulation={"seconds": 0.01}, **changes)
        assert faster.arrivals_per_second == pytest.approx((2 if "store" in changes else 1) * 312.5, rel=0.02)


def test_a_saturated_store_makes_one_update_after_the_other(tmp_path: pathlib.Path) -> None:
    cluster = {"workers": 64, "arrival_seconds": 0.001, "update_seconds": 0.02}
    one = outcome(tmp_path, simulation=cluster, emulation={"seconds": 0.01})
    assert one.limit == "updates" and one.arrivals_per_second == pytest.approx(1 / 0.021, rel=0.01)
    assert one.mean_staleness == pytest.approx(63, rel=0.05)


def test_an_allreduce_waits_for_the_slowest(tmp_path: pathlib.Path) -> None:
    cluster = {"workers": 4, "workers_per_node": 1, "update_seconds": 0.25}
    steps = {"seconds": 1.0, "slow_workers": {0: 3.0}}
    for kind, sums in (("ring", 6 * (50e-6 + 4e6 / 4 / 1.25e9)), ("tree", 4 * (50e-6 + 4e6 / 1.25e9))):
        sections = {"strategy": {"kind": "ddp"}, "emulation": steps, "simulation": {**cluster, "allreduce": kind}}
        one = outcome(tmp_path, arrivals=40, **sections)
        assert one.arrivals_per_second == pytest.approx(4 / (3.0 + sums + 0.25))
        assert one.shares["computing"] == pytest.approx(1.5 / (3.25 + sums))
        assert one.limit == "stragglers"


def test_a_plan_compares_sizes_and_is_written(tmp_path: pathlib.Path) -> None:
    config = parse(tmp_path, strategy={"kind": "async"}, emulation={"slow_workers": {3: 2.0}})
    rows = plan(config, [1, 4, 8], 400)
    assert [row.outcome.workers for row in rows] == [1, 4, 8]
    assert 0.8 < rows[0].efficiency <= 1.0
    lines = table_of(rows, "images").splitlines()
    assert lines[0].split()[1] == "images/s" and len(lines) == 4 + 1 + 4
    paths = write_plan(tmp_path / "plan", rows, "images", "steps of 0.1 s")
    assert [path.name for path in paths] == ["plan.csv", "plan.md", "plan.svg", "plan.png"]
    with (tmp_path / "plan" / "plan.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [line["workers"] for line in table] == ["1", "4", "8"]
    assert float(table[1]["weight/s"]) == rows[1].outcome.weight_per_second
    assert (tmp_path / "plan" / "plan.md").read_text().count("\n") == 2 + 5 + 1 + 5
    assert (tmp_path / "plan" / "plan.md").read_text().startswith("Computed for steps of 0.1 s.\n")
    assert "| allreduce images/s |" in (tmp_path / "plan" / "plan.md").read_text()


def test_a_single_process_is_not_one_of_the_slow_workers(tmp_path: pathlib.Path) -> None:
    strategy = {"kind": "async", "arrivals_per_update": 1}
    slow = parse(tmp_path, strategy=strategy, emulation={"seconds": 0.1, "slow_workers": {0: 2.0}})
    even = parse(tmp_path, strategy=strategy, emulation={"seconds": 0.1})
    assert plan(slow, [2], 400)[0].alone == plan(even, [2], 400)[0].alone


def test_slow_workers_beyond_every_size_are_refused(tmp_path: pathlib.Path) -> None:
    config = parse(tmp_path, strategy={"kind": "async"}, emulation={"slow_workers": {7: 2.0}})
    with pytest.raises(ConfigError, match=r"slow_workers: got worker 7, expected 0 to 3"):
        plan(config, [2, 4], 400)
    assert len(plan(config, [4, 8], 400)) == 2


def test_parameters_are_counted_without_memory(tmp_path: pathlib.Path) -> None:
    from hvd_async.tasks.translation.transformer import Transformer

    config = parse(tmp_path, model={"width": 16, "feed_forward": 32, "heads": 2}, vocabulary={"size": 50})
    model = Transformer(config.translation.model, 50)
    assert estimate(config)[0] == sum(parameter.numel() for parameter in model.parameters())


def write_config(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "config.yaml"
    path.write_text("output: x\ntask: {data: {folder: x}}\ntraining: {epochs: 1}\nstrategy: {kind: async}\n")
    return path


def test_the_command_line_plans_without_data(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--timing-only", "--workers", "2,4", "--arrivals", "200", "--output", str(tmp_path / "plan")]
    arguments = make_parser().parse_args(["simulate", str(write_config(tmp_path)), *options])
    assert arguments.run(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.pop(0) == "computed for steps of 0.1 s (set emulation.seconds, or see --calibrate)"
    assert lines[0].split()[0] == "workers" and [line.split()[0] for line in lines[1:3]] == ["2", "4"]
    assert lines[3] == "" and [line.split()[0] for line in lines[4:7]] == ["workers", "2", "4"]
    assert lines[7].startswith("written: ") and (tmp_path / "plan" / "plan.png").exists()


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--timing-only", "--workers=0"], "--workers: got '0'"),
        (["--timing-only", "--workers=4,x"], "--workers: got '4,x'"),
        (["--timing-only", "--arrivals=0"], "--arrivals: got 0"),
        (["--workers=4"], "--workers: got 4, expected --timing-only with it"),
        (["--output=x"], "--output: got x, expected --timing-only with it"),
        (["--threads=0"], "--threads: got 0"),
        (["--timing-only", "--threads=2"], "--threads 2 has no effect with --timing-only"),
        (["--timing-only", "--overwrite"], "--overwrite has no effect with --timing-only"),
        (["--timing-only", "--output={file}"], "--output: got {file}, but {file} is a file"),
        (["--timing-only", "--workers=16", "--arrivals=10"], "--arrivals: got 10, which make 1 version, too few for a rate"),
        (["--calibrate=x"], "CONFIG: got {file} with --calibrate"),
    ],
)
def test_the_command_line_refuses_options_that_do_not_fit(tmp_path: pathlib.Path, options: list[str], fault: str) -> None:
    file = str(write_config(tmp_path))
    arguments = make_parser().parse_args(["simulate", file, *(option.replace("{file}", file) for option in options)])
    with pytest.raises(ConfigError) as caught:
        arguments.run(arguments)
    assert str(caught.value).startswith(fault.replace("{file}", file))


@pytest.mark.parametrize(
    ("option", "fault"),
    [
        ("--timing-only", "--timing-only"),
        ("--workers=4", "--workers 4"),
        ("--arrivals=4", "--arrivals 4"),
        ("--threads=1", "--threads 1"),
        ("--set=seed=1", "--set seed=1"),
    ],
)
def test_a_calibration_refuses_options_it_would_ignore(tmp_path: pathlib.Path, option: str, fault: str) -> None:
    arguments = make_parser().parse_args(["simulate", "--calibrate", str(tmp_path), option])
    with pytest.raises(ConfigError) as caught:
        arguments.run(arguments)
    without = " without --output" if option == "--overwrite" else ""
    assert str(caught.value).startswith(f"{fault} has no effect with --calibrate{without}")


def test_a_calibration_without_output_refuses_overwrite(tmp_path: pathlib.Path) -> None:
    arguments = make_parser().parse_args(["simulate", "--calibrate", str(tmp_path), "--overwrite"])
    with pytest.raises(ConfigError, match="--overwrite has no effect with --calibrate without --output"):
        arguments.run(arguments)


def test_the_command_line_needs_something_to_simulate() -> None:
    arguments = make_parser().parse_args(["simulate"])
    with pytest.raises(ConfigError, match="expected CONFIG or --calibrate RUN"):
        arguments.run(arguments)
