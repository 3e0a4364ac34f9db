"""`hvd-async simulate --timing-only`: a configuration with growing numbers of workers, beside an allreduce."""

from __future__ import annotations

import csv
import io
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

from hvd_async.config import RunConfig
from hvd_async.errors import ConfigError, HvdAsyncError
from hvd_async.simulation.counting_store import BatchWeights
from hvd_async.simulation.memory import RankMemory, memory_of
from hvd_async.simulation.predict import ClusterRates, Size, predict
from hvd_async.system.files import write_file
from hvd_async.system.text_tables import aligned_table, markdown_table
from hvd_async.tasks.registry import estimate
from hvd_async.transport.capacity import bytes_text

# Default number of arrivals for each worker, and the minimum for all workers together.
_ARRIVALS_EACH = 50
_FEWEST_ARRIVALS = 10_000


@dataclass(frozen=True)
class SizeRow:
    """One size of the cluster: the configuration itself, and the synchronous strategy on the same workers."""

    outcome: ClusterRates
    synchronous: ClusterRates
    alone: float
    """Weight per second of one process that is not slow and exchanges nothing."""
    parameters: int
    memory: RankMemory | str
    """That of the configuration, or why real ranks could not run it."""
    synchronous_memory: RankMemory | str

    @property
    def speed_up(self) -> float:
        """Speed-up over one process alone."""
        return self.outcome.weight_per_second / self.alone

    @property
    def efficiency(self) -> float:
        """Speed-up per worker."""
        return self.speed_up / self.outcome.workers

    @property
    def bytes(self) -> dict[str, int | None]:
        """Bytes of memory: of the store's rank, of a worker, and of a rank with an allreduce; None where no rank could run."""
        own, others = self.memory, self.synchronous_memory
        return {
            "store": None if isinstance(own, str) else own.store,
            "worker": None if isinstance(own, str) else own.worker,
            "allreduce": None if isinstance(others, str) else others.worker,
        }

    def cells(self) -> dict[str, float | int | str]:
        """Return all figures, by name."""
        outcome, staleness = self.outcome, self.outcome.staleness
        links = {name: outcome.busy.get(name, 0.0) for name in ("store's link", "nodes' links", "sums")}
        store = max(outcome.busy.get(name, 0.0) for name in ("arrivals", "updates"))
        return {
            "workers": outcome.workers,
            "weight/s": outcome.weight_per_second,
            "arrivals/s": outcome.arrivals_per_second,
            "updates/s": outcome.updates_per_second,
            "speed-up": self.speed_up,
            "efficiency": self.efficiency,
            "staleness": outcome.mean_staleness,
            "largest": max(staleness, default=0),
            "refused": outcome.refused,
            **outcome.shares,
            "exchange": outcome.shares["pushing"] + outcome.shares["pulling"],
            "store's link": links["store's link"],
            "nodes' links": links["nodes' links"],
            "store": store,
            "limit": outcome.limit,
            "allreduce weight/s": self.synchronous.weight_per_second,
            "allreduce limit": self.synchronous.limit,
            **{f"{name} bytes": "" if num_bytes is None else num_bytes for name, num_bytes in self.bytes.items()},
        }


def plan(config: RunConfig, workers: Sequence[int], num_arrivals: int | None) -> list[SizeRow]:
    """Simulate `config` with each number of `workers` (empty: as configured).

    No gradients are computed, no data are read and no model is built. `num_arrivals`: arrivals to simulate, by default 50
    for each worker. Raises the `ConfigError` of `StepTimes` and of `predict`.
    """
    sizes = workers or [config.simulation.workers]
    if unknown := [worker for worker in config.emulation.slow_workers if not 0 <= worker < max(sizes)]:
        raise ConfigError(f"emulation.slow_workers: got worker {unknown[0]}, expected 0 to {max(sizes) - 1}")
    parameters, weight = estimate(config)
    weights = BatchWeights([weight])
    none_slow = config.model_copy(update={"emulation": config.emulation.model_copy(update={"slow_workers": {}})})
    alone = predict(_with(none_slow, "single", 1), Size(parameters, 1000, weights)).weight_per_second
    rows = []
    kind = config.strategy.kind
    for number in sizes:
        arrivals = num_arrivals or max(_FEWEST_ARRIVALS, _ARRIVALS_EACH * number)
        size = Size(parameters, arrivals, weights)
        own, others = _with(config, kind, number), _with(config, "horovod", number)
        memory = [_memory_of(each, parameters, number) for each in (own, others)]
        rows.append(SizeRow(predict(own, size), predict(others, size), alone, parameters, *memory))
    return rows


def _memory_of(config: RunConfig, parameters: int, workers: int) -> RankMemory | str:
    try:
        return memory_of(config, parameters, workers)
    except HvdAsyncError as error:
        return str(error)


