"""The models of `bench step` have the sizes in their names, and their steps make gradients."""

from __future__ import annotations

import pathlib

import pytest
import torch
import yaml

from hvd_async.benchmarks.models import SIZES, ModelSize, ModelStep, random_batches
from hvd_async.benchmarks.options import MODELS
from hvd_async.config import ModelConfig
from hvd_async.tasks.translation.transformer import Transformer

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "multi30k.yaml"


def num_parameters(size: ModelSize) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Transformer(size.config, size.vocabulary).parameters())


def test_the_multi30k_model_agrees_with_its_configuration() -> None:
    tree = yaml.safe_load(CONFIG.read_text())
    size = SIZES["multi30k"]
    assert size.config == ModelConfig(**tree["task"]["model"])
    assert size.vocabulary == tree["task"]["vocabulary"]["size"] and size.tokens == tree["task"]["batching"]["tokens"]


def test_the_base_model_has_60_million_parameters() -> None:
    assert num_parameters(SIZES["base"]) == pytest.approx(60e6, rel=0.02)
    assert [batch.num_tokens for batch in random_batches(SIZES["base"])] == [4096]


def test_every_model_has_a_name_on_the_command_line() -> None:
    assert set(SIZES) == set(MODELS)


def test_a_step_adds_a_gradient_and_leaves_the_random_state_alone() -> None:
    state = torch.get_rng_state()
    config = ModelConfig(encoder_layers=1, decoder_layers=1, width=8, feed_forward=8, heads=2, dropout=0.0)
    step = ModelStep(ModelSize(config, vocabulary=20, tokens=30, length=10))
    assert torch.equal(torch.get_rng_state(), state)
    [batch] = step.batches(1)
    loss, tokens = step(batch)
    assert loss > 0 and tokens == 30
    assert all(parameter.grad is not None for parameter in step.model.parameters())
    whole = [parameter.grad.clone() for parameter in step.model.parameters() if parameter.grad is not None]
    step.model.zero_grad()
    parts = [step(part) for part in step.batches(2)]  # two sentences, and one
    assert [tokens for _, tokens in parts] == [20, 10] and sum(loss for loss, _ in parts) == pytest.approx(loss)
    for one, parameter in zip(whole, step.model.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad)
    assert len(step.batches(8)) == 3
