"""Runs that are submitted from Python: on this machine for real, to PBS and LSF by stand-ins. `tests/slurm` has a real Slurm."""

from __future__ import annotations

import os
import pathlib
import sys
import time

import pytest

import hvd_async
from hvd_async.cluster import lsf, pbs, slurm
from hvd_async.cluster.job_state import JobState
from hvd_async.errors import ConfigError, SetupError
from hvd_async.jobs.job import JobError, SubmittedJob, System
from hvd_async.tasks.translation.builtin.grammar import write_corpus
from tests.launcher.test_pbs_and_lsf_scripts import BSUB, QSUB
from tests.mpi.runs import summary_of, write_config
from tests.ranks import mpi_family

ROOT = pathlib.Path(__file__).parents[2]
needs_mpi = pytest.mark.skipif(mpi_family() is None, reason="no mpirun in this environment; see launch/setup.sh")

# The jobs of the stand-ins have ended when qsub and bsub return; these tell the exit status that is in the file `status`.
QSTAT = """#!/bin/bash
[[ "$1 $2 $3" == '-x -f 12.server' ]] || { echo "qstat: Unknown Job Id $3" >&2; exit 153; }
printf 'Job Id: 12.server\\n    Job_Name = train\\n    job_state = F\\n    Exit_status = %s\\n' "$(cat status)"
"""
BJOBS = """#!/bin/bash
[[ "$*" == '-noheader -o stat exit_reason 12' ]] || exit 255
[[ $(cat status) == 0 ]] && echo 'DONE       -' || echo 'EXIT       -'
"""


@pytest.fixture
def desk(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    for name, text in {"qsub": QSUB, "bsub": BSUB, "qstat": QSTAT, "bjobs": BJOBS}.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    write_corpus(tmp_path / "text", train=60, validation=8, test=8)
    training = {"weight": None, "updates": 4, "threads": 1}
    write_config(tmp_path, strategy={"kind": "async"}, training=training, validation={"every": None})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in [name for name in os.environ if name.startswith("OMP_")]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.mark.mpi
@needs_mpi
def test_a_local_job_trains_and_gives_its_summary(desk: pathlib.Path) -> None:
    job = hvd_async.submit("run.yaml", system="local", workers=2, overrides={"output": "my runs/é", "seed": 3})
    assert job.result(timeout=120) == summary_of(desk / "my runs" / "é")
    assert job.result()["updates"] == 4 and job.state == "completed" and job.result()["num_workers"] == 2
    assert job.log is not None and "launch: done" in job.log.read_text()
    job.cancel()  # too late
    assert job.state == "completed"
    with pytest.raises(SetupError, match="can only be followed by the program that has submitted it"):
        SubmittedJob("local", job.id, job.output).state  # noqa: B018  # it asks


@pytest.mark.mpi
@needs_mpi
def test_a_local_job_that_is_cancelled_saves_and_can_be_resumed(desk: pathlib.Path) -> None:
    job = hvd_async.submit("run.yaml", system="local", workers=1, overrides={"training.updates": 1_000_000})
    with pytest.raises(TimeoutError, match=r"still running after 0\.01 s"):
        job.wait(timeout=0.01)
    end = time.monotonic() + 100
    while not (desk / "run" / "events.jsonl").exists() or '"update"' not in (desk / "run" / "events.jsonl").read_text():
        assert time.monotonic() < end and job.state == "running", job.log and job.log.read_text()
        time.sleep(0.1)
    job.cancel()
    assert job.wait(timeout=100) == "cancelled"
    saved = summary_of(desk / "run")
    assert saved["status"] == "stopped"
    with pytest.raises(JobError, match=r"cancelled; see .*: launch: stopped by SIGTERM"):
        job.result()
    updates = saved["updates"] + 2
    again = hvd_async.submit("run.yaml", system="local", workers=1, resume=True, overrides={"training.updates": updates})
    assert again.result(timeout=100)["updates"] == updates


@pytest.mark.mpi
@needs_mpi
def test_a_failure_is_the_line_of_the_log(desk: pathlib.Path) -> None:
    (desk / "run").mkdir()
    (desk / "run" / "config.yaml").write_text("output: other\n")
    job = hvd_async.submit("run.yaml", system="local", workers=1)
    with pytest.raises(JobError, match=r"failed; see .*hvd-async-.*out: hvd-async: .*run"):
        job.result(timeout=100)


@pytest.mark.mpi
@needs_mpi
@pytest.mark.parametrize(("system", "number"), [("pbs", "12.server"), ("lsf", "12")])
def test_a_job_of_a_batch_system_gives_the_same(desk: pathlib.Path, system: System, number: str) -> None:
    wishes = {"nodes": 1, "workers_per_node": 2, "cpus_per_worker": 1, "time": "10"}
    job = hvd_async.submit(desk / "run.yaml", system=system, script="train-requeue", **wishes)  # type: ignore[arg-type]
    assert repr(job) == f"SubmittedJob({system!r}, {number!r}, {str(desk / 'run')!r})"
    assert job.result(timeout=60)["updates"] == 4
    (desk / "status").write_text("1\n")
    followed = SubmittedJob(system, number, "run")  # by another program
    assert followed.state == "failed"
    with pytest.raises(JobError, match="failed"):
        followed.result()
    (desk / "bin" / "qstat").write_text("#!/bin/bash\nexit 153\n")  # the system has forgotten the job: its run tells
    (desk / "bin" / "bjobs").write_text("#!/bin/bash\nexit 255\n")
    assert SubmittedJob(system, number, "run").state == "completed"


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        ({"nodes": 0}, ConfigError, "--nodes: got 0, expected 1 or more"),
        ({"node": 2}, ConfigError, "submit: got the flag node, expected one of `hvd-async launch`: nodes?"),
        ({"system": "sge"}, ConfigError, "system: got 'sge', expected one of local, slurm, pbs, lsf"),
        ({"system": "local", "script": "train-requeue"}, ConfigError, "expected none: no script is written"),
        ({"system": "local", "nodes": 2}, ConfigError, "--nodes has no effect without --slurm"),
        ({"overrides": {"trainin.epochs": 1}}, ConfigError, "trainin: unknown key"),
        ({"system": "pbs", "sbatch": ["-x"]}, ConfigError, "--sbatch: got --pbs"),
        ({"system": "slurm"}, SetupError, "sbatch: cannot be started"),
    ],
)
def test_what_launch_refuses_is_raised(
    desk: pathlib.Path, monkeypatch: pytest.MonkeyPatch, words: dict[str, object], kind: type[Exception], message: str
) -> None:
    monkeypatch.setenv("PATH", str(pathlib.Path(sys.executable).parent))
    with pytest.raises(kind) as raised:
        hvd_async.submit("run.yaml", **{"system": "slurm", **words})  # type: ignore[arg-type]
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert not (desk / "run").exists() and not list(desk.glob("*.out"))