def _with(config: RunConfig, kind: str, workers: int) -> RunConfig:
    """Return `config` with strategy `kind` and `workers` workers; slow workers beyond that number are left out."""
    slow = {worker: factor for worker, factor in config.emulation.slow_workers.items() if worker < workers}
    return config.model_copy(
        update={
            "strategy": config.strategy.model_copy(update={"kind": kind}),
            "simulation": config.simulation.model_copy(update={"workers": workers}),
            "emulation": config.emulation.model_copy(update={"slow_workers": slow}),
        }
    )


_HEADER = (
    ("workers", "{:,}"),
    ("weight/s", "{:,.0f}"),
    ("arrivals/s", "{:,.1f}"),
    ("speed-up", "{:,.1f}"),
    ("efficiency", "{:.0%}"),
    ("staleness", "{:.2f}"),
    ("largest", "{}"),
    ("computing", "{:.0%}"),
    ("exchange", "{:.0%}"),
    ("waiting", "{:.0%}"),
    ("store's link", "{:.0%}"),
    ("nodes' links", "{:.0%}"),
    ("store", "{:.0%}"),
    ("limit", "{}"),
    ("allreduce weight/s", "{:,.0f}"),
)


def table_of(rows: Sequence[SizeRow], weight_unit: str) -> str:
    """Return the tables for a terminal: speed, then memory, and why real ranks could not run. `weight_unit`: that of the task."""
    tables = [aligned_table(each, left=(), has_rule=False) for each in (_texts(rows, weight_unit), _memory_texts(rows))]
    notes = [f"{row.outcome.workers:,} workers: {row.memory}" for row in rows if isinstance(row.memory, str)]
    return "\n".join([f"{tables[0]}\n\n{tables[1]}", *notes])


def _texts(rows: Sequence[SizeRow], weight_unit: str) -> list[list[str]]:
    names = [name.replace("weight", weight_unit) for name, _ in _HEADER]
    return [names, *([form.format(row.cells()[name]) for name, form in _HEADER] for row in rows)]


def _memory_texts(rows: Sequence[SizeRow]) -> list[list[str]]:
    ranks = ("memory of the store's rank", "of a worker", "with allreduce")
    table = [["workers", *(name for rank in ranks for name in (rank, "a parameter"))]]
    for row in rows:
        cells = [f"{row.outcome.workers:,}"]
        for num_bytes in row.bytes.values():
            if num_bytes is None:
                cells += ["-", "-"]
            else:
                cells += [bytes_text(num_bytes), f"{num_bytes / row.parameters:,.0f} bytes"]
        table.append(cells)
    return table


PLAN_FILES = ("plan.csv", "plan.md", "plan.svg", "plan.png")


def write_plan(folder: pathlib.Path, rows: Sequence[SizeRow], weight_unit: str, assumed: str) -> list[pathlib.Path]:
    """Write `plan.csv` (all figures), `plan.md` (the tables of the terminal), `plan.svg` and `plan.png`; return their paths.

    `weight_unit`: that of the task. `assumed`: the lengths of the steps, in words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0].cells()), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.cells() for row in rows)
    write_file(folder / "plan.csv", text.getvalue().encode())
    tables = [markdown_table(table, left=()) for table in (_texts(rows, weight_unit), _memory_texts(rows))]
    write_file(folder / "plan.md", "Computed for {}.\n\n{}\n\n{}\n".format(assumed, *tables).encode())
    return [folder / "plan.csv", folder / "plan.md", *_draw(folder, rows, weight_unit)]


def _draw(folder: pathlib.Path, rows: Sequence[SizeRow], weight_unit: str) -> list[pathlib.Path]:
    """Draw speed and staleness over the number of workers; return the paths of the figure."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    speed, age = figure.subplots(1, 2)
    workers = [row.outcome.workers for row in rows]
    speed.plot(workers, [row.alone * row.outcome.workers for row in rows], ":", color="gray", label="linear")
    speed.plot(workers, [row.outcome.weight_per_second for row in rows], "o-", label="this configuration")
    speed.plot(workers, [row.synchronous.weight_per_second for row in rows], "s--", label="allreduce")
    speed.set(xlabel="workers", ylabel=f"{weight_unit} per second", xscale="log", yscale="log")
    speed.legend()
    age.plot(workers, [row.outcome.mean_staleness for row in rows], "o-", label="mean")
    age.plot(workers, [max(row.outcome.staleness, default=0) for row in rows], "^:", label="largest")
    age.set(xlabel="workers", ylabel="staleness in versions", xscale="log")
    age.legend()
    for axes in (speed, age):
        axes.set_xticks(workers, [f"{number:,}" for number in workers])
        axes.minorticks_off()
    paths = [folder / "plan.svg", folder / "plan.png"]
    for path in paths:
        figure.savefig(path, dpi=150)
    return paths
