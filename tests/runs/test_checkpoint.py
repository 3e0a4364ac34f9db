"""Checkpoints: complete or absent, the latest kept, damage found and named."""

from __future__ import annotations

import json
import os
import pathlib
import stat
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from hvd_async.errors import CheckpointError, DataError
from hvd_async.runs.checkpoint import (
    Checkpoint,
    check_tensors,
    load_tensors,
    read_data,
    read_tensors,
    replace_data,
    save_checkpoint,
    write_tensors,
)
from hvd_async.system import files
from tests.runs.saved import load_latest_checkpoint


def make(value: float) -> Checkpoint:
    return Checkpoint(
        {"parameters": torch.full((3,), value), "step": torch.tensor(value)}, {"version": int(value), "list": [1]}
    )


def folders(root: pathlib.Path) -> list[str]:
    """Return the names of everything in `root`, including hidden leftovers."""
    return sorted(path.name for path in root.iterdir())


def test_a_saved_checkpoint_is_loaded_unchanged(tmp_path: pathlib.Path) -> None:
    saved = save_checkpoint(tmp_path, 7, make(7.0), keep=1)
    assert saved.folder == tmp_path / "v00000007" and read_data(saved.folder) == saved
    loaded = load_latest_checkpoint(tmp_path)
    assert loaded is not None and loaded.data == {"version": 7, "list": [1]}
    assert loaded.tensors.keys() == {"parameters", "step"}
    assert torch.equal(loaded.tensors["parameters"], torch.full((3,), 7.0))
    assert loaded.tensors["step"].shape == () and loaded.tensors["step"].item() == 7.0


def test_without_a_checkpoint_nothing_is_loaded(tmp_path: pathlib.Path) -> None:
    assert load_latest_checkpoint(tmp_path) is None
    assert load_latest_checkpoint(tmp_path / "missing") is None


def test_the_latest_are_kept_by_number_and_not_by_name(tmp_path: pathlib.Path) -> None:
    for version in (9, 10, 100):
        save_checkpoint(tmp_path, version, make(version), keep=2)
    assert folders(tmp_path) == ["v00000010", "v00000100"]
    loaded = load_latest_checkpoint(tmp_path)
    assert loaded is not None and loaded.data["version"] == 100


@pytest.mark.parametrize(("keep", "left"), [(1, [7]), (2, [5, 7]), (9, [3, 5, 7])])
def test_the_one_just_saved_is_kept_and_later_versions_are_removed(
    tmp_path: pathlib.Path, keep: int, left: list[int]
) -> None:
    for version in (3, 5, 9, 10):
        save_checkpoint(tmp_path, version, make(version), keep=9)
    save_checkpoint(tmp_path, 7, make(7), keep=keep)
    assert folders(tmp_path) == [f"v{version:08d}" for version in left]


@pytest.mark.parametrize("keep", range(1, 11))
def test_the_configured_number_is_kept(tmp_path: pathlib.Path, keep: int) -> None:
    for version in range(1, 9):
        save_checkpoint(tmp_path, version, make(version), keep=keep)
    assert folders(tmp_path) == [f"v{version:08d}" for version in range(max(1, 9 - keep), 9)]


