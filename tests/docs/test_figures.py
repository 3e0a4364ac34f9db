"""The figures of the documentation are those that their scripts draw, and the text beside them has their numbers."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
import types

import pytest

DOCS = pathlib.Path(__file__).parents[2] / "docs"
SCRIPTS = sorted((DOCS / "figures").glob("*.py"))


def load(path: pathlib.Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_figure_is_drawn_and_shown(script: pathlib.Path, tmp_path: pathlib.Path) -> None:
    load(script).draw(tmp_path / "drawn.svg")
    # Another version of matplotlib may write other bytes.
    assert (tmp_path / "drawn.svg").read_text().count("<path") == script.with_suffix(".svg").read_text().count("<path")
    assert sum(f"(figures/{script.stem}.svg)" in page.read_text() for page in DOCS.glob("*.md")) == 1


def test_concepts_tells_the_numbers_of_its_figure() -> None:
    module, text = load(DOCS / "figures" / "workers_in_time.py"), (DOCS / "concepts.md").read_text()
    found = []
    for steps, _ in (module.synchronous(), module.asynchronous(1), module.asynchronous(3)):
        done = [step for step in steps if step.end <= module.END]
        assert len({(step.worker, step.begin) for step in steps}) == len(steps)
        found.append((len(done), round(sum(step.staleness for step in done) / len(done), 1)))
    assert found == [(11, 0.0), (17, 1.8), (17, 0.5)]
    assert all(
        words in text for words in ("11 gradients in 8.2 seconds", "17 gradients, mean staleness 1.8", "from 1.8 to 0.5")
    )
