"""Agreement of the ranks of a script: settings are compared, and rank 0 gives its tensors to the others."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from hvd_async.config import OptimizerConfig
from hvd_async.errors import ConfigError
from hvd_async.runs.checkpoint import checkpoint_folder
from hvd_async.script.buffers import Buffers, as_text, from_text
from hvd_async.script.description import describe_optimizers
from hvd_async.script.endings import on_all_ranks
from hvd_async.script.loader import BatchSource
from hvd_async.script.torch_state import hash_of, steps_of_torch, vectors_of_torch
from hvd_async.system.printable import printable
from hvd_async.tasks.buffers import load_saved_tensors, saved_tensors
from hvd_async.training.agreement import in_agreement
from hvd_async.training.setup import Ready
from hvd_async.transport.group import Group


def describe(optimizers: Sequence[torch.optim.Optimizer], model: nn.Module, base: OptimizerConfig) -> OptimizerConfig:
    """Return the configuration of `optimizers`, with the number of steps that they have made."""
    found = describe_optimizers(optimizers, model, base)
    return found.model_copy(update={"steps_before": steps_of_torch(optimizers, found)})


def _with_state(group: Group, ready: Ready, optimizers: Sequence[torch.optim.Optimizer]) -> Ready:
    """Return `ready` with the state of `optimizers`, from which a new run begins. Collective."""
    job = ready.job
    state = in_agreement(group, lambda: vectors_of_torch(optimizers, job.flat, job.model, job.optimizer))
    if len(set(group.allgather(hash_of(state)))) > 1:
        with on_all_ranks():
            raise ConfigError(
                "optimizer: got a state that differs between ranks, expected the same on all; load the same file"
            )
    return dataclasses.replace(ready, job=dataclasses.replace(job, initial_state=state))


def with_rank_0s(group: Group, ready: Ready, kept: Buffers, optimizers: Sequence[torch.optim.Optimizer]) -> Ready:
    """Return `ready` with all that rank 0 has on every rank: parameters, buffers, as a resumed run had them, and the state that
    `optimizers` have. Collective."""
    if (saved := ready.job.saved) is not None:
        checkpoint = checkpoint_folder(ready.folder.checkpoints, saved.data["version"])
        if not in_agreement(group, lambda: group.rank > 0 or kept.restore(checkpoint)):
            ready.progress.say("buffers: none were saved, so that those that training changes begin anew")
    _share(group, ready.job.model)
    return _with_state(group, ready, optimizers) if ready.job.optimizer.steps_before else ready


def check_alike(group: Group, descriptions: Mapping[str, Sequence[str]]) -> None:
    """Raise `ConfigError` on all ranks unless `descriptions`, lines on each thing that they name, are alike. Collective."""
    own = [[what, line] for what, lines in descriptions.items() for line in lines]
    first, *others = (json.loads(text) for text in group.allgather(json.dumps(own)))
    for rank, other in enumerate(others, 1):
        for expected, got in itertools.zip_longest(first, other, fillvalue=["", "nothing"]):
            if got != expected:
                what, own_words, words = expected[0] or got[0], printable(got[1]), printable(expected[1])
                with on_all_ranks():
                    raise ConfigError(
                        f"{what}: got {own_words} on rank {rank}, expected {words} as on rank 0, and the same on all ranks"
                    )


def describe_source(source: BatchSource) -> list[str]:
    """Return lines on the batches of `source`."""
    return [f"batches in an epoch: {source.per_epoch}", f"data of the hash {source.fingerprint()}"]


def describe_settings(config: OptimizerConfig) -> list[str]:
    """Return a line for each key of `config`."""
    return [f"{key} {value}" for key, value in config.model_dump().items()]


def describe_tensors(model: nn.Module) -> list[str]:
    """Return a line for each parameter and buffer of `model`."""
    return [f"{name} {list(each.shape)} {str(each.dtype).removeprefix('torch.')}" for name, each in _tensors(model).items()]


def _share(group: Group, model: nn.Module) -> None:
    """Give every rank the initial parameters of rank 0, also frozen ones, its buffers and its extra state. Collective."""
    if group.size == 1:
        return
    own = _tensors(model)
    for each in own.values():
        value = each.to("cpu", copy=True).contiguous()
        group.broadcast(value)
        each.copy_(value)
    extra = {name: each for name, each in saved_tensors(model).items() if name not in own}
    if extra:
        load_saved_tensors(model, from_text(group.allgather(as_text(extra) if group.rank == 0 else "")[0]))


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: each.detach() for name, each in (*model.named_parameters(), *model.named_buffers())}
