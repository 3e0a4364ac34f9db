"""Assignment of roles, devices and threads to ranks."""

from __future__ import annotations

from typing import Any

import pytest

from hvd_async.cluster.topology import Machine, Placement, assign_roles, describe, this_machine
from hvd_async.errors import SetupError


def machines(*hosts: str, cores: int = 8, gpus: int = 0) -> list[Machine]:
    """Return one machine for each rank; all ranks of a host see all of its cores and GPUs."""
    return [Machine(host, tuple(range(cores)), tuple(f"{host}-gpu{i}" for i in range(gpus))) for host in hosts]


def test_a_dedicated_store_is_rank_0_on_cpu() -> None:
    plans = assign_roles(machines("a", "a", "a", gpus=2), Placement("async"))
    assert [(p.role, p.worker, p.device) for p in plans] == [
        ("store", None, "cpu"),
        ("worker", 0, "cuda:0"),
        ("worker", 1, "cuda:1"),
    ]


def test_a_colocated_store_trains_too() -> None:
    plans = assign_roles(machines("a", "a"), Placement("async", "colocated"))
    assert [(p.role, p.worker) for p in plans] == [("store+worker", 0), ("worker", 1)]


@pytest.mark.parametrize("kind", ["horovod", "ddp"])
def test_in_synchronous_strategies_all_are_workers(kind: str) -> None:
    plans = assign_roles(machines("a", "a", "b"), Placement(kind))  # type: ignore[arg-type]
    assert [(p.host, p.local_rank, p.role, p.worker) for p in plans] == [
        ("a", 0, "worker", 0),
        ("a", 1, "worker", 1),
        ("b", 0, "worker", 2),
    ]


def test_single_refuses_more_than_one_rank() -> None:
    assert assign_roles(machines("a"), Placement("single"))[0].role == "worker"
    with pytest.raises(SetupError, match="strategy single: got 2 ranks, expected 1"):
        assign_roles(machines("a", "a"), Placement("single"))


def test_a_dedicated_store_needs_a_worker() -> None:
    with pytest.raises(SetupError, match=r"got 1 rank, expected at least 2.*colocated"):
        assign_roles(machines("a"), Placement("async"))
    assert assign_roles(machines("a"), Placement("async", "colocated"))[0].role == "store+worker"


@pytest.mark.parametrize(
    ("hosts", "num_shards", "expected"),
    [
        ("aaa", 1, [0, None, None]),
        ("aaaa", 2, [0, 1, None, None]),
        ("aabb", 2, [0, None, 1, None]),
        ("aabb", 3, [0, 2, 1, None]),
        ("aaabbc", 5, [0, 3, None, 1, 4, 2]),
        ("abab", 3, [0, 1, 2, None]),
        ("abbb", 3, [0, 1, 2, None]),
    ],
)
def test_every_host_gets_a_shard_before_any_gets_a_second_one(
    hosts: str, num_shards: int, expected: list[int | None]
) -> None:
    plans = assign_roles(machines(*hosts), Placement("async", num_shards=num_shards))
    assert [p.shard for p in plans] == expected


def test_dedicated_shards_do_not_train() -> None:
    plans = assign_roles(machines("a", "a", "b", "b", gpus=2), Placement("async", num_shards=3))
    assert [(p.role, p.shard, p.worker, p.device) for p in plans] == [
        ("store", 0, None, "cpu"),
        ("shard", 2, None, "cpu"),
        ("shard", 1, None, "cpu"),
        ("worker", None, 0, "cuda:0"),
    ]


def test_colocated_shards_train_too() -> None:
    plans = assign_roles(machines("a", "a", "b"), Placement("async", "colocated", num_shards=2))
    assert [(p.role, p.shard, p.worker) for p in plans] == [
        ("store+worker", 0, 0),
        ("worker", None, 1),
        ("shard+worker", 1, 2),
    ]
    plans = assign_roles(machines("a", "b"), Placement("async", "colocated", num_shards=2))
    assert [p.role for p in plans] == ["store+worker", "shard+worker"]


@pytest.mark.parametrize("kind", ["horovod", "ddp"])
def test_synchronous_strategies_have_no_shards(kind: str) -> None:
    plans = assign_roles(machines("a", "a"), Placement(kind, num_shards=7))  # type: ignore[arg-type]
    assert [(p.role, p.shard) for p in plans] == [("worker", None)] * 2


def test_dedicated_shards_need_a_worker_beside_them() -> None:
    with pytest.raises(SetupError) as caught:
        assign_roles(machines("a", "a", "b"), Placement("async", num_shards=3))
    assert str(caught.value) == (
        "strategy async with a dedicated store: got 3 ranks, expected at least 4 (3 are the store); use mpirun -np 4 or more,"
        " or strategy.placement: colocated"
    )
    assert [p.role for p in assign_roles(machines("a", "a"), Placement("async"))] == ["store", "worker"]


