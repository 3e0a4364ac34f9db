"""The recipes of `launch/containers/`: that for Docker and that for Apptainer make the same image from the same files."""

from __future__ import annotations

import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "launch" / "containers"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
APPTAINER = (FOLDER / "hvd_async.def").read_text()
INSTALL = FOLDER / "install.sh"


def sections() -> dict[str, str]:
    """Return the sections of the recipe for Apptainer."""
    parts = re.split(r"^%(\w+)$", APPTAINER, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def copied_by_docker() -> dict[str, str]:
    found = {}
    for words in re.findall(r"^COPY (.*)$", DOCKERFILE, flags=re.MULTILINE):
        *sources, target = words.split()
        for source in sources:
            found[source] = target + source if target.endswith("/") else target
    return found


def test_both_recipes_copy_the_same_files_which_are_all_that_is_built() -> None:
    copied = dict(line.split() for line in sections()["files"].split("\n") if line.strip())
    assert copied == copied_by_docker()
    assert set(copied) == {"pyproject.toml", "README.md", "launch", "hvd_async"}
    for source, target in copied.items():
        assert (ROOT / source).exists() and target == f"/src/{source}"
    text = INSTALL.read_text()
    for path in re.findall(r"\$src/([\w./-]+)", text):
        assert (ROOT / path).exists(), path
    assert "readonly src=/src venv=/opt/hvd_async\n" in text


def test_both_recipes_run_the_same_script_on_the_same_base() -> None:
    assert "ARG BASE=debian:bookworm-slim\n" in DOCKERFILE and "Bootstrap: docker\nFrom: debian:bookworm-slim\n" in APPTAINER
    defaults = dict(re.findall(r"^ARG (EXTRAS|TORCH|HOROVOD|SSHD)=(.*)$", DOCKERFILE, flags=re.MULTILINE))
    [exported] = re.findall(r"^    export (EXTRAS=.*)$", sections()["post"], flags=re.MULTILINE)
    assert dict(word.split("=") for word in exported.split()) == defaults
    assert dict(re.findall(r'"\$\{(\w+):=(.*?)\}"', INSTALL.read_text())) == defaults
    for recipe in (DOCKERFILE, sections()["post"]):
        assert "/src/launch/containers/install.sh" in recipe and "rm -rf /src" in recipe
    [of_docker] = re.findall(r"^ENV (.*)$", DOCKERFILE, flags=re.MULTILINE)
    assert f"export {of_docker}\n" in sections()["environment"]


@pytest.mark.parametrize(
    ("words", "variables", "message"),
    [
        (["x"], {}, "install: x: expected no argument; see --help"),
        ([], {"HOROVOD": "maybe"}, "install: HOROVOD: got maybe, expected yes or no"),
        ([], {"SSHD": "1"}, "install: SSHD: got 1, expected yes or no"),
        ([], {}, "install: /src: no checkout of hvd_async"),
    ],
)
def test_the_script_installs_nothing_where_it_cannot(words: list[str], variables: dict[str, str], message: str) -> None:
    if pathlib.Path("/src/pyproject.toml").exists() and "/src" in message:
        pytest.skip("this machine is such an image")
    environ = {"PATH": "/usr/bin:/bin", **variables}
    done = subprocess.run([INSTALL, *words], env=environ, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{message}\n")


def test_the_script_explains_itself() -> None:
    done = subprocess.run([INSTALL, "--help"], capture_output=True, text=True, timeout=20, check=True)
    assert all(name in done.stdout for name in ("EXTRAS", "TORCH", "HOROVOD", "PIP_EXTRA_INDEX_URL"))
