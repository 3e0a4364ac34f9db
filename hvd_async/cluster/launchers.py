"""What a launcher tells the processes that it starts, as a table entry: the variables of its environment."""

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
    """The variables in which a launcher tells a process its place, and what to do where MPI does not agree."""

    name: str
    rank: str
    size: tuple[str, ...]  # the first that is set counts
    local_rank: str
    local_size: str
    hint: str
    mark: str = ""  # set by this launcher alone, where others set the same rank and size
    started_this: Callable[[Environ], bool] = _always
    """Whether the variables are of this process, and not left over from the one that started it."""
    count_local: Callable[[Environ], int | None] = _nothing
    """Ranks on this node, for a launcher that has no variable for it."""
    pmi_of: Callable[[Environ], str] = _no_pmi
    """The process management interface that was asked of the launcher, where MPI depends on that; "" elsewhere."""
    pmi_flags: Mapping[str, str] = field(default_factory=dict)
    """What MPI libraries call themselves -> the process management interface that they need of this launcher."""


def read_number(environ: Mapping[str, str], name: str) -> int | None:
    """Return the whole number in variable `name`, None where it is not set. Raises `SetupError` for anything else in it."""
    text = environ.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise SetupError(f"environment variable {name}: got {text!r}, expected a whole number from a launcher; unset it")
    return int(text)
