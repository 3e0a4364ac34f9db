"""Writing and reading of slots: casting, dropping, and the error that error feedback keeps at the worker."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from hvd_async.config import PushConfig
from hvd_async.store.pushed_gradient import Gradient
from hvd_async.store.wire.layout import INDEX_BYTES, Layout, SlotDtype, StoreMemory, StoreWindow, num_kept
from hvd_async.transport.block import WORD_BYTES
from hvd_async.vectors import arithmetic
from hvd_async.vectors.vector_map import Matrix

DTYPES = {SlotDtype.FLOAT32: torch.float32, SlotDtype.BFLOAT16: torch.bfloat16, SlotDtype.FLOAT16: torch.float16}
# Approximate number of elements in the sample from which the threshold for dropping is computed.
_SAMPLE = 50_000


def split(size: int, num_shards: int, matrices: Sequence[Matrix] = ()) -> list[slice]:
    """Return contiguous ranges of a vector of `size` elements, one per shard, equal in size up to rounding to whole blocks, and
    to whole `matrices`. With matrices there are fewer ranges than shards if there are too few places to cut between them."""
    num_blocks = -(-size // arithmetic.BLOCK)
    if not matrices:
        bounds = [min(size, arithmetic.BLOCK * (num_blocks * k // num_shards)) for k in range(num_shards + 1)]
        return [slice(a, b) for a, b in itertools.pairwise(bounds)]
    places = _places_to_cut(num_blocks, matrices)
    num_shards = min(num_shards, len(places) + 1)
    cuts = [0]
    for number in range(1, num_shards):
        wanted = num_blocks * number // num_shards
        first = bisect.bisect_right(places, cuts[-1])
        last = len(places) - (num_shards - number)  # the others need places, too
        after = min(max(bisect.bisect_left(places, wanted), first), last)
        before = max(after - 1, first)
        cuts.append(places[before] if wanted - places[before] <= places[after] - wanted else places[after])
    bounds = [*(min(size, arithmetic.BLOCK * cut) for cut in cuts), size]
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]


def _places_to_cut(num_blocks: int, matrices: Sequence[Matrix]) -> list[int]:
    """Return the blocks, in order, at whose start a vector of `num_blocks` may be cut: all but the first and those within
    matrices."""
    within = {
        block for each in matrices for block in range(each.start // arithmetic.BLOCK + 1, -(-each.stop // arithmetic.BLOCK))
    }
    return [block for block in range(1, num_blocks) if block not in within]


def parts_of_lengths(lengths: Iterable[int]) -> list[slice]:
    """Return the ranges of the shards of a vector, whose numbers of elements are `lengths`."""
    return [slice(a, b) for a, b in itertools.pairwise(itertools.accumulate(lengths, initial=0))]


@dataclass(frozen=True)
class Sent:
    """Result of a push: the largest magnitude of the numbers, and the bytes of numbers and indices."""

    largest: float
    num_bytes: int


class SlotWriter:
    """Writes gradients into one slot, on all shards. Used by one thread.

    Dropping sends the elements of largest magnitude, above a threshold computed on a sample. Elements that were not sent,
    and rounding errors, are added to the next gradient (Aji & Heafield 2017, "Sparse communication for distributed gradient
    descent"; Seide et al. 2014 for error feedback). A gradient that is not finite is sent as it is, to be refused, and
    leaves the kept error unchanged.
    """

    def __init__(
        self, windows: Sequence[StoreWindow], parts: Sequence[slice], push: PushConfig, errors: Sequence[torch.Tensor] = ()
    ) -> None:
        """`windows[k]` reaches the shard that holds `parts[k]` of the vector. `errors` (each [size] float32, zeros): memory of
        the error with feedback, used in turn, so that with two a push that breaks off changes nothing; by default, new memory."""
        self._windows = windows
        self._parts = parts
        self._dtype = DTYPES[SlotDtype(push.dtype)]
        self._push = push
        self._size = parts[-1].stop
        self._errors = (errors or [torch.zeros(self._size)]) if push.error_feedback else []
        self._staged: torch.Tensor | None = None

    def write(self, gradient: torch.Tensor, slot: int, number: int = 0) -> Sent:
        """Begin to write `gradient` ([size], float32, on a device that the windows accept) into `slot`; `number` pushes have been
        made before.

        `gradient` must stay unchanged until the windows are flushed."""
        if self._push.keep < 1.0:
            return self._write_few(gradient, slot, number)
        if not self._errors:
            each = [self._write_part(gradient, slot, number, part) for number, part in enumerate(self._parts)]
            return Sent(max(each, key=_rank), self._size * self._dtype.itemsize)
        before, after = self._errors_around(number)
        wanted = gradient + before
        sent = self._stage(self._size)
        largest = arithmetic.copy_and_measure(wanted, sent)
        if largest < float("inf"):
            torch.sub(wanted, sent.float(), out=after)
        else:
            after.copy_(before)
        for window, part in zip(self._windows, self._parts, strict=True):
            window.put(window.layout.slot_offset(slot), sent[part])
        return Sent(largest, self._size * self._dtype.itemsize)

    def _write_part(self, gradient: torch.Tensor, slot: int, number: int, part: slice) -> float:
        window, source = self._windows[number], gradient[part]
        offset = window.layout.slot_offset(slot)
        target = window.mapped(offset, source.numel(), self._dtype)
        if target is not None:
            return arithmetic.copy_and_measure(source, target)
        if self._dtype == torch.float32:
            window.put(offset, source)
            return arithmetic.copy_and_measure(source, None)
        staged = self._stage(self._size)[part]
        largest = arithmetic.copy_and_measure(source, staged)
        window.put(offset, staged)
        return largest

    def _errors_around(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the errors before and after push `number`, which may be one vector."""
        return self._errors[number % len(self._errors)], self._errors[(number + 1) % len(self._errors)]

    def _write_few(self, gradient: torch.Tensor, slot: int, number: int) -> Sent:
        before, after = self._errors_around(number)  # the configuration requires feedback for dropping
        wanted = gradient + before
        if not arithmetic.copy_and_measure(wanted, None) < float("inf"):
            indices = (~torch.isfinite(wanted)).nonzero().flatten()[:1]
        else:
            indices = _largest_elements(wanted, num_kept(self._size, self._push.keep))
        values = wanted[indices].to(self._dtype)
        largest = float(values.abs().max()) if len(values) else 0.0
        if largest < float("inf"):
            after.copy_(wanted)
            after[indices] -= values.float()
        else:
            after.copy_(before)
        bounds = torch.searchsorted(indices, torch.tensor([part.start for part in self._parts] + [self._size])).tolist()
        for number, (window, part) in enumerate(zip(self._windows, self._parts, strict=True)):
            mine = slice(bounds[number], bounds[number + 1])
            layout, offset = window.layout, window.layout.slot_offset(slot)
            window.put(offset + layout.format.indices_offset, (indices[mine] - part.start).to(torch.int32))
            window.put(offset + layout.format.values_offset, values[mine])
            window.put(offset, torch.tensor([mine.stop - mine.start]))
        return Sent(largest, len(indices) * (INDEX_BYTES + self._dtype.itemsize))

    def _stage(self, size: int) -> torch.Tensor:
        if self._staged is None:
            self._staged = torch.empty(size, dtype=self._dtype)
        return self._staged


def read_slot(memory: StoreMemory, layout: Layout, slot: int, largest: float) -> Gradient:
    """Return the gradient in `slot`, as views of the memory on the device where the store computes."""
    form, offset = layout.format, layout.slot_offset(slot)
    memory.bring_in(offset, form.num_bytes)
    dtype = DTYPES[form.dtype]
    if not form.is_sparse:
        return Gradient(memory.vector(offset, form.capacity, dtype), largest, slot=slot)
    count = memory.load(offset // WORD_BYTES)
    indices = memory.vector(offset + form.indices_offset, count, torch.int32)
    return Gradient(memory.vector(offset + form.values_offset, count, dtype), largest, indices, slot)


def _largest_elements(vector: torch.Tensor, count: int) -> torch.Tensor:
    """Return ascending indices of about the `count` elements of largest magnitude, at most `count`; zeros are left out."""
    magnitude = vector.abs()
    stride = max(1, vector.numel() // _SAMPLE) | 1  # odd: rows of matrices are even
    sample = magnitude[::stride]
    wanted = max(1, round(count / vector.numel() * sample.numel()))
    threshold = float(sample.topk(wanted).values[-1])
    indices = ((magnitude >= threshold) & (magnitude > 0.0)).nonzero().flatten()
    if len(indices) > count:
        indices = indices[magnitude[indices].topk(count).indices].sort().values
    return indices


def _rank(magnitude: float) -> float:
    """Return a sort key that ranks NaN as infinity, so that a maximum does not lose it."""
    return magnitude if magnitude == magnitude else float("inf")