def test_a_rank_holds_at_most_one_shard() -> None:
    with pytest.raises(SetupError) as caught:
        assign_roles(machines("a", "a"), Placement("async", "colocated", num_shards=3))
    assert str(caught.value) == (
        "store.shards: got 3 with 2 ranks, expected at most one shard a rank; start more ranks, or use fewer shards"
    )


def test_dedicated_shards_have_one_thread_if_cores_are_few() -> None:
    def threads(cores: int) -> list[int]:
        return [p.threads for p in assign_roles(machines("a", "a", "b", "b", cores=cores), Placement("async", num_shards=2))]

    assert threads(2) == [1, 2, 1, 2]
    assert threads(8) == [4, 4, 4, 4]


def test_a_plan_gives_the_number_of_a_shard() -> None:
    dedicated = assign_roles(machines("a", "a", "b", cores=1), Placement("async", num_shards=2))
    assert [describe(p) for p in dedicated] == [
        "rank 0 on a: store, cpu, 1 thread",
        "rank 1 on a: worker 0, cpu, 1 thread",
        "rank 2 on b: shard 1, cpu, 1 thread",
    ]
    colocated = assign_roles(machines("a", "b", cores=1), Placement("async", "colocated", num_shards=2))
    assert describe(colocated[1]) == "rank 1 on b: shard 1+worker 1, cpu, 1 thread"


def test_gpus_are_numbered_among_the_workers_of_each_host() -> None:
    plans = assign_roles(machines("a", "a", "b", "b", gpus=2), Placement("async"))
    assert [p.device for p in plans] == ["cpu", "cuda:0", "cuda:0", "cuda:1"]


def test_fewer_gpus_than_workers_is_an_error_unless_sharing_is_allowed() -> None:
    with pytest.raises(SetupError, match=r"a: 3 workers here.*among the 2 that it sees.*allow_sharing"):
        assign_roles(machines("a", "a", "a", gpus=2), Placement("ddp"))
    plans = assign_roles(machines("a", "a", "a", gpus=2), Placement("ddp", allow_sharing=True))
    assert [p.device for p in plans] == ["cuda:0", "cuda:1", "cuda:0"]


def test_hosts_may_have_different_numbers_of_gpus() -> None:
    ranks = [*machines("a", "a", "a", "a", "a", gpus=4), *machines("b", "b", gpus=2)]
    plans = assign_roles(ranks, Placement("async"))
    assert [p.device for p in plans] == ["cpu", "cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:0", "cuda:1"]
    with pytest.raises(SetupError, match=r"b: 3 workers here, but rank 7 .*among the 2 that it sees"):
        assign_roles([*ranks, *machines("b", gpus=2)], Placement("async"))
    alone = assign_roles([*machines("a", "a", gpus=4), *machines("c")], Placement("ddp"))
    assert [p.device for p in alone] == ["cuda:0", "cuda:1", "cpu"]


@pytest.mark.parametrize("hosts", ["ababa", "aaabb", "bbaaa"])
def test_gpus_are_assigned_by_local_worker_number_in_any_order_of_ranks(hosts: str) -> None:
    plans = assign_roles(machines(*hosts, gpus=3), Placement("ddp"))
    for host in "ab":
        assert [p.device for p in plans if p.host == host] == [f"cuda:{i}" for i in range(hosts.count(host))]


def test_gpus_that_the_launcher_assigned_are_each_index_0() -> None:
    dealt = [Machine("a", (0,), ("gpu-x",)), Machine("a", (1,), ("gpu-y",))]
    assert [p.device for p in assign_roles(dealt, Placement("ddp"))] == ["cuda:0", "cuda:0"]
    with pytest.raises(SetupError, match="finds no GPU of its own"):
        assign_roles([dealt[0], dealt[0]], Placement("ddp"))


def test_a_store_leaves_the_gpu_that_the_launcher_assigned_to_it_unused() -> None:
    dealt = [Machine(host, (0,), (f"{host}-{i}",)) for host, i in [("a", 0), ("a", 1), ("b", 0), ("b", 1)]]
    plans = assign_roles(dealt, Placement("async"))
    assert [(p.device, p.store_device) for p in plans] == [("cpu", "cpu"), *[("cuda:0", None)] * 3]
    # On request the store uses that GPU: no worker sees it, so pushes go through the host.
    plans = assign_roles(dealt, Placement("async", store_device="cuda"))
    assert [(p.device, p.is_direct) for p in plans] == [("cuda:0", False)] * 4
    assert [p.store_device for p in plans] == ["cuda:0", None, None, None]


