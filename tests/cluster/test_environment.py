"""The environment set by launchers, recorded from real jobs: Open MPI 5.0.11, MPICH 5.0.2, Intel MPI 2021.18, Slurm
22.05; two tasks on each of two nodes, rank 3.
"""

from __future__ import annotations

import pytest

from hvd_async.cluster.environment import check_home, check_launcher, check_world, read_environment
from hvd_async.cluster.slurm import SRUN
from hvd_async.errors import SetupError

OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-node1-22771@1",
    "PMIX_RANK": "3",
    "PRTE_LAUNCHED": "1",
}
MPICH = {
    "PMI_RANK": "3",
    "PMI_SIZE": "4",
    "PMI_FD": "6",
    "PMI_HOSTNAME": "node2",
    "MPI_LOCALRANKID": "1",
    "MPI_LOCALNRANKS": "2",
}
INTEL_MPI = {
    "PMI_RANK": "3",
    "PMI_SIZE": "4",
    "PMI_FD": "6",
    "MPI_LOCALRANKID": "1",
    "MPI_LOCALNRANKS": "2",
    "HYDRA_BSTRAP_LAUNCHER": "slurm",
    "I_MPI_HYDRA_UUID": "16600000-f851-7c91-ca60-0600fb1e3b68",
    "I_MPI_MPIRUN": "mpirun",
}
SLURM_STEP = {
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "9",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_ID": "0",
}
PMI2 = {**SLURM_STEP, "SLURM_MPI_TYPE": "pmi2", "PMI_RANK": "3", "PMI_SIZE": "4", "PMI_FD": "13", "PMI_JOBID": "2.0"}
PMIX = {**SLURM_STEP, "SLURM_MPI_TYPE": "pmix", "PMIX_NAMESPACE": "slurm.pmix.3.0", "PMIX_RANK": "3"}
GLOO = {"HOROVOD_RANK": "3", "HOROVOD_SIZE": "4", "HOROVOD_LOCAL_RANK": "1", "HOROVOD_LOCAL_SIZE": "2"}
LIKE_TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
TORCHRUN = {**LIKE_TORCHRUN, "TORCHELASTIC_RUN_ID": "none"}
# The environment of the proxy that an mpirun inside a job starts on each node through srun.
PROXY = {
    **SLURM_STEP,
    "SLURM_PROCID": "1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_LOCALID": "0",
}
PROXY_PMI2 = {**PROXY, "SLURM_MPI_TYPE": "pmi2", "PMI_RANK": "1", "PMI_SIZE": "2", "PMI_JOBID": "27.0"}
PROXY_PMIX = {**PROXY, "SLURM_MPI_TYPE": "pmix", "PMIX_NAMESPACE": "slurm.pmix.28.0", "PMIX_RANK": "1"}

LIBRARIES = {
    "Open MPI": "Open MPI v5.0.11, package: Open MPI user@localhost Distribution, ident: 5.0.11, repo rev: v5.0.11\0",
    "MPICH": "MPICH Version:      5.0.2\nMPICH Release date: Fri Sep 25 20:00:00 CDT 2026\nMPICH ABI:          17:0:5\n",
    "Intel MPI": "Intel(R) MPI Library 2021.18.1 for Linux* OS\n\0",
}


def launched_rank(environ: dict[str, str]) -> tuple[str, int, int, int | None, int | None]:
    launched = read_environment(environ)
    assert launched is not None
    return str(launched), launched.rank, launched.size, launched.local_rank, launched.local_size


@pytest.mark.parametrize(
    ("name", "environ"),
    [
        ("Open MPI", OPEN_MPI),
        ("MPICH", MPICH),
        ("Intel MPI", INTEL_MPI),
        ("horovodrun --gloo", GLOO),
        ("srun without --mpi", SLURM_STEP),
        ("srun --mpi=pmi2", PMI2),
        ("srun --mpi=pmix", PMIX),
        ("torchrun", TORCHRUN),
        ("a program that sets RANK and WORLD_SIZE", LIKE_TORCHRUN),
    ],
)
def test_each_launcher_is_read(name: str, environ: dict[str, str]) -> None:
    assert launched_rank(environ) == (name, 3, 4, 1, 2)


@pytest.mark.parametrize("proxy", [PROXY, PROXY_PMI2, PROXY_PMIX])
@pytest.mark.parametrize(("name", "own"), [("Open MPI", OPEN_MPI), ("MPICH", MPICH), ("Intel MPI", INTEL_MPI)])
def test_mpirun_inside_a_slurm_job_counts_before_slurm(name: str, own: dict[str, str], proxy: dict[str, str]) -> None:
    assert launched_rank({**proxy, **own}) == (name, 3, 4, 1, 2)


@pytest.mark.parametrize("tasks", ["1", "2"])  # srun -n1 torchrun, or one agent of torchrun on each of two nodes
@pytest.mark.parametrize("outer", [PROXY, PROXY_PMI2, PROXY_PMIX, OPEN_MPI, MPICH, INTEL_MPI, GLOO])
def test_torchrun_counts_before_what_has_started_its_agents(outer: dict[str, str], tasks: str) -> None:
    step = {**outer, "SLURM_STEP_NUM_TASKS": tasks, "SLURM_PROCID": str(int(tasks) - 1)}
    assert launched_rank({**step, **TORCHRUN}) == ("torchrun", 3, 4, 1, 2)


@pytest.mark.parametrize(
    ("name", "own"), [("Open MPI", OPEN_MPI), ("MPICH", MPICH), ("Intel MPI", INTEL_MPI), ("srun without --mpi", SLURM_STEP)]
)
def test_variables_that_are_left_over_from_torch_count_last(name: str, own: dict[str, str]) -> None:
    assert launched_rank({**own, **LIKE_TORCHRUN, "RANK": "0", "WORLD_SIZE": "9"}) == (name, 3, 4, 1, 2)


