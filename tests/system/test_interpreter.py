"""Processes started by the package import the same modules as the package itself: nothing from the current folder."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from hvd_async.tasks.translation.builtin.grammar import write_corpus
from tests.ranks import run_limited

ROOT = pathlib.Path(__file__).parents[2]
NAMES = ("random", "types", "yaml", "torch", "numpy", "pydantic", "locks", "config")
CONFIG = """
output: run
task:
  data: {folder: text}
  vocabulary: {size: 200}
  model: {encoder_layers: 1, decoder_layers: 1, width: 16, feed_forward: 32, heads: 2}
  batching: {tokens: 300}
  metrics: []
training: {updates: 2, device: cpu, threads: 1, tensorboard: false}
"""


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """The current folder of a user whose files have the names of modules; importing one of them shows in the exit status."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text("import os\nos._exit(77)\n")
    return tmp_path


def python(folder: pathlib.Path, *arguments: str, path: pathlib.Path | None = ROOT) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environ |= {} if path is None else {"PYTHONPATH": str(path)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="this Python has no flag for it")
def test_processes_started_by_launch_do_not_import_from_the_current_folder(folder: pathlib.Path) -> None:
    write_corpus(folder / "text", train=60, validation=4, test=4)
    (folder / "run.yaml").write_text(CONFIG)
    (folder / "hvd_async.py").write_text("import os\nos._exit(78)\n")
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = run_limited((sys.executable, "-P", "-m", "hvd_async", "launch", "run.yaml"), environ, 120, cwd=folder).check()
    assert "finished: version 2" in done.stdout


def test_launch_itself_waits_for_no_heavy_library(tmp_path: pathlib.Path) -> None:
    write_corpus(tmp_path / "text", train=60, validation=4, test=4)
    (tmp_path / "run.yaml").write_text(CONFIG + "strategy: {kind: single}\n")
    heavy = "{'torch', 'mpi4py', 'sentencepiece'} & set(sys.modules)"
    code = f"import sys; from hvd_async.__main__ import main; sys.exit(main(['launch', 'run.yaml']) or str({heavy}))"
    done = python(tmp_path, "-c", code)
    assert "finished: version 2" in done.stdout and done.stderr == "set()\n", done


@pytest.mark.parametrize("flags", [(), ("--parent", str(os.getpid()))], ids=["alone", "with a parent"])
def test_started_as_a_module_the_command_takes_the_current_folder_off_its_path(
    flags: tuple[str, ...], folder: pathlib.Path
) -> None:
    done = python(folder, "-m", "hvd_async", *flags, "launch", "none.yaml")
    assert (done.returncode, done.stderr) == (
        2,
        "hvd-async: none.yaml: no such file; expected the YAML configuration of a run\n",
    )


def test_a_package_found_only_in_the_current_folder_is_found_by_its_child_processes(tmp_path: pathlib.Path) -> None:
    """Another version may be installed: the started process must run the version of its parent."""
    shutil.copytree(ROOT / "hvd_async", tmp_path / "hvd_async", ignore=shutil.ignore_patterns("__pycache__"))
    program = "from hvd_async.system import interpreter; print(interpreter.flags(), interpreter.__file__)"
    (tmp_path / "hvd_async" / "ask.py").write_text(f"import sys\ndel sys.path[0]\n{program}\n")
    done = python(tmp_path, "-m", "hvd_async.ask", path=None)
    assert done.stdout == f"() {tmp_path / 'hvd_async/system/interpreter.py'}\n"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="this Python has no flag for it")
def test_a_package_found_elsewhere_needs_no_current_folder(tmp_path: pathlib.Path) -> None:
    done = python(tmp_path, "-P", "-c", "from hvd_async.system import interpreter; print(interpreter.flags())")
    assert done.stdout == "('-P',)\n"
