"""The environment by which `launch` passes its arguments to a script, which reads them in `hvd_async.init`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

CONFIG = "HVD_ASYNC_CONFIG"
OVERRIDES = "HVD_ASYNC_OVERRIDES"
BEGIN = "HVD_ASYNC_BEGIN"
BEGINS = ("new", "resume", "overwrite", "auto-resume")


def program_variables(config_path: str | None, overrides: Sequence[str], begin: str) -> Mapping[str, str]:
    """Return the variables: the configuration's absolute path, the overrides, and how the run begins, if given."""
    found = {OVERRIDES: json.dumps(list(overrides))}
    if config_path is not None:
        found[CONFIG] = config_path
    if begin:
        found[BEGIN] = begin
    return found
