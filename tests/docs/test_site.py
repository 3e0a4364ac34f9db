"""The site that launch/docs.sh builds: every link resolves from a file, nothing is loaded from elsewhere, nothing is missing."""

from __future__ import annotations

import html.parser
import os
import pathlib
import re
import shutil
import subprocess
import sys
import urllib.parse
from typing import Any

import pytest

import hvd_async

ROOT = pathlib.Path(__file__).parents[2]
for package in ("material", "mkdocs", "mkdocstrings_handlers.python"):
    pytest.importorskip(package, reason=f"{package} is not installed; launch/setup.sh installs it, or pip install .[docs]")

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
"""Elements that a browser loads without being asked, and the attribute that says from where."""


def build(root: pathlib.Path, *arguments: str | pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Run launch/docs.sh of the checkout at `root` in this environment."""
    environ = {**os.environ, "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(root)}
    command = [root / "launch/docs.sh", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=200)


class Page(html.parser.HTMLParser):
    """Anchors of a page, the addresses to which it links, and those that it loads."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value is not None}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in LOADED and LOADED[tag] in values:
            self.loaded.append(values[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: pathlib.Path) -> dict[pathlib.Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def test_every_page_is_there(pages: dict[pathlib.Path, Page], site: pathlib.Path) -> None:
    expected = {"index", "changelog", "command-line", *(path.stem for path in (ROOT / "docs").glob("*.md"))}
    assert {path.stem for path in pages if path.parent == site} == expected


def test_every_link_and_anchor_resolves_from_a_file(pages: dict[pathlib.Path, Page]) -> None:
    broken = []
    num_anchors = 0
    for path, page in pages.items():
        for address in [*page.links, *page.loaded]:
            parts = urllib.parse.urlsplit(address)
            if parts.scheme in ("https", "http") and address in page.links:
                continue
            target = path.parent.joinpath(urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            anchor = urllib.parse.unquote(parts.fragment)
            num_anchors += bool(anchor)
            is_there = not parts.scheme and not parts.path.startswith("/") and target.is_file()
            if not is_there or (anchor and anchor not in pages[target].anchors):
                broken.append(f"{path.name}: {address}")
    assert broken == []
    assert num_anchors > 100


def test_nothing_is_loaded_from_another_host(pages: dict[pathlib.Path, Page], site: pathlib.Path) -> None:
    addresses = [address for page in pages.values() for address in page.loaded]
    for style in site.rglob("*.css"):
        addresses += re.findall(r"""(?:url\(|@import)\s*["']?([^"')]+)""", style.read_text(encoding="utf-8"))
    assert addresses
    assert [address for address in addresses if address.startswith(("http", "//"))] == []


def test_every_picture_is_shown(pages: dict[pathlib.Path, Page], browser: Any) -> None:
    tab, shown = browser.new_page(), {}
    for path in pages:
        tab.goto(path.as_uri())
        shown[path.stem] = tab.evaluate(
            "Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth, () => 0)))"
        )
    tab.close()
    assert [name for name, widths in shown.items() if 0 in widths] == []
    assert shown["concepts"] and shown["staleness"]


def test_every_public_name_has_an_entry(pages: dict[pathlib.Path, Page], site: pathlib.Path) -> None:
    anchors = pages[site / "api.html"].anchors
    assert [name for name in hvd_async.__all__ if f"hvd_async.{name}" not in anchors] == []
    assert {"hvd_async.script.optimizer.RunOptimizer.step", "hvd_async.script.run.Batches"} <= anchors


def test_every_verb_has_an_entry(pages: dict[pathlib.Path, Page], site: pathlib.Path) -> None:
    assert {"hvd-async-launch", "hvd-async-data-multi30k", "exit-status"} <= pages[site / "command-line.html"].anchors


def test_the_search_works_from_a_file(site: pathlib.Path, browser: Any) -> None:
    page = browser.new_page()
    requested: list[str] = []
    page.on("request", lambda one: requested.append(one.url))
    page.goto((site / "own-loop.html").as_uri())
    page.click("[data-md-component=search-query]")
    page.keyboard.type("torch_schedule")
    page.wait_for_selector("[data-md-component=search-result] a[href*='api.html']")
    page.close()
    assert [address for address in requested if not address.startswith(("file://", "data:"))] == []


def test_a_second_call_builds_nothing_and_files_of_others_are_kept(site: pathlib.Path, tmp_path: pathlib.Path) -> None:
    before = (site / "index.html").stat().st_mtime_ns
    assert "is up to date" in build(ROOT, site).stdout
    assert (site / "index.html").stat().st_mtime_ns == before
    (tmp_path / "thesis.txt").write_text("years of work")
    done = build(ROOT, tmp_path)
    assert done.returncode == 3 and "got files that are no site of this script" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fast",), "docs: --fast: unknown option; see --help\n"),
        (("a", "b"), "docs: b: got a second FOLDER, expected at most one; see --help\n"),
        (("",), "docs: FOLDER: got an empty name, expected a folder; see --help\n"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: tuple[str, ...], message: str) -> None:
    done = build(ROOT, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


def test_every_fault_is_named_with_its_place(tmp_path: pathlib.Path) -> None:
    for name in ("docs", "hvd_async", "launch", "examples", "configs", "slurm"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    (tmp_path / "tests").mkdir()
    for name in ("README.md", "CHANGELOG.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    with (tmp_path / "docs/replay.md").open("a") as page:
        page.write("\n[a](no-page.md) [b](clusters.md#no-anchor) [c](../examples/none.py) [e](/replay.md)\n")
        page.write("\n[d][hvd_async.no_name]\n")
    (tmp_path / "docs/stray.md").write_text("# In no menu\n")
    metric = tmp_path / "hvd_async/tasks/metric.py"
    lines = metric.read_text().splitlines()
    undocumented = lines.index("    digits: int = 3")
    del lines[undocumented + 1]  # its docstring
    metric.write_text("\n".join(lines) + "\n")
    dataset = tmp_path / "hvd_async/tasks/dataset.py"
    dataset.write_text(dataset.read_text().replace("        drop_last: leave out", "        drop_lats: leave out"))
    done = build(tmp_path)
    assert done.returncode == 3 and not (tmp_path / "build/docs").exists()
    for part in (
        "'replay.md' contains a link 'no-page.md'",
        "'replay.md' contains a link 'clusters.md#no-anchor', but the doc 'clusters.md' does not contain an anchor",
        "'replay.md' contains a link '../examples/none.py'",
        "'replay.md' contains an absolute link '/replay.md'",
        "replay.md: Could not find cross-reference target 'hvd_async.no_name'",
        "stray.md",
        "Parameter 'drop_lats' does not appear in the function signature",
        f"hvd_async/tasks/metric.py:{undocumented + 1}: hvd_async.Metric.digits: got no docstring",
    ):
        assert part in done.stderr, done.stderr
    assert all(line.startswith("docs: ") for line in done.stderr.splitlines()), done.stderr
