"""Calls of a group under torchrun, with values larger than torch's store takes at once; each rank prints what it got."""

from __future__ import annotations

import torch

from hvd_async.strategies.torchrun_group import TorchrunGroup

group = TorchrunGroup()
assert group.allgather("x" * (9 << 20) + str(group.rank))[1] == "x" * (9 << 20) + "1"
assert group.allgather("") == ["", ""]
for turn in range(3):  # the same call again and again, with other values
    tensor = torch.full((2_500_000,), float(turn if group.rank == 0 else -1))
    group.broadcast(tensor)
    assert tensor.eq(turn).all()
group.broadcast(torch.empty(0))
texts = group.allgather(f"rank {group.rank} of {group.size}")
print(f"\n{texts}\n", flush=True)
