"""Runs that are submitted from Python: on this machine for real, to PBS and LSF by stand-ins. `tests/slurm` has a real Slurm."""

from __future__ import annotations

import ast
import json
import os
import pathlib
import re
import sys
import threading
import time

import pytest

import hvd_async
from hvd_async.cluster import lsf, pbs, slurm
from hvd_async.cluster.job_state import JobState
from hvd_async.config import load_config
from hvd_async.errors import ConfigError, SetupError
from hvd_async.jobs.job import JobError, SubmittedJob, System
from hvd_async.jobs.submission import open_new
from tests.launcher.desk import make_desk
from tests.launcher.test_pbs_and_lsf_scripts import BSUB, QSUB
from tests.mpi.runs import summary_of
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
# What they say of a job that they do not know, and when they have no answer.
FORGOTTEN = """#!/bin/bash
case $0 in
    */qstat) echo "qstat: Unknown Job Id ${!#}" >&2; exit 153 ;;
    */bjobs) echo "Job <${!#}> is not found" >&2; exit 255 ;;
    */scontrol) echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1 ;;
    */sacct) exit 0 ;;
esac
"""
DOWN = """#!/bin/bash
case $0 in
    */qstat) echo 'qstat: cannot connect to server pbs (errno=111)' >&2; exit 255 ;;
    */bjobs) echo 'LSF is down. Please wait ...' >&2; exit 255 ;;
    */scontrol) echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1 ;;
    */sacct) echo 'sacct: error: Problem talking to the database: Connection refused' >&2; exit 1 ;;
esac
"""
COMMANDS = {"pbs": ("qstat",), "lsf": ("bjobs",), "slurm": ("scontrol", "sacct")}
SYSTEMS: tuple[System, ...] = ("pbs", "lsf", "slurm")


def answer(desk: pathlib.Path, system: System, text: str) -> None:
    """Let the commands that tell the state of a job be the program `text`, from now on."""
    for name in COMMANDS[system]:
        (desk / "new").write_text(text)
        (desk / "new").chmod(0o755)
        (desk / "new").rename(desk / "bin" / name)


