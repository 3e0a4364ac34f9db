"""The Python of processes that we start: they import what we import, and nothing from the current folder.

`python -m` puts the current folder first on the path: ranks of `launch` would run a user's own `random.py` from there,
which `hvd-async train` would not.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys

import hvd_async


def leave_out_current_folder() -> None:
    """Take the current folder off the path of a process started by `python -m`. To be called before anything else."""
    if not getattr(sys.flags, "safe_path", False) and sys.path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]


def end_quickly() -> None:
    """Have this process end without a last search for garbage, which takes a third of a second where torch is loaded."""
    atexit.unregister(gc.freeze)  # of an earlier call
    atexit.register(gc.freeze)


def flags() -> tuple[str, ...]:
    """Return flags that keep the current folder off the path of a Python that we start; none before Python 3.11, where
    each process does so itself.

    None, too, if the running package was found in the current folder: otherwise another copy, or none, would be found.
    """
    return ("-P",) if sys.version_info >= (3, 11) and _is_found_elsewhere() else ()


def _is_found_elsewhere() -> bool:
    """Whether imports find this package now that the current folder is off the path."""
    found = (finder.find_spec(hvd_async.__name__, None) for finder in sys.meta_path)
    spec = next((spec for spec in found if spec is not None), None)
    return spec is not None and spec.origin is not None and os.path.samefile(spec.origin, hvd_async.__file__)
