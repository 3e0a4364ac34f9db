"""The numbers for other programs: unformatted, in full precision. Pure."""

from __future__ import annotations

import csv
import io
import pathlib
from collections.abc import Mapping, Sequence

from hvd_async.comparison.collection import Collection
from hvd_async.comparison.metrics import metrics_of
from hvd_async.comparison.results import Row
from hvd_async.comparison.statistics import Interval
from hvd_async.report.all_runs import Value, values_of
from hvd_async.report.figures.bars import SHARES
from hvd_async.system.printable import printable, spreadsheet_cell
from hvd_async.tasks.metric import LOSS

_INTERVALS = ("seconds_to", "weight_to", "updates_to", "speed_up", "weight_efficiency", "throughput", "weight_per_second")


def runs_csv(collection: Collection, output: pathlib.Path) -> str:
    """Return CSV with a line for each run; its scores have columns by metric, such as `final_loss`."""
    lines = [values_of(entry, collection, output) for entry in collection.entries]
    return _csv(lines, tuple(lines[0]) if lines else ("environment", "variant"))


def variants_csv(rows: Sequence[Row]) -> str:
    """Return CSV with a line for each variant in each environment. An interval has its mean, both ends, and its number of
    seeds."""
    reasons = sorted({reason for row in rows for reason in row.refused})
    metrics = [metric.name for metric in metrics_of([run for row in rows for run in row.runs])] or [LOSS]
    lines = [_variant(row, metrics, reasons) for row in rows]
    return _csv(lines, tuple(lines[0]) if lines else ("environment", "variant"))


def _variant(row: Row, metrics: Sequence[str], reasons: Sequence[str]) -> dict[str, Value]:
    values: dict[str, Value] = {
        "environment": row.environment,
        "variant": row.variant,
        "rate": row.rate,
        "is_at_the_edge": row.is_at_the_edge,
        "is_baseline": row.is_baseline,
        "num_runs": len(row.entries),
        "num_ended": len(row.runs),
        "num_reached": row.num_reached,
        "num_diverged": row.num_diverged,
    }
    for name in _INTERVALS:
        values |= _interval(name, getattr(row, name))
    for name in metrics:
        values |= _interval(f"final_{name}", row.final.get(name))
        values |= _interval(f"{name}_difference", row.difference.get(name)) if name != LOSS else {}
    values |= {"steps_per_second": row.steps_per_second, "mean_staleness": row.mean_staleness}
    values["micro_batch_staleness"] = row.micro_batch_staleness
    values |= {f"refused_{printable(reason)}": row.refused.get(reason, 0) for reason in reasons}
    values |= {name: None if row.shares is None else getattr(row.shares, name) for name in SHARES}
    for name in ("synchronous", "asynchronous"):
        values[f"ideal_{name}_steps_per_second"] = None if row.ideal is None else getattr(row.ideal, name)
    values |= {"share_of_ideal": row.share_of_ideal, "num_overrun": row.num_overrun, "num_steps": row.num_steps}
    return values


def _interval(name: str, interval: Interval | None) -> dict[str, Value]:
    if interval is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high", f"{name}_num"))
    low, high = (interval.low, interval.high) if interval.is_known else (None, None)
    return {name: interval.mean, f"{name}_low": low, f"{name}_high": high, f"{name}_num": interval.num}


def _csv(lines: Sequence[Mapping[str, Value]], columns: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _plain(value) for name, value in line.items()} for line in lines)
    return text.getvalue()


def _plain(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return spreadsheet_cell(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
