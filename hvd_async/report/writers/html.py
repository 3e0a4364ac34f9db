"""The report as one HTML file that needs no other file."""

from __future__ import annotations

from hvd_async.report.document import Document
from hvd_async.report.figures.drawing import inline
from hvd_async.system.printable import printable_lines


def html(document: Document) -> str:
    """Return the text of the page."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hvd_async.report", "templates"),
        autoescape=True,
        finalize=lambda value: printable_lines(value) if type(value) is str else value,  # only our own text has markup
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["inline"] = lambda figure: Markup(inline(figure))  # matplotlib escapes its text
    return environment.get_template("report.html").render(document=document) + "\n"
