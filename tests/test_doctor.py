"""The preflight checks: their verdicts, and that they run alone, under mpirun and across hosts without hanging."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Mapping

import pytest

from hvd_async.doctor import (
    Finding,
    Mpirun,
    Verdict,
    _check_kernels,
    _check_packages,
    format_findings,
    judge_contention,
    judge_library,
    judge_measurements,
    judge_mpirun,
)
from hvd_async.system.openmp import Contention
from hvd_async.transport.probe_result import Bandwidth, OneSidedProgress, ProbeResult
from hvd_async.vectors import arithmetic
from tests.ranks import mpi_family, mpirun_path, run_limited, run_ranks

RUN = "from hvd_async.doctor import main; raise SystemExit(main(as_json={}))"
AT_ONCE = OneSidedProgress("shared", 0.001, 0.45)
WAITED = OneSidedProgress("created", 0.449, 0.45)
FAST = Bandwidth(push=8.0, pull=9.0, memcpy=10.0)


def environment(**changes: str) -> dict[str, str]:
    """Return an environment without a launcher's variables, in which the mpirun of this Python is on PATH."""
    launcher = ("OMPI_", "PMI", "SLURM_", "HOROVOD_", "MPI_LOCAL")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(launcher)}
    return {**environ, "PATH": on_path(), **changes}


def on_path() -> str:
    folder = str(pathlib.Path(mpirun_path() or "/nowhere").parent)
    return os.pathsep.join([folder, os.environ["PATH"]])


def findings_in(output: str) -> Mapping[str, Finding]:
    return {fields["name"]: Finding(**fields) for fields in json.loads(output)}


def verdicts(findings: list[Finding]) -> dict[str, str]:
    return {finding.name: finding.verdict for finding in findings}


@pytest.mark.mpi
def test_alone_it_prints_how_to_measure() -> None:
    done = run_limited([sys.executable, "-c", RUN.format(True)], environment(), timeout=90).check()
    findings = findings_in(done.stdout)
    assert {
        name: findings[name].verdict for name in ("Python", "torch", "mpi4py", "mpirun", "MPI", "MPI world")
    } == dict.fromkeys(("Python", "torch", "mpi4py", "mpirun", "MPI", "MPI world"), "ok")
    assert "mpirun -np 2 hvd-async doctor" in findings["MPI world"].detail
    assert "bandwidth" not in findings


@pytest.mark.mpi
def test_under_mpirun_it_measures_one_sided_communication() -> None:
    done = run_ranks(3, ["-c", RUN.format(True)], timeout=90, env={"PATH": on_path()}).check()
    findings = findings_in(done.stdout)
    assert findings["MPI world"].detail == "3 ranks"
    assert findings["shared window"].verdict == "ok" and "waits" not in findings["shared window"].detail
    assert findings["created window"].verdict == "ok"
    assert findings["bandwidth"].detail.startswith("within a host")
    assert findings["devices"].detail.count("\n") == 3


@pytest.mark.slow
@pytest.mark.mpi
def test_across_hosts_it_measures_the_network(two_hosts: tuple[str, str]) -> None:
    done = run_ranks(2, ["-c", RUN.format(True)], timeout=90, env={"PATH": on_path()}, hosts=two_hosts).check()
    findings = findings_in(done.stdout)
    assert findings["bandwidth"].detail.startswith("between hosts")
    assert "shared window" not in findings
    assert all(f"rank {rank} on {host}" in findings["devices"].detail for rank, host in enumerate(two_hosts))


