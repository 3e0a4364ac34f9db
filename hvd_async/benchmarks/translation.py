"""`bench translation`: the measurements of `translation_measurement` as figures, on a configuration's corpus or the built-in
one."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from hvd_async.benchmarks import translation_measurement
from hvd_async.benchmarks.measurement import BenchFigure, BenchTarget, Spread, rate
from hvd_async.benchmarks.options import Options
from hvd_async.benchmarks.translation_measurement import (
    BFLOAT16,
    BFLOAT16_TRANSPOSED,
    FLOAT32,
    JOEYNMT,
    DecodingMeasurement,
    TrainingMeasurement,
)
from hvd_async.config import RunConfig, load_config, parse_config
from hvd_async.errors import ConfigError
from hvd_async.tasks.translation.builtin.grammar import write_corpus
from hvd_async.tasks.translation.corpus import PreparedCorpus, prepare

DEFAULTS = Options(repeats=3, seconds=20.0)
TAKES = frozenset({"config", "repeats", "seconds", "joeynmt"})

_BATCHES = 4
_OF_ALLOWED = BenchTarget("ratio at least", 0.9)
_BRIEF_TOKENS = 20_000
_SENTENCES = 40
_PAIRS = 4000
_BEAM = 4


def measure(options: Options) -> list[BenchFigure]:
    """Measure matrix products, training and translation on one core, each for about `options.seconds`."""
    with _corpus(options.config) as (config, corpus):
        turn_seconds = options.seconds / (2 * options.repeats)
        effort = translation_measurement.TrainingEffort(options.repeats, _BATCHES, turn_seconds)
        beside = []
        if options.joeynmt is not None:
            beside = [
                joeynmt_figure(*translation_measurement.measure_beside_joeynmt(options.joeynmt, config, corpus, effort))
            ]
        gemm = translation_measurement.measure_gemm(options.repeats)
        training = translation_measurement.measure_training(config, corpus, effort)
        exported = translation_measurement.briefly_trained(config, corpus, _BRIEF_TOKENS)
        sentences = [corpus.vocabularies.source.decode([corpus.validation.source(i).tolist()])[0] for i in _some(corpus)]
        decoding = translation_measurement.measure_decoding(exported, sentences, _BEAM, options.repeats)
    gain = gemm[BFLOAT16].median / gemm[FLOAT32].median
    return [*gemm_figures(gemm), *training_figures(training, gain), *beside, decoding_figure(decoding)]


def gemm_figures(rates: dict[str, Spread]) -> list[BenchFigure]:
    """Return the figures of matrix products, bfloat16 beside float32."""
    single = rates[FLOAT32]
    return [
        BenchFigure("matrix product, float32", single, "GFLOP/CPU s"),
        *(
            rate(f"matrix product, {name}", rates[name], "GFLOP/CPU s", ("float32", single))
            for name in (BFLOAT16, BFLOAT16_TRANSPOSED)
        ),
    ]


def training_figures(measured: TrainingMeasurement, gain: float) -> list[BenchFigure]:
    """Return tokens per second, beside the rate of the step's matrix products alone at the speed of a large product; and
    bfloat16 beside float32, and beside what Amdahl's law allows if products become `gain` times as fast and nothing else does."""
    unit = "tokens/CPU s"
    single = measured.rates[FLOAT32]
    ceiling = measured.sgemm_gflops.scaled(1e3 / measured.mflop_per_token)
    half = measured.rates[BFLOAT16]
    products = min(1.0, single.median / ceiling.median)  # share of the step
    allowed = single.scaled(1 / (1 - products + products / gain))
    return [
        rate("training, float32", single, unit, ("its matrix products alone", ceiling)),
        rate("training, bfloat16", half, unit, ("float32", single)),
        rate("training, bfloat16", half, unit, ("float32, products as in bfloat16", allowed), _OF_ALLOWED),
    ]


def joeynmt_figure(rates: Mapping[str, Spread], version: str) -> BenchFigure:
    """Return our training steps beside those of JoeyNMT, of this version, on the same batches."""
    limit = (f"JoeyNMT {version}", rates[JOEYNMT])
    return rate("training, float32, forward and backward", rates[FLOAT32], "tokens/CPU s", limit)


def decoding_figure(measured: DecodingMeasurement) -> BenchFigure:
    """Return the figure of sentences per second with the cache, beside that without."""
    limit = ("without a cache", measured.uncached)
    return rate(f"translation, beam {_BEAM}", measured.cached_few, "sentences/CPU s", limit)


def _some(corpus: PreparedCorpus) -> range:
    return range(min(_SENTENCES, len(corpus.validation)))


@contextlib.contextmanager
def _corpus(path: str | None) -> Iterator[tuple[RunConfig, PreparedCorpus]]:
    """Yield the configuration at `path` and its corpus, by default a model of Multi30k's size on the built-in corpus."""
    if path is not None:
        config = load_config(path)
        kind = config.translation.model.kind
        if kind != "transformer":
            raise ConfigError(f"{path}: task.model.kind: got {kind!r}, expected 'transformer' for this benchmark")
        yield config, prepare(config)
        return
    with tempfile.TemporaryDirectory(prefix="hvd-async-bench-") as folder:
        write_corpus(Path(folder) / "text", train=_PAIRS, validation=_SENTENCES, test=1)
        tree = {
            "output": f"{folder}/run",
            "task": {
                "data": {"folder": f"{folder}/text", "validation": "val"},
                "vocabulary": {"size": 1000},
                "batching": {"tokens": 500},
            },
            "training": {"epochs": 1},
        }
        config = parse_config(tree, "built-in corpus")
        yield config, prepare(config)
