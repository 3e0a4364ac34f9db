"""The environment of a Slurm job."""

from __future__ import annotations

from hvd_async.cluster.batch_job import BatchJob
from hvd_async.cluster.batch_system import read_batch_job

JOB = {"SLURM_JOB_ID": "123", "SLURM_JOB_NAME": "train", "SLURM_JOB_PARTITION": "low", "SLURM_JOB_NODELIST": "n[1-4]"}


def test_outside_of_a_job_there_is_no_job() -> None:
    assert read_batch_job({}) is None
    assert read_batch_job({"SLURM_JOB_ID": "", "SLURM_JOB_NAME": "train", "SLURM_RESTART_COUNT": "1"}) is None


def test_the_first_start_of_a_job_is_read() -> None:
    job = read_batch_job({**JOB, "SLURM_CLUSTER_NAME": "big"})
    assert job == BatchJob("123", 0, name="train", partition="low", nodes="n[1-4]", cluster="big")
    assert str(job) == "job 123 (train, partition low)"


def test_a_restart_of_a_job_is_read() -> None:
    job = read_batch_job({**JOB, "SLURM_RESTART_COUNT": "2"})
    assert job is not None and job.restarts == 2
    assert str(job) == "job 123 (train, partition low), restart 2"


def test_a_task_of_an_array_is_read() -> None:
    job = read_batch_job({**JOB, "SLURM_JOB_ID": "125", "SLURM_ARRAY_JOB_ID": "123", "SLURM_ARRAY_TASK_ID": "0"})
    assert job is not None and (job.id, job.array_job, job.array_task) == ("125", "123", "0")
    assert str(job) == "job 125, task 0 of array 123 (train, partition low)"


def test_values_that_are_absent_or_not_numbers_are_left_out() -> None:
    assert read_batch_job({"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "", "SLURM_RESTART_COUNT": "?"}) == BatchJob("7", 0)
    assert str(BatchJob("7", 0)) == "job 7" and str(BatchJob("7", 0, partition="low")) == "job 7 (partition low)"
