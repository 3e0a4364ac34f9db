"""The input of a report: runs, each of a variant in an environment with a seed, and the reasons for missing ones."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hvd_async.comparison.metrics import metrics_of
from hvd_async.comparison.runs import Run
from hvd_async.comparison.target import Target
from hvd_async.system.printable import printable
from hvd_async.tasks.metric import Metric

# Reasons against a run that was not computed; see `plan.is_outdated`.
OUTDATED = "was computed with another configuration, or by another version"
NOT_RUN = "not run yet"
# The beginning of the reason against a run that is under way, or was stopped.
UNFINISHED = "not finished: "


@dataclass(frozen=True)
class Entry:
    """One run of a comparison.

    Attributes:
        rate: the learning rate if several are tried; else None.
        folder: folder of the run, whether it exists or not.
        run: None if the run has not ended well; `fault` then says why, in one line.
        is_chosen: whether the run counts: with several rates, only runs at the variant's best rate do.
    """

    environment: str
    variant: str
    rate: float | None
    seed: int
    folder: pathlib.Path
    run: Run | None
    fault: str = ""
    is_chosen: bool = True

    def __post_init__(self) -> None:
        """Make names printable: they go into figures, pages and terminals, and may come from a file made elsewhere."""
        _make_printable(self, "environment", "variant", "fault")

    @property
    def state(self) -> str:
        """`ended`, `not computed` with this configuration, `not finished` or `failed`."""
        if self.run is not None:
            return "ended"
        if self.fault in (OUTDATED, NOT_RUN):
            return "not computed"
        return "not finished" if self.fault.startswith(UNFINISHED) else "failed"


@dataclass(frozen=True)
class Collection:
    """A comparison: variants within environments.

    Attributes:
        baseline: the variant with which the others are compared in each environment.
        target: None if no run has a finite loss.
        entries: environment by environment, variant by variant, in the suite's order.
        rates: all rates that were tried; empty if each variant has only its own.
        source: name of the suite's file, or empty.
        text: text of that file.
    """

    title: str
    baseline: str
    target: Target | None
    entries: tuple[Entry, ...]
    rates: tuple[float, ...] = ()
    source: str = ""
    text: str = ""

    def __post_init__(self) -> None:
        """Make names printable, like those of entries."""
        _make_printable(self, "title", "baseline", "source")

    @functools.cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics of all runs; see `metrics_of`."""
        return metrics_of(runs_of(self.entries))

    @property
    def environments(self) -> list[str]:
        """Return the environments in their order."""
        return list(dict.fromkeys(entry.environment for entry in self.entries))

    def variants(self, environment: str) -> list[str]:
        """Return the variants of an environment in their order."""
        return list(dict.fromkeys(entry.variant for entry in self.entries if entry.environment == environment))

    def chosen(self, environment: str, variant: str) -> list[Entry]:
        """Return the entries of a variant that count, in the order of seeds."""
        return [e for e in self.entries if (e.environment, e.variant) == (environment, variant) and e.is_chosen]

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield every environment with every variant in it."""
        for environment in self.environments:
            for variant in self.variants(environment):
                yield environment, variant


def _make_printable(holder: Entry | Collection, *names: str) -> None:
    for name in names:
        object.__setattr__(holder, name, printable(getattr(holder, name)))


def runs_of(entries: Sequence[Entry]) -> list[Run]:
    """Return the runs that exist."""
    return [entry.run for entry in entries if entry.run is not None]
