"""Ranks to roles, devices and threads; the launcher's environment."""

from __future__ import annotations

import pytest

from hvd_async.errors import ConfigError, SetupError
from hvd_async.topology import (
    Machine,
    Placement,
    assign_roles,
    check_world,
    describe,
    read_environment,
    share_cores,
    this_machine,
)

OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
SLURM_STEP = {
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "9",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_ID": "0",
}
OF_OTHERS = [
    ("Hydra", {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}),
    ("horovodrun", {"HOROVOD_RANK": "3", "HOROVOD_SIZE": "4", "HOROVOD_LOCAL_RANK": "1", "HOROVOD_LOCAL_SIZE": "2"}),
    ("torchrun", {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}),
]


def machines(*hosts: str, cores: int = 8, gpus: int = 0) -> list[Machine]:
    """One for each rank; all ranks of a host see all of it."""
    return [Machine(host, tuple(range(cores)), tuple(f"{host}-gpu{i}" for i in range(gpus))) for host in hosts]


@pytest.mark.parametrize(("name", "environ"), [("Open MPI", OPEN_MPI), *OF_OTHERS])
def test_each_launcher_is_read(name: str, environ: dict[str, str]) -> None:
    launched = read_environment(environ)
    assert launched is not None and launched.launcher.name.startswith(name)
    assert (launched.rank, launched.size, launched.local_rank, launched.local_size) == (3, 4, 1, 2)


def test_a_slurm_step_counts_its_own_tasks() -> None:
    launched = read_environment(SLURM_STEP)
    assert launched is not None and launched.launcher.name == "Slurm"
    assert (launched.rank, launched.size, launched.local_rank, launched.local_size) == (3, 4, 1, None)


@pytest.mark.parametrize("step", [{}, {"SLURM_STEP_ID": "4294967291"}, {"SLURM_STEP_ID": "4294967290"}])
def test_a_slurm_batch_script_or_shell_is_no_rank(step: dict[str, str]) -> None:
    assert read_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", **step}) is None


def test_mpirun_inside_a_slurm_job_counts_before_slurm() -> None:
    launched = read_environment({**SLURM_STEP, "SLURM_PROCID": "0", **OPEN_MPI})
    assert launched is not None and (launched.launcher.name, launched.rank) == ("Open MPI", 3)


def test_no_launcher() -> None:
    assert read_environment({"HOME": "/root", "PMI_RANK": "0"}) is None


def test_a_launchers_variable_that_is_no_number() -> None:
    with pytest.raises(SetupError, match="OMPI_COMM_WORLD_RANK: got 'x', expected a whole number"):
        read_environment({**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "x"})


def test_a_world_that_agrees_passes() -> None:
    check_world(read_environment(OPEN_MPI), 3, 4)
    check_world(None, 0, 1)


@pytest.mark.parametrize(
    ("environ", "mend"),
    [(OPEN_MPI, "mpirun of the environment"), (SLURM_STEP, "--mpi=pmix"), (OF_OTHERS[1][1], "starts no MPI")],
)
def test_singletons_are_refused_with_reason_and_mend(environ: dict[str, str], mend: str) -> None:
    with pytest.raises(SetupError, match="as rank 3 of 4, but MPI says rank 0 of 1") as caught:
        check_world(read_environment(environ), 0, 1)
    assert mend in str(caught.value)


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


def test_gpus_are_numbered_among_the_workers_of_each_host() -> None:
    plans = assign_roles(machines("a", "a", "b", "b", gpus=2), Placement("async"))
    assert [p.device for p in plans] == ["cpu", "cuda:0", "cuda:0", "cuda:1"]


def test_fewer_gpus_than_workers_is_an_error_unless_sharing_is_allowed() -> None:
    with pytest.raises(SetupError, match=r"a: 3 workers here.*among the 2 that it sees.*allow_sharing"):
        assign_roles(machines("a", "a", "a", gpus=2), Placement("ddp"))
    plans = assign_roles(machines("a", "a", "a", gpus=2), Placement("ddp", allow_sharing=True))
    assert [p.device for p in plans] == ["cuda:0", "cuda:1", "cuda:0"]


def test_gpus_that_the_launcher_dealt_out_are_each_index_0() -> None:
    dealt = [Machine("a", (0,), ("gpu-x",)), Machine("a", (1,), ("gpu-y",))]
    assert [p.device for p in assign_roles(dealt, Placement("ddp"))] == ["cuda:0", "cuda:0"]
    with pytest.raises(SetupError, match="finds no GPU of its own"):
        assign_roles([dealt[0], dealt[0]], Placement("ddp"))


def test_a_gpu_by_number() -> None:
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


def test_an_unknown_device() -> None:
    with pytest.raises(ConfigError, match="got 'tpu', expected auto, cpu, cuda or cuda:<index>"):
        assign_roles(machines("a"), Placement("single", device="tpu"))


def test_few_cores_are_the_workers_and_the_store_has_one_thread() -> None:
    assert [p.threads for p in assign_roles(machines("a", "a", "a", cores=2), Placement("async"))] == [1, 1, 1]
    assert [p.threads for p in assign_roles(machines("a", "a", "a", cores=5), Placement("async"))] == [1, 2, 2]


def test_plenty_of_cores_are_divided_among_store_and_workers() -> None:
    assert [p.threads for p in assign_roles(machines("a", "a", "a", cores=12), Placement("async"))] == [4, 4, 4]


def test_cores_are_divided_on_each_host_by_itself() -> None:
    assert [p.threads for p in assign_roles(machines("a", "b", "b", cores=8), Placement("async"))] == [8, 4, 4]


def test_cores_that_the_launcher_dealt_out_are_not_divided_again() -> None:
    dealt = [Machine("a", (0, 1), ()), Machine("a", (2, 3, 4), ())]
    assert [p.threads for p in assign_roles(dealt, Placement("ddp"))] == [2, 3]


def test_threads_that_are_given() -> None:
    assert [p.threads for p in assign_roles(machines("a", "a"), Placement("async", threads=5))] == [5, 5]


def test_the_share_of_a_worker_before_anything_is_started() -> None:
    assert share_cores(8, 2) == 4
    assert share_cores(2, 4) == 1
    assert share_cores(12, 2, beside_store=True) == 4
    assert share_cores(8, 2, beside_store=True) == 4


def test_a_plan_is_told_in_one_line() -> None:
    plans = assign_roles(machines("a", "b", gpus=1, cores=1), Placement("async"))
    assert [describe(p, "RMA") for p in plans] == [
        "rank 0 on a: store, cpu, 1 thread, RMA",
        "rank 1 on b: worker 0, cuda:0, 1 thread, RMA",
    ]


def test_a_machine_survives_the_exchange_among_ranks() -> None:
    assert Machine.from_text(machines("a", gpus=2)[0].to_text()) == machines("a", gpus=2)[0]
    assert this_machine().cores
