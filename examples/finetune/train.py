"""Fine-tuning of a network that stands on disk: it knows the digits 0 to 4, and is to tell 5 to 9 apart. The first two
blocks stay frozen; the last block learns at a low rate, and a new head at a high one.

    python -m examples.finetune.pretrain
    hvd-async launch --workers 2 --set strategy.kind=async -- python -m examples.finetune.train
    hvd-async launch --workers 2 --set strategy.kind=horovod --set output=runs/finetune-horovod -- \
        python -m examples.finetune.train

The result, with 2 workers on 2 cores: accuracy 90.6 % in 1.3 s with async, 90.6 % in 1.1 s with horovod.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import hvd_async as ha
import safetensors.torch
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from examples.finetune.model import NUM_CLASSES, DigitNet, accuracy, half_of_digits
from examples.twin import print_beside_twin

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--pretrained", type=pathlib.Path, default="runs/finetune-pretrained.safetensors")
parser.add_argument("--output", default="runs/finetune")
parser.add_argument("--epochs", type=int, default=8)
arguments = parser.parse_args()
if not arguments.pretrained.exists():
    sys.exit(f"{arguments.pretrained}: no such file; python -m examples.finetune.pretrain makes it")

run = ha.init(arguments.output, epochs=arguments.epochs, validation={"every": 25, "when": "after"})
torch.manual_seed(run.config.seed)  # the same initial parameters with every strategy
model = DigitNet()
model.load_state_dict(safetensors.torch.load_file(arguments.pretrained))
model.head = torch.nn.Linear(model.head.in_features, NUM_CLASSES)  # a new one: the old head tells other digits apart

# Freeze before `prepare`: the store gets only the parameters that require a gradient then. Here these are the last block and
# the head; the first two blocks are frozen, and are neither pushed nor pulled.
model.requires_grad_(False)
last_block = model.blocks[-1].requires_grad_(True)
head = model.head.requires_grad_(True)
optimizer = torch.optim.AdamW(
    [{"params": last_block.parameters(), "lr": 1e-3}, {"params": head.parameters(), "lr": 1e-2}], weight_decay=1e-2
)
train, validation = half_of_digits(5)


def evaluate(module: torch.nn.Module) -> dict[str, float]:
    """Return loss and accuracy on the validation images; called without gradients, on one rank."""
    loss, percent = accuracy(module, validation, run.device)
    return {"loss": loss, "accuracy": percent}


model, optimizer, batches = run.prepare(
    model,
    optimizer,
    DataLoader(train, batch_size=32, shuffle=True),
    schedule=lambda version: min(1.0, version / 10),  # a share of each group's own rate
    evaluate=evaluate,
    metrics=[ha.Metric("accuracy", "accuracy", unit="%", digits=1, is_higher_better=True)],
    weight_unit="images",
)
for x, y in batches:
    loss = F.cross_entropy(model(x.to(run.device)), y.to(run.device))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step(weight=len(y), loss=loss)

run.save(f"{run.config.output}/model.pt")  # the whole model, frozen parameters included
print_beside_twin(run)
