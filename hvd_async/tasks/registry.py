"""The tasks that a configuration can name; besides the command line, only this module knows them."""

from __future__ import annotations

from hvd_async.config import RunConfig
from hvd_async.tasks.task import Task


def make_task(config: RunConfig) -> Task:
    """Return the task of `config`, with its text prepared, which may leave files behind for other ranks.

    Raises `HvdAsyncError` if the data are missing or unusable.
    """
    from hvd_async.tasks.translation import TranslationTask, prepare  # slow to import

    return TranslationTask(config, prepare(config))


def count_parameters(config: RunConfig) -> int:
    """Count the parameters of the model that `config` describes, whose memory is never allocated."""
    import torch  # slow to import

    from hvd_async.tasks.translation.architectures import build_model

    with torch.device("meta"):
        model = build_model(config.model, config.vocabulary.size)
    return sum(parameter.numel() for parameter in model.parameters())
