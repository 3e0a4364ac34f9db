"""Handles of device memory as text; their use with CUDA is tested in tests/mpi/test_gpu.py."""

from __future__ import annotations

import json

import torch

from hvd_async.transport import cuda_ipc
from hvd_async.transport.cuda_ipc import Handle


def test_a_handle_survives_the_exchange_among_ranks() -> None:
    handle = Handle(bytes(range(66)), 2**40, 512, b"/torch_12_34\x00", 3, bytes(64), True)
    text = handle.to_text()
    assert Handle.from_text(text) == handle
    assert "\n" not in text and Handle.from_text(json.loads(json.dumps({"1": text}))["1"]) == handle


def test_on_a_cpu_there_is_no_work_to_finish_and_no_stream() -> None:
    for device in ("cpu", torch.device("cpu", 0)):
        cuda_ipc.finish(device)
        cuda_ipc.use_own_stream(device)
    assert not torch.cuda.is_initialized()
