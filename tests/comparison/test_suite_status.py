"""What `hvd-async status` tells of a suite, from its folder alone."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable

import pytest

from hvd_async.__main__ import main
from hvd_async.comparison import suite_status as suite_status_module
from hvd_async.comparison.suite_status import suite_status
from hvd_async.runs.status import RunStatus, read_status
from tests.comparison.tiny import compute_here, in_place_of_processes, tiny, write


def ending(folder: pathlib.Path, summary: bytes) -> Callable[[pathlib.Path], RunStatus]:
    """Return `read_status`, but the run in `folder` ends before it is read."""

    def read(root: pathlib.Path) -> RunStatus:
        if root == folder:
            (folder / "summary.json").write_bytes(summary)
        return read_status(root)

    return read


def test_a_run_of_another_plan_is_to_do(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_processes(monkeypatch, compute_here)
    output = folder / "out"
    assert main(["compare", str(write(folder, tiny())), "--output", str(output)]) == 0
    changed = str(write(folder, tiny(budget={"weight": 3000})))
    assert main(["compare", changed, "--output", str(output), "--only", "horovod"]) == 0
    assert [entry.state for entry in suite_status(output)] == ["done", "to do"]


def test_every_run_of_a_suite_has_its_state(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_place_of_processes(monkeypatch, compute_here)
    variants = {"horovod": {"strategy.kind": "horovod"}, "bad": {"task.model.max_positions": 3}, "N = 1": {}, "last": {}}
    output = folder / "out"
    command = ["compare", str(write(folder, tiny(variants=variants))), "--output", str(output)]
    assert main([*command, "--only", "horovod", "--only", "bad", "--only", "N = 1"]) == 3
    assert [entry.state for entry in suite_status(output)] == ["done", "failed", "done", "to do"]
    ended = (output / "runs/n_1-s1/summary.json").read_bytes()
    (output / "runs/n_1-s1/summary.json").unlink()
    assert [entry.state for entry in suite_status(output)] == ["done", "failed", "interrupted", "to do"]
    # A run that ends between two looks is done.
    with monkeypatch.context() as patch:
        patch.setattr(suite_status_module, "read_status", ending(output / "runs/n_1-s1", ended))
        assert [entry.state for entry in suite_status(output)] == ["done", "failed", "done", "to do"]
    (output / "runs/n_1-s1/summary.json").unlink()
    capsys.readouterr()

    assert main(["status", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{output}: 1 done, 1 failed, 1 interrupted, 1 to do, 4 runs in all"
    assert lines[1] == f"{output / 'runs/bad-s1'}: failed" and lines[2].startswith("  exit status 2: ")
    assert lines[3].startswith(f"{output / 'runs/n_1-s1'}: interrupted, 100 %, version ")
    assert lines[-1] == f"{output / 'runs/last-s1'}: to do"

    assert main(["status", "--json", str(output)]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["state"] for each in found] == ["done", "failed", "interrupted", "to do"]
    assert found[0]["share"] == 1.0 and found[1]["fault"].startswith("exit status 2")