def test_some_ranks_may_see_one_gpu_and_others_all() -> None:
    ranks = [Machine("a", (0,), ("x", "y", "z")), Machine("a", (0,), ("x",)), Machine("a", (0,), ("x", "y", "z"))]
    with pytest.raises(SetupError, match="rank 1 finds no GPU of its own among the 1 that it sees"):
        assign_roles(ranks, Placement("ddp"))
    plans = assign_roles([ranks[1], ranks[0], ranks[2]], Placement("ddp"))
    assert [p.device for p in plans] == ["cuda:0", "cuda:1", "cuda:2"]


def test_visible_devices_are_distinguished_by_the_gpu_and_not_by_the_index() -> None:
    ranks = [Machine("a", (0,), ("x", "y")), Machine("a", (0,), ("y", "x")), Machine("a", (0,), ("z",))]
    plans = assign_roles(ranks, Placement("ddp"))
    assert [(p.device, m.gpus[int(p.device[-1])]) for p, m in zip(plans, ranks, strict=True)] == [
        ("cuda:0", "x"),
        ("cuda:0", "y"),
        ("cuda:0", "z"),
    ]


def test_a_gpu_may_be_given_by_its_index() -> None:
    assert assign_roles(machines("a", gpus=2), Placement("single", device="cuda:1"))[0].device == "cuda:1"
    with pytest.raises(SetupError, match="cuda:2, but rank 0 on a sees 2 GPUs"):
        assign_roles(machines("a", gpus=2), Placement("single", device="cuda:2"))
    with pytest.raises(SetupError, match="allow_sharing"):
        assign_roles(machines("a", "a", gpus=2), Placement("ddp", device="cuda:1"))


def test_cuda_without_a_gpu_is_an_error_and_auto_is_not() -> None:
    with pytest.raises(SetupError, match="rank 0 on a sees 0 GPUs"):
        assign_roles(machines("a"), Placement("single", device="cuda"))
    assert assign_roles(machines("a"), Placement("single"))[0].device == "cpu"
    assert assign_roles(machines("a", gpus=1), Placement("single", device="cpu"))[0].device == "cpu"


def on_device(*hosts: str, gpus: int, device: str = "cuda", **wanted: Any) -> list[tuple[str, str | None, bool]]:
    """Return device, store device and whether the worker is direct, for every rank."""
    plans = assign_roles(machines(*hosts, gpus=gpus), Placement("async", store_device=device, **wanted))
    return [(p.device, p.store_device, p.is_direct) for p in plans]


def test_a_store_on_a_gpu_takes_one_that_no_worker_uses() -> None:
    assert on_device("a", "a", "a", gpus=3) == [
        ("cuda:2", "cuda:2", False),
        ("cuda:0", "cuda:2", True),
        ("cuda:1", "cuda:2", True),
    ]


def test_a_store_shares_a_gpu_only_if_sharing_is_allowed() -> None:
    with pytest.raises(SetupError, match=r"a: the store, rank 0, finds no GPU of its own among the 1 .*allow_sharing"):
        on_device("a", "a", gpus=1)
    assert on_device("a", "a", gpus=1, allow_sharing=True) == [("cuda:0", "cuda:0", False), ("cuda:0", "cuda:0", True)]
    assert on_device("a", "a", gpus=1, device="auto") == [("cpu", "cpu", False), ("cuda:0", None, False)]
    with pytest.raises(SetupError, match="finds no GPU of its own"):
        on_device("a", "a", gpus=2, device="cuda:0")
    assert on_device("a", "a", gpus=2, device="cuda:1")[0] == ("cuda:1", "cuda:1", False)


def test_a_store_that_trains_uses_the_gpu_of_its_worker() -> None:
    for device in ("cuda", "auto", "cuda:0"):
        assert on_device("a", "a", gpus=2, device=device, placement="colocated") == [
            ("cuda:0", "cuda:0", True),
            ("cuda:1", "cuda:0", True),
        ]


def test_a_store_on_the_cpu_is_the_default() -> None:
    assert on_device("a", "a", gpus=2, device="cpu") == [("cpu", "cpu", False), ("cuda:0", None, False)]
    assert on_device("a", "a", gpus=0, device="auto") == [("cpu", "cpu", False), ("cpu", None, False)]


def test_only_workers_on_gpus_of_the_stores_host_are_direct() -> None:
    assert on_device("a", "a", "b", gpus=2) == [
        ("cuda:1", "cuda:1", False),
        ("cuda:0", "cuda:1", True),
        ("cuda:0", None, False),
    ]
    plans = assign_roles(machines("a", "a", gpus=1), Placement("async", device="cpu", store_device="cuda"))
    assert [(p.device, p.store_device, p.is_direct) for p in plans] == [("cuda:0", "cuda:0", False), ("cpu", None, False)]


