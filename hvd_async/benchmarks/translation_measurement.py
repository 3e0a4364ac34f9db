"""The Transformer on one core: matrix products, training steps in two precisions, translation with and without a cache.

All rates are per second of this process's CPU time, with one thread, and competitors take turns.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hvd_async.benchmarks.joeynmt import JoeyNmt
from hvd_async.benchmarks.measurement import Effort, Spread, take_turns
from hvd_async.config import RunConfig
from hvd_async.errors import ConfigError
from hvd_async.tasks.gradient import compute_gradient
from hvd_async.tasks.translation.batching import Batch
from hvd_async.tasks.translation.corpus import PreparedCorpus
from hvd_async.tasks.translation.export import ExportedModel
from hvd_async.tasks.translation.model import DecoderState
from hvd_async.tasks.translation.task import TranslationTask
from hvd_async.tasks.translation.transformer import Transformer, TransformerState
from hvd_async.tasks.translation.translator import Translator
from hvd_async.vectors.flat import FlatParameters
from hvd_async.vectors.threads import arithmetic_threads

FLOAT32, BFLOAT16, BFLOAT16_TRANSPOSED = "float32", "bfloat16", "bfloat16 transposed"
PRECISIONS = (FLOAT32, BFLOAT16)
JOEYNMT = "JoeyNMT"
_ALIKE = 0.01
_GEMM_SIZE = 2048
_GEMM_SECONDS = 1.0


def measure_gemm(turns: int = 5, size: int = _GEMM_SIZE) -> dict[str, Spread]:
    """Return the GFLOP per CPU-second of a product of two `size` x `size` matrices, by competitor: float32, bfloat16 twice.

    Libraries may have a fast kernel for A B^T ("transposed", as in a linear layer's forward) and none for A B. If a kernel
    would take much longer than a second, A has fewer rows.
    """
    competitors = {
        FLOAT32: Gemm(torch.float32, size),
        BFLOAT16: Gemm(torch.bfloat16, size),
        BFLOAT16_TRANSPOSED: Gemm(torch.bfloat16, size, is_transposed=True),
    }
    with arithmetic_threads(1):
        return take_turns(lambda: {name: gemm.gflops() for name, gemm in competitors.items()}, _unlimited(turns))


class Gemm:
    """A product of square matrices to be timed."""

    def __init__(self, dtype: torch.dtype, size: int = _GEMM_SIZE, is_transposed: bool = False) -> None:
        """Draw the matrices, and find how many rows of the first fit in about a second."""
        generator = torch.Generator().manual_seed(1)
        self._a = torch.randn(size, size, generator=generator).to(dtype)
        b = torch.randn(size, size, generator=generator).to(dtype)
        self._b = b.t() if is_transposed else b
        with arithmetic_threads(1):
            few = self._a[: min(size, 32)]
            seconds = cpu_seconds(lambda: few @ self._b) / len(few)
        self._a = self._a[: max(len(few), min(size, int(_GEMM_SECONDS / max(seconds, 1e-9))))]

    def gflops(self) -> float:
        """Return the GFLOP per CPU-second of one product."""
        flop = 2.0 * self._a.shape[0] * self._b.shape[0] * self._b.shape[1]
        return flop / cpu_seconds(lambda: self._a @ self._b) / 1e9


def cpu_seconds(action: Callable[[], object]) -> float:
    """Return the seconds of this process's CPU time that `action` takes; never 0."""
    started = time.process_time()
    action()
    return max(time.process_time() - started, 1e-9)


@dataclass(frozen=True)
class TrainingMeasurement:
    """Real target tokens per CPU-second by precision, beside the speed of float32 matrix products in the same turns."""

    rates: dict[str, Spread]
    sgemm_gflops: Spread
    mflop_per_token: float
    """MFLOP of a step's matrix products, without those of attention, per real target token."""


@dataclass(frozen=True)
class TrainingEffort:
    """Length of a measurement. A precision whose turn would take longer than `turn_seconds` gets fewer batches, at least
    one."""

    turns: int = 6
    batches: int = 12
    turn_seconds: float = 20.0


def measure_training(
    config: RunConfig,
    corpus: PreparedCorpus,
    effort: TrainingEffort = TrainingEffort(),  # frozen
    precisions: Sequence[str] = PRECISIONS,
) -> TrainingMeasurement:
    """Measure forward, backward and the collection of the gradient, for the first batches of `config`'s run; no updates.

    The time includes making the batch, as in a run.
    """
    with arithmetic_threads(1):
        steppers = {name: _Stepper(_with_precision(config, name), corpus) for name in precisions}
        counts = {name: stepper.batches_within(effort) for name, stepper in steppers.items()}
        sgemm = Gemm(torch.float32)
        numbers = itertools.count()

        def turn() -> dict[str, float]:
            first = next(numbers) * effort.batches
            rates = {
                name: stepper.tokens_per_second(range(first, first + counts[name])) for name, stepper in steppers.items()
            }
            return {**rates, "sgemm": sgemm.gflops()}

        rates = take_turns(turn, _unlimited(effort.turns))
    stepper = next(iter(steppers.values()))
    batches = [stepper.task.batch(index, "cpu") for index in range(effort.turns * effort.batches)]
    return TrainingMeasurement(
        {name: rates[name] for name in precisions},
        rates["sgemm"],
        sum(matrix_flop(stepper.model, batch) for batch in batches) / sum(batch.num_tokens for batch in batches) / 1e6,
    )


def measure_beside_joeynmt(
    python: str, config: RunConfig, corpus: PreparedCorpus, effort: TrainingEffort
) -> tuple[dict[str, Spread], str]:
    """Return the target tokens per CPU-second of steps of ours (`FLOAT32`) and of JoeyNMT's (`JOEYNMT`), which `python` has, on
    the same batches in turns, and the version of JoeyNMT.

    Models have the same sizes, and no side updates its parameters. Raises `ConfigError` as `JoeyNmt` does, and if the models
    differ in their number of parameters by more than a hundredth.
    """
    with arithmetic_threads(1):
        stepper = _Stepper(_with_precision(config, FLOAT32), corpus)
        count = stepper.batches_within(effort)
        batches = [stepper.task.batch(index, "cpu") for index in range(count)]
        num_tokens = sum(batch.num_tokens for batch in batches)
        with JoeyNmt(python, config, stepper.model.output.out_features, batches) as other:
            own = sum(parameter.numel() for parameter in stepper.model.parameters())
            if not math.isclose(own, other.num_parameters, rel_tol=_ALIKE):
                raise ConfigError(
                    f"--joeynmt: got a model of {other.num_parameters:,} parameters beside one of {own:,}, expected equal ones"
                )
            other.cpu_seconds([0])  # to warm up

            def turn() -> dict[str, float]:
                return {
                    FLOAT32: stepper.tokens_per_second(range(count)),
                    JOEYNMT: num_tokens / other.cpu_seconds(range(count)),
                }

            return take_turns(turn, _unlimited(effort.turns)), other.version


class _Stepper:
    """A worker's part of the steps of a run, without push and pull."""

    def __init__(self, config: RunConfig, corpus: PreparedCorpus) -> None:
        self.task = TranslationTask(config, corpus)
        model = self.task.build_model()
        assert isinstance(model, Transformer)
        self.model = model.train()
        self.flat = FlatParameters(model)
        self._seed = config.seed

    def step(self, index: int) -> tuple[Tensor, float]:
        """Return the gradient ([size], float32) of the summed loss of batch `index`, and its target tokens."""
        tokens, _ = compute_gradient(self.task, self.model, self.flat, self._seed, index)
        return self.flat.collect_gradient(), tokens

    def batches_within(self, effort: TrainingEffort) -> int:
        """Return the number of batches for a turn, after a first batch to warm up."""
        self.step(0)
        return max(1, min(effort.batches, int(effort.turn_seconds / cpu_seconds(lambda: self.step(0)))))

    def tokens_per_second(self, indices: range) -> float:
        started = time.process_time()
        tokens = sum(self.step(index)[1] for index in indices)
        return tokens / (time.process_time() - started)


def matrix_flop(model: Transformer, batch: Batch) -> float:
    """Return the FLOP of forward and backward of all linear layers: 6 for each weight and position, padding included."""
    flop = 0.0
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            is_of_source = name.startswith("encoder.") or name.endswith("cross_attention.key_value")
            positions = batch.source.numel() if is_of_source else batch.target_output.numel()
            flop += 6.0 * module.weight.numel() * (batch.num_tokens if module is model.output else positions)
    return flop


def _with_precision(config: RunConfig, precision: str) -> RunConfig:
    return config.model_copy(update={"training": config.training.model_copy(update={"precision": precision})})


def briefly_trained(config: RunConfig, corpus: PreparedCorpus, tokens: int = 200_000) -> ExportedModel:
    """Return a model that ends its sentences, as no untrained one does: trained by Adam on `tokens` target tokens."""
    stepper = _Stepper(_with_precision(config, FLOAT32), corpus)
    optimizer = torch.optim.Adam(stepper.model.parameters(), betas=(0.9, 0.98))
    seen, index = 0.0, 0
    with arithmetic_threads(1):
        while seen < tokens:
            gradient, num_tokens = stepper.step(index)
            seen, index = seen + num_tokens, index + 1
            gradient /= max(float(gradient.norm()), num_tokens)
            optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, 4 * seen / tokens)
            optimizer.step()
    return ExportedModel(stepper.model.eval(), corpus.vocabularies, config, {"version": index})


