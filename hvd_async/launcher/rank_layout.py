"""The ranks on each host, from hosts and a number of workers. Pure."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from hvd_async.cluster.hosts import Host
from hvd_async.cluster.topology import Machine, RankPlan, assign_roles, describe, placement_of
from hvd_async.config import RunConfig
from hvd_async.errors import ConfigError, SetupError

_DEFAULT_WORKERS = 2


@dataclass(frozen=True)
class RankPlace:
    """A host and its ranks; ranks of the store alone come first. `host`: empty for this machine. `are_threads_known`: if
    False, `cores` is only a guess (this machine's number), from which no number of threads may be derived."""

    host: str
    workers: int
    stores: int = 0
    cores: int = 1
    gpus: int | None = None
    component: int = 0
    are_threads_known: bool = True

    @property
    def ranks(self) -> int:
        """Number of ranks on the host."""
        return self.workers + self.stores


@dataclass(frozen=True)
class RankLayout:
    """Places of all ranks, at least one place. Ranks are numbered in the order of the places. `waiting_threads`: threads of
    a worker that may wait inside MPI at a time; Horovod has one of its own."""

    places: tuple[RankPlace, ...]
    waiting_threads: int = 1

    @classmethod
    def of_ranks(cls, num_ranks: int, cores: int, hosts: Sequence[Host] = ()) -> RankLayout:
        """Return the layout of `num_ranks` ranks of any program, on this machine or on `hosts`, filled in order. Raises
        `SetupError` if the ranks do not fit."""
        if not hosts:
            return cls((RankPlace("", num_ranks, cores=cores),))
        taken = _fill(num_ranks, hosts)
        return cls(tuple(RankPlace(host.name, k, cores=cores) for host, k in zip(hosts, taken, strict=True) if k))

    @property
    def num_ranks(self) -> int:
        """Number of processes to start."""
        return sum(place.ranks for place in self.places)

    @property
    def num_workers(self) -> int:
        """Number of ranks that train."""
        return sum(place.workers for place in self.places)

    @property
    def is_local(self) -> bool:
        """Whether all ranks run on this machine, whatever its name."""
        return not self.places[0].host

    @property
    def is_crowded(self) -> bool:
        """Whether ranks, or threads of theirs that wait in MPI, outnumber cores on some host."""
        return any(place.stores + place.workers * self.waiting_threads > place.cores for place in self.places)

    def hosts_and_slots(self) -> str:
        """Return the hosts and their slots in the format of mpirun and horovodrun."""
        return ",".join(f"{place.host}:{place.ranks}" for place in self.places)


@dataclass(frozen=True)
class Wanted:
    """Numbers that a user asks for: workers in all, workers on each host, GPUs of each host; None: not given. `store_apart`:
    the first component of a heterogeneous job is reserved for the store."""

    workers: int | None = None
    per_node: int | None = None
    gpus: int | None = None
    store_apart: bool = False


def lay_out(
    config: RunConfig, wanted: Wanted, hosts: Sequence[Host], own_cores: int, *, are_allocated: bool = False
) -> RankLayout:
    """Return the layout of the ranks that train `config` on `hosts`, or on this machine if there are none.

    `are_allocated`: the hosts come from a batch system, slots count workers, and the store's ranks come on top; otherwise a
    user named the hosts, and slots count ranks. Raises `SetupError` if the numbers do not fit, `ConfigError` for a number
    below 1.
    """
    flags = {"--workers": wanted.workers, "--workers-per-node": wanted.per_node, "--gpus-per-node": wanted.gpus}
    for flag, number in flags.items():
        if number is not None and number < 1:
            raise ConfigError(f"{flag}: got {number}, expected 1 or more")
    strategy = config.strategy
    is_dedicated = strategy.is_async and strategy.placement == "dedicated"
    stores = config.store.shards if is_dedicated else 0
    waiting_threads = 2 if strategy.kind == "horovod" else 1
    if wanted.store_apart and not stores:
        raise SetupError(
            "--store-apart: expected strategy async with placement dedicated; otherwise no rank is for the store alone"
        )
    if strategy.is_single:
        _check_single(wanted)
        return RankLayout((RankPlace("", 1, cores=own_cores),))
    if not hosts:
        if wanted.store_apart:
            raise SetupError("--store-apart: expected a heterogeneous Slurm job; see slurm/heterogeneous.sbatch")
        if None not in (wanted.workers, wanted.per_node) and wanted.workers != wanted.per_node:
            raise SetupError(
                f"--workers {wanted.workers} with --workers-per-node {wanted.per_node} on one machine: expected one of them"
            )
        workers = wanted.workers or wanted.per_node or wanted.gpus or _DEFAULT_WORKERS
        return RankLayout((RankPlace("", workers, stores, own_cores, wanted.gpus),), waiting_threads)
    if wanted.gpus is not None:
        are_of_workers = [host.component > 0 or not wanted.store_apart for host in hosts]
        hosts = [
            dataclasses.replace(host, gpus=wanted.gpus) if is_theirs else host
            for host, is_theirs in zip(hosts, are_of_workers, strict=True)
        ]
    cores = [own_cores if host.cores is None else host.cores for host in hosts]
    if wanted.store_apart:
        numbers = _apart(hosts, wanted, stores)
    elif are_allocated or wanted.per_node is not None or (wanted.gpus is not None and not any(host.slots for host in hosts)):
        numbers = _beside(hosts, wanted, stores, are_allocated=are_allocated)
    else:
        numbers = _among(hosts, wanted, stores)
    are_known = config.training.threads is not None
    return RankLayout(
        tuple(
            RankPlace(
                host.name, num_workers, num_stores, num_cores, host.gpus, host.component, are_known or host.cores is not None
            )
            for host, num_cores, (num_workers, num_stores) in zip(hosts, cores, numbers, strict=True)
            if num_workers + num_stores
        ),
        waiting_threads,
    )


def _check_single(wanted: Wanted) -> None:
    for number in (wanted.workers, wanted.per_node):
        if number not in (None, 1):
            raise SetupError(
                f"number of workers: got {number}, expected 1 for strategy single;"
                " for more workers, choose a strategy with --set strategy.kind=async (or horovod, ddp)"
            )


def _among(hosts: Sequence[Host], wanted: Wanted, stores: int) -> list[tuple[int, int]]:
    """Return the workers and store ranks of each host if slots count ranks. Hosts are filled in order, by default fully."""
    slots = sum(host.slots or 1 for host in hosts)
    if wanted.workers is None and slots <= stores:
        found = f"{slots} slot{'s' * (slots != 1)}"
        raise SetupError(
            f"{_names(hosts)}: got {found}, which the store takes, expected some for workers too, as NAME:SLOTS"
        )
    ranks = _fill(stores + (slots - stores if wanted.workers is None else wanted.workers), hosts)
    of_store = _deal(stores, ranks)
    return [(k - s, s) for k, s in zip(ranks, of_store, strict=True)]


def _beside(hosts: Sequence[Host], wanted: Wanted, stores: int, *, are_allocated: bool) -> list[tuple[int, int]]:
    """Return the workers and store ranks of each host where slots count workers and the store's ranks come on top."""
    if wanted.per_node is not None:
        if wanted.workers is not None and wanted.workers != wanted.per_node * len(hosts):
            raise SetupError(
                f"--workers {wanted.workers} with --workers-per-node {wanted.per_node} on {len(hosts)} hosts: expected one of"
                f" them, or {wanted.per_node * len(hosts)} workers"
            )
        if not are_allocated and any(host.slots for host in hosts):
            raise SetupError(f"--workers-per-node conflicts with the slots in {_names(hosts)}; remove one of them")
        workers = [wanted.per_node] * len(hosts)
    else:
        workers = [host.slots or host.gpus or 1 for host in hosts]
        if wanted.workers is not None and wanted.workers != sum(workers):
            has_room = all(host.slots for host in hosts)
            if has_room and wanted.workers > sum(workers):
                raise SetupError(
                    f"--workers: got {wanted.workers}, expected at most {sum(workers)}, the tasks of this job; ask for more"
                    " (sbatch --ntasks-per-node, mpiprocs of PBS, bsub -n), or set --workers-per-node"
                )
            workers = _deal(wanted.workers, workers if has_room else [wanted.workers] * len(hosts))
    of_store = _deal(stores, [stores if k else 0 for k in workers])
    return list(zip(workers, of_store, strict=True))


def _apart(hosts: Sequence[Host], wanted: Wanted, stores: int) -> list[tuple[int, int]]:
    """Return the workers and store ranks of each host where the first component's nodes are for the store alone."""
    first = [host for host in hosts if host.component == 0]
    rest = [host for host in hosts if host.component > 0]
    if not rest:
        raise SetupError(
            "--store-apart: expected a heterogeneous Slurm job, got one with a single component; see slurm/heterogeneous.sbatch"
        )
    # Shards go to the first rank of each host in turn: with fewer store hosts than shards, a worker's host would get one.
    if len(first) != stores:
        raise SetupError(
            f"--store-apart: got {len(first)} nodes in the first component of the job, expected {stores} (store.shards)"
        )
    return [(0, 1)] * stores + [(k, 0) for k, _ in _beside(rest, wanted, 0, are_allocated=True)]


def _fill(num_ranks: int, hosts: Sequence[Host]) -> list[int]:
    """Return the number of ranks on each host, filled in order."""
    slots = [host.slots or 1 for host in hosts]
    if num_ranks > sum(slots):
        raise SetupError(
            f"{num_ranks} ranks do not fit on {_names(hosts)}: {sum(slots)} slots; add hosts or slots (NAME:SLOTS)"
            " (strategy async with a dedicated store needs one rank for each shard besides the workers)"
        )
    before = itertools.accumulate(slots, initial=0)
    return [max(0, min(k, num_ranks - start)) for start, k in zip(before, slots, strict=False)]


def _deal(number: int, room: Sequence[int]) -> list[int]:
    """Return how many ranks each host gets when `number` ranks are dealt to the hosts in turn, as far as each has room."""
    taken = [0] * len(room)
    turns = (k for turn in itertools.count() for k in range(len(room)) if room[k] > turn)
    for k in itertools.islice(turns, min(number, sum(room))):
        taken[k] += 1
    return taken


def _names(hosts: Sequence[Host]) -> str:
    return ",".join(f"{host.name}:{host.slots or 1}" for host in hosts)


def plan_ranks(config: RunConfig, layout: RankLayout) -> tuple[RankPlan, ...]:
    """Return the plan of every rank, as far as known before the start: devices only if the GPUs of all hosts are known.

    Raises the errors of `assign_roles`.
    """
    placement = placement_of(config)
    are_known = all(place.gpus is not None for place in layout.places) or placement.device == "cpu"
    if not are_known:
        placement = dataclasses.replace(placement, device="cpu", store_device="cpu")
    machines: list[Machine] = []
    for place in layout.places:
        gpus = tuple(f"GPU {index} of {place.host}" for index in range(place.gpus or 0))
        machines += [Machine(place.host or "this machine", tuple(range(place.cores)), gpus)] * place.ranks
    plans = assign_roles(machines, placement)
    if are_known:
        return plans
    return tuple(dataclasses.replace(plan, device=_device_asked_for(plan, config)) for plan in plans)


def _device_asked_for(plan: RankPlan, config: RunConfig) -> str:
    """Return the device in words, for hosts whose GPUs are unknown."""
    asked = config.store.device if plan.worker is None else config.training.device
    return asked if asked == "cpu" else f"device {asked}"


def explain(layout: RankLayout, plans: Sequence[RankPlan]) -> list[str]:
    """Return one line for the whole layout and one line for each rank."""
    stores = layout.num_ranks - layout.num_workers
    facts = [_count(layout.num_workers, "worker"), *([f"{stores} for the store alone"] if stores else [])]
    hosts = "this machine" if layout.is_local else _count(len(layout.places), "host")
    guessed = {place.host for place in layout.places if not place.are_threads_known}
    ranks = [describe(plan, knows_threads=plan.host not in guessed) for plan in plans]
    return [f"{_count(layout.num_ranks, 'rank')} on {hosts}: {', '.join(facts)}", *ranks]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
