"""Measurements of translation, turned into figures."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest

from hvd_async.benchmarks.measurement import Spread
from hvd_async.benchmarks.translation import DEFAULTS, _corpus, decoding_figure, gemm_figures, measure, training_figures
from hvd_async.benchmarks.translation_measurement import (
    BFLOAT16,
    BFLOAT16_TRANSPOSED,
    FLOAT32,
    DecodingMeasurement,
    TrainingMeasurement,
)
from hvd_async.errors import ConfigError


def test_products_in_bfloat16_are_compared_with_float32() -> None:
    rates = {FLOAT32: Spread.of([100.0]), BFLOAT16: Spread.of([50.0]), BFLOAT16_TRANSPOSED: Spread.of([400.0])}
    assert [figure.ratio for figure in gemm_figures(rates)] == [None, 0.5, 4.0]


def test_training_is_compared_with_its_matrix_products_alone() -> None:
    measured = TrainingMeasurement(
        {FLOAT32: Spread.of([1500.0, 1500.0]), BFLOAT16: Spread.of([3000.0, 3000.0])},
        sgemm_gflops=Spread.of([100.0, 100.0]),
        mflop_per_token=50.0,
    )
    single, half, of_allowed = training_figures(measured, gain=3.0)
    assert single.limit is not None and single.limit.spread.median == pytest.approx(2000.0)  # 100 GFLOP / 50 MFLOP
    assert single.ratio == pytest.approx(0.75) and half.ratio == pytest.approx(2.0)
    # Three quarters of the step three times as fast: half of its time.
    assert of_allowed.limit is not None and of_allowed.limit.spread.median == pytest.approx(3000.0)


def test_translation_is_compared_with_translation_without_a_cache() -> None:
    measured = DecodingMeasurement(cached=Spread.of([12.0]), uncached=Spread.of([2.0]), cached_few=Spread.of([10.0]))
    assert decoding_figure(measured).ratio == pytest.approx(5.0)


def test_without_a_configuration_a_model_of_multi30ks_size_is_measured_on_the_builtin_corpus() -> None:
    with _corpus(None) as (config, corpus):
        assert (config.translation.model.width, config.translation.batching.tokens) == (256, 500)
        assert len(corpus.train) == 4000 and len(corpus.validation) == 40


def test_a_gru_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("output: x\ntask: {data: {folder: x}, model: {kind: gru}}\ntraining: {epochs: 1}\n")
    with pytest.raises(ConfigError, match=r"task\.model\.kind: got 'gru', expected 'transformer'"):
        measure(dataclasses.replace(DEFAULTS, config=str(path)))
