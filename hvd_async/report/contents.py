"""The contents of the report, in their order. Reads the event logs of the runs that are drawn."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence

from hvd_async.comparison.collection import Collection, runs_of
from hvd_async.comparison.results import Row
from hvd_async.report.all_runs import runs_table
from hvd_async.report.answer import answer
from hvd_async.report.definitions import definitions
from hvd_async.report.document import Block, Code, Document, Fold, Items, PageSection, Text, slugs
from hvd_async.report.figures.bars import draw_shares, draw_staleness
from hvd_async.report.figures.curves import draw_curves, draw_rates
from hvd_async.report.figures.speed_ups import draw_speed_ups
from hvd_async.report.figures.style import Style, styles
from hvd_async.report.figures.timeline import TimeWindow, draw_timeline
from hvd_async.report.run_settings import setup
from hvd_async.report.software import clock_note
from hvd_async.report.tables import ideal_table, milestones_fold, quality_table, shares_table, target_table, worker_shares
from hvd_async.report.unlike_runs import target_note, untuned_note, warnings_about
from hvd_async.system.words import plural


def contents(collection: Collection, rows: Sequence[Row], output: pathlib.Path, window: TimeWindow | None) -> Document:
    """Return the report to be written into `output`. `rows`: those of `results`."""
    names = slugs(collection.environments)
    by_environment = {
        environment: [row for row in rows if row.environment == environment] for environment in collection.environments
    }
    looks = styles([entry.variant for entry in collection.entries], collection.baseline)
    sections = [
        PageSection(environment if len(names) > 1 else "Results", f"environment-{names[environment]}", blocks)
        for environment, own in by_environment.items()
        if (blocks := list(_environment(collection, own, looks, f"-{names[environment]}" if len(names) > 1 else "", window)))
    ]
    if runs_of(collection.entries):
        sections.append(setup(collection))
    sections.append(_all_runs(collection, output))
    sections.append(PageSection("How the numbers are computed", "definitions", [definitions(collection)]))
    return Document(collection.title, list(_lead(collection, by_environment, looks)), sections)


def _lead(
    collection: Collection, by_environment: Mapping[str, Sequence[Row]], looks: Mapping[str, Style]
) -> Iterator[Block]:
    yield Text(_overview(collection))
    if not by_environment:
        yield Text("No run: there is nothing to compare.", "answer")
    for warning in warnings_about(runs_of(collection.entries)):
        yield Text(warning)
    target = collection.target
    for environment, rows in by_environment.items():
        said = answer(rows, collection.baseline, target)
        yield Text(said.sentence, "answer", label=environment if len(by_environment) > 1 else "")
        if said.notes:
            yield Items(said.notes)
    for note in filter(None, (target_note(collection), untuned_note(collection))):
        yield Text(note, "small")
    yield from _there(draw_speed_ups("speed-ups", by_environment, looks, target))


def _overview(collection: Collection) -> str:
    variants = len(dict.fromkeys(entry.variant for entry in collection.entries))
    seeds = len({entry.seed for entry in collection.entries})
    runs = runs_of(collection.entries)
    parts = [
        plural(variants, "variant"),
        *([plural(len(collection.environments), "environment")] if len(collection.environments) > 1 else []),
    ]
    parts.append(plural(seeds, "seed"))
    ended = f"{len(runs)} of {plural(len(collection.entries), 'run')} finished"
    return " ".join(filter(None, [f"{', '.join(parts)}; {ended}. Baseline: {collection.baseline}.", clock_note(runs)]))


def _environment(
    collection: Collection, rows: Sequence[Row], looks: Mapping[str, Style], suffix: str, window: TimeWindow | None
) -> Iterator[Block]:
    """Yield the blocks of an environment; none if no run has ended well."""
    if not any(row.runs for row in rows):
        return
    target = collection.target
    reached: list[Block] = [] if target is None else [target_table(rows, target)]
    curves = draw_curves(f"curves{suffix}", rows, looks, target)
    yield PageSection("To the target", f"target{suffix}", [*reached, *curves, *_there(milestones_fold(rows))])
    quality: list[Block] = [quality_table(rows)]
    quality += _there(draw_rates(f"rates{suffix}", collection, rows[0].environment, looks))
    quality += _there(draw_staleness(f"staleness{suffix}", rows, looks))
    yield PageSection("Final quality and staleness", f"quality{suffix}", quality)
    time: list[Block] = [*_there(draw_shares(f"shares{suffix}", rows)), shares_table(rows), worker_shares(rows)]
    time += _there(draw_timeline(f"timeline{suffix}", rows, window))
    yield PageSection("Where the time went", f"time{suffix}", [*time, ideal_table(rows)])


def _there(block: Block | None) -> list[Block]:
    return [] if block is None else [block]


def _all_runs(collection: Collection, output: pathlib.Path) -> PageSection:
    blocks: list[Block] = []
    if collection.entries:
        blocks.append(runs_table(collection, output))
        blocks.append(Text("In full precision: runs.csv, and variants.csv with a line for each variant.", "small"))
    if collection.text:
        name = pathlib.PurePath(collection.source).name
        blocks.append(Fold(f"The suite{f': {name}' if name else ''}", [Code(collection.text)]))
    return PageSection("All runs", "runs", blocks or [Text("None.")])
