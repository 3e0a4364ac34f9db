"""The toy with a store on a GPU that is a file: the part of a store on a GPU that a machine without one can run.

    python -m tests.mpi.device_toy SETTINGS GPUS [REFUSED]

`GPUS`: comma-separated names of the GPUs that every rank sees. Vectors on them are ordinary memory; the store's vectors
are a mapped file, which other ranks open by the name in the handle. Without names, the GPUs of the machine are used.
`REFUSED`: comma-separated ranks whose handles cannot be opened.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence

import torch

from hvd_async.__main__ import report
from hvd_async.cluster import topology
from hvd_async.cluster.environment import read_environment
from hvd_async.cluster.topology import Machine, Placement, RankPlan
from hvd_async.store.serve import device_block
from hvd_async.store.wire.layout import Layout
from hvd_async.training import setup
from hvd_async.transport import cuda_ipc
from hvd_async.transport.block import WORD_BYTES
from hvd_async.transport.cuda_ipc import Handle
from tests.mpi import toy


@contextlib.contextmanager
def emulated(gpus: Sequence[str]) -> Iterator[None]:
    """Replace every function that asks for a GPU, in this process."""
    paths: list[str] = []

    def this_machine() -> Machine:
        return dataclasses.replace(topology.this_machine(), gpus=tuple(gpus))

    def assign_roles(machines: Sequence[Machine], wanted: Placement) -> tuple[RankPlan, ...]:
        # The plan takes `cpu:0` for a device of its own; torch takes it for the CPU.
        plans = topology.assign_roles(machines, wanted)
        for plan in plans:
            print(topology.describe(plan), f"direct {plan.is_direct}", file=sys.stderr)
        renamed = [
            dataclasses.replace(
                plan,
                device=plan.device.replace("cuda", "cpu"),
                store_device=plan.store_device and plan.store_device.replace("cuda", "cpu"),
            )
            for plan in plans
        ]
        return tuple(renamed)

    def allocate(layout: Layout, device: torch.device) -> torch.Tensor:
        with tempfile.NamedTemporaryFile(delete=False) as file:
            paths.append(file.name)
        memory = _map(paths[-1], device_block.device_bytes(layout))
        memory[:WORD_BYTES].view(torch.int64).fill_(device_block._MARK)
        return memory

    def export(block: torch.Tensor) -> Handle:
        return Handle(paths[-1].encode(), block.numel(), 0, b"", 0, b"", False)

    def open_handle(handle: Handle, device: torch.device) -> torch.Tensor:
        return _map(handle.memory.decode(), handle.num_bytes)

    def release(handle: Handle) -> None:
        print("released", file=sys.stderr)

    @contextlib.contextmanager
    def locked(memory: torch.Tensor, device: torch.device) -> Iterator[bool]:
        print("locked", file=sys.stderr)
        yield True
        memory[0] = memory[0]  # fails if the memory is gone
        print("unlocked", file=sys.stderr)

    setup.this_machine, setup.assign_roles = this_machine, assign_roles
    device_block._allocate = allocate
    cuda_ipc.export, cuda_ipc.open_handle, cuda_ipc.release, cuda_ipc.locked = export, open_handle, release, locked
    try:
        yield
    finally:
        for path in paths:
            os.unlink(path)


def refuse() -> None:
    """Make every attempt to open a handle fail in this process."""

    def open_handle(handle: Handle, device: torch.device) -> torch.Tensor:
        raise RuntimeError("CUDA error: invalid\nargument")

    cuda_ipc.open_handle = open_handle


def _map(path: str, num_bytes: int) -> torch.Tensor:
    return torch.from_file(path, shared=True, size=num_bytes, dtype=torch.uint8)


if __name__ == "__main__":
    names, *others = sys.argv[2:]
    launched = read_environment(os.environ)
    with emulated(names.split(",")) if names else contextlib.nullcontext():
        if launched is not None and str(launched.rank) in "".join(others).split(","):
            refuse()
        sys.exit(report(toy.main))
