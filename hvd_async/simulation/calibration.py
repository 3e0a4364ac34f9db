"""`hvd-async simulate --calibrate`: fit a simulated cluster to a recorded run, and compare its predictions with the run."""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hvd_async.config import EmulationConfig, RunConfig, SimulationConfig, dump_yaml, load_config
from hvd_async.errors import DataError
from hvd_async.runs.folder import RunFolder
from hvd_async.simulation.counting_store import BatchWeights
from hvd_async.simulation.fitting import fit_steps, low, mean
from hvd_async.simulation.measurement import Measured, read_measured
from hvd_async.simulation.predict import ClusterRates, Size, TooFewArrivalsError, predict
from hvd_async.store.wire.layout import slot_format
from hvd_async.system.files import write_file

# Rounds that correct the fitted waits: a busy store makes other workers wait, and that part is simulated, not fitted.
_ROUNDS = 4
# Quantile of the waits that is taken as a wait for the store alone, where workers also wait for each other.
_SHORTEST = 0.05


@dataclass(frozen=True)
class Prediction:
    """Rates of the fitted cluster, beside those of the measured run."""

    name: str
    arrivals_per_second: float
    staleness: Counter[int]
    measured: Measured

    @property
    def error(self) -> float:
        """Relative error of the rate."""
        return self.arrivals_per_second / self.measured.arrivals_per_second - 1.0

    @property
    def distance(self) -> float:
        """Total variation between both distributions of staleness: 0 if equal, 1 if they have no value in common."""
        return total_variation(self.staleness, self.measured.staleness)


@dataclass(frozen=True)
class Calibration:
    """The fitted sections `emulation` and `simulation` of a configuration, and the predictions made with them."""

    emulation: dict[str, Any]
    simulation: dict[str, Any]
    trace: pathlib.Path
    predictions: Sequence[Prediction]

    def lines(self) -> list[str]:
        """Return the fit and its predictions as lines to print."""
        measured = self.predictions[0].measured
        lines = [_yaml(self.emulation, self.simulation).rstrip()]
        lines.append(f"measured: {measured.arrivals_per_second:.3f} arrivals/s, staleness {_mean(measured.staleness):.3f}")
        for one in self.predictions:
            lines.append(
                f"predicted, steps {one.name}: {one.arrivals_per_second:.3f} arrivals/s ({one.error:+.1%}), staleness"
                f" {_mean(one.staleness):.3f}, total variation {one.distance:.3f}"
            )
        return lines

    def write(self, path: pathlib.Path) -> None:
        """Write both sections to `path` as YAML, to be pasted into a configuration."""
        head = f"# Fitted to {self.trace}. Instead of the keys of emulation: {{trace: {self.trace}}} repeats its steps.\n"
        write_file(path, (head + _yaml(self.emulation, self.simulation)).encode())


def calibrate(root: pathlib.Path) -> Calibration:
    """Fit the cluster to the run in `root`. Raises `DataError` if `root` holds no run, or a run that is too short."""
    folder = RunFolder(root)
    if not folder.config.exists():
        raise DataError(f"{root}: got no {folder.config.name}, expected the folder of a run")
    config, measured = load_config(folder.config), read_measured(folder.events)
    steps = fit_steps(measured.steps)
    emulation, traced = steps.to_config(), {"trace": str(folder.events)}
    simulation = _geometry(config, measured)
    predictions = []
    try:
        simulation |= _fit_exchange(config, measured, simulation, traced)
        for name, keys in (("log-normal", emulation), ("traced", traced)):
            outcome = _simulate(config, measured, keys, simulation)
            predictions.append(Prediction(name, outcome.arrivals_per_second, outcome.staleness, measured))
    except TooFewArrivalsError:
        raise DataError(f"{root}: got {measured.num_arrivals} arrivals, too few for a rate; expected a longer run") from None
    return Calibration(emulation, simulation, folder.events, predictions)


def total_variation(one: Counter[int], other: Counter[int]) -> float:
    """Return half the sum of absolute differences between two distributions, given as counts."""
    totals = max(1, one.total()), max(1, other.total())
    return 0.5 * sum(abs(one[value] / totals[0] - other[value] / totals[1]) for value in one.keys() | other.keys())


def _geometry(config: RunConfig, measured: Measured) -> dict[str, Any]:
    """Return the number of workers and parameters and the placement of the workers, as keys of `simulation`."""
    geometry: dict[str, Any] = {"workers": measured.num_workers, "parameters": measured.parameters}
    if measured.hosts is None:  # the run was itself simulated
        given = config.simulation
        return {**geometry, "workers_per_node": given.workers_per_node, "store_node_trains": given.store_node_trains}
    if set(measured.hosts) == {measured.store_host}:
        return geometry
    first = measured.hosts[0]
    return {
        **geometry,
        "workers_per_node": list(measured.hosts).count(first),
        "store_node_trains": first == measured.store_host,
    }


