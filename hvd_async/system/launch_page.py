"""How ranks tell `launch`, on the same host, which folder their run has: a script may choose it itself."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Mapping
from dataclasses import asdict

from hvd_async.errors import SetupError
from hvd_async.system.shared_memory import Hold, Place, make, map_place

KEEPER_VARIABLE = "HVD_ASYNC_KEEPER"
"""Names the page to the rank of the store, whose memory `launch` keeps."""
SCRIPT_VARIABLE = "HVD_ASYNC_TELLS"
"""Names the page to rank 0 of a script, of which `launch` knows no more."""
_NUM_BYTES = 1 << 14


class LaunchPage:
    """A page of memory without a name, so that nothing is left behind, into which a rank writes a text, such as a path."""

    def __init__(self) -> None:
        """Make the page. Raises `OSError` where there is no such memory."""
        self._hold = Hold(make(_NUM_BYTES))
        self._memory = self._hold.map()

    @property
    def variable(self) -> str:
        """The value of the variable that names the page to the ranks."""
        return json.dumps(asdict(self._hold.place))

    def read(self) -> str:
        """Return what a rank has written; empty if none has."""
        return bytes(self._memory).partition(b"\0")[0].decode(errors="surrogateescape")

    def clear(self) -> None:
        """Forget what a rank has written."""
        self._memory[:1] = b"\0"

    def close(self) -> None:
        """Give the page up."""
        self._hold.close()
        os.close(self._hold.place.descriptor)


def has_keeper(environ: Mapping[str, str]) -> bool:
    """Whether a `launch` on this host waits for the name of the run's folder."""
    return _place(environ, KEEPER_VARIABLE) is not None


def tell_keeper(environ: Mapping[str, str], folder: pathlib.Path) -> None:
    """Write `folder` into the page of the store's keeper, if there is one and it is on this host."""
    tell_page(environ, KEEPER_VARIABLE, str(folder.absolute()))


def tell_page(environ: Mapping[str, str], variable: str, content: str) -> None:
    """Write `content` into the page that `variable` names, if there is one and it is on this host."""
    text, place = content.encode(errors="surrogateescape"), _place(environ, variable)
    if place is not None and len(text) < place.num_bytes:
        with contextlib.suppress(SetupError):  # gone meanwhile
            map_place(place)[: len(text) + 1] = text + b"\0"


def _place(environ: Mapping[str, str], variable: str) -> Place | None:
    with contextlib.suppress(KeyError, ValueError, TypeError):
        place = Place(**json.loads(environ[variable]))
        return place if place.is_here else None
    return None
