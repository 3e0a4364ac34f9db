"""The invitation to a run under way: all that a process must know to join it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pydantic

from hvd_async.cluster.topology import RankPlan
from hvd_async.errors import SetupError
from hvd_async.store.wire.layout import Layout
from hvd_async.strategies.protocol import Job
from hvd_async.system.shared_memory import Place
from hvd_async.transport.network_memory import Address

FORMAT = 3


@dataclass(frozen=True)
class Invitation:
    """The memory of every shard of the store, the roles of all ranks, and the state of the claims at the start of the job."""

    places: tuple[Place, ...]
    layouts: tuple[Layout, ...]
    """Of the memory of every shard."""
    groups: tuple[tuple[int, int], ...]
    """First element of each group of parameters, and the element after its last."""
    plans: tuple[RankPlan, ...]
    ledger: Mapping[str, Any] | None
    is_open: bool = True
    """Whether processes may join; else the memory alone is described, for whoever goes on when the store's process dies."""
    is_direct: bool = True
    """Whether processes of the store's host may use the memory; no, if atomic operations of others go through MPI."""
    fingerprint: str = ""
    """Of the training data."""
    is_measured: bool = False
    """Whether the task has metrics, so that versions are evaluated."""
    address: Address | None = None
    """Where processes of other hosts knock; None: they may not join."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Invitation:
        """Return the invitation in `data`, the inverse of `to_json`. Raises `SetupError` if it is damaged, or of another
        version."""
        if data.get("format") != FORMAT:
            raise SetupError(f"got format {data.get('format')}, expected {FORMAT}; use the hvd_async that runs the job")
        try:
            found = pydantic.TypeAdapter(cls).validate_python(data)
        except pydantic.ValidationError as error:
            fault = error.errors()[0]
            raise SetupError(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}: the invitation is damaged") from None
        if not found.places or all(plan.worker is None for plan in found.plans):
            raise SetupError("got no store or no worker: the invitation is damaged")
        return found


def invitation_of(
    job: Job, layouts: Sequence[Layout], places: Sequence[Place | None], *, is_direct: bool
) -> Invitation | None:
    """Return the invitation to `job`, whose shards are at `places` (None: where MPI alone can share memory) with `layouts`; None
    if nobody else can reach them."""
    known = tuple(place for place in places if place is not None)
    if len(known) < len(layouts) or any(plan.store_device not in (None, "cpu") for plan in job.plans):
        return None
    groups = tuple((each.start, each.stop) for each in job.flat.map.groups)
    ledger = None if job.saved is None else job.saved.data["ledger"]
    return Invitation(known, tuple(layouts), groups, tuple(job.plans), ledger, not job.push.node_sum, is_direct)