def test_leftovers_of_a_writer_that_died_are_removed(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "v00000003.safetensors"
    code = (
        "import os, pathlib, sys, torch; from hvd_async.runs import checkpoint; from hvd_async.system import tensor_files;"
        "tensor_files.give_usual_mode = lambda path: os._exit(9);"
        "checkpoint.write_tensors(pathlib.Path(sys.argv[1]), {'t': torch.zeros(3)})"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 9
    assert len(folders(tmp_path)) == 1
    files.remove_leftovers(tmp_path)
    assert folders(tmp_path) == []


def test_data_are_replaced_while_the_tensors_stay(tmp_path: pathlib.Path) -> None:
    saved = save_checkpoint(tmp_path, 7, make(7.0), keep=1)
    replace_data(saved, {"version": 7, "measured": [3, 6]})
    loaded = load_latest_checkpoint(tmp_path)
    assert loaded is not None and loaded.data == {"version": 7, "measured": [3, 6]}
    assert loaded.tensors["parameters"].tolist() == [7.0] * 3 and folders(saved.folder) == [
        "data.json",
        "tensors.safetensors",
    ]


def test_a_part_of_every_vector_is_read(tmp_path: pathlib.Path) -> None:
    saved = save_checkpoint(tmp_path, 1, Checkpoint({"a": torch.arange(9.0), "b": -torch.arange(9.0)}, {}), keep=1)
    part = load_tensors(saved, slice(2, 5))
    assert part["a"].tolist() == [2.0, 3.0, 4.0] and part["b"].tolist() == [-2.0, -3.0, -4.0]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_modes_follow_the_umask_and_groups_the_folder(tmp_path: pathlib.Path, umask: int) -> None:
    root = tmp_path / "checkpoints"
    root.mkdir()
    root.chmod(0o2775)  # new files get the group of the folder, and so do folders in it
    before = os.umask(umask)
    try:
        folder = save_checkpoint(root, 1, make(1.0), keep=1).folder
    finally:
        os.umask(before)
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o2777 & ~umask


def test_a_version_saved_again_is_replaced(tmp_path: pathlib.Path) -> None:
    save_checkpoint(tmp_path, 7, make(1.0), keep=1)
    save_checkpoint(tmp_path, 7, make(2.0), keep=1)
    assert folders(tmp_path) == ["v00000007"]
    loaded = load_latest_checkpoint(tmp_path)
    assert loaded is not None and loaded.data["version"] == 2


def test_a_save_that_fails_leaves_the_previous_checkpoint(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 1, make(1.0), keep=1)

    def no_space(path: pathlib.Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "sync", no_space)
    with pytest.raises(DataError, match="cannot be written: No space left on device"):
        save_checkpoint(tmp_path, 2, make(2.0), keep=1)
    assert folders(tmp_path) == ["v00000001"]


def test_tensors_that_share_memory_or_are_views_are_saved_whole(tmp_path: pathlib.Path) -> None:
    vector = torch.arange(6.0)
    write_tensors(tmp_path / "t", {"all": vector, "even": vector[::2], "matrix": vector.view(2, 3).T})
    read = read_tensors(tmp_path / "t")
    assert read["even"].tolist() == [0.0, 2.0, 4.0] and read["matrix"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert folders(tmp_path) == ["t"]


def flip_a_bit(folder: pathlib.Path) -> None:
    path = folder / "tensors.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut_tensors(folder: pathlib.Path) -> None:
    path = folder / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def cut_data(folder: pathlib.Path) -> None:
    path = folder / "data.json"
    path.write_bytes(path.read_bytes()[:-1])


def empty_data(folder: pathlib.Path) -> None:
    (folder / "data.json").write_text("{}")


def no_data(folder: pathlib.Path) -> None:
    (folder / "data.json").unlink()


def no_tensors(folder: pathlib.Path) -> None:
    (folder / "tensors.safetensors").unlink()


def test_every_flipped_bit_of_the_data_is_found(tmp_path: pathlib.Path) -> None:
    saved = save_checkpoint(tmp_path, 2, make(2.0), keep=1)
    path = saved.folder / "data.json"
    content = path.read_bytes()
    found = 0
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            check_tensors(read_data(saved.folder))
            assert read_data(saved.folder) == saved, bit  # such as a change between two kinds of whitespace
        except CheckpointError:
            found += 1
    assert found >= 8 * len(content) - 40


@pytest.mark.parametrize("damage", [flip_a_bit, cut_tensors, cut_data, empty_data, no_data, no_tensors])
def test_damage_is_reported_with_the_way_out(tmp_path: pathlib.Path, damage: Callable[[pathlib.Path], None]) -> None:
    save_checkpoint(tmp_path, 1, make(1.0), keep=2)
    folder = save_checkpoint(tmp_path, 2, make(2.0), keep=2).folder
    damage(folder)
    with pytest.raises(CheckpointError, match=r"damaged.*remove .*v00000002 to resume from .*v00000001"):
        load_latest_checkpoint(tmp_path)


def test_if_the_only_checkpoint_is_damaged_the_hint_is_to_start_again(tmp_path: pathlib.Path) -> None:
    flip_a_bit(save_checkpoint(tmp_path, 2, make(2.0), keep=1).folder)
    with pytest.raises(CheckpointError, match=r"there is no checkpoint before it; start again"):
        load_latest_checkpoint(tmp_path)


def test_another_format_is_not_reported_as_damage(tmp_path: pathlib.Path) -> None:
    folder = save_checkpoint(tmp_path, 2, make(2.0), keep=1).folder
    head, body = (folder / "data.json").read_text().split("\n")
    (folder / "data.json").write_text(json.dumps({**json.loads(head), "format": 1}) + "\n" + body)
    with pytest.raises(CheckpointError, match="got format 1, expected 8; use the hvd_async that wrote it"):
        load_latest_checkpoint(tmp_path)


def test_missing_tensors_are_reported(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read_tensors(tmp_path / "none")


def test_a_file_without_tensors_is_reported(tmp_path: pathlib.Path) -> None:
    (tmp_path / "t").write_bytes(b"abc")
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        read_tensors(tmp_path / "t")
