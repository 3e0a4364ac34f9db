"""Filtering of a launcher's standard error: a rank's own line is shown without the box around it."""

from __future__ import annotations

import os
import pathlib
import sys

import pytest

from hvd_async.launcher.failure_boxes import Quieter, quieted
from hvd_async.system.processes import Command, run_command
from tests.ranks import mpi_family, mpirun_path, run_limited

BORDER = b"-" * 74 + b"\n"
FAILED = (
    BORDER
    + b"prterun detected that one or more processes exited with non-zero status,\nthus causing the job to be terminated.\n"
    + BORDER
)
ABORTED = BORDER + b"MPI_ABORT was invoked on rank 1 in communicator MPI_COMM_WORLD\n  Errorcode: 5\n" + BORDER
KILLED = BORDER + b"prterun noticed that process rank 1 with PID 20251 on node vm exited on\nsignal 11.\n" + BORDER
OURS = b"hvd-async: rank 1: out of cheese\n"


def shown(text: bytes) -> bytes:
    quieter = Quieter()
    return b"".join(quieter.feed(line) for line in text.splitlines(keepends=True)) + quieter.finish()


@pytest.mark.parametrize("noise", [FAILED, ABORTED, ABORTED + FAILED])
def test_boxes_about_a_rank_with_a_message_are_left_out(noise: bytes) -> None:
    assert shown(OURS + noise) == shown(noise + OURS) == OURS
    assert shown(OURS + noise + b" ") == OURS
    assert shown(b"a\n" + noise + OURS + b"b") == b"a\n" + OURS + b"b"


@pytest.mark.parametrize(
    "text",
    [
        FAILED,
        ABORTED + b"more\n",
        KILLED + OURS,
        BORDER,
        BORDER + BORDER + OURS,
        BORDER + b"a\n" + BORDER + b"b",
        FAILED[:150],
    ],
)
def test_anything_else_is_shown(text: bytes) -> None:
    found = shown(text)
    assert sorted(found.splitlines()) == sorted(text.splitlines())


def test_a_box_about_what_mpi_has_not_tested_is_left_out() -> None:
    box = BORDER + b"WARNING: The selected 'osc' module 'sm' is not tested for post-failure\noperation\n\n" + BORDER
    more = b"4 more processes have sent help message help-mpi-ft.txt / module:untested:failundef\n"
    assert shown(b"a\n" + box + more + b"b\n") == b"a\nb\n" and shown(box[:200]) == box[:200]


def test_a_line_is_shown_as_soon_as_it_arrives() -> None:
    quieter = Quieter()
    assert quieter.feed(OURS) == OURS
    assert quieter.feed(BORDER) == b""
    assert quieter.feed(b"table\n") == BORDER + b"table\n"


def test_errors_of_a_command_pass_through() -> None:
    printed: list[str] = []
    script = f"printf '{OURS.decode().strip()}\\n\\377'; printf '%s' \"$BOX\"; exit 5"
    with quieted(printed.append) as errors:
        ended = run_command(
            Command(("sh", "-c", f"{{ {script}; }} >&2"), {"BOX": "\n" + FAILED.decode()}), os.environ, errors=errors
        )
    assert ended.status == 5
    assert "".join(printed) == f"{OURS.decode()}\\xff\n"


@pytest.mark.mpi
@pytest.mark.skipif(mpi_family() != "openmpi", reason="messages of Open MPI")
def test_only_the_message_of_a_failing_rank_is_shown(tmp_path: pathlib.Path) -> None:
    rank = "import sys; sys.exit('hvd-async: out of cheese')"
    program = f"""
import os, sys
from hvd_async.launcher import quieted
from hvd_async.system.processes import Command, run_command
argv = ({mpirun_path()!r}, '-np', '2', '--map-by', 'slot:OVERSUBSCRIBE', sys.executable, '-c', {rank!r})
root = {{'OMPI_ALLOW_RUN_AS_ROOT': '1', 'OMPI_ALLOW_RUN_AS_ROOT_CONFIRM': '1'}}
with quieted(sys.stderr.write) as errors:
    sys.exit(run_command(Command(argv, root), os.environ, errors=errors).status)
"""
    done = run_limited([sys.executable, "-c", program], os.environ, 60, cwd=tmp_path)
    assert done.returncode == 1
    assert set(done.stderr.splitlines()) == {"hvd-async: out of cheese"}
