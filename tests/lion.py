"""Lion as a torch optimizer, as several packages have it: torch itself has none."""

from __future__ import annotations

from typing import Any

import torch


class TorchLion(torch.optim.Optimizer):
    """Lion (Chen et al. 2023, algorithm 2). `others` are further settings of its groups, without effect."""

    def __init__(
        self,
        parameters: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        **others: Any,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay, **others})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                direction = torch.sign(beta1 * momentum + (1 - beta1) * parameter.grad)
                parameter -= group["lr"] * (direction + group["weight_decay"] * parameter)
                momentum.copy_(beta2 * momentum + (1 - beta2) * parameter.grad)
