"""The tasks that a configuration may name: the one place beside the command line that knows them."""

from __future__ import annotations

from hvd_async.config import RunConfig
from hvd_async.tasks.task import Task


def make_task(config: RunConfig) -> Task:
    """Return the task of `config`, its text prepared, which may leave files behind for other ranks.

    Raises `HvdAsyncError` where the data are missing or cannot be used.
    """
    from hvd_async.tasks.translation import TranslationTask, prepare  # slow to import

    return TranslationTask(config, prepare(config))


def count_parameters(config: RunConfig) -> int:
    """Count the parameters of the model that `config` describes, whose memory is never allocated."""
    import torch  # slow to import

    from hvd_async.tasks.translation.model import build_model

    with torch.device("meta"):
        model = build_model(config.model, config.vocabulary.size)
    return sum(parameter.numel() for parameter in model.parameters())
