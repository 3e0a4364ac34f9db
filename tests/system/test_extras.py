"""Packages of extras: the table and pyproject.toml agree, and one that is missing is one line, before any work is done."""

from __future__ import annotations

import importlib
import os
import pathlib
import re
import subprocess
import sys

import pytest

import hvd_async
from hvd_async.system.extras import EXTRAS, install_command, require
from hvd_async.tasks.translation.builtin.grammar import write_corpus
from tests.ranks import run_limited
from tests.test_architecture import MODULES, imports

ROOT = pathlib.Path(__file__).parents[2]
DISTRIBUTIONS = {"yaml": "pyyaml", "mlflow": "mlflow-skinny"}  # where its name is not the one of the import
BROUGHT_BY_OTHERS = {"triton", "markupsafe", "annotated_types", "typing_extensions"}  # torch, jinja2 and pydantic
IN_A_PYTHON_OF_ITS_OWN = {"joeynmt"}  # `bench translation --joeynmt` runs a program there


def dependencies() -> tuple[set[str], dict[str, set[str]]]:
    """Return the names of pyproject.toml: what every installation has, and what each extra adds."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[^\w-]", requirement)[0] for requirement in requirements}

    return names(project["dependencies"]), {key: names(each) for key, each in project["optional-dependencies"].items()}


def test_every_package_that_is_imported_is_a_dependency_or_in_the_table() -> None:
    required, _ = dependencies()
    optional = {package for packages in EXTRAS.values() for package in packages}
    found = {name.partition(".")[0] for tree in MODULES.values() for name in imports(tree)}
    outside = found - set(sys.stdlib_module_names) - {"hvd_async", *BROUGHT_BY_OTHERS, *IN_A_PYTHON_OF_ITS_OWN}
    assert {DISTRIBUTIONS.get(name, name) for name in outside - optional} == required
    # Imported by torch.utils.tensorboard alone.
    assert optional - outside == {"tensorboard"}


def test_the_table_and_the_extras_agree() -> None:
    _, extras = dependencies()
    table = {extra: {DISTRIBUTIONS.get(name, name) for name in packages} for extra, packages in EXTRAS.items()}
    assert table == {extra: extras[extra] - {"cffi"} for extra in EXTRAS}


def test_every_extra_that_a_message_names_exists() -> None:
    _, extras = dependencies()
    named = {
        extra
        for path in (ROOT / "hvd_async").rglob("*.py")
        for found in re.findall(r"hvd_async\[([\w,]+)\]", path.read_text(encoding="utf-8"))
        for extra in found.split(",")
    }
    assert {"openmpi", "mpich"} <= named <= set(extras)


def test_no_message_names_a_file_that_a_wheel_does_not_hold() -> None:
    files = [path for path in (ROOT / "hvd_async").rglob("*") if path.suffix in (".py", ".sbatch", ".sh", ".yaml", ".html")]
    assert len(files) > 300
    assert [path for path in files if "launch/setup.sh" in path.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_packages_of_an_extra_are_those_that_it_requires(extra: str) -> None:
    try:
        for package in EXTRAS[extra]:
            importlib.import_module(package)
    except ImportError:
        pytest.skip(f"{extra} is not installed")
    require(extra)


def without(package: str, arguments: list[str], folder: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Run the command line where `package` cannot be imported."""
    hide = f"import sys; sys.modules[{package!r}] = None"  # the import fails as for a package that is not installed
    code = f"{hide}; from hvd_async.__main__ import main; sys.exit(main({arguments}))"
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=100, check=False)


CONFIG = """
output: run
task:
  data: {folder: text}
  vocabulary: {size: 300}
  model: {encoder_layers: 1, decoder_layers: 1, width: 16, feed_forward: 32, heads: 2}
  batching: {tokens: 200}
  metrics: []
training: {updates: 2, device: cpu, threads: 1}
validation: {every: 2}
"""
SUITE = """
{base: run.yaml, launcher: simulate, workers: 2, budget: {weight: 400}, measure_every: 400, baseline: async,
variants: {async: {strategy.kind: async}}}
"""


@pytest.fixture
def project(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with a corpus, a configuration and a suite."""
    write_corpus(tmp_path / "text", train=60, validation=8, test=8)
    (tmp_path / "run.yaml").write_text(CONFIG)
    (tmp_path / "suite.yaml").write_text(SUITE)
    return tmp_path


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("sentencepiece", ["train", "run.yaml"]),
        ("sacrebleu", ["train", "run.yaml"]),
        ("sentencepiece", ["simulate", "run.yaml"]),
        ("sentencepiece", ["translate", "nowhere"]),
        ("sacrebleu", ["score", "nowhere", "--source", "text/test.en", "--reference", "text/test.de"]),
        ("sentencepiece", ["bench", "step"]),
        ("sentencepiece", ["bench"]),
        ("matplotlib", ["report", "run"]),
        ("scipy", ["compare", "suite.yaml"]),
        ("matplotlib", ["simulate", "run.yaml", "--timing-only", "--output", "plan"]),
    ],
)
def test_a_missing_package_is_one_line_that_names_the_extra(
    package: str, arguments: list[str], project: pathlib.Path
) -> None:
    before = sorted(project.rglob("*"))
    done = without(package, arguments, project)
    expected = f"hvd-async: {package}: this package is not installed in {sys.prefix}; install it with: "
    assert (done.returncode, done.stdout, done.stderr) == (4, "", f"{expected}{install_command(package)}\n")
    assert sorted(project.rglob("*")) == before


@pytest.mark.mpi
def test_ranks_that_lack_a_package_report_it_once(project: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden/sitecustomize.py").write_text("import sys; sys.modules['sentencepiece'] = None")  # in every process
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path / 'hidden'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hvd_async", "launch", "run.yaml", "--workers", "2", "--set", "strategy.kind=async"]
    done = run_limited(command, environ, 100, cwd=project)
    assert done.returncode == 4, done
    assert done.stderr.count("hvd_async[translation]") == 1 and "Traceback" not in done.stderr, done


def test_a_run_without_tensorboard_says_so_once_and_ends_well(project: pathlib.Path) -> None:
    done = without("tensorboard", ["train", "run.yaml"], project)
    assert done.returncode == 0, done.stderr
    expected = "install it with: pip install 'hvd_async[tensorboard]'; continuing without TensorBoard scalars"
    assert done.stdout.count(expected) == 1 and not (project / "run/tensorboard").exists()


def test_strategy_horovod_without_horovod_is_one_line(project: pathlib.Path) -> None:
    done = without("horovod", ["train", "run.yaml", "--set", "strategy.kind=horovod"], project)
    assert done.returncode == 4 and done.stderr.count("\n") == 1, done.stderr
    assert "strategy horovod: Horovod cannot be loaded" in done.stderr and "hvd_async[horovod]" in done.stderr


def test_the_newest_section_of_the_changelog_is_that_of_this_version() -> None:
    headings = re.findall(r"^## (\S+?),?(?: |$)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == hvd_async.__version__
