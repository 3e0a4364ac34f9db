"""What this machine has: which MPI, which PMI, which nodes of a job."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from typing import get_args

from hvd_async.cluster.hosts import Host, read_allocation
from hvd_async.errors import SetupError
from hvd_async.launcher.command_lines import MpiFamily

# A broken installation may hang rather than answer.
_TIMEOUT_SECONDS = 30.0
# What each MPI can be started with by srun, the better first.
_PMIS: Mapping[MpiFamily, tuple[str, ...]] = {"openmpi": ("pmix",), "mpich": ("pmi2",), "intel": ("pmi2", "pmix")}


def parse_mpi_family(version_text: str) -> MpiFamily | None:
    """The family of the mpirun that answers `--version` with this text, None for one we do not know."""
    if "intel(r) mpi" in version_text.lower():
        return "intel"
    if "open mpi" in version_text.lower() or "open-mpi" in version_text.lower():
        return "openmpi"
    return "mpich" if "hydra" in version_text.lower() or "mpich" in version_text.lower() else None


def detect_mpi(mpirun: str = "mpirun") -> MpiFamily:
    """Ask `mpirun` what it is. Raises `SetupError` where there is none, or one of another kind."""
    answer = _answer([mpirun, "--version"], "run launch/setup.sh, or put an MPI's mpirun on PATH")
    family = parse_mpi_family(answer)
    if family is None:
        first = answer.strip().partition("\n")[0]
        raise SetupError(f"{mpirun} --version: got {first!r}, expected one of {', '.join(get_args(MpiFamily))}")
    return family


def parse_pmis(answer: str) -> list[str]:
    """The plugins that `srun --mpi=list` names, in any of its forms."""
    # Old ones put `srun: ` before every line; new ones list versions of pmix in a line of their own.
    words = re.findall(r"\b(?:pmix(?:_v\d+)?|pmi2|openmpi|cray_shasta)\b", answer)
    return list(dict.fromkeys(words))


def choose_pmi(family: MpiFamily, available: Sequence[str]) -> str:
    """What `srun --mpi` is to be for an MPI of `family`. Raises `SetupError` where this Slurm has nothing for it.

    With the wrong one every process would be rank 0 of a world of its own, or die with a message about PMI.
    """
    for kind in _PMIS[family]:
        for name in available:
            if name.startswith(kind):
                return name
    found, needs = ", ".join(available) or "nothing that we know", " or ".join(_PMIS[family])
    raise SetupError(
        f"srun --mpi=list: got {found}, expected {needs}, which {family} needs; use --launcher mpirun, another MPI"
        " (launch/setup.sh --mpi), or name one with --pmi"
    )


def detect_pmi(family: MpiFamily, srun: str = "srun") -> str:
    """Ask `srun` what it has. Raises `SetupError`."""
    return choose_pmi(family, parse_pmis(_answer([srun, "--mpi=list"], "is Slurm installed here?")))


def detect_allocation(environ: Mapping[str, str]) -> tuple[Host, ...] | None:
    """See `read_allocation`; Slurm itself is asked what its short form of host names means."""
    return read_allocation(environ, _expand)


def _expand(text: str) -> list[str]:
    argv = ["scontrol", "show", "hostnames", text]
    done = _run(argv, "it must work where `launch` runs")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise SetupError(f"{' '.join(argv)}: exit status {done.returncode}: {last}; it must work where `launch` runs")
    return done.stdout.split()


def _answer(argv: Sequence[str], hint: str) -> str:
    done = _run(argv, hint)
    return done.stdout + done.stderr  # some say it on the one, some on the other


def _run(argv: Sequence[str], hint: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupError(f"{' '.join(argv)}: {error}; {hint}") from None
