"""A worker that pulls in the middle of a step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import torch

from hvd_async.store.arrival import Arrival
from hvd_async.store.serve.client import ClientOptions, StoreClient
from hvd_async.store.wire.layout import IDLE, Layout, SlotWord, Word
from hvd_async.strategies.protocol import Job, Step
from hvd_async.strategies.push_pull import DirectPushPull
from hvd_async.strategies.workers import AsynchronousWorker, HostCopy
from hvd_async.transport.inprocess import ThreadMemory
from hvd_async.vectors.flat import FlatParameters
from tests.store.stores import asynchronous


def test_a_pull_in_the_middle_of_a_step_brings_the_newest_version_and_leaves_the_base_announced() -> None:
    model = torch.nn.Linear(3, 1)
    flat = FlatParameters(model)
    memory = ThreadMemory(Layout(flat.size, 1))

    def announced() -> list[int]:
        words = (SlotWord.BASE_VERSION, SlotWord.NEXT_BASE_VERSION)
        return [memory.load(memory.layout.slot_word(0, word)) for word in words]

    for word in (SlotWord.BASE_VERSION, SlotWord.NEXT_BASE_VERSION):
        memory.store(memory.layout.slot_word(0, word), IDLE)
    client, strategy = StoreClient([memory], 0, ClientOptions()), asynchronous(arrivals_per_update=1)
    host = HostCopy(flat)
    job = cast(Job, SimpleNamespace(strategy=strategy))
    worker = AsynchronousWorker(job, client, DirectPushPull(client, strategy), host, 0)
    worker._start()
    assert announced() == [0, IDLE]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = model(torch.ones(1, 3)).detach()
        for version in (1, 2):
            memory.vector(memory.layout.published_offset(version)).fill_(float(version))
            memory.store(Word.NEXT_VERSION, version)
            memory.store(Word.VERSION, version)
            worker.pull_newer()
            assert announced() == [0, version]
            after = model(torch.ones(1, 3)).detach()
            assert float(after) == 4.0 * version != float(before)  # autocast keeps no weights of before
    worker.pull_newer()  # nothing is newer
    found: list[Arrival] = []
    client.push = lambda gradient, arrivals: found.extend(arrivals)  # type: ignore[method-assign]  # no store is there to wait for
    client.wait_drained = lambda: None  # type: ignore[method-assign]
    worker.step(Step(batch=7, weight=1.0, loss=0.5, seconds=0.1))
    assert found[0].bases == ((0, 0), (1, 0), (2, 0), (2, 0)) and found[0].pull_seconds > 0.0
    worker.step(Step(batch=8, weight=1.0, loss=0.5, seconds=0.1))
    assert found[1].bases == ((2, 0),)
