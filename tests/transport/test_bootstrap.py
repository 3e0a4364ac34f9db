"""Settings made before MPI is initialised."""

from __future__ import annotations

import pytest

from hvd_async.transport.bootstrap import is_old_mpich


@pytest.mark.parametrize(
    ("library", "expected"),
    [
        ("MPICH Version:\t4.0.2\nMPICH Release date:\tThu Apr  7 12:34:45 CDT 2022\n", True),
        ("MPICH Version:      5.0.2\nMPICH Release date: Wed\n", False),
        ("Open MPI v5.0.11, package: Open MPI", False),
        ("Intel(R) MPI Library 2021.18.1 for Linux* OS\n", False),
    ],
)
def test_only_an_old_mpich_needs_a_progress_thread(library: str, expected: bool) -> None:
    assert is_old_mpich(library) is expected
