"""Hashes of datasets, by which a run tells whether it has the data that it had before."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

_FINGERPRINTED = 64


def fingerprint_of(dataset: Any) -> str:
    """Return a hash of up to `_FINGERPRINTED` examples, spread over `dataset`, which is map-style."""
    digest = hashlib.sha256()
    size = len(dataset)
    for example in sorted({size * number // _FINGERPRINTED for number in range(_FINGERPRINTED)}):
        _feed(digest, dataset[example])
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    """Add what `value` holds to `digest`: numbers, text, tensors and arrays, in lists, tuples and maps. Of anything else, its
    type."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            _feed(digest, str(key))
            _feed(digest, each)
    elif isinstance(value, list | tuple):
        for each in value:
            _feed(digest, each)
    elif isinstance(value, Tensor):
        _feed(digest, value.detach().cpu().numpy())
    elif isinstance(value, np.ndarray):
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, bytes | str | int | float | bool | None):
        digest.update(repr(value).encode())
    else:
        digest.update(type(value).__name__.encode())
