"""The gradient of one batch, computed alike in a real run, a simulated one and a replay."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from hvd_async.config import OptimizerConfig, StrategyConfig
from hvd_async.errors import ConfigError, DataError, HvdAsyncError
from hvd_async.system.json_text import plain_number
from hvd_async.system.printable import printable
from hvd_async.system.random_numbers import numbers_apart, numbers_of_batch, seed_of_batch
from hvd_async.tasks.buffers import changed_tensors, modules_with_statistics, saved_tensors
from hvd_async.tasks.evaluating import keeping_modes
from hvd_async.tasks.task import Batch, Divides, Task
from hvd_async.tasks.user_values import describe_failure, describe_value
from hvd_async.vectors.flat import FlatParameters, VectorPlan


@dataclass(frozen=True)
class BatchProgress:
    """How far the gradient of a batch is: `done` of its `parts` are computed."""

    task: Task
    parts: Sequence[Batch]
    done: int

    @property
    def total(self) -> int:
        """Number of parts."""
        return len(self.parts)

    def weight(self) -> float:
        """Return the weight of the whole batch."""
        return sum(map(self.task.weight, self.parts))


@dataclass(frozen=True)
class GradientOptions:
    """How a gradient is computed.

    `counts`: whether gradient, weight and loss are not zero. `micro_batches`: parts into which the batch is divided, or fewer
    if it has fewer examples. `between` is called before each of these but the first, and may change the parameters.
    """

    counts: bool = True
    micro_batches: int = 1
    between: Callable[[BatchProgress], object] = lambda progress: None


_WHOLE = GradientOptions()


def compute_gradient(
    task: Task,
    module: torch.nn.Module,
    flat: FlatParameters,
    seed: int,
    batch: int,
    options: GradientOptions = _WHOLE,
) -> tuple[float, float]:
    """Compute the gradient of `batch` on the parameters in `flat`; return its weight and its summed loss.

    The gradient is left in `flat`, for `collect_gradient`. `module` must be in training mode. Computing a batch again on equal
    parameters, those of each micro-batch if it is divided, gives equal bits on like machines, because dropout is drawn from
    `seed`, `batch` and the number of the micro-batch alone. Raises `DataError` for an invalid weight, and `ConfigError` for a
    task that divides the batch into too many parts.
    """
    flat.zero_gradient()
    total_weight, total_loss = 0.0, 0.0
    parts: Sequence[Batch] = ()
    for done in range(options.micro_batches):
        if done:
            options.between(BatchProgress(task, parts, done))
        with numbers_of_batch(seed, batch) if done == 0 else numbers_of_batch(seed_of_batch(seed, batch), done):
            parts = parts or batches_of(task, batch, options.micro_batches, flat.parameters.device)
            loss, weight = task.loss(module, parts[done])
            if not (math.isfinite(weight) and weight >= 0.0):
                raise DataError(f"batch {batch}: got a weight of {weight} from the task, expected a finite number >= 0")
            if not options.counts:
                loss, weight = loss * 0.0, 0.0
            loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        total_weight += weight
        total_loss += float(loss.detach())
        if done + 1 == len(parts):
            break
    return plain_number(total_weight), total_loss


def batches_of(task: Task, batch: int, number: int, device: torch.device | str) -> Sequence[Batch]:
    """Return `batch` of `task`, on `device`, as `number` micro-batches or fewer; as itself if `number` is 1. Raises
    `ConfigError` if the task returns none, or more."""
    if number == 1:
        return [task.batch(batch, device)]
    assert isinstance(task, Divides), "checked by check_micro_batches before the run began"
    parts = task.micro_batches(batch, number, device)
    if not isinstance(parts, Sequence):
        raise ConfigError(
            f"batch {batch}: got {describe_value(parts)} from the task's micro_batches, expected a list of batches"
        )
    if not 1 <= len(parts) <= number:
        raise ConfigError(f"batch {batch}: got {len(parts)} micro-batches from the task, expected 1 to {number}")
    return parts


def check_micro_batches(task: Task, strategy: StrategyConfig) -> None:
    """Raise `ConfigError` if batches are to be divided by a `task` that cannot do that, or divides its first wrongly."""
    number = strategy.num_micro_batches
    if number == 1:
        return
    if not isinstance(task, Divides):
        raise ConfigError(
            f"strategy.micro_batches: got {number} with a task ({type(task).__name__}) that has no method micro_batches, expected"
            " 1, or a task that can divide its batches, such as a DatasetTask"
        )
    try:
        with numbers_apart(0):
            parts, whole = (sum(map(task.weight, batches_of(task, 0, each, "cpu"))) for each in (number, 1))
    except HvdAsyncError:
        raise
    except Exception as error:  # whatever the user's method raises, or returns
        raise ConfigError(f"strategy.micro_batches: the task's micro_batches failed: {describe_failure(error)}") from error
    if not math.isclose(parts, whole, rel_tol=1e-6):
        raise ConfigError(
            f"strategy.micro_batches: got parts of batch 0 that weigh {parts:g}, expected the batch's weight, {whole:g}: each"
            " example in one of them"
        )


def flatten(model: torch.nn.Module, optimizer: OptimizerConfig, device: torch.device | str = "cpu") -> FlatParameters:
    """Move the trained parameters of `model` into one vector on `device`, laid out by `lay_out`."""
    return FlatParameters(model, device, lay_out(model, optimizer))


def lay_out(model: torch.nn.Module, optimizer: OptimizerConfig) -> VectorPlan:
    """Return the layout of the trained parameters of `model` in one vector, those of a group of `optimizer` side by side.

    Raises `ConfigError` for a group without parameters, and for exceptions of muon that are none.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    found = {optimizer.group_of(name) for name in names}
    for number, group in enumerate(optimizer.groups, start=1):
        if number not in found:
            raise ConfigError(
                f"optimizer.groups: got patterns that match no trained parameter ({printable(', '.join(group.match[:3]))}),"
                f" or none that an earlier group left; expected some of {printable(', '.join(names[:5]))}, ..."
            )
    if unused := optimizer.patterns_without(names):
        raise ConfigError(
            f"optimizer.muon_except: got {printable(', '.join(unused))}, which matches no trained parameter, expected patterns"
            f" for some of {printable(', '.join(names[:5]))}, ..."
        )
    return VectorPlan.of(model, optimizer.group_of, 1 + len(optimizer.groups), optimizer.is_matrix)


def check_buffers(task: Task, model: torch.nn.Module) -> None:
    """Raise `ConfigError` for a model whose saved buffers change in training, which a trial batch shows.

    The store holds parameters alone. Each rank would have statistics of its own, and the store's rank, which evaluates
    and exports, those of an untrained model. Buffers that the task recomputes from the parameters are not affected.
    """
    recomputed = task.recomputed_buffers(model)
    before = {name: tensor.clone() for name, tensor in saved_tensors(model).items() if name not in recomputed}
    if not before:
        return
    with keeping_modes(model), torch.no_grad(), numbers_apart(0):
        task.loss(model.train(), task.batch(0, "cpu"))
    changed = changed_tensors(before, {name: saved for name, saved in saved_tensors(model).items() if name in before})
    if changed:
        statistics = modules_with_statistics(model)
        way_out = ' or buffers="recalibrate" of DatasetTask,' if statistics and not recomputed else ""
        raise ConfigError(
            "strategy.kind: got async with a model whose buffers change in training"
            f" ({printable(', '.join(changed[:3]))}), such as those of BatchNorm, expected none, since"
            f" only parameters are exchanged; use LayerNorm,{way_out} or kind single"
        )
