"""Scripts for PBS and LSF: their text, and their execution by stand-ins.

Neither system was at hand. The stand-ins `qsub` and `bsub` do, after the systems' documentation, what a job needs: they read the
script from standard input, take its directives for the number of slots on this one host, set the variables of a job, and run the
script, PBS in the home folder. They print the line that the real commands print.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import signal
import socket
import subprocess
import time

import pytest

from hvd_async.__main__ import main
from hvd_async.errors import ConfigError
from hvd_async.launcher.batch_dialect import DIALECTS, SystemName, seconds_of
from tests.launcher.desk import make_desk
from tests.mpi.runs import summary_of
from tests.ranks import mpi_family

QSUB = """#!/bin/bash
script=$(mktemp "$TMPDIR/job.XXXX")
cat >"$script"
slots=$(sed -n 's/^#PBS -l select=1:.*:mpiprocs=\\([0-9]*\\):.*/\\1/p' "$script")
for ((k = 0; k < slots; k++)); do echo "$HOSTNAME"; done >"$script.nodes"
export PBS_JOBID=12.server PBS_JOBNAME=$(sed -n 's/^#PBS -N //p' "$script") PBS_O_WORKDIR=$PWD PBS_NODEFILE=$script.nodes
cd "$HOME"
bash "$script" >"$PBS_O_WORKDIR/job.log" 2>&1
echo $? >"$PBS_O_WORKDIR/status"
echo 12.server
"""
BSUB = """#!/bin/bash
script=$(mktemp "$TMPDIR/job.XXXX")
cat >"$script"
export LSB_JOBID=12 LSB_JOBNAME=$(sed -n 's/^#BSUB -J //p' "$script") LSB_QUEUE=normal LSB_JOBINDEX=0
export LSB_MCPU_HOSTS="$HOSTNAME $(sed -n 's/^#BSUB -n //p' "$script")"
bash "$script" >job.log 2>&1
echo $? >status
echo 'Job <12> is submitted to default queue <normal>.'
"""


@pytest.fixture
def desk(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder with a tiny run and its text, and the stand-ins on PATH."""
    make_desk(tmp_path, monkeypatch, {"qsub": QSUB, "bsub": BSUB})
    return tmp_path