def _simulate(config: RunConfig, measured: Measured, emulation: dict[str, Any], simulation: dict[str, Any]) -> ClusterRates:
    fitted = config.model_copy(
        update={"emulation": EmulationConfig(**emulation), "simulation": SimulationConfig.model_validate(simulation)}
    )
    return predict(fitted, Size(measured.parameters, measured.num_arrivals, BatchWeights(measured.weights)))


def _fit_exchange(
    config: RunConfig, measured: Measured, geometry: dict[str, Any], emulation: dict[str, Any]
) -> dict[str, Any]:
    if not config.strategy.is_async:
        return _fit_allreduce(measured, geometry)
    if config.push.node_sum:
        return {}  # pushes, pulls and waits of a node are recorded as one
    fitted = _fit_copies(config, measured, geometry)
    share = _SHORTEST if _waits_for_others(config) else 0.25
    # One of the two kinds of waits contains an update; if every push makes or awaits an update, they cannot be told apart.
    arrival = 0.0 if config.strategy.lockstep else low(measured.waits, share)
    waits = [*measured.waits, *measured.waits_for_updates] if config.strategy.lockstep else measured.waits_for_updates
    update, shards = max(0.0, low(waits, share) - arrival), config.store.shards
    result = {**fitted, "arrival_seconds": shards * arrival, "update_seconds": shards * update}
    if config.push.overlap or _waits_for_others(config):
        return result  # workers do not wait for the store alone
    wanted = mean([*measured.waits, *measured.waits_for_updates])
    for _ in range(_ROUNDS):
        outcome = _simulate(config, measured, emulation, {**geometry, **result})
        found = outcome.shares["waiting"] * measured.num_workers / max(1e-12, outcome.arrivals_per_second)
        factor = min(4.0, max(0.25, wanted / max(1e-9, found)))
        for key in ("arrival_seconds", "update_seconds"):
            result[key] *= factor
    return result


def _fit_copies(config: RunConfig, measured: Measured, geometry: dict[str, Any]) -> dict[str, Any]:
    """Return latencies that fit at the default speed, with a higher speed if the copies took less time than that allows."""
    fitted: dict[str, Any] = {}
    near = [not _is_remote(worker, geometry) for worker in range(measured.num_workers)]
    defaults = SimulationConfig()
    for section, wanted in (("memory", True), ("network", False)):
        pushes = [value for worker, value in measured.pushes if near[worker] == wanted]
        pulls = [value for worker, value in measured.pulls if near[worker] == wanted]
        if not pushes:
            continue
        # Network transfers wait for each other, which is simulated; copies in memory do not.
        push = mean(pushes) if wanted else low(pushes)
        pull = low(pulls, _SHORTEST) if _waits_for_others(config) else mean(pulls) if wanted else low(pulls)
        size = measured.parameters
        sizes = float(slot_format(size, slice(0, size), config.push).sent_bytes), 4.0 * size
        speed = (defaults.memory if wanted else defaults.network).bytes_per_second
        speed = max(speed, sizes[0] / max(1e-9, push), sizes[1] / max(1e-9, pull))
        fitted[section] = {
            "push_latency_seconds": max(0.0, push - sizes[0] / speed),
            "pull_latency_seconds": max(0.0, pull - sizes[1] / speed),
            "bytes_per_second": speed,
        }
    return fitted


def _fit_allreduce(measured: Measured, geometry: dict[str, Any]) -> dict[str, Any]:
    """Return the fit of a synchronous run: the slowest worker of a group waits for the sum alone."""
    sums = mean(measured.sums)
    update = max(0.0, mean(measured.group_intervals) - mean(measured.slowest) - sums)
    workers = measured.num_workers
    result: dict[str, Any] = {"update_seconds": update, "allreduce": "ring"}
    if workers == 1:
        result["update_seconds"] = update + sums
        return result
    each = sums / (2 * (workers - 1))
    per_node = geometry.get("workers_per_node")
    section = "memory" if per_node is None or workers <= per_node else "network"
    speed = getattr(SimulationConfig(), section).bytes_per_second
    transfer = 4.0 * measured.parameters / workers
    speed = max(speed, transfer / max(1e-9, each))
    result[section] = {"push_latency_seconds": max(0.0, each - transfer / speed), "bytes_per_second": speed}
    return result


def _waits_for_others(config: RunConfig) -> bool:
    strategy = config.strategy
    return strategy.lockstep or strategy.waits_for_stragglers


def _is_remote(worker: int, geometry: dict[str, Any]) -> bool:
    per_node = geometry.get("workers_per_node")
    return per_node is not None and not (worker < per_node and geometry.get("store_node_trains", True))


def _mean(staleness: Counter[int]) -> float:
    return sum(value * count for value, count in staleness.items()) / max(1, staleness.total())


def _yaml(emulation: dict[str, Any], simulation: dict[str, Any]) -> str:
    return dump_yaml(_rounded({"emulation": emulation, "simulation": simulation}))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value
