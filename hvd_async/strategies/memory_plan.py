"""The memory of each rank in a run with a parameter store: pure arithmetic on a job."""

from __future__ import annotations

from collections.abc import Sequence

from hvd_async.cluster.topology import RankPlan
from hvd_async.errors import ConfigError
from hvd_async.store.optimizers.factory import can_redo, state_names
from hvd_async.store.schedule import most_arrivals
from hvd_async.store.serve.journal import num_records
from hvd_async.store.serve.node_aggregation import node_layout
from hvd_async.store.staleness import needs_base_parameters
from hvd_async.store.wire.layout import NUM_PROVISIONAL, Layout, slot_format
from hvd_async.store.wire.slots import split
from hvd_async.strategies.protocol import JobSize
from hvd_async.system.background_writer import MAX_UNWRITTEN_VECTORS
from hvd_async.transport.capacity import Need
from hvd_async.vectors import arithmetic
from hvd_async.vectors.redo import REDO_BYTES

_MAX_INDEXED = 2**31 - 1


def needs_of_recorder(spec: JobSize) -> list[Need]:
    """Return the memory that the rank takes that writes checkpoints and snapshots."""
    vector_bytes, num_vectors = 4 * spec.size, 1 + len(state_names(spec.optimizer))
    return [
        Need("a checkpoint: a copy of everything", num_vectors * vector_bytes, False),
        Need("parameters on their way to disk", MAX_UNWRITTEN_VECTORS * vector_bytes, False),
    ]


