"""The pages that lead through a project, typed as they stand into an empty folder: files, then commands, on real ranks."""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import sys

import pytest

from tests.mpi.runs import events_of, summary_of
from tests.ranks import run_limited

ROOT = pathlib.Path(__file__).parents[2]
VERBS = ("launch", "report", "compare", "simulate", "replay")


def write_files(page: str, folder: pathlib.Path) -> None:
    """Write the files that the page names: "Save this as `run.yaml`", or else the script after a conversion."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    files = dict(re.findall(r"as `(\S+)`.*?^```\w+\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    for comparison in re.findall(r"^```diff\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        files["train.py"] = "".join(line[1:] for line in comparison.splitlines(keepends=True) if line[0] in " +")
    for name, content in files.items():
        (folder / name).write_text(content)


def type_commands(page: str, folder: pathlib.Path) -> str:
    """Run the commands of the page that train and compare, in their order. Each must succeed. Return what they print."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    environ = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    commands = [shlex.split(line, comments=True) for line in re.findall(r"^hvd-async .*$", text, re.MULTILINE)]
    printed = ""
    for _, verb, *arguments in (command for command in commands if command[1] in VERBS):
        printed += (
            run_limited([sys.executable, "-m", "hvd_async", verb, *arguments], environ, 180, cwd=folder).check().stdout
        )
    return printed


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("page", "baseline"), [("quickstart.md", "horovod"), ("from-horovod.md", "horovod"), ("from-ddp.md", "ddp")]
)
def test_a_script_ends_with_the_report_of_both_runs(page: str, baseline: str, tmp_path: pathlib.Path) -> None:
    if baseline == "horovod":
        pytest.importorskip("horovod", reason="Horovod is not installed; see launch/setup.sh")
    write_files(page, tmp_path)
    type_commands(page, tmp_path)
    report = (tmp_path / "runs/report/report.md").read_text()
    for kind in ("async", baseline):
        folder = tmp_path / f"runs/points-{kind}"
        assert summary_of(folder)["status"] == "finished" and summary_of(folder)["strategy"] == kind
        assert (folder / "model.pt").exists() and f"points-{kind}" in report
        rates = [update["learning_rate"] for update in events_of(folder, "update")]
        if page != "quickstart.md":  # a cosine as long as the run: it goes down to nothing, and does not rise again
            assert rates == sorted(rates, reverse=True)
            assert rates[0] == 1e-2 and rates[-1] < 1e-4


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_task_is_trained_compared_simulated_and_replayed(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("horovod", reason="Horovod is not installed; see launch/setup.sh")
    write_files("own-model.md", tmp_path)
    printed = type_commands("own-model.md", tmp_path)
    report = (tmp_path / "runs/suite/report/report.md").read_text()
    assert all(word in report for word in ("accuracy", "perplexity", "points/s", "horovod", "async"))
    assert len(re.findall(r"^equal: .* all to the last bit$", printed, re.MULTILINE)) == 2
    assert (tmp_path / "runs/v100/model.safetensors").exists()
    assert summary_of(tmp_path / "runs/simulated")["simulated"]


def test_the_files_of_a_task_belong_together(tmp_path: pathlib.Path) -> None:
    write_files("own-model.md", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"points.py", "run.yaml", "suite.yaml"}
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for arguments in (["train", "run.yaml", "--set", "strategy.kind=single"], ["compare", "suite.yaml", "--dry-run"]):
        done = run_limited([sys.executable, "-m", "hvd_async", *arguments], environ, 60, cwd=tmp_path).check()
    assert "4 of 4 runs to be computed" in done.stdout
    assert summary_of(tmp_path / "runs/points")["last"]["scores"]["accuracy"] > 90
