"""The environment by which `launch` passes its arguments to a script, which reads them in `hvd_async.init`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence

from hvd_async.system.openmp import VARIABLE, is_default

CONFIG = "HVD_ASYNC_CONFIG"
OVERRIDES = "HVD_ASYNC_OVERRIDES"
BEGIN = "HVD_ASYNC_BEGIN"
BEGINS = ("new", "resume", "overwrite", "auto-resume")


def program_variables(config_path: str | None, overrides: Sequence[str], begin: str) -> Mapping[str, str]:
    """Return the variables: the configuration's absolute path, the overrides, how the run begins, if given, and how long
    threads spin, which a script can no longer decide once it has loaded torch."""
    found = {OVERRIDES: json.dumps(list(overrides))}
    if is_default(VARIABLE, os.environ.get(VARIABLE, "")):  # else the launcher forwards it
        found[VARIABLE] = os.environ[VARIABLE]
    if config_path is not None:
        found[CONFIG] = config_path
    if begin:
        found[BEGIN] = begin
    return found
