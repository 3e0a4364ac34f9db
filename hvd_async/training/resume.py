"""Agreement of all ranks on the checkpoint from which a run is resumed."""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from hvd_async.errors import CheckpointError
from hvd_async.runs.checkpoint import SavedData, check_tensors, load_tensors
from hvd_async.runs.folder import Resumption
from hvd_async.strategies.protocol import SavedState
from hvd_async.training.agreement import in_agreement
from hvd_async.transport.group import Group

# How long a rank looks for a checkpoint that rank 0 has found: the listing of a network file system may be out of date.
_LISTING_SECONDS = 30.0


def agree_on_checkpoint(group: Group, resumption: Resumption | None, *, needs_tensors: bool) -> SavedState | None:
    """Return on every rank the checkpoint that rank 0 has chosen; None for a new run. Collective.

    Only rank 0 chooses, since other ranks may have an out-of-date listing of a shared folder. Other ranks with
    `needs_tensors` check that they see the same file as rank 0.
    """
    chosen = None
    if resumption is not None:
        saved = resumption.saved
        chosen = [str(saved.folder), saved.checksum, saved.data["store"]]
    told = json.loads(group.allgather(json.dumps(chosen))[0])
    if told is None:
        return None
    folder, checksum, data = told
    saved = SavedData(pathlib.Path(folder), {"store": data}, checksum)
    in_agreement(group, lambda: _find_tensors(saved, group.rank) if needs_tensors and group.rank else None)
    return SavedState(data, lambda part: load_tensors(saved, part))


def _find_tensors(saved: SavedData, rank: int) -> None:
    deadline = time.monotonic() + _LISTING_SECONDS
    while not saved.folder.is_dir():
        if time.monotonic() > deadline:
            raise CheckpointError(
                f"rank {rank}: {saved.folder}: no such folder here, expected the checkpoint from which rank 0 resumes; all"
                " ranks must see the same output folder"
            )
        time.sleep(0.5)  # a file system does not notify when its listing is renewed
    check_tensors(saved, f"rank {rank} sees another file than rank 0, perhaps an out-of-date copy; start again")


def steps_of(store: Mapping[str, Any], worker: int) -> int:
    """Return the number of steps of `worker` that are counted in the state `store`."""
    pending = sum(arrival["worker"] == worker for arrival in store["pending"])
    refused = sum(count for number, _, count in store["refused"] if number == worker)
    steps: int = store["applied"].get(str(worker), 0) + pending + refused
    return steps
