"""The session of a worker that joins a run under way: a process that is no rank of MPI."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hvd_async.cluster.topology import RankPlan
from hvd_async.errors import PeerError, SetupError
from hvd_async.store.serve.device_block import Reach
from hvd_async.store.serve.dismissals import say_failed
from hvd_async.store.serve.joining import take_place
from hvd_async.store.wire.layout import Layout, StoreWindow, Word, WorkerWord
from hvd_async.strategies.invitation import Invitation
from hvd_async.strategies.memory_plan import MemoryPlan
from hvd_async.strategies.protocol import Job, Session
from hvd_async.strategies.rank_role import Blocks, RankRole
from hvd_async.system.shared_memory import map_place
from hvd_async.transport.host_memory import HostMemory
from hvd_async.transport.network_memory import GuestMemory, Visit

_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class StoreAccess:
    """The blocks of all shards, as a process reaches them that is no rank, and how it takes a place among the workers."""

    windows: Sequence[StoreWindow]
    take_place: Callable[[], int]
    close: Callable[[], None] = lambda: None

    def wait_for_place(self, seconds: float) -> int:
        """Take a free place, waiting for one up to `seconds`; return the number of the worker. Raises `SetupError` if there is
        none, or the run ends."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self.take_place()
            except SetupError:
                if time.monotonic() > deadline or self.windows[0].load(Word.SERVED):
                    raise
            time.sleep(_LOOK_SECONDS)  # a place becomes free without a ring


def reach_store(invitation: Invitation, layouts: Sequence[Layout], timeout_seconds: float) -> StoreAccess:
    """Reach the store on this host, or over the network. `timeout_seconds`: for each answer over the network.

    Raises `SetupError` if it cannot be reached from here, or its blocks have other sizes than `layouts` say.
    """
    if tuple(layouts) != invitation.layouts:
        raise SetupError(
            "the store's memory: got another layout than this model and configuration have; use the code and packages with which"
            " the run was started"
        )
    is_here = all(place.is_here for place in invitation.places)
    if is_here and invitation.is_direct:
        near = [HostMemory(layout, map_place(place)) for place, layout in zip(invitation.places, layouts, strict=True)]
        return StoreAccess(near, lambda: take_place(near[0]))
    if invitation.address is None:
        where = "the store is on another host, or in a container with processes of its own"
        if is_here:
            where = "MPI carries out the atomic operations of this run, since a rank lacks the C extension"
        raise SetupError(f"{where}: start the run with strategy.joins_from: network")
    visit = Visit(invitation.address, timeout_seconds)
    return StoreAccess(
        [GuestMemory(layout, visit, block) for block, layout in enumerate(layouts)], visit.take_place, visit.close
    )


@contextlib.contextmanager
def joined_session(job: Job, me: RankPlan, windows: Sequence[StoreWindow]) -> Iterator[Session]:
    """Open the session of a process whose place is `me.worker`; a context manager. `windows` reach all shards.

    After an exception in the block the store knows at once that this worker has failed. Not collective.
    """
    assert me.worker is not None
    session = Session(None, job.model)
    role = RankRole(job, MemoryPlan(job.sized), me, Blocks(windows, Reach(windows[0])))
    try:
        with role.playing(session):
            yield session
    except BaseException:
        with contextlib.suppress(PeerError):  # the store has gone
            if windows[0].load(windows[0].layout.worker_word(me.worker, WorkerWord.WELCOME)):  # else it does not count yet
                say_failed(windows[0], me.worker)
        raise


def role_of(invitation: Invitation, worker: int, device: str, threads: int, host: str) -> RankPlan:
    """Return the role of a process that joins as `worker`, beside the ranks of the job."""
    return dataclasses.replace(
        invitation.plans[-1],
        rank=len(invitation.plans),
        host=host,
        local_rank=0,
        role="worker",
        worker=worker,
        device=device,
        threads=threads,
        shard=None,
        store_device=None,
        is_direct=False,
    )
