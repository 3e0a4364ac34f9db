"""Functions that read the files a run saved."""

from __future__ import annotations

import pathlib

from hvd_async.runs.checkpoint import Checkpoint, check_tensors, list_checkpoints, load_tensors, read_data, way_out


def load_latest_checkpoint(root: pathlib.Path) -> Checkpoint | None:
    """Read the latest checkpoint in `root`, or return None if there is none. Raises `CheckpointError` if it is damaged."""
    found = list_checkpoints(root)
    if not found:
        return None
    hint = way_out(found[-1], found[:-1])
    saved = read_data(found[-1], hint)
    check_tensors(saved, hint)
    return Checkpoint(load_tensors(saved), saved.data)
