"""Generated pages are up to date."""

from __future__ import annotations

import pathlib

from hvd_async.config.reference import reference

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_configuration_page_agrees_with_the_models() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), (
        "renew it: python -m hvd_async.config.reference > docs/configuration.md"
    )
