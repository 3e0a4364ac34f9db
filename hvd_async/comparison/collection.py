"""What a report is made of: runs, each of a variant in an environment with a seed, and what became of the missing ones."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hvd_async.comparison.runs import Run
from hvd_async.comparison.target import Target
from hvd_async.system.printable import printable


@dataclass(frozen=True)
class Entry:
    """One run of a comparison.

    Attributes:
        rate: the learning rate, where several are tried; else None.
        folder: of the run, whether it is there or not.
        run: None where it has not ended well; then `fault` says in a line why.
        is_chosen: whether it counts: with several rates, those of the variant's best alone.
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
        """Make names printable: they go into figures, pages and terminals, and may come from a file that was made elsewhere."""
        _make_printable(self, "environment", "variant", "fault")


@dataclass(frozen=True)
class Collection:
    """A comparison: variants within environments.

    Attributes:
        baseline: the variant with which the others are compared in each environment.
        target: None where there is no run with a finite loss.
        entries: environment by environment, variant by variant, as in the suite.
        rates: all that were tried; empty where each variant has its own alone.
        source: the file of the suite, or nothing.
        text: of that file.
    """

    title: str
    baseline: str
    target: Target | None
    entries: tuple[Entry, ...]
    rates: tuple[float, ...] = ()
    source: str = ""
    text: str = ""

    def __post_init__(self) -> None:
        """Make names printable, as those of entries are."""
        _make_printable(self, "title", "baseline", "source")

    @property
    def environments(self) -> list[str]:
        """In their order."""
        return list(dict.fromkeys(entry.environment for entry in self.entries))

    def variants(self, environment: str) -> list[str]:
        """Of an environment, in their order."""
        return list(dict.fromkeys(entry.variant for entry in self.entries if entry.environment == environment))

    def chosen(self, environment: str, variant: str) -> list[Entry]:
        """The entries of a variant that count, in the order of seeds."""
        return [e for e in self.entries if (e.environment, e.variant) == (environment, variant) and e.is_chosen]

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Every environment with every variant in it."""
        for environment in self.environments:
            for variant in self.variants(environment):
                yield environment, variant


def _make_printable(holder: Entry | Collection, *names: str) -> None:
    for name in names:
        object.__setattr__(holder, name, printable(getattr(holder, name)))


def runs_of(entries: Sequence[Entry]) -> list[Run]:
    """The runs that are there."""
    return [entry.run for entry in entries if entry.run is not None]
