"""The store's arithmetic over whole vectors, in one pass over memory if the C extension was built.

Each function exists twice: in `_native.c`, and here as torch operations for other devices and for machines without a
compiler. Both round alike and so give the same bits: every elementary operation is done in float32 and rounded once, in
the order written here. Work is shared among `torch.get_num_threads()` threads; no result depends on their number.

On a GPU the sum and the step are one pass of `cuda`, or else torch operations over whole vectors. There, too, all
functions are complete when they return: their inputs may be overwritten, and other processes may read their outputs.
"""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import math
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from hvd_async.vectors.redo import AREA_BYTES, MAX_RANGES, RedoPart
from hvd_async.vectors.rule import KINDS, Rule, State, step_piece

_c: Any
try:
    from hvd_async.vectors import _native as _c
except ImportError:  # there was no compiler when the package was installed
    _c = None

T = TypeVar("T")
# Sums of squares are formed block by block; every shard begins at a multiple of this many elements.
BLOCK = 4096
_LANES = 64
# Torch operations work on pieces of this size, whose intermediate results stay in the cache.
_PIECE = 32 * BLOCK
# Fewer elements do not justify a second thread.
_SMALLEST_SHARE = 64 * BLOCK
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MAX_INPUTS = 64


@dataclass(frozen=True)
class Input:
    """A gradient to sum: `vector` ([size]; float32, bfloat16 or float16), first divided by `divisor`."""

    vector: torch.Tensor
    divisor: float = 1.0


def is_compiled() -> bool:
    """Whether the C extension was built."""
    return _c is not None


