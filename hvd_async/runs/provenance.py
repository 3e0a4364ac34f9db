"""What a run is computed with: software, processors, and every rank's place. Recorded for whoever computes it again."""

from __future__ import annotations

import functools
import platform
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

import hvd_async
from hvd_async.cluster.batch_job import BatchJob
from hvd_async.cluster.topology import RankPlan
from hvd_async.system.machine import processor_name
from hvd_async.vectors import arithmetic

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Provenance:
    """Where the events of one process of a run come from; goes into its `start` event."""

    software: Facts
    """`this_software` on rank 0."""
    ranks: Sequence[Facts]
    """Each rank's place, and as `software` what of that differs on it."""
    node_workers: Sequence[Sequence[int]]
    """The workers of each node, which `push.node_sum` makes one."""
    job: BatchJob | None = None
    """Of the batch system; None outside of one."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for an event."""
        return {"software": self.software, "ranks": self.ranks, "node_workers": self.node_workers, "job": self.job_to_json()}

    def job_to_json(self) -> dict[str, Any] | None:
        """Plain data of the job alone."""
        return None if self.job is None else asdict(self.job)


def provenance_of(plans: Sequence[RankPlan], software: Sequence[Facts], job: BatchJob | None = None) -> Provenance:
    """That of all ranks; `software[r]` is what rank r reported."""
    node_workers: dict[str, list[int]] = {}
    ranks = []
    for plan, facts in zip(plans, software, strict=True):
        if plan.worker is not None:
            node_workers.setdefault(plan.host, []).append(plan.worker)
        rank = {
            "rank": plan.rank,
            "role": plan.role,
            "host": plan.host,
            "device": plan.device,
            "threads": plan.threads,
            "worker": plan.worker,
            "store_device": None if plan.shard is None else plan.store_device or "cpu",
        }
        others = {name: value for name, value in facts.items() if value != software[0].get(name)}
        ranks.append({**rank, "software": others} if others else rank)
    return Provenance(software[0], ranks, list(node_workers.values()), job)


def provenance_of_one_process(node_workers: Sequence[Sequence[int]] = ()) -> Provenance:
    """That of a process which computes for all workers, with the threads that it has now."""
    role = {"rank": 0, "role": "store+worker", "host": socket.gethostname(), "device": "cpu", "worker": None}
    return Provenance(this_software(), [{**role, "threads": torch.get_num_threads(), "store_device": "cpu"}], node_workers)


def device_of(device: str, store_device: str | None) -> str:
    """Of what a rank trains and keeps its part of the store on, a GPU if there is one among them, else `cpu`."""
    return next((each for each in (device, store_device) if each is not None and each.startswith("cuda")), "cpu")


@functools.cache
def this_software(device: str = "cpu") -> Facts:
    """What this process computes with: all that is known to change the last bits of a result, but for the number of threads.

    CUDA is not touched unless `device` is a GPU: a rank without one should not hold a context on it.
    """
    return {
        "hvd_async": hvd_async.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "kernels": "compiled" if arithmetic.is_compiled() else "torch",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu": processor_name(),
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "machine": platform.platform(),
    }
