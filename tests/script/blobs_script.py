"""A training script as a user writes it; `blobs_script FOLDER [JSON]`, where the tests vary what is in JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, IterableDataset

import hvd_async as ha
from tests.tasks.blobs import ACCURACY, blobs


class Average(torch.nn.Module):
    """Keeps a moving average and a count that no module of torch's keeps."""

    def __init__(self) -> None:
        """Begin at zero."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 8] -> [B, 8]."""
        if self.training:
            self.mean.mul_(0.5).add_(x.detach().mean(0), alpha=0.5)
            self.count += 1
        result: torch.Tensor = x - self.mean
        return result


class Endless(IterableDataset[tuple[torch.Tensor, ...]]):
    """Random points, without end."""

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        points, labels = blobs(90, 1).tensors
        while True:
            yield from zip(points, labels, strict=True)


def main(folder: str, arguments: dict[str, Any], options: dict[str, Any]) -> None:
    """Train. Of `options`, `fault` happens at batch number 3 of rank `rank`; `leave_at`: the batch at which a rank leaves."""
    run = ha.init(folder, **{"epochs": 2, "tensorboard": False, "device": "cpu", **arguments})
    if options.get("log") and run.worker is not None:
        run.log(worker=run.worker)
    torch.manual_seed(run.rank)  # rank 0's parameters count
    width = 9 if options.get("fault") == "width" and run.rank == options["rank"] else 8
    differs = options.get("differs", "") if run.rank == 1 else ""
    norm = torch.nn.BatchNorm1d(8) if options.get("norm") else Average() if options.get("average") else torch.nn.Tanh()
    network = torch.nn.Sequential(torch.nn.Linear(2, width), norm, torch.nn.Linear(width, 3))
    no_decay = [parameter for name, parameter in network.named_parameters() if name.endswith("bias")]
    decay = [parameter for name, parameter in network.named_parameters() if not name.endswith("bias")]
    groups = [{"params": decay}, {"params": no_decay, "weight_decay": 0.0, "lr": 0.02}]
    if differs == "rate":
        groups[0]["lr"] = 0.5
    loader: Any = DataLoader(
        blobs(60 if differs == "length" else 90, 1), batch_size=8, shuffle=True, num_workers=options.get("num_workers", 0)
    )
    if options.get("stream"):  # rank k has k batches of its own
        loader = (tuple(tensor[:8] for tensor in blobs(90, 1).tensors) for _ in range(run.rank))
    if options.get("endless"):
        loader = DataLoader(Endless(), batch_size=8, num_workers=options["num_workers"])
    points, labels = blobs(60, 2).tensors

    def evaluate(module: torch.nn.Module) -> dict[str, float]:
        with torch.no_grad():
            outputs = module(points)
        if options.get("evaluate") == "text":
            return "0.5"  # type: ignore[return-value]  # the mistake
        if options.get("evaluate") == "raise":
            raise ValueError("of the user's evaluation")
        right = (outputs.argmax(1) == labels).float().mean()
        return {"loss": float(F.cross_entropy(outputs, labels)), "accuracy": 100 * float(right)}

    def schedule(version: int) -> float:
        return float("nan") if version == options.get("no_rate_at") else min(1.0, version / 10)

    reduction = options.get("loss", "mean")
    model, optimizer, batches = run.prepare(
        network,
        torch.optim.AdamW(groups, lr=0.01, eps=1e-4),
        loader,
        schedule=None if differs == "schedule" else schedule,
        evaluate=evaluate,
        metrics=[ACCURACY],
        weight_unit="points",
        loss=reduction,
        buffers="average" if differs == "buffers" or options.get("norm") else options.get("buffers", "refuse"),
    )
    for number, (x, y) in enumerate(batches):
        is_there = options.get("rank", 1) in (run.rank, -1)  # -1: on all
        fault = options.get("fault", "") if is_there and number == 3 else ""
        if options.get("fault") and not is_there:
            time.sleep(0.02)  # so that the rank with the fault gets as many batches as it needs
        if fault:
            print(f"fault {fault} fired", file=sys.stderr, flush=True)
        if fault == "raise":
            raise RuntimeError("of the user")
        if fault == "break" or options.get("leave_at", {}).get(str(run.rank)) == number:
            break
        if fault == "no step":
            continue
        if fault == "nan":
            x = x * float("nan")
        if fault == "input":
            input("go on? ")
        loss = F.cross_entropy(model(x), y, reduction=reduction)
        optimizer.zero_grad()
        if fault == "overflow":  # since the scale is too large
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
            scaler.scale(loss * 1e4).backward()
            scaler.step(optimizer, weight=len(y))  # type: ignore[arg-type]  # not a subclass of torch's
            scaler.update()
            assert scaler.get_scale() < 2.0**127
            continue
        if fault != "no backward":
            loss.backward()
        if options.get("log"):
            run.log(loss=loss, odd=float("nan") if number == 0 else number)
        optimizer.step(weight=None if fault == "no weight" else len(y), loss=loss)
        if fault == "two steps":
            optimizer.step(weight=len(y))

    if options.get("silent"):  # ends without a word to the run
        return
    run.save(folder + "/model.pt")
    print(f"final loss {evaluate(model)['loss']:.6f}", flush=True)


if __name__ == "__main__":
    given = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    main(sys.argv[1], given, given.pop("options", {}))
