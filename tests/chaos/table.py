"""The results of a campaign, in a file of JSON lines, and the table of fault x strategy that they make."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from tests.chaos.case import Case
from tests.chaos.trial import TrialResult

_GROUPS = {"horovod": "synchronous", "ddp": "synchronous", "async colocated": "async colocated"}
_KINDS = {
    "SIGKILL": "killed (SIGKILL, SIGSEGV)",
    "SIGSEGV": "killed (SIGKILL, SIGSEGV)",
    "exit": "ends by itself",
    "exception": "raises an exception",
    "SIGSTOP": "stopped for ever",
    "pause": "stopped, and goes on (0.3 to 4 s)",
    "held lock": "holds Python's lock (0.3 to 4 s)",
    "no core": "no free core (0.3 to 4 s)",
}


class TrialTable:
    """Results of cases, each with the seed and the number of its case."""

    def __init__(self, path: pathlib.Path | None) -> None:
        """Read the results in `path`, if there are any, to which others are added; None: keep them in memory."""
        self.rows: list[dict[str, Any]] = []
        self._path = path
        if path is not None and path.exists():
            self.rows = [json.loads(line) for line in path.read_text().splitlines()]

    def __contains__(self, case: tuple[int, int]) -> bool:
        return any((row["seed"], row["number"]) == case for row in self.rows)

    def add(self, seed: int, case: Case, result: TrialResult) -> None:
        """Add the result of a case."""
        fields = dataclasses.asdict(case)
        row = {"seed": seed, "kind": fields.pop("fault"), **fields, **dataclasses.asdict(result)}
        self.rows.append(row)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")


def table_lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the table in Markdown: a line for each fault and strategy."""
    cells: dict[tuple[str, str], list[dict[str, Any]]] = collections.defaultdict(list)
    for row in rows:
        if row["outcome"] == "too late" or row["outcome"].startswith("skipped"):
            continue
        when = "" if row["has_trained"] else ", before training"
        strategy = _GROUPS.get(row["strategy"], "async" if row["strategy"].startswith("async") else row["strategy"])
        kind = _KINDS.get(row["kind"], f"gets {row['kind']}" if row["kind"].startswith("SIG") else row["kind"])
        cells[f"{row['target']} {kind}{when}", strategy].append(row)
    yield "| fault | strategy | trials: what happened | seconds: median, most | updates lost: median, most | unexplained |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for (fault, strategy), found in sorted(cells.items()):
        outcomes = collections.Counter(row["outcome"] for row in found)
        happened = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
        seconds = [row["seconds"] for row in found if row["seconds"] is not None and row["outcome"] != "finishes"]
        # A step that was under way is completed, so that the run may go on after the last update of which it told.
        updates = [max(0, row["lost_updates"]) for row in found if row["starts"] > 1]
        blamed = sum(bool(row["fault"]) for row in found)
        yield f"| {fault} | {strategy} | {happened} | {_spread(seconds, 1)} | {_spread(updates, 0)} | {blamed} |"
    num_late = sum(row["outcome"] == "too late" for row in rows)
    num_faults = sum(bool(row["fault"]) for row in rows)
    yield ""
    yield f"{len(rows)} trials, {num_late} of them with a fault that came too late; {num_faults} unexplained."


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f}, {max(values):.{digits}f}" if values else ""
