"""launch/release.sh: packages that pass in a clean environment are moved to the folder; others stay away, with the cause."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

import hvd_async

ROOT = pathlib.Path(__file__).parents[2]
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def release(root: pathlib.Path, *arguments: str | pathlib.Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run launch/release.sh of the checkout at `root`, in this environment."""
    environ = {
        **os.environ,
        "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(root),
        **variables,
    }
    command = [root / "launch/release.sh", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=1700, check=False)


@pytest.fixture
def checkout(tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of what the packages are made of, without what was built."""
    root = tmp_path / "checkout"
    for folder in ("hvd_async", "launch"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "*.so", ".*"))
    for name in ("README.md", "CHANGELOG.md", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    return root


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_packages_work_in_a_clean_environment(checkout: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = release(checkout, "--reuse-torch", "--output", tmp_path / "packages")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"^release: Python {re.escape(PYTHON)}: passed in \d+ s$", done.stdout, re.MULTILINE)
    assert done.stdout.count("not asked for") == 3
    sdist, wheel = sorted((tmp_path / "packages").iterdir(), key=lambda path: path.suffix)
    assert sdist.name == f"hvd_async-{hvd_async.__version__}.tar.gz"
    assert (
        wheel.name.startswith(f"hvd_async-{hvd_async.__version__}-cp{PYTHON.replace('.', '')}-") and wheel.suffix == ".whl"
    )
    with tarfile.open(sdist) as archive:
        assert f"hvd_async-{hvd_async.__version__}/hvd_async/vectors/_native.c" in archive.getnames()
    names = zipfile.ZipFile(wheel).namelist()
    assert {"hvd_async/py.typed", "hvd_async/project/templates/task/my_task.py"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "launch/"))]
    assert not list((checkout / "build/release").glob("3.*/"))  # the environments are gone


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_the_wheel_lacks_is_named_and_nothing_is_released(checkout: pathlib.Path, tmp_path: pathlib.Path) -> None:
    settings = (checkout / "pyproject.toml").read_text()
    assert settings.count('"templates/*/*.yaml", ') == 1
    (checkout / "pyproject.toml").write_text(settings.replace('"templates/*/*.yaml", ', ""))
    (tmp_path / "packages").mkdir()
    done = release(checkout, "--reuse-torch", "--output", tmp_path / "packages", CC="false")  # a compiler that fails
    assert done.returncode == 1
    lacking = re.findall(r"^release: hvd_async-.*\.whl: lacks (.*)$", done.stderr, re.MULTILINE)
    templates = [
        f"hvd_async/project/templates/{kind}/{name}.yaml" for kind in ("task", "translation") for name in ("run", "suite")
    ]
    assert lacking == [*templates, "hvd_async/vectors/_native.*.so, the C extension"]
    assert f"release: Python {PYTHON}: failed: files in the wheel; see build/release/{PYTHON}.log" in done.stdout
    assert done.stderr.endswith("packages: left as before, since not all have passed\n")
    assert list((tmp_path / "packages").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fast",), "release: --fast: unknown option; see --help\n"),
        (("--output",), "release: --output: expected a value after it; see --help\n"),
        (("--python", "/nowhere/python"), "release: --python: got /nowhere/python, expected a Python interpreter\n"),
        (
            ("--python", sys.executable, "--reuse-torch"),
            "release: --reuse-torch has no effect with --python; remove one of them\n",
        ),
    ],
)
def test_wrong_arguments_of_a_release_are_one_line(arguments: tuple[str, ...], message: str) -> None:
    done = release(ROOT, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
