"""The tables of an environment, with a line for each variant. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hvd_async.comparison.history import Shares
from hvd_async.comparison.results import Row
from hvd_async.comparison.statistics import Interval, Reached
from hvd_async.comparison.target import Target
from hvd_async.report import number_format
from hvd_async.report.document import Cell, Column, Fold, Table
from hvd_async.report.figures.bars import SHARES
from hvd_async.report.number_format import NOTHING

_VARIANT = Column("variant", is_number=False)
_RATE = Column("learning rate")


def target_table(rows: Sequence[Row], target: Target) -> Table:
    """Return the cost to reach the target, and its comparison with the baseline."""
    columns = (
        _VARIANT,
        *_rate_columns(rows),
        Column("reached by"),
        Column("seconds"),
        Column("tokens"),
        Column("updates"),
        Column("speed-up"),
        Column("token efficiency"),
        Column("throughput"),
    )
    body = []
    for row in rows:
        cells = [*_heading(row, rows), Cell(f"{row.num_reached} of {len(row.entries)}", _not_reached(row, target))]
        for interval, form in ((row.seconds_to, "seconds"), (row.tokens_to, "count"), (row.updates_to, "count")):
            cells.append(_bounded(interval, form, row.reached))
        if row.is_baseline:
            cells += [Cell("1", "baseline")] * 3
        else:
            cells += [interval_cell(each, "ratio") for each in (row.speed_up, row.token_efficiency, row.throughput)]
        body.append(cells)
    return Table(f"To {target}", columns, body)


def quality_table(rows: Sequence[Row]) -> Table:
    """Return the final quality of the runs, and what became of their gradients."""
    has_bleu = any(row.final_bleu is not None for row in rows)
    columns = (
        _VARIANT,
        *_rate_columns(rows),
        Column("final loss"),
        *((Column("final BLEU"), Column("BLEU difference")) if has_bleu else ()),
        Column("diverged"),
        Column("tokens/s"),
        Column("staleness"),
        Column("refused"),
    )
    body = []
    for row in rows:
        cells = [*_heading(row, rows), interval_cell(row.final_loss, "loss")]
        if has_bleu:
            gap = Cell("baseline") if row.is_baseline else interval_cell(row.bleu_difference, "difference")
            cells += [interval_cell(row.final_bleu, "bleu"), gap]
        diverged = (
            Cell(f"{row.num_diverged} of {len(row.runs)}", is_fault=row.num_diverged > 0) if row.runs else Cell(NOTHING)
        )
        reasons = ", ".join(f"{reason}: {number:,}" for reason, number in row.refused.items() if number)
        refused = Cell(number_format.count(sum(row.refused.values())), reasons) if row.runs else Cell(NOTHING)
        stale = value_cell(row.mean_staleness, number_format.staleness)
        body.append([*cells, diverged, interval_cell(row.tokens_per_second, "rate"), stale, refused])
    return Table("At the end of the runs", columns, body)


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


def interval_cell(interval: Interval | None, form: str) -> Cell:
    """Return a cell with mean and interval. `form`: the name of a function of `numbers`."""
    if interval is None:
        return Cell(NOTHING)
    write: Callable[[float], str] = getattr(number_format, form)
    return Cell(write(interval.mean), number_format.span(interval, form))


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
        (cost, point)
        for run, when in zip(row.runs, row.reached, strict=True)
        if when is None
        for point in run.finite_points
        if (cost := target.cost_of(point)) is not None
    ]
    if not points:
        return ""
    _, best = min(points, key=lambda pair: pair[0])
    near = f"lowest loss {number_format.loss(best.loss)}"
    if target.measure == "bleu" and best.bleu is not None:
        near = f"highest BLEU {number_format.bleu(best.bleu)}"
    return f"not reached: {near}, after {number_format.count(best.tokens)} tokens"


def _bounded(interval: Interval | None, form: str, whens: Sequence[Reached | None]) -> Cell:
    """Return a cell that begins with `≤` if a run had reached the target by its first measurement."""
    cell = interval_cell(interval, form)
    if interval is not None and any(when is not None and when.is_bound for when in whens):
        return Cell(f"≤ {cell.text}", cell.detail)
    return cell


def _share_cells(shares: Shares | None) -> list[Cell]:
    return [value_cell(None if shares is None else getattr(shares, name), number_format.percent) for name in SHARES]