def test_a_format_that_is_not_one_vector_of_one_worker_goes_through_the_host() -> None:
    assert [direct for _, _, direct in on_device("a", "a", gpus=2, is_direct=False)] == [False, False]
    assert not on_device("a", "a", gpus=2, is_direct=False, placement="colocated")[0][2]


def test_a_worker_has_its_own_index_for_the_stores_gpu_or_does_not_see_it() -> None:
    ranks = [Machine("a", (0,), ("x", "y")), Machine("a", (1,), ("z", "x")), Machine("a", (2,), ("z", "w"))]
    plans = assign_roles(ranks, Placement("async", store_device="cuda:0", device="cuda:0", allow_sharing=True))
    assert [(p.store_device, p.is_direct, p.opens_store) for p in plans] == [
        ("cuda:0", False, False),
        ("cuda:1", True, True),
        (None, False, False),
    ]


def test_a_device_that_the_store_cannot_use_is_refused() -> None:
    with pytest.raises(SetupError, match=r"store.device: got cuda:2, but rank 0 on a sees 2 GPUs"):
        on_device("a", "a", gpus=2, device="cuda:2")
    with pytest.raises(SetupError, match=r"store.device: got cuda, but rank 0 on a sees 0 GPUs"):
        on_device("a", "a", gpus=0)


def test_strategies_without_a_store_ignore_its_device() -> None:
    plans = assign_roles(machines("a", gpus=1), Placement("ddp", store_device="cuda"))
    assert (plans[0].store_device, plans[0].is_direct) == (None, False)


def test_few_cores_go_to_the_workers_and_the_store_has_one_thread() -> None:
    assert [p.threads for p in assign_roles(machines("a", "a", "a", cores=2), Placement("async"))] == [1, 1, 1]
    assert [p.threads for p in assign_roles(machines("a", "a", "a", cores=5), Placement("async"))] == [1, 2, 2]


def test_plenty_of_cores_are_divided_among_store_and_workers() -> None:
    assert [p.threads for p in assign_roles(machines("a", "a", "a", cores=12), Placement("async"))] == [4, 4, 4]


def test_cores_are_divided_on_each_host_separately() -> None:
    assert [p.threads for p in assign_roles(machines("a", "b", "b", cores=8), Placement("async"))] == [8, 4, 4]


def test_cores_that_the_launcher_assigned_are_not_divided_again() -> None:
    dealt = [Machine("a", (0, 1), ()), Machine("a", (2, 3, 4), ())]
    assert [p.threads for p in assign_roles(dealt, Placement("ddp"))] == [2, 3]


def test_configured_threads_are_used() -> None:
    assert [p.threads for p in assign_roles(machines("a", "a"), Placement("async", threads=5))] == [5, 5]


def threads_of_workers(num_cores: int, num_workers: int, *, beside_store: bool = False) -> int:
    """Return the threads of each worker on a host where all ranks may use all cores."""
    host = Machine("a", tuple(range(num_cores)), ())
    plans = assign_roles(
        [host] * (num_workers + beside_store), Placement("async" if beside_store else "horovod", device="cpu")
    )
    return plans[-1].threads


def test_the_threads_of_a_worker_are_known_before_the_start() -> None:
    assert threads_of_workers(8, 2) == 4
    assert threads_of_workers(2, 4) == 1
    assert threads_of_workers(12, 2, beside_store=True) == 4
    assert threads_of_workers(8, 2, beside_store=True) == 4


def test_a_plan_is_described_in_one_line() -> None:
    plans = assign_roles(machines("a", "b", gpus=1, cores=1), Placement("async"))
    assert [describe(p, "MPI") for p in plans] == [
        "rank 0 on a: store, cpu, 1 thread, MPI",
        "rank 1 on b: worker 0, cuda:0, 1 thread, MPI",
    ]


def test_a_plan_describes_where_the_store_of_a_worker_is() -> None:
    plans = assign_roles(machines("a", "a", gpus=3), Placement("async", "colocated", store_device="cuda:2"))
    assert describe(plans[0], "device memory").endswith("store+worker 0, cuda:0, store on cuda:2, 4 threads, device memory")
    assert describe(plans[1], "CUDA IPC").endswith("worker 1, cuda:1, 4 threads, CUDA IPC")


def test_a_machine_survives_the_exchange_among_ranks() -> None:
    assert Machine.from_text(machines("a", gpus=2)[0].to_text()) == machines("a", gpus=2)[0]
    assert this_machine().cores
