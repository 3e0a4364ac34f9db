"""Fixtures and options for all tests."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from hvd_async.system.openmp import bound_spinning
from tests.ranks import TWO_HOSTS, mpi_family

bound_spinning(os.environ)  # before any test loads torch; child processes inherit it

_PREFIX = "hvdt"
_NAMESPACES = pathlib.Path("/run/netns")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `mpi`, with the reason, if there is no mpirun."""
    if any(item.get_closest_marker("mpi") for item in items) and mpi_family() is None:
        for item in items:
            if item.get_closest_marker("mpi"):
                item.add_marker(pytest.mark.skip(reason="no mpirun in this environment; see launch/setup.sh"))


@pytest.fixture(scope="session")
def two_hosts() -> Iterator[tuple[str, str]]:
    """Names of two hosts on this machine, for `run_ranks(..., hosts=two_hosts)`; their ranks communicate only over TCP."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("two hosts need root and iproute2's `ip`, for network namespaces")
    _remove_leftovers()
    prefix = f"{_PREFIX}{os.getpid()}"
    try:
        made = subprocess.run([TWO_HOSTS / "up.sh", prefix], capture_output=True, text=True, check=False)
        if made.returncode != 0:
            pytest.skip(f"two hosts: {made.stderr.strip() or 'up.sh failed'}")
        yield f"{prefix}a", f"{prefix}b"
    finally:
        _remove(prefix)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, driven by playwright."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium and no google-chrome on this machine")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


def _remove_leftovers() -> None:
    """Remove the hosts of test runs that were interrupted: a host carries the process id of its test run."""
    with contextlib.suppress(FileNotFoundError):
        for namespace in list(_NAMESPACES.iterdir()):
            owner = re.fullmatch(rf"{_PREFIX}(\d+)[ab]", namespace.name)
            if owner and not pathlib.Path("/proc", owner[1]).exists():
                _remove(f"{_PREFIX}{owner[1]}")


def _remove(prefix: str) -> None:
    subprocess.run([TWO_HOSTS / "down.sh", prefix], capture_output=True, check=False)
