"""Jobs of PBS and LSF, in environments made by hand after their documentation: neither was at hand."""

from __future__ import annotations

import pathlib

import pytest

from hvd_async.__main__ import main
from hvd_async.cluster.batch_job import BatchJob
from hvd_async.cluster.batch_system import detect_allocation, read_batch_job
from hvd_async.cluster.hosts import Host
from hvd_async.errors import SetupError

PBS = {"PBS_JOBID": "123.server", "PBS_JOBNAME": "train", "PBS_QUEUE": "workq", "PBS_SERVER": "server"}
LSF = {"LSB_JOBID": "77", "LSB_JOBNAME": "train", "LSB_QUEUE": "normal", "LSB_JOBINDEX": "0"}


def test_a_job_is_read() -> None:
    job = read_batch_job(PBS)
    assert job == BatchJob("123.server", 0, name="train", partition="workq", cluster="server")
    assert str(read_batch_job(LSF)) == "job 77 (train, partition normal)"
    assert read_batch_job({"PBS_JOBID": "", "LSB_JOBID": ""}) is None


@pytest.mark.parametrize(
    ("environ", "array", "task"),
    [
        ({"PBS_JOBID": "123[4].server", "PBS_ARRAY_INDEX": "4"}, "123[].server", "4"),
        ({"PBS_JOBID": "123[4].server", "PBS_ARRAY_INDEX": "4", "PBS_ARRAY_ID": "123[].s"}, "123[].s", "4"),
        ({"LSB_JOBID": "77", "LSB_JOBINDEX": "3"}, "77", "3"),
    ],
)
def test_a_task_of_an_array_is_read(environ: dict[str, str], array: str, task: str) -> None:
    job = read_batch_job(environ)
    assert job is not None and (job.array_job, job.array_task) == (array, task)


def test_the_slots_of_pbs_are_the_lines_of_its_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "nodes").write_text("n1.cluster\nn1.cluster\nn2.cluster\nn2.cluster\n")
    environ = {**PBS, "PBS_NODEFILE": str(tmp_path / "nodes")}
    assert detect_allocation(environ) == (Host("n1.cluster", 2), Host("n2.cluster", 2))
    assert detect_allocation({"PBS_NODEFILE": str(tmp_path / "nodes")}) is None  # a variable that stayed behind
    (tmp_path / "nodes").write_text("n1\n-oProxyCommand=x\n")
    with pytest.raises(SetupError, match=r"nodes: got '-oProxyCommand=x', expected the name of a host"):
        detect_allocation(environ)
    (tmp_path / "nodes").unlink()
    with pytest.raises(SetupError, match=r"PBS_NODEFILE: .*nodes: cannot be read: .* of job 123\.server"):
        detect_allocation(environ)


def test_the_slots_of_lsf_are_those_of_its_hosts() -> None:
    assert detect_allocation({**LSF, "LSB_MCPU_HOSTS": "a 4 b 2"}) == (Host("a", 4), Host("b", 2))
    assert detect_allocation({"LSB_MCPU_HOSTS": "a 4"}) is None
    for text in ("a", "a 0", "a b", "a 4 b"):
        with pytest.raises(SetupError, match=rf"LSB_MCPU_HOSTS: got '{text}', expected HOST SLOTS"):
            detect_allocation({**LSF, "LSB_MCPU_HOSTS": text})


def test_launch_uses_the_nodes_of_a_job(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(
        "output: x\ntask: {data: {folder: x}}\ntraining: {epochs: 1}\nstrategy: {kind: async}\n"
    )
    (tmp_path / "nodes").write_text("n1\nn1\nn2\nn2\n")
    monkeypatch.chdir(tmp_path)
    for name, value in {**PBS, "PBS_NODEFILE": str(tmp_path / "nodes")}.items():
        monkeypatch.setenv(name, value)
    command = ["launch", "run.yaml", "--dry-run", "--mpi", "openmpi"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "5 ranks on 2 hosts: 4 workers, 1 for the store alone" in text and "--host n1:3,n2:2" in text
    assert main([*command, "--launcher", "srun"]) == 4
    assert "expected to run in a Slurm job" in capsys.readouterr().err
    for name in [*PBS, "PBS_NODEFILE"]:
        monkeypatch.delenv(name)
    for name, value in {**LSF, "LSB_MCPU_HOSTS": "n1 2 n2 2"}.items():
        monkeypatch.setenv(name, value)
    assert main(command) == 0
    assert capsys.readouterr().out == text
