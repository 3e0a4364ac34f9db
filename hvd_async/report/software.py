"""The software and machines of the runs, from the first event of their logs."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from hvd_async.comparison.runs import Run, first_event
from hvd_async.system.words import plural


def software_of(runs: Sequence[Run]) -> list[str]:
    """Return a line for each combination of software and machine, the most frequent first."""
    lines = collections.Counter(_line(run) for run in runs)
    return [
        f"{plural(number, 'run')}: {line}" for line, number in sorted(lines.items(), key=lambda pair: (-pair[1], pair[0]))
    ]


def _line(run: Run) -> str:
    event = first_event(run.folder)
    software, ranks = event.get("software"), event.get("ranks")
    software = software if isinstance(software, dict) else {}
    ranks = [rank for rank in ranks if isinstance(rank, dict)] if isinstance(ranks, list) else []
    what = "simulated in one process; seconds are virtual" if run.is_simulated else "real; seconds are measured by a clock"
    return "; ".join(part for part in (what, _where(run, ranks), _software(software)) if part)


def _where(run: Run, ranks: Sequence[Mapping[str, Any]]) -> str:
    hosts = list(dict.fromkeys(str(rank["host"]) for rank in ranks if "host" in rank))
    devices = collections.Counter(str(rank["device"]).partition(":")[0] for rank in ranks if rank.get("device"))
    workers = plural(run.num_workers, "worker")
    if not hosts:
        return workers
    named = ", ".join(hosts) if len(hosts) <= 4 else f"{', '.join(hosts[:3])} and {len(hosts) - 3} more"
    ran = "" if run.is_simulated else f" and {plural(len(ranks), 'rank')} ({', '.join(sorted(devices))})"
    return f"{workers}{ran} on {plural(len(hosts), 'host')} ({named})"


def _software(software: Mapping[str, Any]) -> str:
    names = {"hvd_async": "hvd_async", "python": "Python", "torch": "torch", "cuda": "CUDA"}
    parts = [f"{name} {software[key]}" for key, name in names.items() if software.get(key)]
    if software.get("kernels"):
        parts.append(f"{software['kernels']} kernels")
    parts += [str(software[key]) for key in ("cpu", "gpu") if software.get(key)]
    return ", ".join(parts)


def clock_note(runs: Sequence[Run]) -> str:
    """Return a sentence if seconds are virtual; empty if none are."""
    simulated = [run.is_simulated for run in runs]
    if simulated and all(simulated):
        return "All runs are simulated: seconds are virtual."
    if any(simulated):
        return "Some runs are simulated, so their seconds are virtual; others are real: compare with care."
    return ""
