"""Roles, devices and threads of all ranks, from the machines that the ranks report.

Pure except for `this_machine` and `count_gpus`: every rank computes the same plan of all ranks from the reports of all ranks.
"""

from __future__ import annotations

import collections
import dataclasses
import fractions
import itertools
import json
import os
import socket
from collections.abc import Iterable, Sequence
from typing import Literal

from hvd_async.config import RunConfig
from hvd_async.errors import SetupError

Role = Literal["store", "shard", "worker", "store+worker", "shard+worker"]
_DEDICATED = ("store", "shard")

# Cores of a worker beyond which one more helps the worker less than the store.
_PLENTY = 4


@dataclasses.dataclass(frozen=True)
class Machine:
    """The part of a host that one rank may use. Binding or a container can give the ranks of a host different parts."""

    host: str
    cores: tuple[int, ...]
    gpus: tuple[str, ...]  # unique names; the position is the index in `cuda:<index>` for this rank

    def to_text(self) -> str:
        """Return one line of text to send to other ranks."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Machine:
        """Return the machine in `text`; the inverse of `to_text`."""
        fields = json.loads(text)
        return cls(fields["host"], tuple(fields["cores"]), tuple(fields["gpus"]))


def this_machine() -> Machine:
    """Return what this process may use here. Imports torch, and asks CUDA if there is one."""
    import torch  # imported late: reading a plan or an environment must not cost seconds

    gpus = tuple(str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count()))
    return Machine(socket.gethostname(), tuple(sorted(os.sched_getaffinity(0))), gpus)


def count_gpus() -> int:
    """Return how many GPUs torch finds here, without taking memory on any of them. Imports torch."""
    import torch  # imported late, as above

    return torch.cuda.device_count()


@dataclasses.dataclass(frozen=True)
class Placement:
    """The wishes of the configuration: `strategy.kind`, `strategy.placement`, `store.shards`, `store.device` and the keys
    of `training` with the names below."""

    kind: Literal["single", "horovod", "ddp", "async"]
    placement: Literal["dedicated", "colocated"] = "dedicated"
    device: str = "auto"
    allow_sharing: bool = False
    threads: int | None = None
    num_shards: int = 1
    store_device: str = "cpu"
    is_direct: bool = True
    """Whether the format of their gradients lets workers read and write a store in device memory themselves."""

    @property
    def is_async(self) -> bool:
        """Whether there is a parameter store."""
        return self.kind == "async"


def count_workers(plans: Sequence[RankPlan]) -> int:
    """Return the number of ranks that train."""
    return sum(plan.worker is not None for plan in plans)


def placement_of(config: RunConfig) -> Placement:
    """Return the keys of `config` on which roles, devices and threads depend."""
    return Placement(
        kind=config.strategy.kind,
        placement=config.strategy.placement,
        device=config.training.device,
        allow_sharing=config.training.allow_sharing,
        threads=config.training.threads,
        num_shards=config.store.shards,
        store_device=config.store.device,
        is_direct=config.push.is_whole,
    )


@dataclasses.dataclass(frozen=True)
class RankPlan:
    """The plan of one rank. `worker` counts workers from 0 in the order of ranks; None for a store that does not train.
    `shard` is the number of the store's shard that the rank holds, if any; shard 0, on rank 0, is the sequencer.

    `store_device`: for a rank that holds a shard, the device of that shard's vectors (None: the CPU); for another worker
    that `is_direct`, that GPU as this rank numbers it. `is_direct`: the worker reads and writes the store's vectors in
    the memory of the GPU.
    """

    rank: int
    host: str
    local_rank: int
    role: Role
    worker: int | None
    device: str
    threads: int
    shard: int | None = None
    store_device: str | None = None
    is_direct: bool = False

    @property
    def opens_store(self) -> bool:
        """Whether this rank opens the device memory of a store in another process."""
        return self.is_direct and self.shard is None


def assign_roles(machines: Sequence[Machine], wanted: Placement) -> tuple[RankPlan, ...]:
    """Return the plan of all ranks; `machines[r]` is what rank r reported.

    Raises `SetupError` if ranks, GPUs and strategy do not fit together, `ConfigError` for an unknown device.
    """
    _check_number_of_ranks(len(machines), wanted)
    shards = _place_shards([machine.host for machine in machines], wanted)
    roles = [_role(shards.get(rank), wanted) for rank in range(len(machines))]
    devices = _devices(machines, roles, wanted)
    store_devices = _store_devices(machines, roles, devices, wanted)
    threads = [wanted.threads] * len(machines) if wanted.threads else _threads(machines, roles)
    seen: collections.Counter[str] = collections.Counter()
    num_workers = 0
    plans = []
    for rank, machine in enumerate(machines):
        worker = None if roles[rank] in _DEDICATED else num_workers
        num_workers += worker is not None
        plans.append(
            RankPlan(
                rank=rank,
                host=machine.host,
                local_rank=seen[machine.host],
                role=roles[rank],
                worker=worker,
                device=devices[rank] if worker is not None else store_devices[rank] or "cpu",
                threads=threads[rank],
                shard=shards.get(rank),
                store_device=store_devices[rank],
                is_direct=wanted.is_direct and devices[rank] != "cpu" and (store_devices[rank] or "cpu") != "cpu",
            )
        )
        seen[machine.host] += 1
    return tuple(plans)


def describe(plan: RankPlan, transport: str = "", *, knows_threads: bool = True) -> str:
    """Return one line: host, role, device, threads, and the transport if it is known. `knows_threads`: whether to name a
    number of threads."""
    role: str = plan.role
    if plan.shard:
        role = role.replace("shard", f"shard {plan.shard}")
    if plan.worker is not None:
        role = f"{role} {plan.worker}"
    threads = "1 thread" if plan.threads == 1 else f"{plan.threads} threads"
    if not knows_threads:
        threads = "threads by its cores"
    facts = [role, plan.device]
    if plan.shard is not None and plan.worker is not None and plan.store_device not in (None, "cpu"):
        facts.append(f"store on {plan.store_device}")
    facts += [threads, *([transport] if transport else [])]
    return f"rank {plan.rank} on {plan.host}: {', '.join(facts)}"


def _check_number_of_ranks(num_ranks: int, wanted: Placement) -> None:
    if wanted.kind == "single" and num_ranks != 1:
        raise SetupError(
            f"strategy single: got {num_ranks} ranks, expected 1; start it without mpirun, or choose"
            " strategy.kind async, horovod or ddp"
        )
    if not wanted.is_async:
        return
    if wanted.placement == "dedicated" and num_ranks <= wanted.num_shards:
        ranks = "rank" if num_ranks == 1 else "ranks"
        stores = "rank 0 is the store" if wanted.num_shards == 1 else f"{wanted.num_shards} are the store"
        raise SetupError(
            f"strategy async with a dedicated store: got {num_ranks} {ranks}, expected at least {wanted.num_shards + 1}"
            f" ({stores}); use mpirun -np {wanted.num_shards + 1} or more, or strategy.placement: colocated"
        )
    if num_ranks < wanted.num_shards:
        raise SetupError(
            f"store.shards: got {wanted.num_shards} with {num_ranks} ranks, expected at most one shard a rank; start more"
            " ranks, or use fewer shards"
        )


def _place_shards(hosts: Sequence[str], wanted: Placement) -> dict[int, int]:
    """Return shard numbers by rank: the first rank of every host in turn, from rank 0's host on, then the second, ..."""
    if not wanted.is_async:
        return {}
    of_host: dict[str, list[int]] = {}
    for rank, host in enumerate(hosts):
        of_host.setdefault(host, []).append(rank)
    rounds = itertools.zip_longest(*of_host.values())
    ranks = [rank for turn in rounds for rank in turn if rank is not None]
    return {rank: shard for shard, rank in enumerate(ranks[: wanted.num_shards])}


