"""Digests: of the bytes, beside the run, handed out in order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch

from hvd_async.runs.hashes import Digests, digest


def test_a_digest_is_of_the_bytes() -> None:
    vector = torch.tensor([1.0, -0.5, 0.0])
    expected = hashlib.blake2b(bytes.fromhex("0000803f000000bf00000000"), digest_size=16).hexdigest()
    assert digest(vector) == expected
    assert digest(-vector) != digest(vector) and digest(torch.tensor([1.0, -0.5, -0.0])) != expected


def test_digests_come_in_order_and_each_version_once() -> None:
    waiting: list[tuple[Future[dict[str, str]], Callable[..., dict[str, str]], tuple[Any, ...]]] = []

    def submit(function: Callable[..., dict[str, str]], *arguments: Any, num_bytes: int) -> Future[dict[str, str]]:
        assert num_bytes == sum(vector.nbytes for vector in arguments[0].values())
        waiting.append((Future(), function, arguments))
        return waiting[-1][0]

    def work(number: int) -> None:
        future, function, arguments = waiting[number]
        future.set_result(function(*arguments))

    vectors = {"parameters": torch.zeros(2), "average": torch.ones(2)}
    digests = Digests(submit)
    digests.take(1, vectors.__getitem__, {"digest": "parameters"})
    digests.take(2, vectors.__getitem__, {"digest": "parameters", "average": "average"})
    digests.take(2, vectors.__getitem__, {"digest": "parameters"})
    assert len(waiting) == 2
    work(1)
    assert list(digests.finished()) == []  # the first is not done
    work(0)
    zeros, ones = digest(vectors["parameters"]), digest(vectors["average"])
    assert list(digests.finished()) == [
        {"version": 1, "digest": zeros},
        {"version": 2, "digest": zeros, "average": ones},
    ]
    assert list(digests.finished(wait=True)) == []
