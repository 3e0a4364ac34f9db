"""Neural machine translation: text in, batches and losses out. Training sees only `TranslationTask` and `prepare`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hvd_async.tasks.translation.corpus import prepare
    from hvd_async.tasks.translation.task import TranslationTask

__all__ = ["TranslationTask", "prepare"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that a command that only writes text files need not wait for torch."""
    if name == "prepare":
        from hvd_async.tasks.translation.corpus import prepare

        return prepare
    if name == "TranslationTask":
        from hvd_async.tasks.translation.task import TranslationTask

        return TranslationTask
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
