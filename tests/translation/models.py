"""Tiny random models whose predictions are far from uniform, and the score of a sentence computed without a search."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

import torch

from hvd_async.config import ModelConfig, RunConfig
from hvd_async.tasks.translation.architectures import build_model
from hvd_async.tasks.translation.batching import collate
from hvd_async.tasks.translation.corpus import PreparedCorpus
from hvd_async.tasks.translation.export import export_model
from hvd_async.tasks.translation.model import Predictor, TranslationModel
from hvd_async.tasks.translation.vocabulary import NUM_SPECIAL

Kind: TypeAlias = Literal["transformer", "gru"]

SIZE = NUM_SPECIAL + 3
SOURCES = [[4, 5, 6], [], [6], [5, 5, 4, 6], [4]]
MAX_LENGTHS = [3, 2, 3, 3, 1]


def make_model(kind: Kind, seed: int, max_positions: int = 32) -> TranslationModel:
    """Return a random model in float64 whose predictions are far from uniform."""
    torch.manual_seed(seed)
    config = ModelConfig(
        kind=kind,
        encoder_layers=1,
        decoder_layers=2,
        width=8,
        feed_forward=16,
        heads=2,
        max_positions=max_positions,
        dropout=0.0,
    )
    model = build_model(config, SIZE).double().eval()
    with torch.no_grad():
        model.output.weight.mul_(2.0)
    return model


def log_probability(model: Predictor, source: list[int], target: list[int]) -> float:
    """Return the score of the target and its end, computed without a cache."""
    batch = collate([source], [target])
    with torch.no_grad():
        logits = model(batch.source, batch.source_mask, batch.target_input, batch.target_positions)
    log_probs = torch.log_softmax(logits, dim=1)
    return float(log_probs.gather(1, batch.target_output.flatten()[:, None]).sum())


def write_model(folder: Path, config: RunConfig, corpus: PreparedCorpus, seed: int) -> Path:
    """Write the folder of a random model, and return it."""
    torch.manual_seed(seed)
    source_size, target_size = corpus.vocabularies.sizes
    model = build_model(config.translation.model, target_size, source_size)
    export_model(folder, dict(model.named_parameters()), config, corpus.vocabularies, version=seed, extra={})
    return folder
