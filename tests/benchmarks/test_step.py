"""A whole step, compared with a bare one."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from hvd_async.benchmarks.models import ModelSize, ModelStep
from hvd_async.benchmarks.options import Options
from hvd_async.benchmarks.step import make_step, measure_steps
from hvd_async.config import ModelConfig, PushConfig
from hvd_async.strategies.protocol import Claim, Step
from hvd_async.vectors.flat import FlatParameters

TINY = ModelSize(
    ModelConfig(encoder_layers=1, decoder_layers=1, width=8, feed_forward=8, heads=2), vocabulary=20, tokens=30, length=10
)


class RecordingWorker:
    """A worker that records which batches were handed over, and whether their gradients were there."""

    def __init__(self, flat: FlatParameters) -> None:
        self.seen: list[tuple[int, int, bool]] = []
        self.num_pulled = 0
        self._flat = flat

    def claims(self) -> Iterator[Claim]:
        return (Claim(batch) for batch in range(100))

    def pull_newer(self) -> None:
        self.num_pulled += 1

    def step(self, step: Step) -> None:
        self.seen.append((step.batch, step.weight, bool(self._flat.collect_gradient().any())))


@pytest.mark.parametrize(("overlap", "num_steps"), [(False, 1), (True, 4)])
def test_bare_steps_hand_nothing_over_and_whole_steps_one_gradient_each(overlap: bool, num_steps: int) -> None:
    step = ModelStep(TINY)
    flat = FlatParameters(step.model)
    worker = RecordingWorker(flat)
    options, push = Options(repeats=2, seconds=100.0), PushConfig(overlap=overlap)
    figure = measure_steps(worker, step, flat, options, push)  # type: ignore[arg-type]  # the witness has what is used
    assert worker.seen == [(batch, 30, True) for batch in range(3 * num_steps)]  # the first turn is the warm-up
    assert figure.name.endswith(", overlap") is overlap
    assert figure.value.count == 2 and figure.limit is not None and figure.limit.spread.count == 2
    assert figure.name.startswith("step, multi30k, 0.0 M, 30 tokens")


def test_a_step_in_micro_batches_pulls_between_them() -> None:
    step = ModelStep(TINY)
    flat = FlatParameters(step.model)
    worker = RecordingWorker(flat)
    figure = measure_steps(worker, step, flat, Options(repeats=2, seconds=100.0), PushConfig(), 2)  # type: ignore[arg-type]  # as above
    assert worker.seen == [(batch, 30, True) for batch in range(3)] and worker.num_pulled == 3
    assert figure.name.endswith(", in 2 micro-batches") and figure.target is None


def test_the_step_of_a_task_is_the_gradient_of_its_first_batch(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "output: x\ntask: {factory: 'tests.tasks.blobs:make_task', options: {size: 40}}\ntraining: {epochs: 1, device: cpu}\n"
    )
    step = make_step(Options(config=str(path)), "cpu")
    assert step.size_in_words == "16 points"
    loss, weight = step(*step.batches(1))
    assert weight == 16 and loss > 0
    assert all(parameter.grad is not None for parameter in step.model.parameters())
    flat = FlatParameters(step.model)
    worker = RecordingWorker(flat)
    options = Options(repeats=2, seconds=100.0, config=str(path))
    figure = measure_steps(worker, step, flat, options, PushConfig())  # type: ignore[arg-type]  # as above
    assert figure.name.startswith("step, run.yaml, 0.0 M, 16 points") and figure.target is None
