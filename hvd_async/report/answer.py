"""The answer of a comparison: a sentence for each environment, and what to know beside it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hvd_async.comparison.metrics import metrics_of
from hvd_async.comparison.results import Row
from hvd_async.comparison.target import Target
from hvd_async.report import number_format
from hvd_async.report.number_format import inverse
from hvd_async.system.words import and_listed, plural
from hvd_async.tasks.metric import LOSS, Metric

# Share of steps longer than emulated from which a note warns the reader.
_MANY_LONGER = 0.05


@dataclass(frozen=True)
class Answer:
    """The answer for one environment. `notes`: whole sentences, the most important first."""

    sentence: str
    notes: tuple[str, ...] = ()


def answer(rows: Sequence[Row], baseline: str, target: Target | None) -> Answer:
    """Return the answer from the rows of one environment. `baseline`: the variant with which the others are compared."""
    if not any(row.runs for row in rows):
        return Answer("No run has ended: there is nothing to compare.", tuple(_faults(rows)))
    if target is None:
        return Answer("No target: no loss of the baseline is finite, so nothing can be timed.", tuple(_faults(rows)))
    base = next((row for row in rows if row.is_baseline), None)
    best = _fastest(rows)
    notes = [] if best is None or base is None else _beside(best, base, num_others=len(rows) - 1)
    return Answer(_sentence(rows, base, best, baseline, target), (*notes, *_faults(rows), *_ideal(base, best)))


def _fastest(rows: Sequence[Row]) -> Row | None:
    """Return the fastest comparable row other than the baseline; rows that reached the target with all seeds come first."""
    others = [row for row in rows if not row.is_baseline and row.speed_up is not None]
    return max(others, key=lambda row: (row.num_reached == len(row.entries), _mean(row)), default=None)


def _mean(row: Row) -> float:
    assert row.speed_up is not None
    return row.speed_up.mean


def _sentence(rows: Sequence[Row], base: Row | None, best: Row | None, baseline: str, target: Target) -> str:
    if best is not None and base is not None:
        return _comparison(best, base, target)
    reached = [row for row in rows if row.num_reached]
    if base is None or not base.runs:
        return f"No run of the baseline, {baseline}, has ended well here: there is nothing to compare with." + _first(
            rows, target
        )
    if len(rows) == 1:
        return f"There is only {baseline} here, and nothing to compare it with." + _first(rows, target)
    if not reached:
        return f"No run reached {target}."
    if reached == [base]:
        return f"Only the baseline, {baseline}, reached {target}."
    if not base.num_reached:
        return f"The baseline, {baseline}, did not reach {target}." + _first(rows, target)
    return f"{baseline} and the others reached {target} with different seeds: there is no pair of runs to compare."


def _first(rows: Sequence[Row], target: Target) -> str:
    """Say which variant was first, when there is no ratio."""
    there = [(row.seconds_to.mean, row) for row in rows if row.seconds_to is not None]
    if not there:
        return ""
    seconds, row = min(there, key=lambda pair: pair[0])
    return f" {row.variant} reached {target} after {number_format.seconds(seconds)} s ({_of(row.num_reached, row)})."


def _of(number: int, row: Row) -> str:
    return f"{number} of {plural(len(row.entries), 'seed')}"


def _comparison(best: Row, base: Row, target: Target) -> str:
    assert best.speed_up is not None
    time = inverse(best.speed_up)
    value, span = number_format.ratio(time.mean), number_format.span(time, number_format.ratio)
    quality = _quality(best, base)
    if time.is_known and time.low <= 1.0 <= time.high:
        return (
            f"No clear difference: {best.variant} reached {target} in {value} of the time of"
            f" {base.variant}, but the interval ({span}) contains 1; {quality}."
        )
    beside = span if time.is_known else "one seed: no interval"
    if time.mean < 1.0:
        return f"{best.variant} reached {target} in {value} of the time of {base.variant} ({beside}), {quality}."
    if time.mean == 1.0:
        return f"{best.variant} reached {target} in the same time as {base.variant} ({beside}), {quality}."
    return (
        f"No variant was faster than {base.variant}: the fastest other, {best.variant}, took {value} times"
        f" as long to reach {target} ({beside}), {quality}."
    )


def _quality(best: Row, base: Row) -> str:
    """Say which quality both reached in the end: by the first metric beside the loss that both have, else by the loss."""
    for metric in metrics_of([*base.runs, *best.runs]):
        if metric.name == LOSS or metric.name not in best.final or metric.name not in base.final:
            continue
        # Of a score of which higher is better, 0 says nothing.
        is_nothing = all(metric.is_shown_as_zero(row.final[metric.name].mean) for row in (best, base))
        if not (metric.is_higher_better and is_nothing):
            return _difference(best, base, metric)
    diverged = [row.variant for row in (best, base) if LOSS not in row.final]
    if diverged:
        return f"but {and_listed(diverged)} diverged later"
    loss = best.runs[0].loss_metric
    return f"with a final {loss.title} of {_both(best, base, loss)}"


def _both(best: Row, base: Row, metric: Metric) -> str:
    return f"{metric.text(best.final[metric.name].mean)} against {metric.text(base.final[metric.name].mean)}"


def _difference(best: Row, base: Row, metric: Metric) -> str:
    """Compare a final score other than the loss. It is equal if the whole interval of the difference lies within a bound;
    an interval that contains 0 and exceeds the bound cannot tell."""
    both, gap = _both(best, base, metric), best.difference.get(metric.name)
    if gap is None or not gap.is_known:
        return f"with {metric.title} {both}"
    if gap.low <= 0.0 <= gap.high:
        is_equal = -metric.equal_within <= gap.low and gap.high <= metric.equal_within
        within = f"at equal {metric.title} to within {metric.equal_within:g}"
        words = within if is_equal else f"with no clear difference in {metric.title}"
    else:
        words = f"with {'higher' if gap.mean > 0.0 else 'lower'} {metric.title}"
    return f"{words} ({both}; difference {number_format.span(gap, metric.difference_text)})"


def _beside(best: Row, base: Row, num_others: int) -> list[str]:
    """Return caveats that the ratio alone does not show."""
    assert best.speed_up is not None
    notes = []
    num, total = best.speed_up.num, max(len(best.entries), len(base.entries))
    if num < total:
        notes.append(f"The ratio is over {num} of {plural(total, 'seed')}: those with which both reached the target.")
    bound = [row.variant for row in (best, base) if any(each is not None and each.is_bound for each in row.reached)]
    if bound:
        notes.append(
            f"{and_listed(bound)} had reached the target by the first measurement: the time is an upper"
            " limit, and the ratio is uncertain. Validate earlier, or set a harder target."
        )
    if num_others > 1:
        unsaid = "; the interval does not account for this choice" if best.speed_up.is_known else ""
        notes.append(f"{best.variant} is the fastest of {num_others}, chosen after the fact{unsaid}.")
    edge = [row for row in (best, base) if row.is_at_the_edge]
    notes += [f"{row.variant}: the best learning rate, {row.rate:g}, is at the edge of those tried." for row in edge]
    return notes


def _faults(rows: Sequence[Row]) -> list[str]:
    """Return what went wrong, variants with the same fault in one sentence."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for fault in _faults_of(row):
            found.setdefault(fault, []).append(row.variant)
    return [f"{and_listed(variants)}{fault}" for fault, variants in found.items()]


