"""Sum and optimizer step in one pass over a GPU's memory: the CUDA half of `arithmetic`, its only user.

Importing this module needs Triton, which torch's CUDA wheels include. Triton compiles a kernel at its first use, which
takes seconds, with the machine's C compiler; it starts the compiler as another program, never by a fork of this process
that continues.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from hvd_async.vectors.rule import DECOUPLED, KINDS

# Elements per program; the sum of squares of each program is formed in double precision.
BLOCK = 4096
_NUM_WARPS = 8
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
RULES = ("none", *KINDS)


@dataclass(frozen=True)
class Pass:
    """One pass over vectors of one size on one GPU.

    `sources` ([size] each, at least one; all but the first of one dtype) are divided by `divisors` and added in order.
    What follows depends on `rule`: "none" writes the sum to `target`, if there is one; the others make an optimizer step
    from `parameters` to `target`, with `numbers` by the names of the kernel's arguments. A provisional step writes only
    `target`, and the sum to `total`, if there is one.
    """

    sources: Sequence[torch.Tensor]
    divisors: Sequence[float]
    rule: str
    numbers: dict[str, float]
    target: torch.Tensor | None
    total: torch.Tensor | None = None
    parameters: torch.Tensor | None = None
    first: torch.Tensor | None = None
    second: torch.Tensor | None = None
    average: torch.Tensor | None = None
    nesterov: bool = False
    is_provisional: bool = False


def fits(vectors: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> bool:
    """Whether `run` can process these vectors: contiguous, of one size, on one GPU, all but `sources` in float32."""
    device, size = vectors[0].device, vectors[0].numel()
    if device.type != "cuda" or size == 0 or len({source.dtype for source in sources[1:]}) > 1:
        return False
    return all(
        v.device == device and v.numel() == size and v.is_contiguous() and v.dtype in _KINDS and v.data_ptr() % 16 == 0
        for v in vectors
    )


def run(work: Pass) -> torch.Tensor:
    """Enqueue `work` on the current stream of its GPU. Returns [num_blocks] float64 on that GPU: the sums of squares of
    the summed gradient / divisor; empty if the step is provisional. On return only the launch is complete."""
    sources = work.sources
    device, size = sources[0].device, sources[0].numel()
    num_blocks = -(-size // BLOCK)
    squares = torch.empty(0 if work.is_provisional else num_blocks, dtype=torch.float64, device=device)
    spare = sources[0]  # placeholder for an argument that a kernel of this kind ignores
    numbers = {
        name: float(work.numbers.get(name, 0.0)) for name in _NUMBERS
    }  # an int would compile another variant of the kernel
    # The launch goes to the current device of this thread, which may differ from that of the vectors.
    with torch.cuda.device(device):
        _pass[(num_blocks,)](
            _table(device, tuple(source.data_ptr() for source in sources)),
            _divisors(device, tuple(work.divisors)),
            len(sources),
            *(
                spare if each is None else each
                for each in (work.target, work.total, work.parameters, work.first, work.second, work.average)
            ),
            spare if work.is_provisional else squares,
            size,
            **numbers,
            FIRST_KIND=_KINDS[sources[0].dtype],
            KIND=_KINDS[sources[-1].dtype],
            RULE=RULES.index(work.rule),
            HAS_DIVISORS=any(divisor != 1.0 for divisor in work.divisors),
            HAS_TARGET=work.target is not None,
            HAS_TOTAL=work.total is not None,
            HAS_FIRST=work.first is not None,
            HAS_AVERAGE=work.average is not None and "average_weight" in work.numbers and not work.is_provisional,
            HAS_DECAY=numbers["decay"] != 0.0,
            IS_DECOUPLED=work.rule in DECOUPLED,
            NESTEROV=work.nesterov,
            IS_PROVISIONAL=work.is_provisional,
            BLOCK_SIZE=BLOCK,
            num_warps=_NUM_WARPS,
            enable_fp_fusion=False,  # every operation is rounded once, as on the CPU
        )
    return squares


def try_out(device: torch.device) -> None:
    """Compile and run a kernel on a few numbers. Raises whatever Triton raises if that fails."""
    vector = torch.ones(16, device=device)
    run(Pass([vector], [1.0], "none", {"divisor": 1.0}, vector))
    torch.cuda.current_stream(device).synchronize()


@functools.lru_cache(maxsize=256)
def _table(device: torch.device, addresses: tuple[int, ...]) -> torch.Tensor:
    """Return `addresses` as [num] int64 on `device`. Cached, because the same slots come again, and each copy to the
    device costs as much as a launch."""
    return torch.tensor(addresses, dtype=torch.int64).to(device)


@functools.lru_cache(maxsize=256)
def _divisors(device: torch.device, divisors: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(divisors, dtype=torch.float32).to(device)


_NUMBERS = (
    "divisor",
    "clip",
    "rate",
    "decay",
    "beta1",
    "beta2",
    "rest1",
    "rest2",
    "inverse_root",
    "epsilon",
    "gradient_rate",
    "average_weight",
)


# Triton reads the source of these functions and accepts no annotations but its own.


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]  # no types; not installed everywhere
def _load(address, offsets, mask, KIND: tl.constexpr):  # type: ignore[no-untyped-def]  # of the kernel language
    if KIND == 1:
        vector = address.to(tl.pointer_type(tl.bfloat16))
    elif KIND == 2:
        vector = address.to(tl.pointer_type(tl.float16))
    else:
        vector = address.to(tl.pointer_type(tl.float32))
    # `fits` has checked the address: wide loads are allowed.
    return tl.load(tl.multiple_of(vector, 16) + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["num_sources"])  # type: ignore[untyped-decorator,unused-ignore]  # as above
def _pass(  # type: ignore[no-untyped-def]  # as above
    sources,
    divisors,
    num_sources,
    target,
    totals,
    parameters,
    first,
    second,
    average,
    squares,
    size,
    divisor,
    clip,
    rate,
    decay,
    beta1,
    beta2,
    rest1,
    rest2,
    inverse_root,
    epsilon,
    gradient_rate,
    average_weight,
    FIRST_KIND: tl.constexpr,
    KIND: tl.constexpr,
    RULE: tl.constexpr,
    HAS_DIVISORS: tl.constexpr,
    HAS_TARGET: tl.constexpr,
    HAS_TOTAL: tl.constexpr,
    HAS_FIRST: tl.constexpr,
    HAS_AVERAGE: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    IS_DECOUPLED: tl.constexpr,
    NESTEROV: tl.constexpr,
    IS_PROVISIONAL: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """Compute the formulas of `rule.Rule`, in that order. Each element is read before the same thread writes it, so
    the target may be the parameters, and the sum its own first source."""
    number = tl.program_id(0)
    offsets = number.to(tl.int64) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = offsets < size
    total = _load(tl.load(sources), offsets, mask, FIRST_KIND)
    if HAS_DIVISORS:
        total = tl.div_rn(total, tl.load(divisors))
    for i in range(1, num_sources):
        following = _load(tl.load(sources + i), offsets, mask, KIND)
        if HAS_DIVISORS:
            following = tl.div_rn(following, tl.load(divisors + i))
        total = total + following
    if RULE == 0:
        if HAS_TARGET:
            tl.store(target + offsets, total, mask=mask)
    gradient = tl.div_rn(total, divisor)
    if IS_PROVISIONAL:
        if HAS_TOTAL:
            tl.store(totals + offsets, total, mask=mask)
    else:
        wide = gradient.to(tl.float64)
        tl.store(squares + number, tl.sum(wide * wide))
    if RULE > 0:
        gradient = gradient * clip
        value = tl.load(parameters + offsets, mask=mask, other=0.0)
        if IS_DECOUPLED:
            value = value * decay
        elif HAS_DECAY:
            gradient = gradient + value * decay
        if RULE == 1:
            if HAS_FIRST:
                momentum = tl.load(first + offsets, mask=mask, other=0.0) * beta1 + gradient
                if not IS_PROVISIONAL:
                    tl.store(first + offsets, momentum, mask=mask)
                if NESTEROV:
                    gradient = gradient + momentum * beta1
                else:
                    gradient = momentum
            value = value - gradient * rate
        elif RULE == 6:
            mean = tl.load(first + offsets, mask=mask, other=0.0)
            direction = mean * beta1 + gradient * rest1
            if not IS_PROVISIONAL:
                tl.store(first + offsets, mean * beta2 + gradient * rest2, mask=mask)
            value = value - tl.where(direction > 0.0, 1.0, tl.where(direction < 0.0, -1.0, 0.0)) * rate
        elif RULE == 7:
            total = tl.load(first + offsets, mask=mask, other=0.0) + gradient * gradient
            if not IS_PROVISIONAL:
                tl.store(first + offsets, total, mask=mask)
            value = value - tl.div_rn(gradient, tl.sqrt_rn(total) + epsilon) * rate
        else:
            mean = tl.load(first + offsets, mask=mask, other=0.0)
            mean = mean + (gradient - mean) * rest1
            spread = tl.load(second + offsets, mask=mask, other=0.0)
            added = gradient * gradient * rest2
            if IS_PROVISIONAL:
                spread = tl.where(added > spread, added, spread)
            else:
                spread = spread * beta2 + added
                tl.store(first + offsets, mean, mask=mask)
                tl.store(second + offsets, spread, mask=mask)
            spread = tl.sqrt_rn(spread) * inverse_root + epsilon
            if RULE >= 4:
                value = value - tl.div_rn(mean * rate + gradient * gradient_rate, spread)
            else:
                value = value - tl.div_rn(mean, spread) * rate
        tl.store(target + offsets, value, mask=mask)
        if HAS_AVERAGE:
            smooth = tl.load(average + offsets, mask=mask, other=0.0)
            tl.store(average + offsets, smooth + (value - smooth) * average_weight, mask=mask)
