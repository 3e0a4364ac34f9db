"""The spinning time of threads: set before torch is loaded, by every command; a setting of the user wins."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from hvd_async.launcher import variables_to_forward
from hvd_async.system.openmp import SPINS, VARIABLE, bound_spinning, measure_contention

CLEAN = {name: value for name, value in os.environ.items() if name not in (VARIABLE, "OMP_WAIT_POLICY")}
# OpenMP itself reports its settings when a command loads it with torch.
COMMAND = """
import sys
import hvd_async.cli.bench as machine
def run(arguments):
    import torch
    torch.zeros(1 << 20).add_(1.0)
    return 0
machine._doctor = run
assert "torch" not in sys.modules
from hvd_async.__main__ import main
sys.exit(main(["doctor"]))
"""


def spins_of_a_command(**own: str) -> str:
    environ = {**CLEAN, **own, "OMP_DISPLAY_ENV": "VERBOSE"}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND], capture_output=True, text=True, check=True, env=environ, timeout=60
    )
    lines = [line for line in done.stderr.splitlines() if VARIABLE in line]
    if not lines:
        pytest.skip("torch comes with another OpenMP than GNU's")
    return lines[0].partition("=")[2].strip(" '")


def test_a_command_bounds_the_spinning_before_torch_reads_it() -> None:
    assert spins_of_a_command() == SPINS


@pytest.mark.parametrize(("own", "spins"), [({VARIABLE: "77"}, "77"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")])
def test_a_setting_of_the_user_wins(own: dict[str, str], spins: str) -> None:
    assert spins_of_a_command(**own) == spins


def test_only_a_setting_of_the_user_is_passed_to_other_hosts() -> None:
    environ: dict[str, str] = {}
    bound_spinning(environ)
    assert environ == {VARIABLE: SPINS} and variables_to_forward(environ) == ()
    assert variables_to_forward({VARIABLE: "77"}) == (VARIABLE,)


def test_the_tests_themselves_do_not_spin() -> None:
    assert VARIABLE in os.environ or "OMP_WAIT_POLICY" in os.environ


def test_measuring_contention_keeps_the_number_of_threads() -> None:
    import torch

    before = torch.get_num_threads()
    measured = measure_contention()
    assert measured.threads == before == torch.get_num_threads()
    assert min(measured.one_thread, measured.alone, measured.beside) > 0


@pytest.mark.parametrize(
    ("imports", "setting", "is_told"),
    [
        ("import torch, hvd_async", {}, True),
        ("import hvd_async, torch", {}, False),
        ("import torch, hvd_async", {VARIABLE: "5"}, False),
    ],
)
def test_a_script_that_imports_torch_first_is_told(
    imports: str, setting: dict[str, str], is_told: bool, tmp_path: pathlib.Path
) -> None:
    program = (
        f"{imports}\nimport hvd_async as ha\ntorch.set_num_threads(2)\n"
        "run = ha.init('run', strategy='single', epochs=1, device='cpu')\nrun.finish()\n"
    )
    environment = {**CLEAN, **setting, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert ("torch was imported before hvd_async" in done.stdout) == is_told, done.stderr