@pytest.fixture
def desk(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    make_desk(tmp_path, monkeypatch, {"qsub": QSUB, "bsub": BSUB, "qstat": QSTAT, "bjobs": BJOBS})
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
        time.sleep(0.1)  # only the event log tells that the run has begun
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
    (desk / "bin" / "qstat").write_text(FORGOTTEN)  # the system has forgotten the job: its run tells
    (desk / "bin" / "bjobs").write_text(FORGOTTEN)
    assert SubmittedJob(system, number, "run").state == "completed"


SUBMIT = """#!/bin/bash
cat >/dev/null
case $0 in
    */qsub) echo 12.server ;;
    */bsub) echo 'Job <12> is submitted to default queue <normal>.' ;;
    */sbatch) echo 'Submitted batch job 12' ;;
esac
"""


@pytest.fixture
def queued(desk: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Batch systems that take a job and do not begin it, and the summary of an earlier run in the folder of the run."""
    for name in ("qsub", "bsub", "sbatch"):
        (desk / "bin" / name).write_text(SUBMIT)
        (desk / "bin" / name).chmod(0o755)
    (desk / "run").mkdir()
    write_summary(desk, "finished", None)
    monkeypatch.setattr("hvd_async.jobs.job._FIRST_SECONDS", 0.01)
    monkeypatch.setattr("hvd_async.jobs.job._UNKNOWN_SECONDS", 0.3)
    return desk


def write_summary(desk: pathlib.Path, status: str, job: str | None) -> None:
    text = json.dumps({"status": status, "updates": 1, "job": None if job is None else {"id": job}})
    (desk / "new.json").write_text(text)
    (desk / "new.json").replace(desk / "run" / "summary.json")


@pytest.mark.parametrize("begin", ["resume", "overwrite"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_summary_of_an_earlier_run_is_not_that_of_the_job(queued: pathlib.Path, system: System, begin: str) -> None:
    answer(queued, system, FORGOTTEN)
    job = hvd_async.submit("run.yaml", system=system, nodes=1, workers_per_node=1, **{begin: True})  # type: ignore[arg-type]
    with pytest.raises(SetupError, match=r"does not know this job, and its run has no summary\.json of this job"):
        job.state  # noqa: B018  # it asks
    with pytest.raises(SetupError, match="does not know this job"):
        job.result()
    write_summary(queued, "finished", "11.server")  # another job was in the queue before
    with pytest.raises(SetupError, match="does not know this job"):
        job.wait()
    write_summary(queued, "finished", "12")
    assert job.result()["job"] == {"id": "12"} and job.state == "completed"


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_job_that_another_program_follows_is_known_by_its_number(queued: pathlib.Path, system: System) -> None:
    answer(queued, system, FORGOTTEN)
    write_summary(queued, "failed", "11")
    with pytest.raises(SetupError, match="does not know this job"):
        SubmittedJob(system, 12, "run").wait()
    assert SubmittedJob(system, 11, "run").wait() == "failed"
    write_summary(queued, "finished", None)
    assert SubmittedJob(system, 12, "run").wait() == "completed"  # the run has not noted which job it was


@pytest.mark.parametrize("system", SYSTEMS)
def test_an_outage_of_the_batch_system_does_not_end_the_wait(queued: pathlib.Path, system: System) -> None:
    answer(queued, system, DOWN)
    job = SubmittedJob(system, 12, "run")
    with pytest.raises(SetupError, match=r"exit status \d+: .*(cannot connect|is down|Unable to contact)"):
        job.state  # noqa: B018  # it asks
    with pytest.warns(RuntimeWarning, match="waiting for an answer"), pytest.raises(TimeoutError, match="without an answer"):
        job.wait(timeout=0.5)
    found: list[JobState] = []
    waiting = threading.Thread(target=lambda: found.append(job.wait()))
    with pytest.warns(RuntimeWarning, match="waiting for an answer") as told:
        waiting.start()
        deadline = time.monotonic() + 60.0
        while not told.list and time.monotonic() < deadline:
            waiting.join(0.1)
        answer(queued, system, FORGOTTEN)
        write_summary(queued, "finished", "12")
        waiting.join(60)
    assert found == ["completed"]


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_wait_ends_in_time_while_the_job_is_not_known_or_the_system_hangs(
    queued: pathlib.Path, monkeypatch: pytest.MonkeyPatch, system: System
) -> None:
    monkeypatch.setattr("hvd_async.jobs.job._UNKNOWN_SECONDS", 1000.0)
    monkeypatch.setattr("hvd_async.jobs.job._SHORTEST_ANSWER_SECONDS", 0.1)
    (queued / "run" / "summary.json").unlink()
    answer(queued, system, FORGOTTEN)
    with pytest.raises(TimeoutError, match=r"still unknown after 0\.3 s"):
        SubmittedJob(system, 12, "run").wait(timeout=0.3)
    answer(queued, system, "#!/bin/bash\nexec sleep 1000\n")
    with pytest.warns(RuntimeWarning, match="timed out"), pytest.raises(TimeoutError, match="still without an answer"):
        SubmittedJob(system, 12, "run").wait(timeout=0.3)


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        ({"nodes": 0}, ConfigError, "--nodes: got 0, expected 1 or more"),
        ({"node": 2}, ConfigError, "submit: got the flag node, expected one of `hvd-async launch`; did you mean 'nodes'?"),
        ({"system": "sge"}, ConfigError, "system: got 'sge', expected one of local, slurm, pbs, lsf"),
        ({"system": "local", "script": "train-requeue"}, ConfigError, "expected none: no script is written"),
        ({"system": "local", "nodes": 2}, ConfigError, "--nodes has no effect without --slurm"),
        ({"overrides": {"trainin.epochs": 1}}, ConfigError, "trainin: unknown key"),
        ({"system": "pbs", "sbatch": ["-x"]}, ConfigError, "--sbatch: got --pbs"),
        ({"system": "slurm"}, SetupError, "sbatch: cannot be started"),
        ({"overrides": ["seed=2"]}, ConfigError, "overrides: got ['seed=2'], expected a dict of keys and values"),
        ({"overrides": {2: 3}}, ConfigError, "overrides: got {2: 3}, expected a dict"),
        ({"overrides": {"seed": object}}, ConfigError, "overrides: seed: got <class 'object'>, expected text, a number"),
        ({"overrides": {"seed": {2}}}, ConfigError, "overrides: seed: got {2}, expected text"),
        ({"sbatch": {"qos": "high"}}, ConfigError, "--sbatch: got {'qos': 'high'}, expected text, a number"),
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


def test_a_path_is_a_value(queued: pathlib.Path) -> None:
    places = {"output": queued / "é" / "run", "task.data.folder": pathlib.Path("text")}
    job = hvd_async.submit(queued / "run.yaml", system="lsf", nodes=1, workers_per_node=1, overrides=places)
    assert job.output == queued / "é" / "run"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("sge", "12", "run"), "system: got 'sge', expected one of local, slurm, pbs, lsf"),
        *(
            (("slurm", id, "run"), f"id: got {id!r}, expected the number of a job")
            for id in ("--help", "", "x", "1 2", True)
        ),
        (("slurm", None, "run"), "id: got None, expected the number of a job"),
        (("pbs", "12.server\n", "run"), "id: got"),
        (("pbs", "12", None), "output: got None, expected the folder of the run"),
        (("pbs", "12", "run", 3), "log: got 3, expected a file"),
    ],
)
def test_what_can_be_no_job_is_refused(words: tuple[object, ...], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        SubmittedJob(*words[:3], log=words[3] if len(words) > 3 else None)  # type: ignore[arg-type]
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("id", [12, "12", "12.server", "12[]", "12[].pbs-01.site.org", "12_3"])
def test_the_number_of_a_job_is_text(id: str | int) -> None:
    assert SubmittedJob("pbs", id, "run").id == str(id)


def test_logs_of_threads_have_names_of_their_own(tmp_path: pathlib.Path) -> None:
    start = threading.Barrier(8)
    found: list[pathlib.Path] = []

    def work() -> None:
        for _ in range(20):
            start.wait()
            file, path = open_new(tmp_path / "hvd-async-1.out")
            file.close()
            found.append(path)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = {"hvd-async-1.out", *(f"hvd-async-1.{number}.out" for number in range(2, 161))}
    assert len(found) == 160 and {path.name for path in found} == names


@pytest.mark.parametrize(
    ("system", "names"),
    [("slurm", ("hvd-async-12.out", "me-12.out")), ("pbs", ("hvd-async.o12", "me.o12")), ("lsf", ("12.out", "12.out"))],
)
def test_the_log_has_the_name_of_the_job(queued: pathlib.Path, system: System, names: tuple[str, str]) -> None:
    wishes = {"system": system, "nodes": 1, "workers_per_node": 1}
    logs = [hvd_async.submit("run.yaml", **wishes, job_name=name).log for name in (None, "me")]  # type: ignore[arg-type]
    assert logs == [queued / name for name in names]


def test_the_example_of_the_documentation_has_a_configuration() -> None:
    text = (ROOT / "docs" / "clusters.md").read_text()
    call = next(
        node
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "hvd_async.submit"
    )
    given = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
    inline = re.search(r"`overrides`: .*?`({.*?})`", hvd_async.submit.__doc__ or "", re.DOTALL)
    assert inline is not None
    for overrides in (given["overrides"], ast.literal_eval(inline[1])):
        assert overrides
        pairs = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
        load_config(ROOT / ast.literal_eval(call.args[0]), pairs)


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


@pytest.mark.parametrize("status", [1, 137, 265, 271])
def test_a_job_of_pbs_is_cancelled_by_the_program_that_cancels_it(queued: pathlib.Path, status: int) -> None:
    (queued / "status").write_text(f"{status}\n")
    assert SubmittedJob("pbs", "12.server", "run").state == "failed"
    job = hvd_async.submit("run.yaml", system="pbs", nodes=1, workers_per_node=1)
    answer(queued, "pbs", "#!/bin/bash\nprintf 'Job Id: 12.server\\n    job_state = R\\n'\n")
    (queued / "bin" / "qdel").write_text("#!/bin/bash\n[[ $* == 12.server ]]\n")
    (queued / "bin" / "qdel").chmod(0o755)
    job.cancel()
    assert job.state == "running"
    answer(queued, "pbs", QSTAT)
    assert job.state == "cancelled"


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
        *((pbs, f"Job Id: 1.s\n    job_state = F\n    Exit_status = {status}\n", "failed") for status in (137, 265, 271)),
        (pbs, "Job Id: 1.s\n    job_state = F\n    Exit_status = 143\n", "cancelled"),  # `launch` has saved
        (pbs, "Job Id: 1.s\n    job_state = F\n", "cancelled"),  # deleted before it ran
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
