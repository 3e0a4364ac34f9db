"""Handwritten digits, 8 x 8 pixels, from scikit-learn, and a small convolutional network with BatchNorm."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

NUM_TRAIN = 1500


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Return 1500 images to train on and 297 to validate on: [1, 8, 8] float32 from 0 to 1, each with its digit."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(found.target)
    return TensorDataset(images[:NUM_TRAIN], labels[:NUM_TRAIN]), TensorDataset(images[NUM_TRAIN:], labels[NUM_TRAIN:])


def network(width: int = 16) -> nn.Module:
    """Return the network: [B, 1, 8, 8] images -> [B, 10] logits."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    )
