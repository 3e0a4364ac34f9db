"""The code on the pages: Python blocks run as they stand, comparisons of scripts run before and after, named tests exist."""

from __future__ import annotations

import ast
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What torchrun would set for a process that is alone.
ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def blocks(language: str) -> dict[str, str]:
    """Return the blocks of all pages by `page:line`, without those after a comment that says why they do not run."""
    return {
        f"{page.name}:{text.count(chr(10), 0, found.start()) + 2}": found[1]
        for page in PAGES
        if (text := page.read_text(encoding="utf-8"))
        for found in re.finditer(rf"(?<!-->\n)^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    }


PYTHON, COMPARISONS = blocks("python"), blocks("diff")


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[..., None]]:
    """Returns a function that runs code in a process and a folder of its own, and asserts that it succeeds."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.docs.forking"]
    with subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None and server.stdout is not None
        requests, answers = server.stdin, server.stdout

        def run_code(code: str, folder: pathlib.Path, **variables: str) -> None:
            print(json.dumps({"code": code, "folder": str(folder), "variables": variables}), file=requests, flush=True)
            status, output = json.loads(answers.readline())
            assert status == 0, output

        yield run_code
        requests.close()


def test_there_are_blocks() -> None:
    assert len(PYTHON) >= 2 and len(COMPARISONS) >= 2


@pytest.mark.parametrize("place", PYTHON)
def test_a_block_runs(place: str, tmp_path: pathlib.Path, run: Callable[..., None]) -> None:
    run(PYTHON[place], tmp_path)


@pytest.mark.parametrize("side", ["-", "+"], ids=["before", "after"])
@pytest.mark.parametrize("place", COMPARISONS)
def test_both_sides_of_a_comparison_run_and_save_the_same_parameters(
    place: str, side: str, tmp_path: pathlib.Path, run: Callable[..., None]
) -> None:
    code = "".join(line[1:] for line in COMPARISONS[place].splitlines(keepends=True) if line[0] in (" ", side))
    if "import horovod" in code:
        pytest.importorskip("horovod", reason="Horovod is not installed; see launch/setup.sh")
    saved = "model.pt" if side == "-" else "runs/points/model.pt"
    check = f"\nassert sorted(torch.load('{saved}')) == ['0.bias', '0.weight', '2.bias', '2.weight']\n"
    run(code + check, tmp_path, **(ALONE if side == "-" else {}))


def test_scripts_import_hvd_async_before_torch() -> None:
    after = {place: re.sub(r"^-.*\n|^[ +]", "", text, flags=re.MULTILINE) for place, text in COMPARISONS.items()}
    examples = {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "examples").rglob("*.py")}
    checked = 0
    for place, text in {**PYTHON, **after, **examples}.items():
        imports = [node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = [getattr(node, "module", None) or node.names[0].name for node in imports]
        roots = [name.partition(".")[0] for name in names]
        if "hvd_async" in roots:
            loading = [root for root in roots if root in ("torch", "safetensors", "sklearn", "examples")]
            assert all(roots.index("hvd_async") < roots.index(root) for root in loading), place
            checked += bool(loading)
    assert checked >= 6


def test_links_between_pages_have_targets() -> None:
    missing = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                missing.append(f"{page.name}: {target}")
    assert missing == []


def test_every_promise_names_tests_that_exist() -> None:
    text = (ROOT / "docs/guarantees.md").read_text(encoding="utf-8")
    promises = re.findall(
        r"^- \*\*.*?(?=\n\n|\n- |\Z)", text[: text.index("## What is not promised")], re.DOTALL | re.MULTILINE
    )
    assert len(promises) > 20
    for promise in promises:
        named = re.findall(r"`(tests/\S+\.py)::(\w+)`", promise)
        assert named, promise
        for path, name in named:
            assert f"\ndef {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{name}"