def _role(shard: int | None, wanted: Placement) -> Role:
    if shard is None:
        return "worker"
    if wanted.placement == "colocated":
        return "store+worker" if shard == 0 else "shard+worker"
    return "store" if shard == 0 else "shard"


def _devices(machines: Sequence[Machine], roles: Sequence[Role], wanted: Placement) -> list[str]:
    num_users: collections.Counter[tuple[str, str]] = collections.Counter()
    devices = []
    for rank, (machine, role) in enumerate(zip(machines, roles, strict=True)):
        if role in _DEDICATED or wanted.device == "cpu" or (wanted.device == "auto" and not machine.gpus):
            devices.append("cpu")
            continue
        users = [num_users[machine.host, gpu] for gpu in machine.gpus]
        index = _gpu_index(rank, machine, users, wanted)
        if users[index] and not wanted.allow_sharing:
            num_workers = sum(m.host == machine.host and r not in _DEDICATED for m, r in zip(machines, roles, strict=True))
            raise SetupError(
                f"{machine.host}: {num_workers} workers here, but rank {rank} finds no GPU of its own among the"
                f" {len(machine.gpus)} that it sees (training.device: {wanted.device}); start fewer workers,"
                " or set training.allow_sharing: true or training.device: cpu"
            )
        num_users[machine.host, machine.gpus[index]] += 1
        devices.append(f"cuda:{index}")
    return devices


