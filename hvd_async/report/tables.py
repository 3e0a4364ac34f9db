"""The tables of an environment, with a line for each variant. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hvd_async.comparison.history import Shares
from hvd_async.comparison.metrics import metrics_of, weight_unit_of
from hvd_async.comparison.milestones import NEAR, best_of, milestones
from hvd_async.comparison.results import Row
from hvd_async.comparison.statistics import Interval, Reached
from hvd_async.comparison.target import Target
from hvd_async.report import number_format
from hvd_async.report.document import Cell, Column, Fold, Table
from hvd_async.report.figures.bars import SHARES
from hvd_async.report.number_format import NOTHING
from hvd_async.tasks.metric import LOSS, Metric

SPEED_UP = "speed-up"
_VARIANT = Column("variant", is_number=False, is_short=True)
_RATE = Column("learning rate", is_short=True)


def target_table(rows: Sequence[Row], target: Target) -> Table:
    """Return the cost to reach the target, and its comparison with the baseline."""
    unit = weight_unit_of([run for row in rows for run in row.runs])
    columns = (
        _VARIANT,
        *_rate_columns(rows),
        Column("reached by", is_short=True),
        Column("seconds", is_short=True),
        Column(unit),
        Column("updates"),
        Column(SPEED_UP, is_short=True),
        Column(f"{number_format.singular(unit)} efficiency", is_short=True),
        Column("throughput"),
    )
    body = []
    for row in rows:
        cells = [*_heading(row, rows), Cell(f"{row.num_reached} of {len(row.entries)}", _not_reached(row, target))]
        cells.append(_bounded(row.seconds_to, number_format.seconds, row.reached))
        cells += [_bounded(each, number_format.count, row.reached) for each in (row.weight_to, row.updates_to)]
        if row.is_baseline:
            cells += [Cell("1", "baseline")] * 3
        else:
            ratios = (row.speed_up, row.weight_efficiency, row.throughput)
            cells += [interval_cell(each, number_format.ratio) for each in ratios]
        body.append(cells)
    return Table(f"To {target}", columns, body)


def milestones_fold(rows: Sequence[Row]) -> Fold | None:
    """Return when each variant came how near to the best scores of the baseline; None if there are no scores."""
    unit = number_format.singular(weight_unit_of([run for row in rows for run in row.runs]))
    best = [(metric, best_of(metric, rows)) for metric in _shown_metrics(rows)]
    tables = [_milestones_table(metric, score, rows, unit) for metric, score in best if score is not None]
    near = ", ".join(f"{100 * missing:.0f}" for missing in NEAR)
    return Fold(f"On the way: to within {near} % of the best of the baseline", tables) if tables else None


def _milestones_table(metric: Metric, best: float, rows: Sequence[Row], unit: str) -> Table:
    title = metric.title
    names = ("within", title, "reached by", "seconds", SPEED_UP, f"{unit} efficiency")
    body = []
    for each in milestones(metric, best, rows):
        cells = [
            Cell(each.row.variant),
            Cell(f"{100 * each.missing:.0f} %"),
            Cell(metric.text(each.target.value)),
            Cell(f"{each.num_reached} of {len(each.row.entries)}"),
            interval_cell(each.seconds_to, number_format.seconds),
        ]
        ratios = (each.speed_up, each.weight_efficiency)
        cells += (
            [Cell("1", "baseline")] * 2 if each.row.is_baseline else [interval_cell(r, number_format.ratio) for r in ratios]
        )
        body.append(cells)
    caption = f"The best {title} of the baseline is {metric.text(best)}, the mean over its runs"
    return Table(caption, (_VARIANT, *map(Column, names)), body)


def quality_table(rows: Sequence[Row]) -> Table:
    """Return the final quality of the runs, and what became of their gradients."""
    metrics, unit = _shown_metrics(rows), weight_unit_of([run for row in rows for run in row.runs])
    columns = (
        _VARIANT,
        *_rate_columns(rows),
        *(column for metric in metrics for column in _score_columns(metric)),
        Column("diverged", is_short=True),
        Column(f"{unit}/s", is_short=True),
        Column("staleness", is_short=True),
        Column("refused"),
    )
    body = []
    for row in rows:
        cells = [*_heading(row, rows), *(cell for metric in metrics for cell in _score_cells(row, metric))]
        diverged = (
            Cell(f"{row.num_diverged} of {len(row.runs)}", is_fault=row.num_diverged > 0) if row.runs else Cell(NOTHING)
        )
        reasons = ", ".join(f"{reason}: {number:,}" for reason, number in row.refused.items() if number)
        refused = Cell(number_format.count(sum(row.refused.values())), reasons) if row.runs else Cell(NOTHING)
        stale = value_cell(row.mean_staleness, number_format.staleness)
        if row.micro_batch_staleness is not None:
            stale = Cell(f"{stale.text} (parts {number_format.staleness(row.micro_batch_staleness)})")
        body.append([*cells, diverged, interval_cell(row.weight_per_second, number_format.rate), stale, refused])
    return Table("At the end of the runs", columns, body)


def _shown_metrics(rows: Sequence[Row]) -> list[Metric]:
    """Return the loss, and the other metrics that some final model has."""
    metrics = metrics_of([run for row in rows for run in row.runs])
    return [metric for metric in metrics if metric.name == LOSS or any(metric.name in row.final for row in rows)]


def _score_columns(metric: Metric) -> list[Column]:
    difference = [] if metric.name == LOSS else [Column(f"{metric.title} difference")]
    return [Column(f"final {metric.title}", is_short=True), *difference]


def _score_cells(row: Row, metric: Metric) -> list[Cell]:
    final = interval_cell(row.final.get(metric.name), metric.text)
    if metric.name == LOSS:
        return [final]
    difference = interval_cell(row.difference.get(metric.name), metric.difference_text)
    return [final, Cell("baseline") if row.is_baseline else difference]


def shares_table(rows: Sequence[Row]) -> Table:
    """Return how all workers spent their time."""
    body = [[Cell(row.variant), *_share_cells(row.shares)] for row in rows if row.shares is not None]
    return Table("Share of the workers' time", (_VARIANT, *map(Column, SHARES)), body)


def worker_shares(rows: Sequence[Row]) -> Fold:
    """Return how each worker spent its time."""
    body = [
        [Cell(row.variant), Cell(str(worker)), *_share_cells(shares)]
        for row in rows
        for worker, shares in row.worker_shares.items()
    ]
    columns = (_VARIANT, Column("worker"), *map(Column, SHARES))
    return Fold("The same for each worker", [Table("Share of each worker's time", columns, body)])


def ideal_table(rows: Sequence[Row]) -> Table:
    """Return the best possible speed of each variant with its own step times, and its measured speed."""
    are_overrun = any(row.num_overrun for row in rows)
    columns = (
        _VARIANT,
        Column("ideal steps/s, synchronous"),
        Column("ideal steps/s, asynchronous"),
        Column("gain of not waiting, at most"),
        Column("steps/s"),
        Column("share of its own ideal"),
        *((Column("steps longer than emulated"),) if are_overrun else ()),
    )
    body = []
    for row in rows:
        ideal = row.ideal
        cells = [
            Cell(row.variant),
            value_cell(None if ideal is None else ideal.synchronous, number_format.rate),
            value_cell(None if ideal is None else ideal.asynchronous, number_format.rate),
            value_cell(None if ideal is None else ideal.speed_up, number_format.ratio),
            value_cell(row.steps_per_second, number_format.rate),
            value_cell(row.share_of_ideal, number_format.percent),
        ]
        if are_overrun:
            cells.append(Cell(f"{row.num_overrun:,} of {row.num_steps:,}", is_fault=row.num_overrun > 0))
        body.append(cells)
    return Table("Steps per second of all workers, if exchanging gradients cost nothing", columns, body)


def interval_cell(interval: Interval | None, write: Callable[[float], str]) -> Cell:
    """Return a cell with mean and interval, as `write` formats them, or a dash for None."""
    return Cell(NOTHING) if interval is None else Cell(write(interval.mean), number_format.span(interval, write))


def value_cell(value: float | None, write: Callable[[float], str]) -> Cell:
    """Return a cell with the value, or a dash for None."""
    return Cell(NOTHING if value is None else write(value))


def rate_cell(rate: float | None, is_at_the_edge: bool = False) -> Cell:
    """Return a cell with a learning rate."""
    return Cell(NOTHING if rate is None else f"{rate:g}", "at the edge" if is_at_the_edge else "", is_fault=is_at_the_edge)


def _rate_columns(rows: Sequence[Row]) -> tuple[Column, ...]:
    return (_RATE,) if any(row.rate is not None for row in rows) else ()


def _heading(row: Row, rows: Sequence[Row]) -> list[Cell]:
    return [Cell(row.variant), *([rate_cell(row.rate, row.is_at_the_edge)] if _rate_columns(rows) else [])]


def _not_reached(row: Row, target: Target) -> str:
    """Say how close the runs came that did not reach the target."""
    points = [
        (cost, point, run.weight_unit)
        for run, when in zip(row.runs, row.reached, strict=True)
        if when is None
        for point in run.finite_points
        if (cost := target.cost_of(point)) is not None
    ]
    if not points:
        return ""
    _, best, unit = min(points, key=lambda found: found[0])
    metric = target.metric
    near = f"{metric.best} {metric.title} {metric.text(best.scores[metric.name])}"
    return f"not reached: {near}, after {number_format.count(best.weight)} {unit}"


def _bounded(interval: Interval | None, write: Callable[[float], str], whens: Sequence[Reached | None]) -> Cell:
    """Return a cell that begins with `≤` if a run had reached the target by its first measurement."""
    cell = interval_cell(interval, write)
    if interval is not None and any(when is not None and when.is_bound for when in whens):
        return Cell(f"≤ {cell.text}", cell.detail)
    return cell


def _share_cells(shares: Shares | None) -> list[Cell]:
    return [value_cell(None if shares is None else getattr(shares, name), number_format.percent) for name in SHARES]
