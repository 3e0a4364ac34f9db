"""Hosts, as a user or a batch system names them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hvd_async.cluster.environment import numbers_of_nodes
from hvd_async.errors import SetupError


@dataclass(frozen=True)
class Host:
    """A machine on which ranks are to run.

    `slots`: what it has room for, in ranks where a user said so, in workers where a batch system did; None: nobody said.
    `cores`, `gpus`: of them those that are ours, None where that is not known. `component`: of a heterogeneous job, from 0.
    """

    name: str
    slots: int | None = None
    cores: int | None = None
    gpus: int | None = None
    component: int = 0


def parse_hosts(text: str, source: str) -> tuple[Host, ...]:
    """Hosts from a hostfile in any of the common forms, or from `--hosts a:2,b:2`; `source` names it in errors.

    One host a line or between commas: `name`, `name:2` (MPICH, Horovod) or `name slots=2` (Open MPI); `#` starts a comment. A
    host that is named again has so many slots more, as all launchers have it.
    """
    hosts: list[Host] = []
    for line in text.splitlines():
        for entry in line.partition("#")[0].split(","):
            if not entry.strip():
                continue
            found = re.fullmatch(r"([\w.-]+)(?:\s*:\s*(\d+)|\s+slots\s*=\s*(\d+).*)?", entry.strip())
            slots = int(found[2] or found[3] or 1) if found else 0
            if not found or slots < 1:
                raise SetupError(f"{source}: got {entry.strip()!r}, expected NAME, NAME:SLOTS or NAME slots=SLOTS")
            hosts.append(Host(found[1], int(found[2] or found[3]) if found[2] or found[3] else None))
    if not hosts:
        raise SetupError(f"{source}: names no host; expected NAME:SLOTS, one a line or between commas")
    return tuple(_merged(hosts))


def _merged(hosts: Sequence[Host]) -> Iterator[Host]:
    for name in dict.fromkeys(host.name for host in hosts):
        same = [host for host in hosts if host.name == name]
        yield same[0] if len(same) == 1 else Host(name, sum(host.slots or 1 for host in same))


def read_allocation(environ: Mapping[str, str], expand: Callable[[str], Sequence[str]]) -> tuple[Host, ...] | None:
    """The nodes of the Slurm job that this environment is in, None outside of any.

    `expand` turns Slurm's short form of a list of hosts (`node[1-4,7]`) into names. A host's slots are the tasks that the job
    asked for on it; a job that asked for none has none. Raises `SetupError` where a variable cannot be understood.
    """
    if "SLURM_JOB_ID" not in environ or "SLURM_JOB_NODELIST" not in environ:
        return None
    num_components = _whole_number("SLURM_HET_SIZE", environ.get("SLURM_HET_SIZE", "1"))
    hosts: list[Host] = []
    for component in range(num_components):
        suffix = f"_HET_GROUP_{component}" if num_components > 1 else ""
        nodes = f"SLURM_JOB_NODELIST{suffix}"
        if nodes not in environ:
            raise SetupError(
                f"environment variable {nodes}: got none, expected the nodes of a component of this job, from Slurm"
            )
        names = expand(environ[nodes])
        tasks = _per_node(environ, f"SLURM_TASKS_PER_NODE{suffix}", len(names))
        cores = _per_node(environ, f"SLURM_JOB_CPUS_PER_NODE{suffix}", len(names))
        # Without tasks that were asked for, Slurm puts the number of cores there.
        slots = tasks if f"SLURM_NTASKS{suffix}" in environ else None
        gpus = _gpus(environ, suffix, slots, len(names))
        for index, name in enumerate(names):
            slot, core, gpu = (None if numbers is None else numbers[index] for numbers in (slots, cores, gpus))
            hosts.append(Host(name, slot, core, gpu, component))
    return tuple(hosts)


def _gpus(environ: Mapping[str, str], suffix: str, tasks: Sequence[int] | None, num_nodes: int) -> Sequence[int] | None:
    """Of each node; None where Slurm does not say."""
    per_node = environ.get(f"SLURM_GPUS_PER_NODE{suffix}")
    if per_node:  # `4`, `a100:4`, and for several types `a100:2,v100:2`
        return [
            sum(_whole_number("SLURM_GPUS_PER_NODE", part.rpartition(":")[2]) for part in per_node.split(","))
        ] * num_nodes
    per_task = environ.get(f"SLURM_GPUS_PER_TASK{suffix}")
    if per_task and tasks is not None:
        return [_whole_number("SLURM_GPUS_PER_TASK", per_task.rpartition(":")[2]) * number for number in tasks]
    # Of the batch script's node alone, which is the first. With a number for the whole job others may have more or fewer.
    on_node = environ.get("SLURM_GPUS_ON_NODE")
    if suffix or on_node is None or ("SLURM_GPUS" in environ and num_nodes > 1):
        return None
    return [_whole_number("SLURM_GPUS_ON_NODE", on_node)] * num_nodes


def _per_node(environ: Mapping[str, str], name: str, num_nodes: int) -> list[int] | None:
    """A number for each node; None where the variable is not there."""
    text = environ.get(name)
    if text is None:
        return None
    numbers = numbers_of_nodes(text)
    if numbers is None:
        raise SetupError(f"environment variable {name}: got {text!r}, expected a form like 4(x2),3 from Slurm; unset it")
    if len(numbers) != num_nodes:
        raise SetupError(
            f"environment variable {name}: got {text!r} for {num_nodes} nodes, expected as many numbers; unset it"
        )
    return numbers


def _whole_number(name: str, text: str) -> int:
    if not text.isdecimal():
        raise SetupError(f"environment variable {name}: got {text!r}, expected a whole number from Slurm; unset it")
    return int(text)
