"""The optimizer that a script steps, and the learning rate over versions."""

from __future__ import annotations

import collections
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from hvd_async.config import OptimizerConfig
from hvd_async.errors import ConfigError
from hvd_async.tasks.user_values import describe_failure, describe_value, number_of

RateSchedule = Callable[[int], float]
"""Returns the learning rate of the update that makes a version (1, 2, ...), as a share of each group's own rate."""


def torch_schedule(factory: Callable[[torch.optim.Optimizer], Any], num_versions: int | None = None) -> RateSchedule:
    """Return the schedule of a torch scheduler, for `ScriptRun.prepare(schedule=)`.

    Args:
        factory: gets an optimizer with the rate 1 and returns a scheduler, such as `lambda optimizer:
            CosineAnnealingLR(optimizer, 1000)`. Version v has the rate before the scheduler's step number v.
        num_versions: the length of the schedule, such as `ScriptRun.num_versions`: from the last of these versions on the rate
            stays as it is. Some schedulers end there with an error, or let the rate rise again.

    Raises `ConfigError` for what makes no scheduler that needs the number of the step alone, and changes the rate alone.
    """
    if not callable(factory):
        raise ConfigError(
            f"torch_schedule: got {describe_value(factory)}, expected a function such as lambda optimizer:"
            " CosineAnnealingLR(optimizer, 1000)"
        )
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = factory(optimizer)
    if isinstance(scheduler, ReduceLROnPlateau) or not callable(getattr(scheduler, "step", None)):
        raise ConfigError(
            f"torch_schedule: the function made {describe_value(scheduler)}, expected one whose rate depends on the number"
            " of the step alone"
        )
    if optimizer.param_groups[0]["momentum"] != 0:
        raise ConfigError(
            f"torch_schedule: {describe_value(scheduler)} changes the momentum too, expected a schedule of the rate alone; pass"
            " cycle_momentum=False"
        )
    factors = [float(optimizer.param_groups[0]["lr"])]

    def schedule(version: int) -> float:
        version = version if num_versions is None else max(1, min(version, num_versions))
        while len(factors) < version:
            optimizer.step()
            scheduler.step()
            factors.append(float(optimizer.param_groups[0]["lr"]))
        return factors[version - 1]

    return schedule


def check_schedule(schedule: Any) -> RateSchedule:
    """Return `schedule`, a function of the version, which then raises `ConfigError` for what is no rate. Raises it at once for
    what is no such function, with what to do."""
    if isinstance(schedule, LRScheduler):
        raise ConfigError(
            "schedule: got a scheduler of torch, which counts the steps of one worker; expected a function of the version, or"
            " hvd_async.torch_schedule(lambda optimizer: ...), which makes one of it"
        )
    if not callable(schedule):
        raise ConfigError(f"schedule: got {describe_value(schedule)}, expected a function of the version")
    _rate_of(schedule, 1)
    return lambda version: _rate_of(schedule, version)


def _rate_of(schedule: RateSchedule, version: int) -> float:
    """Return what `schedule` says for `version`. Raises `ConfigError` if it fails, or for what is no rate."""
    try:
        found = schedule(version)
    except Exception as error:  # whatever the user's function raises
        raise ConfigError(f"schedule: failed for version {version}: {describe_failure(error)}") from error
    factor = number_of(found)
    if factor is None or not 0.0 <= factor < float("inf"):
        raise ConfigError(
            f"schedule: got {describe_value(found)} for version {version}, expected a number >= 0, the share of the highest rate"
        )
    return factor


class _Group(dict[str, Any]):
    """Settings of a group of parameters, to be read: a script that sets a rate in its loop is told that it has no effect."""

    def __setitem__(self, key: str, value: Any) -> None:
        raise ConfigError(
            f"optimizer.param_groups: {key}: got an assignment, expected none after prepare: the store makes the updates; pass"
            " the rate to prepare as schedule=, a function of the version; for a scheduler of torch,"
            " schedule=hvd_async.torch_schedule(lambda optimizer: Scheduler(optimizer, ...))"
        )

    def update(self, *values: Any, **named: Any) -> None:
        """Raises `ConfigError`."""
        for key, value in dict(*values, **named).items():
            self[key] = value

    def __ior__(self, value: Any) -> Any:  # type: ignore[misc]  # a dict would return itself
        """Raises `ConfigError`."""
        self.update(value)

    def __reduce__(self) -> Any:
        """Let copies be plain."""
        return dict, (dict(self),)

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Raises `ConfigError` for a key that is missing, which a scheduler that is made for this group would set."""
        if key not in self:
            self[key] = default
        return self[key]


def guard_groups(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Refuse assignments to the groups of `optimizers`, which a run has taken over, such as those of a scheduler's step."""
    for each in optimizers:
        each.param_groups[:] = [_Group(group) for group in each.param_groups]