@pytest.mark.mpi
def test_a_rank_that_mpi_takes_for_the_only_one_is_detected() -> None:
    # Variables of the other family: with its own variables, the library itself would expect 2 ranks.
    others = {"openmpi": ("PMI_RANK", "PMI_SIZE"), "mpich": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")}
    rank, size = others[mpi_family() or "openmpi"]
    done = run_limited([sys.executable, "-c", RUN.format(False)], environment(**{rank: "0", size: "2"}), timeout=90)
    assert done.returncode == 4, str(done)
    assert re.search(r"as rank 0 of 2, but MPI \(.*\) says rank 0 of 1", done.stdout), str(done)


def test_the_watchdog_ends_a_check_that_never_answers() -> None:
    stuck = (
        "import threading\n"
        "from hvd_async.doctor import Watchdog\n"
        "with Watchdog(0.2) as watchdog:\n"
        "    watchdog.enter('waiting for nothing')\n"
        "    threading.Event().wait()\n"
    )
    done = subprocess.run([sys.executable, "-c", stuck], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (4, "doctor: no answer within 0 s while waiting for nothing\n")


def test_an_mpi_that_behaves_as_expected_is_ok() -> None:
    findings = judge_measurements(ProbeResult(True, (AT_ONCE, WAITED), FAST))
    assert verdicts(findings) == {"shared window": "ok", "created window": "ok", "bandwidth": "ok"}
    assert findings[1].detail.endswith("as expected; while the store computes, its progress thread answers")
    assert findings[2].detail == "within a host: push 8.0, pull 9.0, memcpy 10.0 GB/s"


def test_a_shared_window_that_waits_for_its_target_is_refused() -> None:
    findings = judge_measurements(ProbeResult(True, (OneSidedProgress("shared", 0.45, 0.45),), FAST))
    assert verdicts(findings) == {"shared window": "fail", "bandwidth": "ok"}


@pytest.mark.parametrize(("same_host", "push"), [(True, 2.0), (False, 0.05)])
def test_slow_transfers_are_a_warning(same_host: bool, push: float) -> None:
    finding = judge_measurements(ProbeResult(same_host, (), Bandwidth(push, 9.0, 10.0)))[0]
    assert finding.verdict == "warn" and finding.hint


def test_open_mpi_before_5_is_refused() -> None:
    assert judge_library("Open MPI v4.1.4").verdict == "fail"
    assert judge_library("Open MPI v5.0.11").verdict == "ok"
    assert judge_library("MPICH Version: 5.0.2").verdict == "ok"


@pytest.mark.parametrize(
    ("mpirun", "verdict"),
    [
        (Mpirun("/a/mpirun", "mpirun (Open MPI) 5.0.11\n"), "ok"),
        (Mpirun("/a/mpirun", "mpirun (Open MPI) 4.1.4\n"), "warn"),
        (Mpirun("/a/mpirun", "HYDRA build details:\n Version: 5.0.11\n"), "warn"),
        (Mpirun("/a/mpirun", "?"), "warn"),
        (Mpirun(None), "warn"),
    ],
)
def test_an_mpirun_of_another_mpi_is_a_warning(mpirun: Mpirun, verdict: str) -> None:
    assert judge_mpirun(mpirun, "Open MPI v5.0.11").verdict == verdict


@pytest.mark.parametrize(("module", "verdict"), [(object(), "ok"), (None, "warn")])
def test_a_missing_extension_is_a_warning(monkeypatch: pytest.MonkeyPatch, module: object, verdict: str) -> None:
    monkeypatch.setattr(arithmetic, "_c", module)
    assert _check_kernels().verdict == verdict


def test_findings_are_printed_as_a_table() -> None:
    findings = [Finding("a", "ok", "fine"), Finding("longer", "warn", "one\ntwo", "do that")]
    assert format_findings(findings).splitlines() == [
        "ok    a       fine",
        "warn  longer  one",
        "              two",
        "              -> do that",
        "doctor: fit for runs; see the remarks on longer",
    ]


@pytest.mark.parametrize(
    ("verdicts", "line"),
    [
        (["ok", "ok"], "doctor: fit for runs"),
        (["fail", "ok"], "doctor: not fit for runs: a failed"),
        (["warn", "fail", "fail", "warn"], "doctor: not fit for runs: b, c failed; see the remarks on a, d"),
    ],
)
def test_the_last_line_is_the_verdict_of_all(verdicts: list[Verdict], line: str) -> None:
    findings = [Finding(name, verdict, "") for name, verdict in zip("abcd", verdicts, strict=False)]
    assert format_findings(findings).splitlines()[-1] == line


def test_threads_that_spin_beside_a_busy_process_are_reported() -> None:
    fine = judge_contention(Contention(2, one_thread=36_000, alone=7_000, beside=20_000))
    cliff = judge_contention(Contention(2, one_thread=36_000, alone=30_000, beside=60))
    alone = judge_contention(Contention(1, one_thread=36_000, alone=36_000, beside=60))
    assert [finding.verdict for finding in (fine, cliff, alone)] == ["ok", "warn", "ok"]
    assert "beside a busy process 60" in cliff.detail and "GOMP_SPINCOUNT" in cliff.hint


def test_the_extras_that_are_missing_are_named_with_their_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)  # cannot be imported
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)  # not named where it is missing
    [extras] = [finding for finding in _check_packages() if finding.name == "extras"]
    assert (extras.verdict, extras.detail) == (
        "ok",
        "report, mlflow, ctranslate2; to add others: pip install 'hvd_async[translation,tensorboard]'",
    )