def sum_inputs(inputs: Sequence[Input], total: torch.Tensor | None, divisor: float, use_c: bool = True) -> list[float]:
    """Add `inputs` (1 to MAX_INPUTS) in order into `total` ([size] float32; may be the first input; None: nowhere).

    Returns the sums of squares of total / divisor, block by block (on a GPU a single one), each exact to a double's
    rounding; see `norm`. `use_c`: whether compiled code may be used.
    """
    size = inputs[0].vector.numel()
    vectors = [each.vector for each in inputs] + ([] if total is None else [total])
    if use_c and (fused := _fused_for(vectors, inputs)) is not None:
        divisors = [each.divisor for each in inputs]
        work = fused.Pass([each.vector for each in inputs], divisors, "none", {"divisor": divisor}, total)
        return [float(fused.run(work).sum())]
    if not _fits_c(vectors, use_c):
        partials: list[float] = []
        for start in range(0, size, _piece(vectors[0])):
            piece = slice(start, start + _piece(vectors[0]))
            summed = _sum_piece(inputs, piece)
            if total is not None:
                total[piece] = summed
            partials += _squares(summed if divisor == 1.0 else _divide(summed, divisor))
        return partials
    squares = torch.empty(-(-size // BLOCK), dtype=torch.float64)
    described, address = _describe(inputs), _address(total)
    _share(
        size,
        lambda a, b: _c.sum(described, address, divisor, squares.data_ptr(), a, b),
    )
    result: list[float] = squares.tolist()
    return result


def step(inputs: Sequence[Input], state: State, rule: Rule, use_c: bool = True, redo: RedoPart | None = None) -> list[float]:
    """Sum `inputs` in order and make one optimizer step with the sum. Returns the sums of squares, as `sum_inputs` does.
    `rule` is not provisional.

    With `redo`, which needs compiled code on the CPU, a process that dies in it leaves enough for another to complete the step.

    `Rule` has the formulas. State begins as zeros, except Adagrad's. The inputs are unchanged, and so is `state.parameters`
    unless it is the target.
    """
    size, vectors = state.target.numel(), _vectors_of(inputs, state)
    if use_c and (fused := _fused_for(vectors, inputs)) is not None:
        # Copying the sum to the CPU waits for the GPU.
        return [float(fused.run(_fused_step(fused, inputs, state, rule)).sum())]
    if not _fits_c(vectors, use_c):
        assert redo is None
        partials: list[float] = []
        for start in range(0, size, _piece(vectors[0])):
            piece = slice(start, start + _piece(vectors[0]))
            gradient = _sum_piece(inputs, piece)
            if rule.divisor != 1.0:
                gradient = _divide(gradient, rule.divisor)
            partials += _squares(gradient)
            step_piece(gradient, state, rule, piece)
        _wait_for(state.target)  # the sums of squares were complete before the step was made
        return partials
    squares = torch.empty(-(-size // BLOCK), dtype=torch.float64)
    described, numbers = _describe(inputs), _numbers(rule, state)
    addresses = (*_addresses(state), 0, squares.data_ptr())
    if redo is not None and redo.is_again:
        for area, end in redo.redo.under_way():
            _c.step(described, *addresses, area, True, size, 0, end, numbers)
        return sum_inputs(inputs, None, rule.divisor)  # of the whole, also of what was made before
    assert redo is None or _c.REDO_BYTES == AREA_BYTES
    bounds = _bounds(size) if redo is None else _bounds(size, MAX_RANGES)
    areas = [0] * len(bounds) if redo is None else redo.redo.begin(redo.progress, bounds)
    _in_threads(
        [
            functools.partial(_c.step, described, *addresses, area, False, size, a, b, numbers)
            for (a, b), area in zip(bounds, areas, strict=True)
        ]
    )
    result: list[float] = squares.tolist()
    return result


def provisional_step(
    inputs: Sequence[Input], total: torch.Tensor | None, state: State, rule: Rule, use_c: bool = True
) -> None:
    """Sum `inputs` in order into `total` ([size] float32; may be the first input; None: nowhere), and write the result of a
    provisional step with the sum into `state.target`, in one pass. Nothing else changes.

    `rule` is provisional, and the target not the parameters.
    """
    size, vectors = state.target.numel(), _vectors_of(inputs, state, total)
    if use_c and (fused := _fused_for(vectors, inputs)) is not None:
        fused.run(_fused_step(fused, inputs, state, rule, total))
    elif _fits_c(vectors, use_c):
        described, numbers = _describe(inputs), _numbers(rule, state)
        addresses = (*_addresses(state), _address(total), 0)
        _share(size, lambda a, b: _c.step(described, *addresses, 0, False, size, a, b, numbers))
    else:
        for start in range(0, size, _piece(vectors[0])):
            piece = slice(start, start + _piece(vectors[0]))
            gradient = _sum_piece(inputs, piece)
            if total is not None:
                total[piece] = gradient
            step_piece(gradient if rule.divisor == 1.0 else _divide(gradient, rule.divisor), state, rule, piece)
    _wait_for(state.target)


def zeros_apart(size: int, number: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return [size] float32 zeros. Vectors of different `number` begin at different places of a page, as the vectors of a
    block do, so that a loop over all of them fits each into the nearest cache."""
    start = 144 * (number + 1) % 1024  # nine lines apart
    return torch.zeros(size + 1024, dtype=torch.float32, device=device)[start : start + size]


def norm(partials: Sequence[float]) -> float:
    """Return the Euclidean norm from sums of squares: independent of how the blocks were shared; infinite or NaN if a sum
    is."""
    if not all(map(math.isfinite, partials)):
        return math.nan if any(map(math.isnan, partials)) else math.inf
    return math.sqrt(math.fsum(partials))


def copy_and_measure(source: torch.Tensor, target: torch.Tensor | None, use_c: bool = True) -> float:
    """Copy `source` ([size] float32) into `target` ([size]; float32, bfloat16 or float16, rounded to nearest even;
    possibly on another device).

    Returns the largest magnitude in `target` (in `source` if `target` is None): infinite or NaN if an element is.
    """
    if _fits_c([source] if target is None else [source, target], use_c):
        address = _address(target)
        kind = 0 if target is None else _KINDS[target.dtype]
        largest = _share(
            source.numel(),
            lambda a, b: _c.copy_and_measure(source.data_ptr(), address, kind, a, b),
        )
        return math.nan if any(map(math.isnan, largest)) else max(largest, default=0.0)
    rounded = source if target is None else source.to(target.dtype)
    if target is not None:
        target.copy_(rounded)
    # Measured where the gradient is, because the target may be in the memory of another GPU.
    extremes: tuple[Any, Any] = torch.aminmax(rounded) if source.numel() else (0.0, 0.0)
    low, high = map(float, extremes)
    _wait_for(source, *([] if target is None else [target]))
    return math.nan if math.isnan(low) else max(abs(low), abs(high))


def copy(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copy `source` into `target` (contiguous, equal dtype and size, possibly on different devices) at the speed of
    memory."""
    if not _fits_c([source, target], True, anything=True):
        target.copy_(source)
        _wait_for(source, target)
        return
    width = source.element_size()
    _share(
        source.numel(),
        lambda a, b: _c.copy(source.data_ptr() + a * width, target.data_ptr() + a * width, (b - a) * width),
    )


def _fits_c(vectors: Sequence[torch.Tensor], use_c: bool, anything: bool = False) -> bool:
    if _c is None or not use_c:
        return False
    return all(v.device.type == "cpu" and v.is_contiguous() and (anything or v.dtype in _KINDS) for v in vectors)


def _vectors_of(inputs: Sequence[Input], state: State, *others: torch.Tensor | None) -> list[torch.Tensor]:
    vectors = (state.parameters, state.target, state.first, state.second, state.average, *others)
    return [each.vector for each in inputs] + [vector for vector in vectors if vector is not None]


def _addresses(state: State) -> list[int]:
    return [_address(v) for v in (state.parameters, state.target, state.first, state.second, state.average)]


def _address(vector: torch.Tensor | None) -> int:
    return 0 if vector is None else vector.data_ptr()


def _describe(inputs: Sequence[Input]) -> list[tuple[int, int, float]]:
    return [(each.vector.data_ptr(), _KINDS[each.vector.dtype], each.divisor) for each in inputs]


def _numbers(rule: Rule, state: State) -> tuple[float, ...]:
    has_average = rule.average_weight is not None and not rule.is_provisional
    return (
        KINDS.index(rule.kind), state.first is not None, rule.nesterov, has_average, rule.is_provisional,
        rule.divisor, rule.clip, rule.rate, rule.decay, rule.beta1, rule.beta2,
        1 - rule.beta1, 1 - rule.beta2, rule.inverse_root, rule.epsilon, rule.gradient_rate,
        rule.average_weight or 0.0,
    )  # fmt: skip


@functools.cache
def _pool(num_threads: int) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(num_threads, thread_name_prefix="hvd-async-kernels")


def _share(size: int, work: Callable[[int, int], T]) -> list[T]:
    """Call `work(start, end)` in several threads, on ranges of whole blocks that together cover `size` elements."""
    return _in_threads([functools.partial(work, a, b) for a, b in _bounds(size)])


def _bounds(size: int, most: int | None = None) -> list[tuple[int, int]]:
    """Return the ranges of `size` elements for each thread, of whole blocks; at most `most`."""
    num_threads = max(1, min(torch.get_num_threads(), size // _SMALLEST_SHARE, most or size))
    num_blocks = -(-size // BLOCK)
    return list(itertools.pairwise(min(size, BLOCK * (num_blocks * i // num_threads)) for i in range(num_threads + 1)))


def _in_threads(works: Sequence[Callable[[], T]]) -> list[T]:
    """Call each of `works` in a thread of its own, and return their results."""
    others = [_pool(len(works)).submit(work) for work in works[1:]]
    return [works[0](), *(other.result() for other in others)]


# --- On a GPU ---------------------------------------------------------------------------------------------------------


def _fused_for(vectors: Sequence[torch.Tensor], inputs: Sequence[Input]) -> types.ModuleType | None:
    """Return `cuda` if it can process these vectors, else None."""
    device = vectors[0].device
    fused = _fused(device) if device.type == "cuda" else None
    return fused if fused is not None and fused.fits(vectors, [each.vector for each in inputs]) else None


@functools.cache
def _fused(device: torch.device) -> types.ModuleType | None:
    """Return `cuda` if it works on `device`, else None."""
    try:
        from hvd_async.vectors import cuda
    except ImportError:
        return None
    try:
        cuda.try_out(device)
    except (
        Exception
    ) as error:  # Triton raises errors of its own, of the C compiler and of the driver; torch operations are used instead
        reason = " ".join(str(error).split())[:200]
        warnings.warn(f"updates on {device} run as torch operations: Triton: {reason}", RuntimeWarning, stacklevel=2)
        return None
    return cuda


def _fused_step(
    fused: types.ModuleType, inputs: Sequence[Input], state: State, rule: Rule, total: torch.Tensor | None = None
) -> Any:
    numbers = {
        "divisor": rule.divisor,
        "clip": rule.clip,
        "rate": rule.rate,
        "decay": rule.decay,
        "beta1": rule.beta1,
        "beta2": rule.beta2,
        "rest1": 1 - rule.beta1,
        "rest2": 1 - rule.beta2,
        "inverse_root": rule.inverse_root,
        "epsilon": rule.epsilon,
        "gradient_rate": rule.gradient_rate,
    }
    if rule.average_weight is not None:
        numbers["average_weight"] = rule.average_weight
    return fused.Pass(
        sources=[each.vector for each in inputs],
        divisors=[each.divisor for each in inputs],
        rule=rule.kind,
        numbers=numbers,
        target=state.target,
        total=total,
        parameters=state.parameters,
        first=state.first,
        second=state.second,
        average=state.average,
        nesterov=rule.nesterov,
        is_provisional=rule.is_provisional,
    )


def _wait_for(*vectors: torch.Tensor) -> None:
    """Wait until the GPUs of `vectors`, if any, have done all work that this thread gave them.

    A copy between two GPUs runs on a stream of one of them, and a stream of the other waits for it: wait for both.
    """
    for device in {vector.device for vector in vectors if vector.device.type == "cuda"}:
        torch.cuda.current_stream(device).synchronize()


# --- As torch operations ---------------------------------------------------------------------------------------------


def _piece(vector: torch.Tensor) -> int:
    """Return the size of a piece; on a GPU the whole vector, since a GPU has no such cache and each piece would cost a
    launch."""
    return _PIECE if vector.device.type == "cpu" else max(1, vector.numel())


def _divide(vector: torch.Tensor, divisor: float) -> torch.Tensor:
    """Divide by a tensor on a GPU: given a number, torch multiplies by its reciprocal there, which rounds twice."""
    if vector.device.type == "cpu":
        return vector / divisor
    return vector / torch.full((), divisor, dtype=vector.dtype, device=vector.device)


def _sum_piece(inputs: Sequence[Input], piece: slice) -> torch.Tensor:
    total: torch.Tensor | None = None
    for each in inputs:
        gradient = each.vector[piece].float()
        if each.divisor != 1.0:
            gradient = _divide(gradient, each.divisor)
        total = gradient if total is None else total + gradient
    assert total is not None
    return total


def _squares(gradient: torch.Tensor) -> list[float]:
    """Return the sum of squares of each block, summed in lanes (element i of a block in lane i % 64) that are then
    halved."""
    if gradient.device.type != "cpu":
        return [float(gradient.double().square_().sum())]
    num_blocks = -(-gradient.numel() // BLOCK)
    squares = torch.zeros(num_blocks * BLOCK, dtype=torch.float64, device=gradient.device)
    squares[: gradient.numel()] = gradient.double().square()
    rows = squares.view(num_blocks, -1, _LANES).unbind(1)
    lanes = rows[0]
    for row in rows[1:]:
        lanes = lanes + row
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    result: list[float] = lanes.flatten().tolist()
    return result


# --- Doorbells --------------------------------------------------------------------------------------------------------


def has_doorbells() -> bool:
    """Whether this function and those below may be used: they need the C extension. Otherwise poll."""
    return _c is not None


def ring(address: int) -> None:
    """Add 1 to the 32-bit count at `address` (in shared memory) and wake all threads and processes that wait for it."""
    _compiled().ring(address)


def heard(address: int) -> int:
    """Return the count at `address`, for a later `wait`. Read it before looking at what the doorbell announces."""
    return int(_compiled().heard(address))


def wait(address: int, before: int, seconds: float) -> None:
    """Sleep until the count at `address` differs from `before` or `seconds` have passed; may wake for no reason."""
    _compiled().wait(address, before, seconds)


def fetch_add(address: int, amount: int) -> int:
    """Add `amount` to the 64-bit word at `address` (in shared memory), atomically; return the previous value."""
    return int(_compiled().fetch_add(address, amount))


def compare_swap(address: int, expected: int, value: int) -> int:
    """Replace the 64-bit word at `address`, if it is `expected`, by `value`, atomically; return the previous value."""
    return int(_compiled().compare_swap(address, expected, value))


def fence() -> None:
    """Order what this thread reads and writes before with what it does after, for other threads and processes."""
    _compiled().fence()


def start_pulse(address: int, every: float, limit: float, hung: int, ends_process: bool, far: tuple[int | bool, ...]) -> int:
    """Start a thread of C that counts up the 64-bit word at `address` (in shared memory); return its number. See
    `transport.pulse`, which has the meaning of the rest."""
    return int(_compiled().start_pulse(address, every, limit, hung, ends_process, far))


def touch_pulse(number: int) -> None:
    """Note that the process makes progress, for the thread of `start_pulse`."""
    _compiled().touch_pulse(number)


def stop_pulse(number: int, seconds: float) -> bool:
    """Have the thread of `start_pulse` end, and wait for its end for at most `seconds`; return whether it has ended."""
    return bool(_compiled().stop_pulse(number, seconds))


def _compiled() -> Any:
    assert _c is not None, "ask has_doorbells first"
    return _c
