"""The digits in a loop of one's own, a network with BatchNorm. Alone, or on the ranks that `hvd-async launch` starts:

    python -m examples.digits.train
    hvd-async launch --workers 2 --set strategy.kind=async --set output=runs/digits-async -- \
        python -m examples.digits.train
    hvd-async launch --workers 2 --set strategy.kind=horovod --set output=runs/digits-horovod -- \
        python -m examples.digits.train
    hvd-async report runs/digits-async runs/digits-horovod

The result, with 2 workers on 2 cores: accuracy 90.6 % in 2.5 s with async, 90.2 % in 2.8 s with horovod; one or two percent
more or less from run to run with async. job.sbatch trains it in a Slurm job.
"""

from __future__ import annotations

import argparse

import hvd_async as ha
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from examples.digits.data import digits, network
from examples.twin import print_beside_twin

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--output", default="runs/digits")
parser.add_argument("--epochs", type=int, default=10)
arguments = parser.parse_args()

run = ha.init(arguments.output, epochs=arguments.epochs, validation={"every": 50, "when": "after"})
torch.manual_seed(run.config.seed)  # the same initial parameters with every strategy
train, validation = digits()
images, labels = validation.tensors
model = network()


def evaluate(module: torch.nn.Module) -> dict[str, float]:
    """Return loss and accuracy on the validation images; called without gradients, on one rank."""
    outputs = module(images.to(run.device)).cpu()
    right = (outputs.argmax(1) == labels).float().mean()
    return {"loss": float(F.cross_entropy(outputs, labels)), "accuracy": 100 * float(right)}


model, optimizer, batches = run.prepare(
    model,
    torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-4),
    DataLoader(train, batch_size=32, shuffle=True),
    schedule=lambda version: min(1.0, version / 50),  # over the store's versions, not a worker's steps
    evaluate=evaluate,
    metrics=[ha.Metric("accuracy", "accuracy", unit="%", digits=1, is_higher_better=True)],
    weight_unit="images",
    # Each worker has BatchNorm statistics of its own; their mean at the end is saved. All versions are evaluated with this mean,
    # since `when` is "after", so that the scores of early versions are not quite those that they had.
    buffers="average",
)
for x, y in batches:
    loss = F.cross_entropy(model(x.to(run.device)), y.to(run.device))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step(weight=len(y), loss=loss)

run.save(f"{run.config.output}/model.pt")
print_beside_twin(run)