@pytest.mark.parametrize(
    ("system", "printed", "number"),
    [
        (slurm, "sbatch: a remark\nSubmitted batch job 123\n", "123"),
        (slurm, "Submitted batch job 123 on cluster big\n", "123"),
        (pbs, "1234.pbs-01.site.org\n", "1234.pbs-01.site.org"),
        (pbs, "12[].server\n", "12[].server"),
        (lsf, "Job <45> is submitted to queue <gpu>.\n", "45"),
        *((system, "error: no such queue\n", None) for system in (slurm, pbs, lsf)),
    ],
)
def test_the_number_of_a_job_is_read(system: object, printed: str, number: str | None) -> None:
    assert system.parse_submitted(printed) == number  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("system", "printed", "state"),
    [
        (slurm, "JobId=1 JobName=x JobState=PENDING Reason=Resources", "pending"),
        (slurm, "JobId=1 JobName=x JobState=COMPLETING Reason=None", "running"),
        (slurm, "JobId=1 JobName=x JobState=NODE_FAIL Reason=None", "failed"),
        (slurm, "CANCELLED by 1000\n", "cancelled"),
        (slurm, "COMPLETED\n", "completed"),
        (slurm, "", None),
        (pbs, "Job Id: 1.s\n    job_state = Q\n", "pending"),
        (pbs, "Job Id: 1.s\n    job_state = R\n", "running"),
        (pbs, "Job Id: 1.s\n    job_state = F\n    Exit_status = 0\n", "completed"),
        (pbs, "Job Id: 1.s\n    job_state = F\n    Exit_status = 138\n", "failed"),
        (pbs, "Job Id: 1.s\n    job_state = C\n    exit_status = 0\n", "completed"),  # Torque
        (pbs, "Job Id: 1.s\n    job_state = F\n    Exit_status = 271\n", "cancelled"),
        (pbs, "", None),
        (lsf, "PEND       -\n", "pending"),
        (lsf, "SSUSP      -\n", "running"),
        (lsf, "DONE       -\n", "completed"),
        (lsf, "EXIT       TERM_OWNER: job killed by owner\n", "cancelled"),
        (lsf, "EXIT       TERM_RUNLIMIT: job killed after reaching LSF run time limit\n", "failed"),
        (lsf, "Job <1> is not found\n", None),
    ],
)
def test_states_are_read(system: object, printed: str, state: JobState | None) -> None:
    assert system.parse_state(printed) == state  # type: ignore[attr-defined]
