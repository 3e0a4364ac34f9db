"""Matplotlib figures as bytes that are equal each time."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hvd_async.report.document import Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

_SETTINGS: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "path",
    # Letters as wide at every resolution: positions are found at the resolution of the PNG, but the SVG has another.
    "figure.dpi": 150,
    "text.hinting": "no_hinting",
    "figure.constrained_layout.w_pad": 0.06,
    "text.parse_math": False,  # a variant may be named $x$
}


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Apply our settings, whatever the user's own. A name may have letters that the font lacks: they appear as boxes."""
    import matplotlib  # slow to import

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        yield


def finish(canvas: Canvas, name: str, reading: str, caption: str, description: str) -> Figure:
    """Return the block of a drawn figure. To be called within `drawing`."""
    import matplotlib

    # Once for both files: finding the positions of everything takes longer than drawing.
    canvas.draw_without_rendering()
    canvas.set_layout_engine("none")
    svg, png = io.StringIO(), io.BytesIO()
    matplotlib.rcParams["svg.hashsalt"] = name  # otherwise identifiers are random
    canvas.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    canvas.savefig(png, format="png")
    return Figure(name, reading, caption, description, svg.getvalue(), png.getvalue())


def inline(figure: Figure) -> str:
    """Return the SVG as an element of an HTML page: its identifiers are unique to this figure, and the page sets its
    size."""
    svg = figure.svg[figure.svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for before in ('id="', 'href="#', "url(#"):
        svg = svg.replace(before, f"{before}{figure.name}-")
    head, rest = svg.split(">", 1)
    width = re.search(r'\bwidth="([0-9.]+)pt"', head)
    head = re.sub(r'\s(?:width|height|version|xmlns(?::xlink)?)="[^"]*"', "", head)
    size = f' style="width: {float(width[1]):.0f}pt; --drawn: {float(width[1]):.0f}pt"' if width else ""
    return f'{head}{size} role="img" aria-labelledby="caption-{figure.name}">{rest}'
