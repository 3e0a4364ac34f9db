"""A whole step beside a bare one."""

from __future__ import annotations

from collections.abc import Iterator

from hvd_async.benchmarks.models import ModelSize, ModelStep
from hvd_async.benchmarks.options import Options
from hvd_async.benchmarks.step import measure_steps
from hvd_async.config import ModelConfig
from hvd_async.flat import FlatParameters
from hvd_async.strategies.protocol import Claim, Step

TINY = ModelSize(
    ModelConfig(encoder_layers=1, decoder_layers=1, width=8, feed_forward=8, heads=2), vocabulary=20, tokens=30, length=10
)


class Witness:
    """A worker that remembers which batches were handed over, and whether their gradients were there."""

    def __init__(self, flat: FlatParameters) -> None:
        self.seen: list[tuple[int, int, bool]] = []
        self._flat = flat

    def claims(self) -> Iterator[Claim]:
        return (Claim(batch) for batch in range(100))

    def step(self, step: Step) -> None:
        self.seen.append((step.batch, step.tokens, bool(self._flat.collect_gradient().any())))


def test_bare_steps_hand_nothing_over_and_whole_ones_a_gradient_each() -> None:
    step = ModelStep(TINY)
    flat = FlatParameters(step.model)
    worker = Witness(flat)
    figure = measure_steps(worker, step, flat, Options(repeats=2, seconds=100.0))  # type: ignore[arg-type]  # it has what is used
    assert worker.seen == [(0, 30, True), (1, 30, True), (2, 30, True)]  # the first warms up
    assert figure.value.count == 2 and figure.limit is not None and figure.limit.spread.count == 2
    assert figure.name.startswith("step, multi30k, 0.0 M, 30 tokens")
