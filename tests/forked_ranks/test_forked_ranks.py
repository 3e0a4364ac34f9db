"""Forked ranks behave like any other program, both to their parent and to themselves."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.comparison.processes import is_alive
from tests.ranks import keeper_starter


@pytest.fixture
def python() -> Iterator[list[str]]:
    with keeper_starter().keeper() as words:
        yield words


def test_a_rank_has_what_its_proxy_was_given(python: list[str], tmp_path: pathlib.Path) -> None:
    with (tmp_path / "file").open("w") as file:
        done = subprocess.run(
            [*python, "tests.forked_ranks.probe", "describe", "two words", "ä"],
            env={"COLOUR": "green", "LC_ALL": "C.UTF-8"},
            cwd=tmp_path,
            pass_fds=[file.fileno()],
            input="text",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert json.loads(done.stdout) == {
            "arguments": ["describe", "two words", "ä"],
            "environment": {"COLOUR": "green", "LC_ALL": "C.UTF-8"},
            "folder": str(tmp_path),
            "files": [0, 1, 2, file.fileno()],
            "input": "text",
            "name": "__main__",
            "has torch": True,
        }
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("action", "status", "output", "last"),
    [
        ("exit", 3, "", ""),
        ("fail", 1, "at the end\n", "ZeroDivisionError: injected"),
        ("kill", -signal.SIGKILL, "", ""),
        ("terminate", -signal.SIGTERM, "", ""),
    ],
)
def test_a_proxy_ends_with_the_status_of_its_rank(
    python: list[str], action: str, status: int, output: str, last: str
) -> None:
    done = subprocess.run(
        [*python, "tests.forked_ranks.probe", action], capture_output=True, text=True, timeout=60, check=False, env={}
    )
    assert (done.returncode, done.stdout, done.stderr.strip().rpartition("\n")[2]) == (status, output, last)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 7), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_signal_to_a_proxy_reaches_its_rank(number: int, status: int) -> None:
    with (
        keeper_starter().keeper() as python,
        subprocess.Popen([*python, "tests.forked_ranks.probe", "wait"], stdout=subprocess.PIPE) as proxy,
    ):
        assert proxy.stdout is not None
        rank = int(proxy.stdout.readline())
        assert rank != proxy.pid and is_alive(rank)
        proxy.send_signal(number)
        assert proxy.wait(60) == status
        assert proxy.stdout.read() == b""  # no process has it open any more
    assert not is_alive(rank)


def test_no_rank_outlives_the_block() -> None:
    with keeper_starter().keeper() as python:
        proxy = subprocess.Popen([*python, "tests.forked_ranks.probe", "wait"], stdout=subprocess.PIPE)
        assert proxy.stdout is not None
        rank = int(proxy.stdout.readline())
    with proxy:
        assert not is_alive(rank) and proxy.wait(60) == -signal.SIGKILL


def test_ranks_have_random_numbers_of_their_own(python: list[str]) -> None:
    program = [*python, "tests.forked_ranks.probe", "draw"]
    assert len({subprocess.run(program, capture_output=True, timeout=60, check=True, env={}).stdout for _ in range(3)}) == 3