@dataclass(frozen=True)
class DecodingMeasurement:
    """Sentences per CPU-second, from text to text."""

    cached: Spread
    uncached: Spread
    """Without the cache, of every `every`-th sentence."""
    cached_few: Spread
    """With the cache, of the sentences of `uncached`, in the same turns."""


def measure_decoding(
    exported: ExportedModel, sentences: Sequence[str], beam: int, turns: int = 3, every: int = 1
) -> DecodingMeasurement:
    """Translate `sentences` in batches of similar length (`task.decoding.batch_sentences`), with `beam` (1: greedy search)."""
    assert isinstance(exported.model, Transformer)
    reference = replace(exported, model=WithoutCache(exported.model).eval())
    few = sentences[::every]

    def rate(model: ExportedModel, chosen: Sequence[str]) -> float:
        translator = Translator(model, settings={"beam": beam})
        return len(chosen) / cpu_seconds(lambda: translator.translate(chosen))

    def turn() -> dict[str, float]:
        return {"cached": rate(exported, sentences), "few": rate(exported, few), "uncached": rate(reference, few)}

    with arithmetic_threads(1):
        rates = take_turns(turn, _unlimited(turns))
    return DecodingMeasurement(rates["cached"], rates["uncached"], rates["few"])


def _unlimited(turns: int) -> Effort:
    return Effort(turns, seconds=math.inf, warm_ups=0)


