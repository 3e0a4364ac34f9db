"""The gradient of one batch, computed alike in a real run, a simulated one and a replay."""

from __future__ import annotations

import torch

from hvd_async.errors import ConfigError
from hvd_async.system.printable import printable
from hvd_async.tasks.task import Task
from hvd_async.vectors.flat import FlatParameters


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
