"""A script whose loop does what users do in loops: accumulate, clip, autocast, scale, compile. `loop_script JSON` makes a run
for each element of the list, in turn."""

from __future__ import annotations

import inspect
import json
import sys
from typing import Any

import torch
import torch.nn.functional as F

import hvd_async as ha
from tests.tasks.blobs import blobs


class LoopNet(torch.nn.Module):
    """A network with a frozen, a tied and an unused parameter, and a buffer."""

    def __init__(self) -> None:
        """Draw the parameters."""
        super().__init__()
        self.first = torch.nn.Linear(2, 6)
        self.scale = torch.nn.Parameter(torch.ones(6), requires_grad=False)
        self.head = torch.nn.Linear(6, 3)
        self.twin = self.head
        self.unused = torch.nn.Parameter(torch.ones(2))
        self.register_buffer("shift", torch.zeros(6), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 2] -> [B, 3]."""
        result: torch.Tensor = self.twin(torch.tanh(self.first(x)) * self.scale + self.shift)
        return result


OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    "adamw": (torch.optim.AdamW, {"eps": 1e-4}),
    "nadam": (torch.optim.NAdam, {"eps": 1e-4, "decoupled_weight_decay": True, "weight_decay": 0.1}),
    "adagrad": (torch.optim.Adagrad, {"lr_decay": 0.1}),
    "rmsprop": (torch.optim.RMSprop, {"eps": 1e-4, "momentum": 0.5, "centered": True}),
    "amsgrad": (torch.optim.Adam, {"eps": 1e-4, "amsgrad": True, "maximize": False}),
    "asgd": (torch.optim.ASGD, {"t0": 2.0, "lambd": 0.01}),
}


def make_optimizer(name: str, network: torch.nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of the tests' choice."""
    kind, settings = OPTIMIZERS[name]
    members = [p for p in network.parameters() if p.requires_grad]
    second = {"params": members[2:], "lr": 0.01}
    if "betas" in inspect.signature(kind).parameters:
        second["betas"] = (0.8, 0.99)
    found: torch.optim.Optimizer = kind([{"params": members[:2]}, second], lr=0.02, **settings)
    return found


def main(folder: str, arguments: dict[str, Any], options: dict[str, Any]) -> None:
    """Train on batches of the sizes in `options["sizes"]`, over again in each epoch."""
    run = ha.init(folder, **{"epochs": 4, "tensorboard": False, "device": "cpu", "overwrite": True, **arguments})
    torch.manual_seed(5)
    network = LoopNet()
    with torch.no_grad():  # the values of rank 0 count, also of what is frozen
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.add_(run.rank)
    x, y = blobs(sum(options["sizes"]), 1).tensors
    loader = list(zip(x.split(options["sizes"]), y.split(options["sizes"]), strict=True))
    optimizer = make_optimizer(options.get("optimizer", "sgd"), network)
    if "begin" in options:  # with the model and the optimizer of an earlier run
        network.load_state_dict(torch.load(options["begin"] + "/model.pt", weights_only=True))
        optimizer.load_state_dict(torch.load(options["begin"] + "/optimizer.pt", weights_only=True))
    model, step, batches = run.prepare(network, optimizer, loader)
    if options.get("compile"):
        model = torch.compile(model)  # type: ignore[assignment]
    if options.get("change") == "replace":
        network.head.bias = torch.nn.Parameter(torch.zeros(3))
    if options.get("change") == "cast":
        network.double()
        loader[:] = [(points.double(), labels) for points, labels in loader]
    scaler = torch.amp.GradScaler("cpu", enabled=bool(options.get("scaler")))
    for points, labels in batches:
        step.zero_grad()
        parts = options.get("parts", 1)
        for number, (part, target) in enumerate(zip(points.chunk(parts), labels.chunk(parts), strict=True)):
            if number and options.get("pull"):
                step.pull()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bool(options.get("autocast"))):
                loss = F.cross_entropy(model(part), target, reduction="sum") / len(labels)
            if options.get("scaler"):
                scaler.scale(loss).backward()
            else:
                loss.backward()
        if options.get("unscale"):
            scaler.unscale_(step)  # type: ignore[arg-type]  # not a subclass of torch's
        if "clip" in options:
            torch.nn.utils.clip_grad_norm_(network.parameters(), options["clip"])
        if options.get("set_none"):
            network.unused.grad = None
        if options.get("scaler"):
            scaler.step(step, weight=len(labels))  # type: ignore[arg-type]
            scaler.update()
        else:
            step.step(weight=len(labels))
    run.save(folder + "/model.pt")
    if run.rank == 0:
        torch.save(run.optimizer_state_dict(), folder + "/optimizer.pt")


if __name__ == "__main__":
    for each in json.loads(sys.argv[1]):
        main(each.pop("folder"), each, each.pop("options"))
