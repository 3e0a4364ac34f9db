"""Hashes of parameters: computed from the bytes, in the background of the run, and returned in order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch

from hvd_async.runs.hashes import ParameterHashes, hash_of


def test_a_hash_is_of_the_bytes() -> None:
    vector = torch.tensor([1.0, -0.5, 0.0])
    expected = hashlib.blake2b(bytes.fromhex("0000803f000000bf00000000"), digest_size=16).hexdigest()
    assert hash_of(vector) == expected
    assert hash_of(-vector) != hash_of(vector) and hash_of(torch.tensor([1.0, -0.5, -0.0])) != expected


def test_hashes_come_in_order_and_each_version_once() -> None:
    waiting: list[tuple[Future[dict[str, str]], Callable[..., dict[str, str]], tuple[Any, ...]]] = []

    def submit(function: Callable[..., dict[str, str]], *arguments: Any, num_bytes: int) -> Future[dict[str, str]]:
        assert num_bytes == sum(vector.nbytes for vector in arguments[0].values())
        waiting.append((Future(), function, arguments))
        return waiting[-1][0]

    def work(number: int) -> None:
        future, function, arguments = waiting[number]
        future.set_result(function(*arguments))

    vectors = {"parameters": torch.zeros(2), "average": torch.ones(2)}
    hashes = ParameterHashes(submit)
    hashes.take(1, vectors.__getitem__, {"hash": "parameters"})
    hashes.take(2, vectors.__getitem__, {"hash": "parameters", "average": "average"})
    hashes.take(2, vectors.__getitem__, {"hash": "parameters"})
    assert len(waiting) == 2
    work(1)
    assert list(hashes.finished()) == []  # the first is not finished
    work(0)
    zeros, ones = hash_of(vectors["parameters"]), hash_of(vectors["average"])
    assert list(hashes.finished()) == [
        {"version": 1, "hash": zeros},
        {"version": 2, "hash": zeros, "average": ones},
    ]
    assert list(hashes.finished(wait=True)) == []
