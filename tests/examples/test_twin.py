"""The last lines of an example: its own result, and that of its twin or the command that makes one."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from examples.twin import find_twins, rows, twin_command


def summary(
    strategy: str, accuracy: float, seconds: float, num_workers: int = 2, status: str = "finished"
) -> dict[str, Any]:
    metrics = [
        {"name": "loss", "title": "loss", "unit": "", "digits": 3},
        {"name": "accuracy", "title": "accuracy", "unit": "%", "digits": 1},
    ]
    last = {"scores": {"accuracy": accuracy, "loss": 0.25}}
    shape = {"strategy": strategy, "num_workers": num_workers, "seconds": seconds}
    return {"status": status, "metrics": metrics, "last": last, **shape}


def write(folder: pathlib.Path, content: dict[str, Any]) -> pathlib.Path:
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(content))
    return folder


def test_twins_have_the_name_up_to_its_suffix_and_are_finished(tmp_path: pathlib.Path) -> None:
    own, ddp = write(tmp_path / "a", summary("async", 1, 1)), write(tmp_path / "a-ddp", summary("ddp", 1, 1))
    write(tmp_path / "a-horovod", summary("horovod", 1, 1, status="stopped"))
    write(tmp_path / "ab-ddp", summary("ddp", 1, 1))
    (tmp_path / "a-async").mkdir()
    assert [path for path, _ in find_twins(own)] == [ddp]
    assert [path for path, _ in find_twins(ddp)] == [own]
    assert [path for path, _ in find_twins(tmp_path / "a-async")] == [own, ddp]
    assert find_twins(tmp_path / "ab") == [(tmp_path / "ab-ddp", summary("ddp", 1, 1))]


def test_results_stand_in_columns() -> None:
    runs = [
        (pathlib.Path("runs/a"), summary("async", 91.26, 12.34)),
        (pathlib.Path("runs/a-horovod"), summary("horovod", 100, 9.87, num_workers=1)),
    ]
    assert rows(runs) == [
        "runs/a          async    2 workers  loss 0.250  accuracy 91.3 %   12.3 s",
        "runs/a-horovod  horovod  1 worker   loss 0.250  accuracy 100.0 %  9.9 s",
    ]


@pytest.mark.parametrize(
    ("name", "strategy", "workers", "expected"),
    [
        ("a", "async", 3, "--workers 3 --set strategy.kind=horovod --set output=runs/a-horovod"),
        ("a-async", "async", 3, "--workers 3 --set strategy.kind=horovod --set output=runs/a-horovod"),
        ("a-ddp", "ddp", 2, "--workers 2 --set strategy.kind=async --set output=runs/a-async"),
        ("a", "single", 1, "--workers 2 --set strategy.kind=async --set output=runs/a-async"),
    ],
)
def test_the_command_of_a_twin_has_the_other_strategy(name: str, strategy: str, workers: int, expected: str) -> None:
    python = ["/usr/bin/python3", "-m", "examples.digits.train", "--output", "a b"]
    command = twin_command(pathlib.Path("runs", name), summary(strategy, 1, 1, workers), python)
    assert command == f"hvd-async launch {expected} -- python -m examples.digits.train --output 'a b'"
