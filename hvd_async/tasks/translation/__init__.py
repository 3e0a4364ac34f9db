"""Neural machine translation: text in, batches and losses out. Training sees only `TranslationTask` and `prepare`.

`Translator` translates text with a model that a run has exported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hvd_async.tasks.translation.corpus import prepare
    from hvd_async.tasks.translation.likelihood import Likelihood
    from hvd_async.tasks.translation.sampling import Sampling
    from hvd_async.tasks.translation.task import TranslationTask
    from hvd_async.tasks.translation.translator import Translation, Translator

__all__ = ["Likelihood", "Sampling", "Translation", "TranslationTask", "Translator", "prepare"]

_PLACES = {
    "Likelihood": "likelihood",
    "Sampling": "sampling",
    "Translation": "translator",
    "TranslationTask": "task",
    "Translator": "translator",
    "prepare": "corpus",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that a command that only writes text files need not wait for torch."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
