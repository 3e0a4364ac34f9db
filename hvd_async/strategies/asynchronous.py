"""The asynchronous strategy: a parameter store in memory, and workers that push and pull when they are ready."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import cast

from hvd_async.cluster.topology import RankPlan
from hvd_async.errors import OrphanedError
from hvd_async.store.serve.device_block import Reach, open_device_block
from hvd_async.store.serve.dismissals import say_failed
from hvd_async.store.serve.joining import take_place
from hvd_async.store.serve.liveness import NO_GUESTS, Guests
from hvd_async.store.wire.layout import StoreMemory, StoreWindow
from hvd_async.store.wire.stop import StopKind, StopNotice
from hvd_async.strategies.invitation import invitation_of
from hvd_async.strategies.memory_plan import MemoryPlan
from hvd_async.strategies.outliving import end_as_dead, is_outlived, obstacle_to_outliving
from hvd_async.strategies.presence import lost_ranks, show_roles
from hvd_async.strategies.protocol import Job, JobSize, JobSpec, Session
from hvd_async.strategies.rank_role import Blocks, RankRole, fail
from hvd_async.strategies.recovery import obstacle_to_recovery
from hvd_async.system.failure_message import tell
from hvd_async.transport.bootstrap import MpiGroup, init_mpi
from hvd_async.transport.capacity import Need
from hvd_async.transport.network_memory import Door


class Asynchronous:
    """Ranks started by MPI: rank 0 has the store, or its first shard; each other rank is a shard, a worker or both."""

    name = "async"
    less_memory = (
        "use fewer workers on the node, push.dtype: bfloat16, store.published_buffers: 2, store.shards on more nodes, or a larger"
        " /dev/shm"
    )

    def __init__(self) -> None:
        """Initialise MPI. Collective over all ranks."""
        self.group = MpiGroup(init_mpi())

    def needs(self, job: JobSize, rank: int) -> Sequence[Need]:
        return MemoryPlan(job).needs(rank)

    @contextlib.contextmanager
    def session(self, job: Job) -> Iterator[Session]:
        from hvd_async.transport.mpi import (  # starts mpi4py, which init_mpi has configured
            SharedMemory,
            open_blocks,
            open_node_block,
        )

        rank, plan, session = self.group.rank, MemoryPlan(job.sized), Session(None, job.model)
        self.group.meet(job.strategy.patience_seconds)
        with contextlib.ExitStack() as stack:
            memories = stack.enter_context(
                open_blocks(self.group, plan.layouts, plan.owners, job.strategy.store_timeout_seconds, plan.names)
            )
            guests: Guests = NO_GUESTS
            mapped = [memory for memory in memories if isinstance(memory, SharedMemory)]
            is_direct = all(memory.is_direct for memory in mapped)
            invitation = invitation_of(job, plan.layouts, [memory.place for memory in mapped], is_direct=is_direct)
            if rank == 0 and invitation is not None:
                if job.strategy.joins_from == "network" and invitation.is_open:
                    door = Door(mapped, lambda: take_place(mapped[0], is_for_guest=True), job.strategy.patience_seconds)
                    guests = stack.enter_context(door)
                    invitation = dataclasses.replace(invitation, address=door.address)
                job.invite(invitation.to_json())
            node_block: StoreMemory | None = None
            if job.push.node_sum:
                node = plan.node_of_rank(rank)
                node_block = stack.enter_context(
                    open_node_block(self.group, plan.node_layout(node) if node else None, node[0].rank if node else 0)
                )
            reach = stack.enter_context(self._reach(plan, rank, memories))
            show_roles(job.plans[rank], memories[0])
            self.group.allgather("")  # from here on the store sees whether they live
            try:
                with RankRole(job, plan, job.plans[rank], Blocks(memories, reach, node_block, guests)).playing(session):
                    yield session
            except BaseException as error:
                me = job.plans[rank]
                if me.shard is None and me.worker is not None and is_outlived(error) and not obstacle_to_outliving(job):
                    tell(rank, error)
                    say_failed(memories[0], me.worker)
                    end_as_dead()
                if job.observer is None:
                    fail(memories[0], rank, error, job.strategy, is_state_lost=me.shard is not None and me.worker is None)
                raise
            self.group.outlives = not obstacle_to_outliving(job)
            if lost := lost_ranks(job.plans, memories[0]):
                self.group.leave_out(lost)
            if session.notice is not None and session.notice.kind is StopKind.ORPHANED:
                raise OrphanedError(f"stopped by {session.notice}, everything saved")
            # Workers that left early may not know why the others stopped, so the notice of the store's rank counts for all.
            word = self.group.allgather(str(0 if session.notice is None else session.notice.to_word()))[0]
        session.notice = StopNotice.from_word(int(word))

    def remarks(self, spec: JobSpec) -> Sequence[str]:
        lines: list[str] = []
        if spec.strategy.on_worker_failure != "stop" and (obstacle := obstacle_to_outliving(spec)):
            lines.append(f"the run ends if a worker dies: {obstacle}")
        if spec.store.recoverable and (obstacle := obstacle_to_recovery(spec.plans, spec.optimizer, os.environ)):
            lines.append(
                f"if the store dies, the run resumes from its last checkpoint, without what came after it: {obstacle}"
            )
        return lines

    def transport(self, plans: Sequence[RankPlan], rank: int) -> str:
        if plans[rank].is_direct:
            return "CUDA IPC" if plans[rank].opens_store else "device memory"
        hosts = {plan.host for plan in plans if plan.shard is not None}
        near = plans[rank].host in hosts
        return "shared memory and MPI" if near and len(hosts) > 1 else "shared memory" if near else "MPI"

    def close(self) -> None:
        """Do nothing: the session has released everything."""

    @contextlib.contextmanager
    def _reach(self, plan: MemoryPlan, rank: int, memories: Sequence[StoreWindow]) -> Iterator[Reach]:
        """Open the block of shard 0 for `rank`; a context manager. Collective if the block is on a GPU."""
        if plan.is_on_device:
            slots = {each.rank: plan.slot_of(each.worker) for each in plan.workers if each.worker is not None}
            with open_device_block(self.group, plan.ranks, memories[0], slots) as reach:
                yield reach
        else:
            own = plan.ranks[rank].shard
            yield Reach(memories[0], None if own is None else cast(StoreMemory, memories[own]))  # own blocks are mapped
