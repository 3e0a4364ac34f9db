"""Provenance: the record of a run's ranks."""

from __future__ import annotations

import json

import pytest
import torch

from hvd_async.cluster.batch_job import BatchJob
from hvd_async.cluster.topology import Machine, Placement, assign_roles
from hvd_async.runs.provenance import device_of, provenance_of, provenance_of_one_process, this_software


def test_provenance_holds_ranks_node_workers_and_differences_of_other_hosts() -> None:
    machines = [Machine(host, (0, 1), ()) for host in ("a", "a", "b", "b")]
    plans = assign_roles(machines, Placement("async", threads=1))
    software = [{"torch": "2", "cpu": "x"}] * 2 + [{"torch": "2", "cpu": "y"}] * 2
    provenance = provenance_of(plans, software)
    assert provenance.software == {"torch": "2", "cpu": "x"}
    assert provenance.node_workers == [[0], [1, 2]]
    assert [rank["worker"] for rank in provenance.ranks] == [None, 0, 1, 2]
    assert [rank["store_device"] for rank in provenance.ranks] == ["cpu", None, None, None]
    assert [rank.get("software") for rank in provenance.ranks] == [None, None, {"cpu": "y"}, {"cpu": "y"}]
    assert provenance.ranks[2] == {
        "rank": 2,
        "role": "worker",
        "host": "b",
        "device": "cpu",
        "threads": 1,
        "worker": 1,
        "store_device": None,
        "software": {"cpu": "y"},
    }


def test_provenance_is_plain_data() -> None:
    provenance = provenance_of_one_process([[0, 1], [2]])
    assert json.loads(json.dumps(provenance.to_json())) == provenance.to_json()
    assert provenance.node_workers == [[0, 1], [2]] and provenance.ranks[0]["threads"] == torch.get_num_threads()
    assert this_software()["torch"] == torch.__version__ and this_software()["cpu"]


def test_a_job_of_a_batch_system_is_recorded() -> None:
    plans = assign_roles([Machine("a", (0, 1), ())], Placement("single", threads=1))
    data = provenance_of(plans, [{}], BatchJob("123", 2, name="train")).to_json()
    absent = dict.fromkeys(("array_job", "array_task", "partition", "nodes", "cluster"))
    assert data["job"] == {"id": "123", "restarts": 2, "name": "train", **absent}
    assert provenance_of(plans, [{}]).to_json()["job"] is None


def test_a_rank_without_a_gpu_leaves_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("CUDA was asked"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"the GPU {device}")
    this_software.cache_clear()
    assert this_software()["gpu"] is None
    assert this_software("cuda:1")["gpu"] == "the GPU cuda:1"
    this_software.cache_clear()
    assert device_of("cpu", None) == device_of("cpu", "cpu") == "cpu"
    assert device_of("cuda:1", "cpu") == "cuda:1" and device_of("cpu", "cuda:0") == "cuda:0"
