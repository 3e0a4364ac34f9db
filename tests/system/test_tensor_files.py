"""Tensors in files: whole, whatever they share, and not copied on the way."""

from __future__ import annotations

import pathlib
import stat
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from hvd_async.system.tensor_files import save_tensors


def test_tensors_that_share_memory_are_whole_in_the_file(tmp_path: pathlib.Path) -> None:
    vector = torch.arange(12.0)
    tensors = {
        "all": vector,
        "again": vector,
        "first": vector[:6],
        "middle": vector[3:9],
        "even": vector[::2],
        "turned": vector.view(3, 4).T,
        "empty": vector[:0],
        "own": torch.ones(2, dtype=torch.int64),
    }
    save_tensors(tmp_path / "t", tensors)
    found = safetensors.torch.load_file(tmp_path / "t")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert stat.S_IMODE((tmp_path / "t").stat().st_mode) & 0o044 == 0o044


def test_a_file_that_cannot_be_written_is_an_error_of_the_system(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OSError, match="No such file or directory"):
        save_tensors(tmp_path / "none" / "t", {"a": torch.ones(1)})


@pytest.mark.parametrize("are_views", [False, True])
def test_writing_takes_no_second_copy(tmp_path: pathlib.Path, are_views: bool) -> None:
    code = f"""
import pathlib, resource, sys, torch
from hvd_async.system.tensor_files import save_tensors

def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

path, vector = pathlib.Path(sys.argv[1]), torch.full((30_000_000,), 7.0)
parts = vector.split(5_000_000) if {are_views} else [part.clone() for part in vector.split(5_000_000)]
save_tensors(path, {{"a": torch.zeros(9)}})
before = peak()
save_tensors(path, dict(zip("abcdef", parts)))
print((peak() - before) / vector.nbytes)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "t")], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.1
