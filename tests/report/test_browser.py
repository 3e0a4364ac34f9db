"""The report in a real browser: nothing missing, nothing loaded from outside, nothing wider than the window."""

from __future__ import annotations

import itertools
import pathlib
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest

WIDTHS = (1400, 400)


@pytest.fixture
def report(large: pathlib.Path) -> pathlib.Path:
    return large / "report.html"


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, browser: Any, report: pathlib.Path) -> Iterator[Any]:
    """The report in a window of the given width. Fails if the page logs anything or loads anything from outside."""
    opened = browser.new_page(viewport={"width": request.param, "height": 900})
    messages: list[str] = []
    addresses: list[str] = []
    opened.on("console", lambda message: messages.append(message.text))
    opened.on("pageerror", lambda error: messages.append(str(error)))
    opened.on("request", lambda one: addresses.append(one.url))
    opened.goto(report.as_uri())
    yield opened
    opened.close()
    assert messages == []
    assert [address for address in addresses if not address.startswith(("file://", "data:"))] == []


def test_nothing_is_wider_than_the_window(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    wide, window = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= window
    # Wider elements lie in a box that scrolls.
    outside = page.evaluate(
        "[...document.body.querySelectorAll('*')].filter(each => each.getBoundingClientRect().right > innerWidth + 1"
        " && !each.closest('.box, pre')).map(each => each.outerHTML.slice(0, 80))"
    )
    assert outside == []


def test_all_figures_are_visible(page: Any, report: pathlib.Path) -> None:
    sizes = page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('figure')].map(each => ["
        "each.id, (box => [box.width, box.height])(each.querySelector('svg').getBoundingClientRect())]))"
    )
    assert set(sizes) == {path.stem for path in report.parent.glob("figures/*.svg")} and len(sizes) == 12
    assert all(width > 200 and height > 50 for width, height in sizes.values())
    assert page.evaluate("[...document.querySelectorAll('svg')].every(each => each.getAttribute('role') === 'img')")


def test_every_link_leads_somewhere(page: Any, report: pathlib.Path) -> None:
    links = page.eval_on_selector_all("a[href]", "all => all.map(each => each.getAttribute('href'))")
    fragments = [link[1:] for link in links if link.startswith("#")]
    assert fragments and all(page.evaluate("id => document.getElementById(id) !== null", each) for each in fragments)
    files = [link for link in links if not link.startswith("#")]
    assert len([link for link in files if "/runs/" in link]) == 8  # of 10 runs, two failed
    assert all((report.parent / urllib.parse.unquote(link)).exists() for link in files)


def test_headings_do_not_skip_a_level(page: Any) -> None:
    levels = page.eval_on_selector_all("h1, h2, h3, h4, h5", "all => all.map(each => Number(each.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(second - first <= 1 for first, second in itertools.pairwise(levels))


def test_the_first_screen_has_the_answer(page: Any) -> None:
    box = page.locator(".answer").first.bounding_box()
    assert box["y"] + box["height"] < 900


def test_the_first_figure_is_visible_as_a_whole(page: Any) -> None:
    box = page.locator("#speed-ups svg").bounding_box()
    assert box["width"] > 0 and box["x"] + box["width"] <= page.viewport_size["width"]


def test_the_report_can_be_printed(browser: Any, report: pathlib.Path) -> None:
    page = browser.new_page()
    page.goto(report.as_uri())
    printed = page.pdf(prefer_css_page_size=True)
    page.emulate_media(media="print")
    assert page.evaluate(
        "[...document.querySelectorAll('.box')].every(each => getComputedStyle(each).overflowX === 'visible')"
    )
    page.close()
    assert printed.startswith(b"%PDF") and len(printed) > 10_000


def test_every_figure_says_what_to_see(page: Any) -> None:
    readings = page.eval_on_selector_all("figure", "all => all.map(each => each.querySelector('.reading')?.textContent)")
    assert len(readings) == 12 and all(reading and reading.endswith(".") for reading in readings)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(browser: Any, report: pathlib.Path, scheme: str) -> None:
    page = browser.new_page(color_scheme=scheme)
    page.goto(report.as_uri())
    colours = page.evaluate(
        "['color', 'backgroundColor'].map(name => getComputedStyle(document.body)[name].match(/[0-9]+/g).map(Number))"
    )
    assert _contrast(*colours) > 10.0 and (sum(colours[1]) < 300) == (scheme == "dark")
    soft = page.evaluate("getComputedStyle(document.querySelector('figcaption')).color.match(/[0-9]+/g).map(Number)")
    link = page.evaluate("getComputedStyle(document.querySelector('a')).color.match(/[0-9]+/g).map(Number)")
    fault = page.evaluate("getComputedStyle(document.querySelector('.fault')).color.match(/[0-9]+/g).map(Number)")
    assert min(_contrast(each, colours[1]) for each in (soft, link, fault)) >= 4.5  # WCAG 2.1, level AA
    # The paper of a figure, which is white in its file, is that of the page.
    inverted = page.evaluate("getComputedStyle(document.querySelector('.drawing svg')).filter")
    assert (inverted == "none") == (scheme == "light")
    page.close()


def _contrast(one: list[int], other: list[int]) -> float:
    """Return the contrast of two colours as WCAG 2.1 defines it."""

    def luminance(colour: list[int]) -> float:
        parts = [value / 255 for value in colour[:3]]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