@dataclass
class _Prefixes(TransformerState):
    """State of a decoder without cache: the encoded source of each row, [B, S, W], and its tokens so far, [B, t]."""

    memory: Tensor = field(default_factory=lambda: torch.empty(0))
    tokens: Tensor = field(default_factory=lambda: torch.empty(0))

    def select(self, rows: Tensor, sentences: Tensor | None = None) -> _Prefixes:
        """Return the state of `rows`, each of which has a source of its own."""
        mask = None if self.source_mask is None else self.source_mask.index_select(0, rows)
        memory, tokens = self.memory.index_select(0, rows), self.tokens.index_select(0, rows)
        return replace(self, source_mask=mask, memory=memory, tokens=tokens)


class WithoutCache(Transformer):
    """A copy of a model that computes all positions of the target anew for each token, to be compared with the cache."""

    def __init__(self, model: Transformer) -> None:
        """Copy the parameters of `model`."""
        super().__init__(model.config, model.output.out_features)
        self.load_state_dict(model.state_dict())
        self.to(model.positions)

    def start(self, memory: Tensor, source_mask: Tensor | None) -> _Prefixes:
        tokens = torch.empty(len(memory), 0, dtype=torch.int64, device=memory.device)
        return _Prefixes([], [], [], source_mask, memory=memory, tokens=tokens)

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Return logits of the newest position, as `Transformer.step` does."""
        assert isinstance(state, _Prefixes)
        state.tokens = torch.cat([state.tokens, tokens[:, None]], dim=1)
        state.length += 1
        logits: Tensor = self.output(self.decode(state.tokens, state.memory, state.source_mask)[:, -1])
        return logits
