"""A small convolutional network in blocks, and the digits that it learns first (0 to 4) and later (5 to 9)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from examples.digits.data import digits

NUM_CLASSES = 5


class DigitNet(nn.Module):
    """Three blocks, the backbone, and a linear head.

    GroupNorm instead of BatchNorm: it has no running statistics, which would keep changing even in frozen blocks.
    """

    def __init__(self, width: int = 16) -> None:
        """Draw the parameters."""
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.ReLU())
            for inputs, outputs in ((1, width), (width, 2 * width), (2 * width, 4 * width))
        )
        self.head = nn.Linear(4 * width, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, 8, 8] images -> [B, 5] logits."""
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


def half_of_digits(first: int) -> tuple[TensorDataset, TensorDataset]:
    """Return the training and validation images of the five digits from `first` on, with labels from 0 to 4."""
    train, validation = (_only(data, first) for data in digits())
    return train, validation


def accuracy(module: nn.Module, data: TensorDataset, device: torch.device | str = "cpu") -> tuple[float, float]:
    """Return the mean loss and the accuracy in percent of `module` on all images of `data`."""
    images, labels = data.tensors
    outputs = module(images.to(device)).cpu()
    loss = nn.functional.cross_entropy(outputs, labels)
    return float(loss), 100 * float((outputs.argmax(1) == labels).float().mean())


def _only(data: TensorDataset, first: int) -> TensorDataset:
    images, labels = data.tensors
    chosen = (labels >= first) & (labels < first + NUM_CLASSES)
    return TensorDataset(images[chosen], labels[chosen] - first)