def test_pmi_alone_is_read_from_unknown_launchers() -> None:
    assert launched_rank({"PMI_RANK": "3", "PMI_SIZE": "4"}) == ("a launcher with PMI", 3, 4, None, None)


@pytest.mark.parametrize(
    ("tasks", "node", "expected"),
    [("4(x2),3", "2", 3), ("4(x2),3", "1", 4), ("2", "0", 2), ("2", "1", None), ("", "0", None)],
)
def test_slurm_lists_the_tasks_of_all_nodes(tasks: str, node: str, expected: int | None) -> None:
    assert launched_rank({**SLURM_STEP, "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": node})[-1] == expected


@pytest.mark.parametrize("step", [{}, {"SLURM_STEP_ID": "4294967291"}, {"SLURM_STEP_ID": "4294967290"}])
def test_a_slurm_batch_script_or_shell_is_not_a_rank(step: dict[str, str]) -> None:
    batch = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0", "SLURM_TASKS_PER_NODE": "2(x2)"}
    assert read_environment({**batch, **step}) is None


def test_without_a_launcher_there_is_none() -> None:
    assert read_environment({"HOME": "/root", "PMI_RANK": "0"}) is None


def test_a_launchers_variable_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(SetupError, match="OMPI_COMM_WORLD_RANK: got 'x', expected a whole number"):
        read_environment({**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "x"})


def test_a_world_that_agrees_passes() -> None:
    for environ in (OPEN_MPI, MPICH, INTEL_MPI, SLURM_STEP, PMI2, PMIX):
        check_world(read_environment(environ), 3, 4, LIBRARIES["Open MPI"])
    check_world(None, 0, 1)


def refusal(environ: dict[str, str], library: str = "") -> str:
    with pytest.raises(SetupError) as caught:
        check_world(read_environment(environ), 0, 1, library)
    return str(caught.value)


@pytest.mark.parametrize(
    ("environ", "hint"),
    [
        (OPEN_MPI, "mpirun of the MPI that mpi4py loads"),
        (INTEL_MPI, "mpirun of the MPI that mpi4py loads"),
        (TORCHRUN, "torchrun starts no MPI"),
        (LIKE_TORCHRUN, "starts no MPI"),
    ],
)
def test_singletons_are_refused_with_reason_and_hint(environ: dict[str, str], hint: str) -> None:
    message = refusal(environ)
    assert "as rank 3 of 4, but MPI says rank 0 of 1" in message and hint in message


@pytest.mark.parametrize(
    ("environ", "library", "flag"),
    [
        (SLURM_STEP, "Open MPI", "pmix"),
        (PMI2, "Open MPI", "pmix"),
        (SLURM_STEP, "MPICH", "pmi2"),
        (SLURM_STEP, "Intel MPI", "pmi2"),
    ],
)
def test_srun_is_refused_with_the_flag_that_the_mpi_needs(environ: dict[str, str], library: str, flag: str) -> None:
    message = refusal(environ, LIBRARIES[library])
    assert message.endswith(f"; use srun --mpi={flag}; `srun --mpi=list` shows what this Slurm has")


def test_a_refusal_names_launcher_ranks_library_and_hint() -> None:
    assert refusal(PMI2, LIBRARIES["Open MPI"]) == (
        "srun --mpi=pmi2 started this process as rank 3 of 4, but MPI (Open MPI v5.0.11) says rank 0 of 1: the MPI library and"
        " the launcher do not belong together; use srun --mpi=pmix; `srun --mpi=list` shows what this Slurm has"
    )
    assert "but MPI (MPICH 5.0.2) says rank 0 of 1" in refusal(SLURM_STEP, LIBRARIES["MPICH"])


def test_if_the_right_flag_did_not_help_the_hint_is_mpirun() -> None:
    assert "use the mpirun of this MPI inside the job" in refusal(PMIX, LIBRARIES["Open MPI"])


def test_the_hint_for_an_unknown_mpi_lists_all_flags() -> None:
    assert refusal(SLURM_STEP, "MVAPICH 4.0").count("--mpi=") == 3 and SRUN.hint in refusal(SLURM_STEP, "MVAPICH 4.0")


def test_mpich_without_pmix_is_refused_before_it_could_end_the_process() -> None:
    with pytest.raises(SetupError) as caught:
        check_launcher(read_environment(PMIX), LIBRARIES["MPICH"], has_pmix=False)
    assert str(caught.value) == (
        "srun --mpi=pmix started this process as rank 3 of 4, but MPI (MPICH 5.0.2) is built without PMIx; use srun --mpi=pmi2;"
        " `srun --mpi=list` shows what this Slurm has"
    )


@pytest.mark.parametrize(
    ("environ", "library", "has_pmix"),
    [
        (PMIX, "MPICH", True),
        (PMIX, "Open MPI", True),
        (PMIX, "Intel MPI", False),
        (PMI2, "MPICH", False),
        ({**PROXY_PMIX, **MPICH}, "MPICH", False),
        ({}, "MPICH", False),
    ],
)
def test_launchers_that_work_are_accepted(environ: dict[str, str], library: str, has_pmix: bool) -> None:
    check_launcher(read_environment(environ), LIBRARIES[library], has_pmix)


@pytest.mark.parametrize("environ", [{}, {"HOME": ""}])
def test_open_mpi_without_a_home_is_reported_in_one_line(environ: dict[str, str]) -> None:
    with pytest.raises(
        SetupError, match=r"^HOME: got none, expected a folder; Open MPI does not start without one: export HOME=/tmp"
    ):
        check_home(environ)
    check_home({"HOME": "/root"})
