"""A small language model over the bytes of text files, in a loop of one's own: parameter groups, a cosine schedule,
accumulation and bfloat16.

    python -m examples.gpt.train README.md docs/*.md
    hvd-async launch --workers 2 --set strategy.kind=async --set output=runs/gpt-async -- \
        python -m examples.gpt.train README.md docs/*.md
    hvd-async launch --workers 2 --set strategy.kind=ddp --set output=runs/gpt-ddp -- \
        python -m examples.gpt.train README.md docs/*.md

The result, with 2 workers: perplexity 7.96 with async, 7.51 with ddp. With `--muon` after the files, by which torch's Muon
updates the matrices of the blocks, 5.04 and 5.02. It changes with the text, which is this documentation.
"""

from __future__ import annotations

import argparse
import math
import pathlib

import hvd_async as ha
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from examples.gpt.model import Gpt
from examples.twin import print_beside_twin

LENGTH = 64

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("text", nargs="+", type=pathlib.Path)
parser.add_argument("--output", default="runs/gpt")
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--batch-size", type=int, default=8)
parser.add_argument("--accumulate", type=int, default=2, help="parts in which the gradient of a batch is computed")
parser.add_argument("--bfloat16", action="store_true")
parser.add_argument("--muon", action="store_true", help="update the matrices of the blocks by Muon (torch 2.9)")
arguments = parser.parse_args()

# [num, LENGTH + 1] bytes; the last tenth is for validation.
data = torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in arguments.text)), dtype=torch.uint8).long()
data = data[: len(data) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)
train, validation = data[: len(data) * 9 // 10], data[len(data) * 9 // 10 :]

run = ha.init(arguments.output, epochs=arguments.epochs, validation={"when": "after"})
torch.manual_seed(run.config.seed)  # the same initial parameters with every strategy
model = Gpt(length=LENGTH)
inner = [parameter for parameter in model.blocks.parameters() if parameter.dim() > 1]
embeddings = [model.tokens.weight, model.positions.weight]  # the first is also the output matrix
vectors = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
by_adamw = embeddings if arguments.muon else [*embeddings, *inner]
groups = [{"params": by_adamw}, {"params": vectors, "weight_decay": 0.0}]
optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=3e-3, weight_decay=0.1)]
if arguments.muon:
    optimizers.append(torch.optim.Muon(inner, lr=6e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"))
loader = DataLoader(TensorDataset(train), batch_size=arguments.batch_size, shuffle=True)
num_versions = run.num_versions(len(loader))  # a schedule counts versions, not batches


def cosine(each: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the scheduler that `torch_schedule` reads."""
    return torch.optim.lr_scheduler.CosineAnnealingLR(each, num_versions, eta_min=0.1)


def evaluate(module: torch.nn.Module) -> dict[str, float]:
    """Return the loss in nats per byte, and the perplexity."""
    text = validation.to(run.device)
    loss = float(F.cross_entropy(module(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten()))
    return {"loss": loss, "perplexity": math.exp(loss)}


model, optimizer, batches = run.prepare(
    model,
    optimizers,
    loader,
    schedule=ha.torch_schedule(cosine, num_versions),
    evaluate=evaluate,
    metrics=[ha.Metric("perplexity", "perplexity", digits=2)],
    weight_unit="bytes",
    loss="sum",  # each part of a batch adds the sum of its losses
)
for (text,) in batches:
    optimizer.zero_grad()
    total = 0.0
    for part in text.to(run.device).chunk(arguments.accumulate):
        with torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=arguments.bfloat16):
            logits = model(part[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), part[:, 1:].flatten(), reduction="sum")
        loss.backward()
        total += loss.item()
    optimizer.step(weight=len(text) * LENGTH, loss=total)

run.save(f"{run.config.output}/model.pt")
print_beside_twin(run)