def _faults_of(row: Row) -> list[str]:
    """Return the faults of a variant, each to follow its name."""
    faults = []
    total = plural(len(row.entries), "run")
    for state in ("not computed", "not finished", "failed"):
        if absent := [str(entry.seed) for entry in row.entries if entry.state == state]:
            seeds = f"{'seed' if len(absent) == 1 else 'seeds'} {', '.join(absent)}"
            faults.append(f": {len(absent)} of {total} {state} ({seeds}).")
    if row.missing_rates:
        faults.append(f": no run at learning rate {', '.join(f'{rate:g}' for rate in row.missing_rates)}.")
    if row.num_diverged:
        faults.append(f": {row.num_diverged} of {total} diverged.")
    if row.runs and not row.num_reached:
        faults.append(" did not reach the target.")
    elif row.num_reached < len(row.runs):
        faults.append(f" reached the target in {row.num_reached} of {total}; times are of these runs alone.")
    if row.num_lost:
        faults.append(f": {plural(row.num_lost, 'worker')} died on the way, and the rest computed its share.")
    if row.num_missing:
        batches = plural(row.num_missing, "batch", "batches")
        faults.append(f": {batches} not computed, since all workers left their loops early; --resume computes the rest.")
    if row.num_overrun > _MANY_LONGER * row.num_steps:
        share = number_format.percent(row.num_overrun / row.num_steps)
        faults.append(f": {share} of the steps lasted longer than emulated.")
    return faults


def _ideal(base: Row | None, best: Row | None) -> list[str]:
    """Say how much not waiting can gain at most, by the step times of both variants, which were measured in separate runs
    and so give separate bounds."""
    gains = {
        row.variant: number_format.ratio(row.ideal.speed_up)
        for row in (base, best)
        if row is not None and row.ideal is not None
    }
    if not gains:
        return []
    (variant, gain), *others = gains.items()
    if not others or others[0][1] == gain:
        return [
            f"With these step times (those of {variant}), not waiting could increase steps per second at"
            f" most by a factor of {gain}."
        ]
    other, its_gain = others[0]
    return [
        f"Not waiting could increase steps per second at most by a factor of {gain} with the step times of"
        f" {variant}, and of {its_gain} with those of {other}, each measured in its own runs."
    ]
