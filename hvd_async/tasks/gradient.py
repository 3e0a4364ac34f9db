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
    """Compute the gradient of `batch` on the parameters in `flat`; return its target tokens and its summed loss in nats.

    The gradient is left in `flat`, for `collect_gradient`. `module` must be in training mode. If `counts` is False,
    gradient, tokens and loss are zero. Computing a batch again on equal parameters gives equal bits on like machines,
    because dropout is drawn from `seed` and `batch` alone.
    """
    torch.manual_seed(hash((seed, batch)) & 0x7FFFFFFFFFFFFFFF)
    flat.zero_gradient()
    loss, tokens = task.loss(module, task.batch(batch, flat.parameters.device))
    if not counts:
        loss, tokens = loss * 0.0, 0
    loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
    return tokens, float(loss.detach())


def check_buffers(task: Task, model: torch.nn.Module) -> None:
    """Raise `ConfigError` for a model whose saved buffers change in training, which a trial batch shows.

    The store holds parameters alone. Each rank would have statistics of its own, and the store's rank, which evaluates
    and exports, those of an untrained model.
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
            "strategy.kind: got async with a model whose buffers change in training"
            f" ({printable(', '.join(changed[:3]))}), such as those of BatchNorm, expected none, since"
            " only parameters are exchanged; use LayerNorm, or kind single"
        )
