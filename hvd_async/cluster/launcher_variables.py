"""Table entries for launchers: the environment variables that a launcher sets for the processes that it starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hvd_async.errors import SetupError

Environ = Mapping[str, str]


def _always(environ: Environ) -> bool:
    return True


def _nothing(environ: Environ) -> None:
    return None


def _no_pmi(environ: Environ) -> str:
    return ""


@dataclass(frozen=True)
class Launcher:
    """Variables in which a launcher gives a process its rank and size, and the hint for an MPI that disagrees with them."""

    name: str
    rank: str
    size: tuple[str, ...]  # the first variable that is set counts
    local_rank: str
    local_size: str
    hint: str
    mark: str = ""  # variable set by this launcher only, if others set the same rank and size
    started_this: Callable[[Environ], bool] = _always
    """Whether the variables describe this process, and are not inherited from the process that started it."""
    count_local: Callable[[Environ], int | None] = _nothing
    """Return the number of ranks on this node, for a launcher without a variable for it."""
    pmi_of: Callable[[Environ], str] = _no_pmi
    """Return the process management interface (PMI) that the launcher offers, if MPI depends on it; otherwise ""."""
    pmi_flags: Mapping[str, str] = field(default_factory=dict)
    """Name of an MPI library -> the process management interface that it needs from this launcher."""
    pmi_hint: str = ""
    """Where the launcher lists the interfaces that it has."""


def read_number(environ: Mapping[str, str], name: str) -> int | None:
    """Return the whole number in variable `name`, or None if it is not set. Raises `SetupError` for any other value."""
    text = environ.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise SetupError(f"environment variable {name}: got {text!r}, expected a whole number from a launcher; unset it")
    return int(text)
