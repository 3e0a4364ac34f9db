"""Train on points in the plane. Alone: `python train.py`; the documentation's quickstart explains each call."""

import hvd_async as ha  # starts nothing; stands before torch
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

# Your data. Here: is a point inside of a circle?
points = torch.randn(3000, 2, generator=torch.Generator().manual_seed(1))
labels = (points.norm(dim=1) > 1.2).long()
train = TensorDataset(points[:2500], labels[:2500])


def main():
    run = ha.init("runs/points", strategy="single", epochs=4, validation={"every": 20})
    torch.manual_seed(run.config.seed)  # the same initial parameters in every run
    model = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))

    def evaluate(module):  # called in evaluation mode, without gradients, on one rank
        outputs = module(points[2500:].to(run.device)).cpu()
        right = (outputs.argmax(1) == labels[2500:]).float().mean()
        return {"loss": float(F.cross_entropy(outputs, labels[2500:])), "accuracy": 100 * float(right)}

    model, optimizer, batches = run.prepare(
        model,
        torch.optim.AdamW(model.parameters(), lr=1e-2),
        DataLoader(train, batch_size=25, shuffle=True),
        schedule=lambda version: min(1.0, version / 20),
        evaluate=evaluate,
        metrics=[ha.Metric("accuracy", "accuracy", unit="%", digits=1, is_higher_better=True)],
    )

    for x, y in batches:
        loss = F.cross_entropy(model(x.to(run.device)), y.to(run.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(weight=len(y), loss=loss)

    run.save(f"{run.config.output}/model.pt")


if __name__ == "__main__":
    main()