def release_groups(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Let the groups of `optimizers` be assigned again."""
    for each in optimizers:
        each.param_groups[:] = [dict(group) for group in each.param_groups]


class Stepped(Protocol):
    """The loop whose gradients an optimizer hands over."""

    def zero(self) -> None:
        """Clear the gradient."""

    def step(self, weight: float | None, loss: Any, scale: float) -> None:
        """Hand the gradient over, divided by `scale`."""

    def pull(self) -> None:
        """Bring the parameters up to date in the middle of a batch."""


def _scheduler_that_asks() -> str | None:
    """Return the class of the scheduler of torch that reads an attribute of `RunOptimizer`, if one does."""
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") == "torch.optim.lr_scheduler":
        if "self" in frame.f_locals:
            return type(frame.f_locals["self"]).__name__
        frame = frame.f_back  # a function that the scheduler calls
    return None


class RunOptimizer(torch.optim.Optimizer):
    """The optimizer that `ScriptRun.prepare` returns. Updates are made by the store; `step` hands the gradient over.

    It is an `Optimizer` for what checks for one, such as a scheduler of torch, which is then refused with what to do. It holds no
    state, and calls no hooks.

    A `torch.amp.GradScaler` takes it: `scaler.step(optimizer, weight=...)` hands over the gradient divided by the scale, also if
    that is not finite, so that the store refuses it and its place is free again.
    """

    # GradScaler's word for an optimizer that sees every step; it then sets `grad_scale` while it calls `step`.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        described: OptimizerConfig,
        model: nn.Module,
        loop: Stepped,
    ) -> None:
        """All arguments stay the caller's. Sets up nothing of torch's class."""
        self._described = described
        self._model = model
        self._loop = loop
        self.defaults: dict[str, Any] = {}
        """Empty."""
        self.state = collections.defaultdict(dict)
        """Empty: the state is at the store."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]  # of torch's class it can be assigned
        """The trained parameters and the settings of each group, to be read: `lr` is the highest rate. They cannot be changed
        here."""
        if (name := _scheduler_that_asks()) is not None:
            raise ConfigError(
                f"optimizer: got {name}, a scheduler of torch, which counts the steps of one worker; expected none after prepare:"
                f" pass it schedule=hvd_async.torch_schedule(lambda optimizer: {name}(optimizer, ...))"
            )
        settings = self._described.of_groups()
        members: list[list[nn.Parameter]] = [[] for _ in settings]
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad:
                members[self._described.group_of(name)].append(parameter)
        return [
            _Group(params=own, lr=each.learning_rate, weight_decay=each.weight_decay, kind=each.kind)
            for own, each in zip(members, settings, strict=True)
        ]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradient. It is always set to zero, whatever `set_to_none`: the model's gradients are parts of one
        vector."""
        self._loop.zero()

    def _refuse_hook(self, *_: Any, **__: Any) -> Any:
        raise ConfigError("optimizer: got a hook, expected none: the store makes the updates, and calls no hooks")

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Raises `ConfigError`: a copy would be of nothing."""
        raise ConfigError(
            "optimizer: cannot be copied or pickled: its state is at the store; run.optimizer_state_dict() returns it after the"
            " loop"
        )

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Raises `ConfigError`: the groups are those of the optimizer that `prepare` got."""
        raise ConfigError(
            "optimizer.add_param_group: called after prepare, expected before: add the group to torch's optimizer, which prepare"
            " takes"
        )

    def step(  # type: ignore[override]  # torch's takes a closure, and returns its loss
        self, closure: None = None, *, weight: float | None = None, loss: torch.Tensor | float | None = None
    ) -> None:
        """Hand over the gradient of the batch, and bring the parameters up to date. Waits as the strategy requires.

        Args:
            closure: refused; the store makes the update.
            weight: what the loss is summed or averaged over, such as the number of examples or tokens.
            loss: the loss of the batch, for logs alone: summed or averaged like that of `backward`.

        Raises `ConfigError` if the batch has been handed over already, or there was no backward pass.
        """
        if closure is not None and not callable(closure):
            raise ConfigError(
                f"optimizer.step: got {describe_value(closure)} without a name, expected optimizer.step(weight=..., loss=...)"
            )
        if closure is not None:
            raise ConfigError("optimizer.step: got a closure, expected none: the store makes the update, once for each push")
        scale = getattr(self, "grad_scale", None)
        self._loop.step(weight, loss, 1.0 if scale is None else float(scale))

    def pull(self) -> None:
        """Bring the parameters up to date between two backward passes of a batch: with `async`, copy the newest, on which the
        rest of the batch is then computed; other strategies have nothing newer.

        Not collective, and waits for no one. To be called after a `backward` and before the next forward pass, at most 7 times
        for a batch. Raises `ConfigError` outside of a batch, and with `push.overlap` or `push.node_sum`.
        """
        self._loop.pull()

    def state_dict(self) -> dict[str, Any]:
        """Raises `ConfigError`: the state is at the store."""
        raise ConfigError(
            "optimizer.state_dict: the state is at the store, which saves it in the run's checkpoints; after the loop,"
            " run.optimizer_state_dict() returns it"
        )

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Raises `ConfigError`: the state is at the store."""
        raise ConfigError(
            "optimizer.load_state_dict: the state is at the store; load it into torch's optimizer before prepare, which takes it"
            " along, or resume the run with init(..., resume=True)"
        )


for _kind in ("step", "state_dict", "load_state_dict"):
    for _when in ("pre", "post"):
        setattr(RunOptimizer, f"register_{_kind}_{_when}_hook", RunOptimizer._refuse_hook)