def script(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(["launch", "run.yaml", *words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out.splitlines()


def directives(lines: list[str], prefix: str) -> list[str]:
    return [line.removeprefix(f"{prefix} ") for line in lines if line.startswith(f"{prefix} ")]


WISHES = ("--nodes", "3", "--workers-per-node", "2", "--cpus-per-worker", "5", "--gpus-per-node", "2", "--time", "1-2:30")


def test_the_same_flags_become_directives_of_pbs(desk: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = script(
        capsys, "--pbs", *WISHES, "--queue", "gpu", "--account", "project1", "--qsub=-W umask=022", "--job-name", "me"
    )
    assert directives(lines, "#PBS") == [
        "-N me",
        "-l select=3:ncpus=10:mpiprocs=2:ompthreads=5:ngpus=2",
        "-l place=scatter",
        "-l walltime=26:30:00",
        "-A project1",
        "-j oe",
        "-r n",
        "-q gpu",
        "-W umask=022",
    ]
    assert any(re.match(r"walltime=95400\s", line) for line in lines)


def test_the_same_flags_become_directives_of_lsf(desk: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (desk / "hvd_async").mkdir()
    (desk / "hvd_async" / "site.yaml").write_text("account: project1\nqueue: gpu\nbsub: [-sla gold]\n")
    wishes = ["a100:2" if k == WISHES.index("--gpus-per-node") + 1 else word for k, word in enumerate(WISHES)]
    lines = script(capsys, "--lsf", "train-requeue", *wishes, "--bsub=-x", "--set", "seed=2")
    assert directives(lines, "#BSUB") == [
        "-J hvd-async",
        "-n 30",
        '-R "span[ptile=10]"',
        '-gpu "num=2:mode=shared:gmodel=a100"',
        "-W 26:30",
        "-P project1",
        "-o %J.out",
        "-wa USR1",
        "-wt 2",
        "-r",
        '-Q "138"',
        "-q gpu",
        "-sla gold",
        "-x",
    ]
    assert any(line.startswith('options=(--set seed=2 --workers-per-node 2 "$@")') for line in lines)
    assert "--workers-per-node" not in "".join(script(capsys, "--lsf", "--workers", "3"))


@pytest.mark.mpi
@pytest.mark.skipif(mpi_family() is None, reason="no mpirun in this environment; see launch/setup.sh")
@pytest.mark.parametrize(("system", "kind"), [("pbs", "train"), ("lsf", "train-requeue")])
def test_a_submitted_script_trains_with_a_worker_for_each_slot(
    desk: pathlib.Path, capfd: pytest.CaptureFixture[str], system: str, kind: str
) -> None:
    wishes = (
        "--nodes",
        "1",
        "--workers-per-node",
        "2",
        "--cpus-per-worker",
        "3",
        "--set",
        f"output={desk}/my run",
        "--submit",
    )
    assert main(["launch", str(desk / "run.yaml"), f"--{system}", kind, *wishes]) == 0
    assert "12" in capfd.readouterr().out
    log = (desk / "job.log").read_text()
    assert (desk / "status").read_text() == "0\n", log
    summary = summary_of(desk / "my run")
    assert (summary["updates"], summary["num_workers"]) == (4, 2)
    assert "job 12" in log


@pytest.mark.mpi
@pytest.mark.skipif(mpi_family() is None, reason="no mpirun in this environment; see launch/setup.sh")
def test_a_job_of_pbs_saves_ahead_of_its_time_limit_and_resumes(
    desk: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # An endless run; the limit, of which all but some seconds are kept for saving, is set in the script, as a user would.
    words = ("--pbs", "train-requeue", "--nodes", "1", "--workers-per-node", "1", "--set", "training.updates=1000000")
    assert main(["launch", str(desk / "run.yaml"), *words]) == 0
    text = re.sub(r"walltime=86400(?=\s)", "walltime=150", capfd.readouterr().out)
    done = subprocess.run(["qsub"], input=text, text=True, capture_output=True, timeout=120, check=True)
    log = (desk / "job.log").read_text()
    assert (done.stdout, (desk / "status").read_text()) == ("12.server\n", "138\n"), log
    assert "job 12.server: saved ahead of its time limit; submit it again to resume" in log
    saved = summary_of(desk / "run")
    assert saved["status"] == "stopped" and saved["stop"]["signal"] == signal.SIGUSR1.name
    text = text.replace("training.updates=1000000", f"training.updates={saved['updates'] + 2}")
    subprocess.run(["qsub"], input=text, text=True, capture_output=True, timeout=120, check=True)
    assert summary_of(desk / "run")["updates"] == saved["updates"] + 2, (desk / "job.log").read_text()


@pytest.mark.mpi
@pytest.mark.skipif(mpi_family() is None, reason="no mpirun in this environment; see launch/setup.sh")
def test_a_job_of_lsf_saves_when_all_its_processes_get_the_signal(
    desk: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # LSF sends SIGUSR1 to the job's whole group of processes, and requeues a job that ends with status 138.
    words = ("--nodes", "1", "--workers-per-node", "1", "--cpus-per-worker", "1", "--set", "training.updates=1000000")
    assert main(["launch", str(desk / "run.yaml"), "--lsf", "train-requeue", *words]) == 0
    (desk / "job.lsf").write_text(text := capfd.readouterr().out)
    assert '#BSUB -Q "138"\n' in text
    environ = {**os.environ, "LSB_JOBID": "12", "LSB_MCPU_HOSTS": f"{socket.gethostname()} 1"}
    with (desk / "job.log").open("wb") as log:
        job = subprocess.Popen(["bash", "job.lsf"], env=environ, stdout=log, stderr=log, start_new_session=True)
    try:
        events, end = desk / "run" / "events.jsonl", time.monotonic() + 120
        while not (events.exists() and '"update"' in events.read_text()):
            assert job.poll() is None and time.monotonic() < end, (desk / "job.log").read_text()
            time.sleep(0.1)  # only the event log tells that the run has begun
        os.killpg(job.pid, signal.SIGUSR1)
        assert job.wait(timeout=100) == 138, (desk / "job.log").read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
    assert summary_of(desk / "run")["status"] == "stopped"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pbs", "--sbatch=-x"], "--sbatch: got --pbs, whose further options are those of --qsub; use that flag"),
        (["--slurm", "--qsub=-x"], "--qsub: got --slurm, whose further options are those of --sbatch"),
        (["--pbs", "--gpus-per-node", "a100:2"], "--gpus-per-node: got the type a100, for which PBS has no option"),
        (["--pbs", "--launcher", "srun"], "--launcher srun: got --pbs, expected --slurm with it"),
        (["--pbs", "--time", "2"], "--time: got 2, expected more than the 120 seconds"),
        (["--lsf", "--queue", "a b"], "--queue or --partition: got 'a b'"),
        (["--lsf", "--account", "a\nb"], "--account: got 'a\\nb'"),
        (["--lsf", "--bsub", "q"], "--bsub: got 'q', expected an option of bsub on one line, such as -q gpu"),
        (["--lsf", "--hosts", "a:2"], "--hosts a:2 has no effect with --lsf"),
        (["--lsf", "train-requeue", "--overwrite"], "--overwrite has no effect with --lsf train-requeue"),
        (["--queue", "a"], "--queue has no effect without --slurm, --pbs or --lsf"),
    ],
)
def test_what_a_script_could_not_hold_is_refused(
    desk: pathlib.Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["launch", "run.yaml", *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and not captured.out


@pytest.mark.parametrize(("system", "title"), [("pbs", "PBS"), ("lsf", "LSF")])
def test_submitting_without_the_system_is_reported_in_one_line(
    desk: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, system: SystemName, title: str
) -> None:
    monkeypatch.setenv("PATH", str(desk))
    assert main(["launch", "run.yaml", f"--{system}", "--submit"]) == 4
    assert (
        f"{DIALECTS[system].submit}: cannot be started: No such file or directory; --submit needs a machine with {title}"
        in (capsys.readouterr().err)
    )


@pytest.mark.parametrize(
    ("time", "seconds", "pbs", "lsf"),
    [
        ("90", 5400, "01:30:00", "1:30"),
        ("1:30", 90, "00:01:30", "0:02"),
        ("24:00:00", 86400, "24:00:00", "24:00"),
        ("2-3", 183600, "51:00:00", "51:00"),
        ("1-0:30", 88200, "24:30:00", "24:30"),
        ("1-0:30:01", 88201, "24:30:01", "24:31"),
        ("1:59:30", 7170, "01:59:30", "2:00"),
        ("59:30", 3570, "00:59:30", "1:00"),
    ],
)
def test_times_are_read_as_slurm_reads_them(time: str, seconds: int, pbs: str, lsf: str) -> None:
    assert (seconds_of(time), DIALECTS["pbs"].time(time), DIALECTS["lsf"].time(time)) == (seconds, pbs, lsf)
    assert DIALECTS["slurm"].time(time) == time
    with pytest.raises(ConfigError, match="--time: got"):
        seconds_of(f"{time}:0:0:0")
