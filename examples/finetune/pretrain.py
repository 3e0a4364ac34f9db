"""The first part of the example of fine-tuning: train the network on the digits 0 to 4 in one process, with PyTorch
alone, and save it. In practice this file would come from elsewhere.

    python -m examples.finetune.pretrain

The result: accuracy 99.3 % on the digits 0 to 4, in about 5 s on one core.
"""

from __future__ import annotations

import argparse
import pathlib

import safetensors.torch
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from examples.finetune.model import DigitNet, accuracy, half_of_digits

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--output", type=pathlib.Path, default="runs/finetune-pretrained.safetensors")
parser.add_argument("--epochs", type=int, default=10)
arguments = parser.parse_args()

torch.manual_seed(1)
train, validation = half_of_digits(0)
model = DigitNet()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for _ in range(arguments.epochs):
    for x, y in DataLoader(train, batch_size=32, shuffle=True):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

arguments.output.parent.mkdir(parents=True, exist_ok=True)
safetensors.torch.save_file(model.state_dict(), arguments.output)
with torch.no_grad():
    print(f"{arguments.output}: accuracy {accuracy(model.eval(), validation)[1]:.1f} % on the digits 0 to 4")
