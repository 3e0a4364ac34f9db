from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hvd_async.benchmarks import translation_measurement
from hvd_async.benchmarks.translation_measurement import TrainingEffort, WithoutCache
from hvd_async.config import DecodingConfig, RunConfig
from hvd_async.tasks.translation.batching import collate
from hvd_async.tasks.translation.builtin.grammar import write_corpus
from hvd_async.tasks.translation.corpus import PreparedCorpus, prepare
from hvd_async.tasks.translation.decoding import translate
from hvd_async.tasks.translation.transformer import Transformer
from tests.translation.settings import make_config


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder: Path = tmp_path_factory.mktemp("grammar")
    write_corpus(folder, train=200, validation=4, test=4)
    return make_config(folder)


@pytest.fixture(scope="module")
def corpus(config: RunConfig) -> PreparedCorpus:
    return prepare(config)


def test_matrix_products_are_measured_in_all_types() -> None:
    rates = translation_measurement.measure_gemm(turns=2, size=64)
    assert set(rates) == {"float32", "bfloat16", "bfloat16 transposed"}
    assert all(rate.count == 2 and rate.low > 0 for rate in rates.values())


def test_training_is_measured_in_both_precisions(config: RunConfig, corpus: PreparedCorpus) -> None:
    measured = translation_measurement.measure_training(config, corpus, TrainingEffort(turns=2, batches=2))
    assert set(measured.rates) == {"float32", "bfloat16"}
    assert all(rate.count == 2 and rate.low > 0 for rate in measured.rates.values())
    assert measured.sgemm_gflops.low > 0.0 and measured.mflop_per_token > 0.0


def test_flop_of_the_linear_layers_agree_with_the_formula(config: RunConfig) -> None:
    torch.manual_seed(1)
    model = Transformer(config.translation.model, 11)
    batch = collate([[4, 5, 6], [7]], [[8, 9, 4], [10, 5]])
    width, inner = config.translation.model.width, config.translation.model.feed_forward
    of_source = (4 * width**2 + 2 * width * inner) + 2 * width**2  # the encoder, and keys and values of the decoder
    of_target = 4 * width**2 + 2 * width**2 + 2 * width * inner
    expected = 6 * (8 * of_source + 8 * of_target + 7 * 11 * width)
    assert translation_measurement.matrix_flop(model, batch) == expected


def test_a_model_is_trained_until_its_tokens_are_seen(config: RunConfig, corpus: PreparedCorpus) -> None:
    exported = translation_measurement.briefly_trained(config, corpus, tokens=500)
    untrained = translation_measurement.briefly_trained(config, corpus, tokens=0)
    assert (exported.meta["version"] > 0, untrained.meta["version"]) == (True, 0)
    assert not torch.equal(exported.model.output.weight, untrained.model.output.weight)
    assert not exported.model.training


def test_translation_is_measured_with_and_without_cache(config: RunConfig, corpus: PreparedCorpus) -> None:
    exported = translation_measurement.briefly_trained(config, corpus, tokens=500)
    sentences = corpus.validation_sources
    measured = translation_measurement.measure_decoding(exported, sentences, beam=2, turns=2, every=2)
    assert all(rate.count == 2 and rate.low > 0 for rate in (measured.cached, measured.uncached, measured.cached_few))


@pytest.mark.parametrize("beam", [1, 3])
def test_translations_are_the_same_without_a_cache(config: RunConfig, beam: int) -> None:
    torch.manual_seed(1)
    model = Transformer(config.translation.model, 11).double().eval()
    sources = [[4, 5, 6], [], [6], [5, 5, 4, 6]]
    expected = translate(model, sources, DecodingConfig(), beam=beam)
    assert translate(WithoutCache(model).eval(), sources, DecodingConfig(), beam=beam) == expected
