"""What the site has beside docs/*.md: pages made of other files, comparisons in two columns, and a check of docstrings.

MkDocs calls the functions whose names begin with `on_`.
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import logging
import pathlib
import posixpath
import re
from collections.abc import Iterator, Sequence
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from mkdocs.structure.toc import AnchorLink
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from hvd_async.cli import make_parser
from hvd_async.cli.arguments import EXIT_STATUS

_ROOT = pathlib.Path(__file__).parents[2]
_PACKAGE = "hvd_async"
_PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
_PICTURES = (".svg", ".png")
_LINK = re.compile(r"\]\(([^)#\s:]+)(#[^)\s]*)?\)")
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".sbatch": "bash", ".toml": "toml"}
_FORMATTER = HtmlFormatter(nowrap=True)
_log = logging.getLogger("mkdocs.hooks")


def on_config(config: MkDocsConfig) -> None:
    """Add the fence for comparisons, and leave out what only a server shows or reads."""
    fence = {"name": "diff", "class": "diff", "format": two_columns}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}
    config.theme.static_templates -= {"404.html", "sitemap.xml"}


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages that are made of other files: README, changelog, command line, and each file to which a page links."""
    for source, name in _PAGES.items():
        files.append(File.generated(config, name, content=_moved(_text(source), "", name)))
    files.append(File.generated(config, "command-line.md", content=_command_line()))
    pages = {"": [*_PAGES], "docs": [file.src_uri for file in files.documentation_pages() if file.generated_by is None]}
    linked = set()
    for folder, names in pages.items():
        for name in names:
            text = _text(posixpath.join(folder, name))
            linked |= {posixpath.normpath(posixpath.join(folder, found[1])) for found in _LINK.finditer(text)}
    for path in sorted(linked):
        if (_ROOT / path).is_file() and _place(path) == _page_of_file(path):
            language = _LANGUAGES.get(posixpath.splitext(path)[1], "text")
            content = f"---\nsearch: {{exclude: true}}\n---\n# {path}\n\n````{language}\n{_text(path).rstrip()}\n````\n"
            files.append(File.generated(config, _page_of_file(path), content=content, inclusion=InclusionLevel.NOT_IN_NAV))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str | None:
    """Lead the links of a page in docs/ to files of the repository to their pages on the site."""
    return None if page.file.generated_by else _moved(markdown, "docs", page.file.src_uri)


def on_env(env: object, config: MkDocsConfig, files: Files) -> None:
    """Warn of each object on a page that has no docstring."""
    handler: Any = config.plugins["mkdocstrings"].get_handler("python")  # type: ignore[attr-defined]
    options = handler.get_options({})
    for file in files.documentation_pages():
        for name in _objects(file.page.toc if file.page else ()):
            shown = handler.collect(name, options)
            if shown.docstring is None:
                path = pathlib.Path(shown.filepath).relative_to(_ROOT)
                _log.warning(f"{path}:{shown.lineno}: {name}: got no docstring, expected one, since {file.src_uri} shows it")


def two_columns(source: str, *_: object, **__: object) -> str:
    """Return the HTML of a comparison, given as a unified diff without its heads: the old lines beside the new ones."""
    rows = []
    for is_common, lines in itertools.groupby(source.split("\n"), lambda line: line[:1] not in ("-", "+")):
        block = list(lines)
        if is_common:
            rows += [_row(line[1:], line[1:]) for line in block]
        else:
            old, new = ([line[1:] for line in block if line.startswith(sign)] for sign in "-+")
            rows += [_row(*pair) for pair in _aligned(old, new)]
    head = "<tr><th>before</th><th>with hvd_async</th></tr>"
    return f'<div class="highlight"><table class="two-columns">{head}{"".join(rows)}</table></div>'


def _aligned(old: Sequence[str], new: Sequence[str]) -> Iterator[tuple[str | None, str | None]]:
    """Yield pairs of lines: those that differ in nothing but their indent together, the others in order."""
    matcher = difflib.SequenceMatcher(None, [line.strip() for line in old], [line.strip() for line in new], autojunk=False)
    for _, first, last, new_first, new_last in matcher.get_opcodes():
        yield from itertools.zip_longest(old[first:last], new[new_first:new_last])


def _row(old: str | None, new: str | None) -> str:
    """Return the row of an old line and of the new one in its place; None: there is none."""
    is_changed = old is None or new is None or old.strip() != new.strip()
    kinds = ("removed", "added") if is_changed else ("", "")
    cells = [
        f'<td class="{kind if line else ""}">{highlight(line or "", PythonLexer(stripnl=False), _FORMATTER).rstrip()}</td>'
        for line, kind in zip((old, new), kinds, strict=True)
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _text(path: str) -> str:
    """Return the text of the file at `path` in the repository."""
    try:
        return (_ROOT / path).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise PluginError(f"{path}: got bytes that are not UTF-8 at {error.start}, expected text") from None


def _moved(markdown: str, folder: str, page: str) -> str:
    """Return the text of a file in `folder` of the repository with the links that it needs as `page` of the site."""

    def moved(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, found[1]))
        if not (_ROOT / path).is_file():
            return found[0]  # MkDocs refuses it
        return f"]({posixpath.relpath(_place(path), posixpath.dirname(page) or '.')}{found[2] or ''})"

    return _LINK.sub(moved, markdown)


def _place(path: str) -> str:
    """Return the page of the site that shows the file at `path` in the repository; of a picture, the file itself."""
    if posixpath.dirname(path) == "docs" and path.endswith(".md"):
        return posixpath.basename(path)
    if path.startswith("docs/") and path.endswith(_PICTURES):
        return path.removeprefix("docs/")
    return _PAGES.get(path, _page_of_file(path))


def _page_of_file(path: str) -> str:
    return f"files/{path}.md"


def _command_line() -> str:
    """Return the page of all verbs: the texts that `--help` prints."""
    parts = [
        "# Command line",
        "For users who look up a verb or a flag of `hvd-async`: what `--help` prints.",
        *(f"{'#' * level} {parser.prog}\n\n```text\n{_help(parser)}\n```" for level, parser in _parsers(make_parser(), 2)),
        f"## Exit status\n\n```text\n{EXIT_STATUS.strip()}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _help(parser: argparse.ArgumentParser) -> str:
    return parser.format_help().replace(EXIT_STATUS, "").rstrip()


def _parsers(parser: argparse.ArgumentParser, level: int) -> Iterator[tuple[int, argparse.ArgumentParser]]:
    """Yield `parser` and those of its verbs, each with the level of its heading."""
    yield level, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield from _parsers(verb, level + (parser.prog.count(" ") > 0))


def _objects(anchors: Any) -> Iterator[str]:
    """Yield the names of the package's objects among `anchors` and below them."""
    anchor: AnchorLink
    for anchor in anchors:
        if anchor.id.startswith(f"{_PACKAGE}."):
            yield anchor.id
        yield from _objects(anchor.children)