class MemoryPlan:
    """Distribution of shards, slots and memory over ranks: pure arithmetic on a job, with the same result on every rank."""

    def __init__(self, spec: JobSize) -> None:
        """`spec` stays the caller's. Raises `ConfigError` for a model that is too small for its shards, or too large for
        indices."""
        self._spec = spec
        shards = sorted((plan for plan in spec.plans if plan.shard is not None), key=lambda plan: plan.shard or 0)
        most = -(-spec.size // arithmetic.BLOCK)
        if len(shards) > most:
            raise ConfigError(
                f"store.shards: got {len(shards)} for a model of {spec.size} elements, expected at most {most}:"
                f" each holds whole blocks of {arithmetic.BLOCK}"
            )
        self.ranks = spec.plans
        self.owners = [plan.rank for plan in shards]
        others = [f"shard {number} of the store (rank {rank})" for number, rank in enumerate(self.owners)][1:]
        self.names = ["the store", *others]
        self.is_on_device = any(plan.store_device not in (None, "cpu") for plan in shards)
        self.parts = split(spec.size, len(shards), spec.matrices)
        if len(self.parts) < len(shards):
            raise ConfigError(
                f"store.shards: got {len(shards)}, expected at most {len(self.parts)} for this model:"
                f" {spec.optimizer.kind} updates each of its {len(spec.matrices)} matrices as a whole"
            )
        longest = max(part.stop - part.start for part in self.parts)
        if spec.push.keep < 1.0 and longest > _MAX_INDEXED:
            raise ConfigError(
                f"push.keep: got {spec.push.keep:g} for a shard of {longest:,} elements, expected at most {_MAX_INDEXED:,}, the"
                " limit of 32-bit indices; use more store.shards, or push.keep: 1"
            )
        self.workers = [plan for plan in spec.plans if plan.worker is not None]
        of_host: dict[str, list[RankPlan]] = {}
        for plan in self.workers:
            of_host.setdefault(plan.host, []).append(plan)
        self.node_workers = list(of_host.values())
        self.num_places = self._num_places()
        self.layouts = [self._layout(number, part) for number, part in enumerate(self.parts)]

    def slot_of(self, worker: int) -> int:
        """Return the slot into which `worker` pushes."""
        if not self._spec.push.node_sum:
            return worker
        return next(n for n, node in enumerate(self.node_workers) if any(plan.worker == worker for plan in node))

    def node_of_rank(self, rank: int) -> list[RankPlan]:
        """Return the workers on the node of `rank`; empty if there are none."""
        host = self._spec.plans[rank].host
        return [plan for plan in self.workers if plan.host == host]

    def node_layout(self, node: Sequence[RankPlan]) -> Layout:
        """Return the layout of the block that the workers of `node` share."""
        return node_layout(self._spec.size, len(node), self._spec.push.error_feedback)

    def needs(self, rank: int) -> list[Need]:
        """Return the memory that `rank` is about to allocate."""
        spec, plan = self._spec, self._spec.plans[rank]
        vector_bytes = 4 * spec.size
        needs = []
        if plan.shard is not None:
            layout = self.layouts[plan.shard]
            name = "store" if len(self.parts) == 1 else f"shard {plan.shard}"
            needs += [
                Need(f"{name}: {layout.num_buffers} published copies", layout.num_buffers * layout.vector_bytes, True),
                *self._provisional(name, layout),
                Need(f"{name}: {layout.slots} slots in {spec.push.dtype}", layout.slots * layout.slot_bytes, True),
            ]
            is_shared, part_bytes = layout.num_state_vectors > 0, layout.vector_bytes
            num_vectors = layout.num_state_vectors or len(state_names(spec.optimizer))
            if not self.is_on_device:
                needs.append(Need(f"{name}: {num_vectors} vectors of the optimizer", num_vectors * part_bytes, is_shared))
            if needs_base_parameters(spec.strategy):
                num_versions = self.num_places * (2 if spec.push.overlap else 1) + 1
                needs.append(Need(f"{name}: parameters of {num_versions} versions", num_versions * part_bytes, False))
        if plan.shard == 0:  # for a checkpoint, or to detach the store when the blocks are freed
            needs += needs_of_recorder(spec)
        if plan.worker is not None:
            node = self.node_of_rank(rank)
            if spec.push.node_sum and node[0].rank == rank:
                total = self.node_layout(node).total_bytes
                needs.append(Need(f"{len(node)} workers of the node: their sum and slots", total, True))
            if spec.push.overlap:
                needs.append(Need("overlap: a gradient and parameters on their way", 2 * vector_bytes, False))
            if spec.push.error_feedback:
                needs.append(Need("error feedback: error, sum and sent values", 3 * vector_bytes, False))
            if spec.push.keep < 1.0:
                needs.append(Need("dropping: magnitudes and selection", 2 * vector_bytes, False))
        return needs

    def _num_places(self) -> int:
        """Return the number of workers for which there are slots. Raises `ConfigError` if they are too few."""
        most, num_workers = self._spec.strategy.max_workers, len(self.workers)
        if most is not None and most < num_workers:
            raise ConfigError(
                f"strategy.max_workers: got {most} for {num_workers} workers, expected at least as many, or none"
            )
        return num_workers if most is None or self._spec.push.node_sum else most

    @staticmethod
    def _provisional(name: str, layout: Layout) -> list[Need]:
        size = layout.num_provisional * layout.vector_bytes
        return [Need(f"{name}: {layout.num_provisional} vectors of provisional parameters", size, True)] if size else []

    def _layout(self, number: int, part: slice) -> Layout:
        spec, num_shards = self._spec, len(self.parts)
        num_slots = len(self.node_workers) if spec.push.node_sum else self.num_places
        per_slot = max(map(len, self.node_workers)) if spec.push.node_sum else 1
        is_kept = spec.store.recoverable and not self.is_on_device and can_redo(spec.optimizer)
        most = most_arrivals(spec.strategy, max(self.num_places, len(self.workers)))
        num_vectors = len(state_names(spec.optimizer))
        return Layout(
            num_elements=part.stop - part.start,
            num_workers=self.num_places,
            num_buffers=spec.store.published_buffers,
            num_slots=num_slots,
            arrivals_per_slot=per_slot,
            slot_format=slot_format(spec.size, part, spec.push),
            num_shards=num_shards,
            # With several shards the sequencer reads the optimizer vectors from the blocks for a checkpoint.
            num_state_vectors=num_vectors + 1 if is_kept else num_vectors if num_shards > 1 else 0,
            num_provisional=NUM_PROVISIONAL if spec.strategy.has_provisional else 0,
            num_partials=-(-spec.size // arithmetic.BLOCK) if num_shards > 1 and number == 0 else 0,
            num_records=num_records(most, num_slots, per_slot) if is_kept and number == 0 else 0,
            redo_bytes=REDO_BYTES if is_kept else 0,
        )
