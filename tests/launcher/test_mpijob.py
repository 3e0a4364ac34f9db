"""The example of an MPIJob for Kubernetes: its fields are those of the operator, and its command fits its pods.

The fields are those of kubeflow/mpi-operator v2beta1 (manifests/base/kubeflow.org_mpijobs.yaml, July 2026), as far as the example
uses them; the whole file was checked with the whole schema once.
"""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import yaml

from hvd_async.__main__ import main
from tests.mpi.runs import write_config

ROOT = pathlib.Path(__file__).parents[2]
JOB: dict[str, Any] = yaml.safe_load((ROOT / "launch" / "containers" / "mpijob.yaml").read_text())

# Names of keys, and below them a type, a table of the same kind, or a list with the table of its items. A star: any name.
_QUANTITIES = {"*": str}
_CONTAINER = {
    "name": str,
    "image": str,
    "workingDir": str,
    "command": [str],
    "args": [str],
    "env": [{"name": str, "value": str}],
    "resources": {"limits": _QUANTITIES, "requests": _QUANTITIES},
    "volumeMounts": [{"name": str, "mountPath": str, "readOnly": bool}],
}
_VOLUME = {
    "name": str,
    "persistentVolumeClaim": {"claimName": str, "readOnly": bool},
    "emptyDir": {"medium": str, "sizeLimit": str},
}
_REPLICAS = {"replicas": int, "restartPolicy": str, "template": {"spec": {"containers": [_CONTAINER], "volumes": [_VOLUME]}}}
FIELDS = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str, "namespace": str, "labels": {"*": str}},
    "spec": {
        "mpiImplementation": str,
        "slotsPerWorker": int,
        "runLauncherAsWorker": bool,
        "launcherCreationPolicy": str,
        "sshAuthMountPath": str,
        "runPolicy": {
            "cleanPodPolicy": str,
            "ttlSecondsAfterFinished": int,
            "activeDeadlineSeconds": int,
            "backoffLimit": int,
            "suspend": bool,
        },
        "mpiReplicaSpecs": {"Launcher": _REPLICAS, "Worker": _REPLICAS},
    },
}
CHOICES = {
    "mpiImplementation": {"OpenMPI", "Intel", "MPICH"},
    "launcherCreationPolicy": {"AtStartup", "WaitForWorkersReady"},
    "cleanPodPolicy": {"All", "Running", "None"},
    "restartPolicy": {"Always", "OnFailure", "Never", "ExitCode"},
}


def faults(found: Any, fields: Any, place: str = "job") -> list[str]:
    """Return a line for each key or value that the operator does not know."""
    if isinstance(fields, list):
        if not isinstance(found, list):
            return [f"{place}: no list"]
        return [fault for k, item in enumerate(found) for fault in faults(item, fields[0], f"{place}[{k}]")]
    if isinstance(fields, dict):
        if not isinstance(found, dict):
            return [f"{place}: no table"]
        lines = [f"{place}.{key}: unknown" for key in found if key not in fields and "*" not in fields]
        for key in found.keys() & fields.keys() if "*" not in fields else found.keys():
            lines += faults(found[key], fields.get(key, fields.get("*")), f"{place}.{key}")
        return lines
    name = place.rpartition(".")[2]
    if not isinstance(found, fields) or (fields is int and isinstance(found, bool)):
        return [f"{place}: got {found!r}, expected {fields.__name__}"]
    return [f"{place}: got {found!r}"] if found not in CHOICES.get(name, {found}) else []


def spec_of(role: str) -> dict[str, Any]:
    """Return the pods of a role."""
    spec: dict[str, Any] = JOB["spec"]["mpiReplicaSpecs"][role]["template"]["spec"]
    return spec


def test_every_field_is_one_of_the_operator() -> None:
    assert faults(JOB, FIELDS) == []
    assert (JOB["apiVersion"], JOB["kind"]) == ("kubeflow.org/v2beta1", "MPIJob")
    wrong = {**JOB, "spec": {**JOB["spec"], "slotsPerWorker": "3", "slots": 1, "mpiImplementation": "openmpi"}}
    assert len(faults(wrong, FIELDS)) == 3  # the check finds faults


def test_every_volume_that_is_mounted_is_there() -> None:
    for role in ("Launcher", "Worker"):
        spec = spec_of(role)
        mounted = {mount["name"] for container in spec["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_the_command_gives_each_pod_a_worker_for_each_gpu(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [launcher], [worker] = spec_of("Launcher")["containers"], spec_of("Worker")["containers"]
    num_pods, slots = JOB["spec"]["mpiReplicaSpecs"]["Worker"]["replicas"], JOB["spec"]["slotsPerWorker"]
    name = JOB["metadata"]["name"]
    # As the operator writes /etc/mpi/hostfile.
    pods = [f"{name}-worker-{k}.{name}.default.svc" for k in range(num_pods)]
    (tmp_path / "hostfile").write_text("".join(f"{pod} slots={slots}\n" for pod in pods))
    write_config(tmp_path, strategy={"kind": "async"})
    places = {"hvd-async": None, "configs/multi30k.yaml": "run.yaml", "/etc/mpi/hostfile": "hostfile"}
    words = [places.get(word, word) for word in [*launcher["command"], *launcher["args"]]]
    monkeypatch.chdir(tmp_path)
    assert main([*filter(None, words), "--dry-run", "--mpi", "openmpi"]) == 0
    ranks = [line for line in capsys.readouterr().out.splitlines() if line.startswith("# rank ")]
    gpus = int(worker["resources"]["limits"]["nvidia.com/gpu"])
    for number, pod in enumerate(pods):
        roles = [line.partition(": ")[2].split(" ")[0].rstrip(",") for line in ranks if f" on {pod}:" in line]
        assert roles == ["store"] * (number == 0) + ["worker"] * gpus
