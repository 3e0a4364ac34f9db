"""The digits as a task for the verbs of hvd-async: `task: {factory: examples.digits.task:make_task}`; see run.yaml."""

from __future__ import annotations

import math

import hvd_async as ha
import torch.nn.functional as F
from hvd_async.config import RunConfig

from examples.digits.data import digits, network

ACCURACY = ha.Metric("accuracy", "accuracy", unit="%", digits=1, is_higher_better=True)
PERPLEXITY = ha.Metric("perplexity", "perplexity", digits=3)


def make_task(config: RunConfig, batch_size: int = 32, width: int = 16) -> ha.DatasetTask:
    """Return the task. `batch_size` and `width` are the options of the configuration."""
    train, validation = digits()
    return ha.DatasetTask(
        config,
        model=lambda: network(width),
        train=train,
        validation=validation,
        batch_size=batch_size,
        loss=lambda outputs, batch: F.cross_entropy(outputs, batch[1], reduction="sum"),
        measures={ACCURACY: lambda outputs, batch: (outputs.argmax(1) == batch[1]).sum()},
        derived={PERPLEXITY: lambda scores: math.exp(scores["loss"])},
        weight_unit="images",
        buffers="recalibrate",  # BatchNorm's statistics follow the parameters; nothing is trained in them
    )
