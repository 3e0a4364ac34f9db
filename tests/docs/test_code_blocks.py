"""Every Python block of the documentation runs as it stands, in a folder of its own, or a comment before it says why not."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = {
    f"{page.name}:{text.count(chr(10), 0, found.start()) + 2}": found[1]
    for page in PAGES
    if (text := page.read_text(encoding="utf-8"))
    for found in re.finditer(r"(?<!-->\n)^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
}


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("place", BLOCKS)
def test_a_block_runs(place: str, tmp_path: pathlib.Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", BLOCKS[place]],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_links_between_pages_have_targets() -> None:
    missing = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                missing.append(f"{page.name}: {target}")
    assert missing == []
