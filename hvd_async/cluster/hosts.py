"""Hosts and their slots, from a user or a batch system."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hvd_async.errors import ConfigError, SetupError


@dataclass(frozen=True)
class Host:
    """A machine on which ranks can run.

    `slots`: room on the host, in ranks if a user named it, in workers if a batch system did; None: not given. `cores`,
    `gpus`: cores and GPUs that belong to the job; None: unknown. `component`: number of the heterogeneous job's component,
    from 0.
    """

    name: str
    slots: int | None = None
    cores: int | None = None
    gpus: int | None = None
    component: int = 0


def parse_hosts(text: str, source: str) -> tuple[Host, ...]:
    """Return the hosts of a hostfile in any common form, or of `--hosts a:2,b:2`. `source` names the text in errors.

    Hosts are separated by lines or commas: `name`, `name:2` (MPICH, Horovod) or `name slots=2` (Open MPI); `#` starts a
    comment. The slots of a host that is named several times add up, as with all launchers. Raises `ConfigError`.
    """
    hosts: list[Host] = []
    for line in text.splitlines():
        for entry in line.partition("#")[0].split(","):
            if not entry.strip():
                continue
            found = re.fullmatch(r"([\w.-]+)(?:\s*:\s*(\d+)|\s+slots\s*=\s*(\d+).*)?", entry.strip())
            slots = int(found[2] or found[3] or 1) if found else 0
            if not found or slots < 1:
                raise ConfigError(f"{source}: got {entry.strip()!r}, expected NAME, NAME:SLOTS or NAME slots=SLOTS")
            hosts.append(Host(found[1], int(found[2] or found[3]) if found[2] or found[3] else None))
    if not hosts:
        raise ConfigError(f"{source}: names no host; expected NAME:SLOTS, one per line or separated by commas")
    return tuple(_merged(hosts))


def hosts_of_slots(names: Sequence[str], source: str) -> tuple[Host, ...]:
    """Return the hosts of a batch system's job, which names each of them once for each of its slots. `source` names the list in
    errors. Raises `SetupError`."""
    for name in names:
        if not re.fullmatch(r"[\w.-]+", name):
            raise SetupError(f"{source}: got {name!r}, expected the name of a host")
    if not names:
        raise SetupError(f"{source}: names no host, expected those of the job")
    return tuple(Host(name, slots) for name, slots in Counter(names).items())


def _merged(hosts: Sequence[Host]) -> Iterator[Host]:
    for name in dict.fromkeys(host.name for host in hosts):
        same = [host for host in hosts if host.name == name]
        yield same[0] if len(same) == 1 else Host(name, sum(host.slots or 1 for host in same))