def _store_devices(
    machines: Sequence[Machine], roles: Sequence[Role], devices: Sequence[str], wanted: Placement
) -> list[str | None]:
    """Return `RankPlan.store_device` of every rank. Workers get GPUs first, so that their numbers do not depend on the
    store."""
    stores = [rank for rank, role in enumerate(roles) if role != "worker"]
    chosen: list[str | None] = ["cpu" if rank in stores else None for rank in range(len(machines))]
    if not stores or wanted.store_device == "cpu":
        return chosen
    owner = stores[0]  # the configuration refuses a device with several shards
    index = _store_gpu(owner, machines, devices, wanted)
    if index is None:
        return chosen
    chosen[owner] = f"cuda:{index}"
    gpu, host = machines[owner].gpus[index], machines[owner].host
    for rank, machine in enumerate(machines):
        is_near = machine.host == host and devices[rank].startswith("cuda") and gpu in machine.gpus
        if rank != owner and is_near and wanted.is_direct:
            chosen[rank] = f"cuda:{machine.gpus.index(gpu)}"
    return chosen


def _store_gpu(owner: int, machines: Sequence[Machine], devices: Sequence[str], wanted: Placement) -> int | None:
    """Return the store's GPU, as its rank sees it: the one on which it trains, or one that no worker uses; None: the CPU."""
    machine, is_auto = machines[owner], wanted.store_device == "auto"
    if is_auto and not machine.gpus:
        return None
    index = int(wanted.store_device.partition(":")[2] or -1)
    if not machine.gpus or index >= len(machine.gpus):
        raise SetupError(_unseen("store.device", wanted.store_device, owner, machine))
    own = int(devices[owner].partition(":")[2] or -1)
    if own >= 0 and index in (-1, own):
        return own  # one process: it shares the GPU with no other
    names = {(m.host, m.gpus[int(d.partition(":")[2])]) for m, d in zip(machines, devices, strict=True) if d != "cpu"}
    is_used = [(machine.host, gpu) in names for gpu in machine.gpus]
    if index < 0:
        index = is_used.index(min(is_used))
    if not is_used[index] or wanted.allow_sharing:
        return index
    if is_auto:
        return None
    raise SetupError(
        f"{machine.host}: the store, rank {owner}, finds no GPU of its own among the {len(machine.gpus)} that it sees"
        f" (store.device: {wanted.store_device}); start fewer workers, or set training.allow_sharing: true or store.device: cpu"
    )


def _unseen(key: str, device: str, rank: int, machine: Machine) -> str:
    return (
        f"{key}: got {device}, but rank {rank} on {machine.host} sees {len(machine.gpus)} GPUs;"
        " use auto or cpu, or check CUDA_VISIBLE_DEVICES and the driver"
    )


def _gpu_index(rank: int, machine: Machine, users: Sequence[int], wanted: Placement) -> int:
    """Return the requested GPU, or the first of those with the fewest users (`users[i]` ranks have index i already).

    If all ranks of a host see all its GPUs, the index is the number of the worker on its host. If the launcher gave each
    rank a GPU of its own, which has index 0 for every rank, the index is 0.
    """
    index = int(wanted.device.partition(":")[2] or -1)
    if not machine.gpus or index >= len(machine.gpus):
        raise SetupError(_unseen("training.device", wanted.device, rank, machine))
    return index if index >= 0 else users.index(min(users))


def _threads(machines: Sequence[Machine], roles: Sequence[Role]) -> list[int]:
    """Return the threads for arithmetic of every rank: the cores of each host divided among the ranks that compute on it."""
    everyone = _divide_cores(machines, range(len(machines)))
    stores = {rank for rank, role in enumerate(roles) if role in _DEDICATED}
    workers = [rank for rank in range(len(roles)) if rank not in stores]
    hosts = {machines[rank].host for rank in stores}
    if all(everyone[rank] >= _PLENTY for rank in workers if machines[rank].host in hosts):
        return everyone
    # Few cores: workers would lose more than the store, which waits most of the time, would gain.
    shares = iter(_divide_cores([machines[rank] for rank in workers], range(len(workers))))
    return [1 if rank in stores else next(shares) for rank in range(len(roles))]


def _divide_cores(machines: Sequence[Machine], sharers: Iterable[int]) -> list[int]:
    users = collections.Counter((machines[r].host, core) for r in sharers for core in machines[r].cores)
    shares = (sum(fractions.Fraction(1, max(1, users[m.host, core])) for core in m.cores) for m in machines)
    return [max(1, int(share)) for share in shares]
