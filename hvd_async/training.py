"""The training loop, one for every strategy and every task."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from hvd_async.emulation import Emulation
from hvd_async.errors import ConfigError
from hvd_async.flat import FlatParameters
from hvd_async.nmt.batching import Batch
from hvd_async.nmt.scoring import Evaluation
from hvd_async.printable import printable
from hvd_async.strategies.protocol import Step, Worker


class Task(Protocol):
    """What is trained. All but `evaluate` is a function of its arguments alone, the same on every rank."""

    def build_model(self) -> torch.nn.Module:
        """A new model on the CPU, drawn from the run's seed."""

    def fingerprint(self) -> str:
        """Of what is trained on and how it is prepared: equal ones mean equal batches, under the same configuration."""

    def remarks(self) -> list[str]:
        """What a person should know of the data before training: what was left out, padding."""

    def num_batches(self) -> int | None:
        """Batches of the whole run; None where updates or seconds bound it."""

    def batch(self, index: int, device: torch.device | str) -> Batch:
        """Batch number `index`, on `device`."""

    def epoch_of(self, index: int) -> int:
        """The epoch to which batch number `index` belongs."""

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        """The loss summed over the batch's target tokens (a scalar, nats), and their number."""

    def evaluate(self, model: torch.nn.Module, shard: int = 0, num_shards: int = 1) -> Evaluation:
        """Statistics of one shard of the validation data."""

    def export(
        self, folder: Path, named_tensors: Mapping[str, torch.Tensor], version: int, measured: Mapping[str, float | None]
    ) -> None:
        """Write a model folder, whole or not at all; `measured` goes with it, by name."""


def compute_gradient(
    task: Task, module: torch.nn.Module, flat: FlatParameters, seed: int, batch: int, counts: bool = True
) -> tuple[int, float]:
    """Compute the gradient of `batch` on the parameters in `flat`; its target tokens and its summed loss in nats.

    It is in `flat` then, for `collect_gradient`. `module` is in training mode. Where `counts` is False it is zero, and so are
    the tokens and the loss. Whoever computes a batch on the same parameters, and however often, gets the same bits on
    machines that are alike: dropout is drawn from `seed` and `batch` alone.
    """
    torch.manual_seed(hash((seed, batch)) & 0x7FFFFFFFFFFFFFFF)
    flat.zero_gradient()
    loss, tokens = task.loss(module, task.batch(batch, flat.parameters.device))
    if not counts:
        loss, tokens = loss * 0.0, 0
    loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
    return tokens, float(loss.detach())


def check_buffers(task: Task, model: torch.nn.Module) -> None:
    """Raises `ConfigError` for a model whose saved buffers change in training, found by a trial batch.

    The store holds parameters alone: each rank would have statistics of its own, and the store's rank, which evaluates and
    exports, those of an untrained model.
    """
    names = model.state_dict().keys()
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if name in names}
    if not before:
        return
    was_training = model.training
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        task.loss(model.train(), task.batch(0, "cpu"))
    after = dict(model.named_buffers())
    changed = [name for name, buffer in before.items() if not torch.equal(buffer, after[name])]
    model.train(was_training)
    if changed:
        raise ConfigError(
            f"strategy.kind: got async with a model whose buffers change in training ({printable(', '.join(changed[:3]))}), as"
            " those of BatchNorm do, expected none, as only parameters are exchanged; use LayerNorm, or kind single"
        )


@dataclass(frozen=True)
class TrainingLoop:
    """The loop of one worker: claim a batch, compute its gradient, hand it over, go on. The same for every strategy."""

    task: Task
    model: torch.nn.Module
    flat: FlatParameters
    emulation: Emulation
    seed: int

    def __call__(self, worker: Worker, module: torch.nn.Module) -> None:
        """Train until `worker` has no more claims. `module` is the model, or the strategy's wrapper around it."""
        device = self.flat.parameters.device
        module.train()
        for claim in worker.claims():
            started = time.monotonic()
            tokens, loss = compute_gradient(self.task, module, self.flat, self.seed, claim.batch, claim.counts)
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # the step's time is its work, not its launch
            self.emulation.delay(time.monotonic() - started, tokens)
            worker.step(Step(claim.batch, tokens, loss, time.monotonic() - started))
            self._evaluate_if_due(worker)

    def _evaluate_if_due(self, worker: Worker) -> None:
        request = worker.evaluation_due()
        if request is None:
            return
        with self.flat.holding(request.parameters):
            evaluation = self.task.evaluate(self.model, request.shard, request.num_shards)
        worker.report(request, evaluation.to_vector())
