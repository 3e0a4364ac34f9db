"""The arithmetic of an update, in one process, beside a copy of the bytes that it must move, and beside plain torch code.

On a GPU the limit is a copy within the GPU's memory, and every competitor is timed to the end of its work on the GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from hvd_async.benchmarks.measurement import BenchFigure, BenchTarget, Effort, Spread, duration, take_turns, timed
from hvd_async.benchmarks.memcpy import memcpy_with, page_aligned
from hvd_async.benchmarks.options import Options, num_elements, own_cores
from hvd_async.config import ArrivalsFrom, OptimizerConfig, ScheduleConfig, StrategyConfig
from hvd_async.errors import SetupError
from hvd_async.store.arrival import Arrival
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.store.pushed_gradient import Gradient
from hvd_async.store.shards.shard import KeptMemory, Shard
from hvd_async.store.wire.layout import NUM_PROVISIONAL
from hvd_async.system.machine import available_memory
from hvd_async.vectors import arithmetic
from hvd_async.vectors.redo import REDO_BYTES, Redo
from hvd_async.vectors.threads import arithmetic_threads

DEFAULTS = Options(threads=own_cores())
TAKES = frozenset({"sizes", "repeats", "threads", "seconds", "device"})

NUM_ARRIVALS = 4
OPTIMIZER = OptimizerConfig(kind="adam", schedule=ScheduleConfig(kind="constant", warmup=0))
_CLIPPED = OPTIMIZER.model_copy(update={"clip_norm": 1.0})
# An update reads the slots, reads and writes parameters and both moments, and writes the published copy.
_VECTORS_MOVED = NUM_ARRIVALS + 3 * 2 + 1
# With a bound on its norm, the sum is measured first: written, and read again.
_CLIPPED_MOVED = _VECTORS_MOVED + 2
# An arrival with provisional parameters reads its slot, the sum so far, the parameters and both moments, and writes the new sum
# and the provisional copy.
_PROVISIONAL_MOVED = 5 + 2
# Slots; parameters, two moments, two sums and published copy for the store without and with clipping; parameters, moments, sum
# and three copies for the store that makes provisional ones; five vectors for the torch code, and two for memcpy.
_VECTORS_HELD = NUM_ARRIVALS + 2 * 6 + 7 + 5 + 2
_WEIGHT = 100

_MEMCPY_TARGET = BenchTarget("ratio at least", 0.8)
_TORCH_TARGET = BenchTarget("ratio at least", 1.5)
_NEVER_SLOWER = BenchTarget("ratio at least", 1.0)
_LARGE = 25.0


def measure(options: Options) -> list[BenchFigure]:
    """Return the figures of every size. Raises `SetupError` if memory is too small for a size."""
    figures: list[BenchFigure] = []
    for size in options.sizes:
        check_memory(num_elements(size), _available_bytes(options.device))
    for size in options.sizes:
        with arithmetic_threads(options.threads):
            figures += _figures(size, _measure_size(num_elements(size), options), options.device)
    return figures


def _measure_size(num: int, options: Options) -> dict[str, Spread]:
    """Return the seconds of each competitor for vectors of `num` parameters."""
    device = torch.device(options.device)
    slots = [arithmetic.zeros_apart(num, 3 + number, device).normal_(0.0, 1e-3) for number in range(NUM_ARRIVALS)]
    published, other = arithmetic.zeros_apart(num, NUM_ARRIVALS + 3, device), torch.zeros(num, device=device)
    source, target = page_aligned(num).to(device), page_aligned(num).to(device)
    ours, theirs = StoreUpdate(slots, published), TorchUpdate(slots, other)
    clipped = StoreUpdate(slots, arithmetic.zeros_apart(num, NUM_ARRIVALS + 9, device), _CLIPPED)
    provisional = ProvisionalArrival(slots, arithmetic.zeros_apart(num, NUM_ARRIVALS + 5, device))
    effort = Effort(options.repeats, options.seconds, warm_ups=2)  # the first makes the moments
    with _copies(options) as copy:
        return take_turns(
            lambda: {
                "store": timed(_to_the_end(ours, device)),
                "clipped": timed(_to_the_end(clipped, device)),
                "provisional": timed(_to_the_end(provisional, device)),
                "torch": timed(_to_the_end(theirs, device)),
                "memcpy": timed(_to_the_end(lambda: copy(source, target), device)),
            },
            effort,
        )


@contextlib.contextmanager
def _copies(options: Options) -> Iterator[Callable[[torch.Tensor, torch.Tensor], object]]:
    if options.device == "cpu":
        with memcpy_with(options.threads) as copy:
            yield copy
    else:
        yield lambda source, target: target.copy_(source)


def _to_the_end(action: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Return `action`, followed by a wait for its work on a GPU."""
    if device.type == "cpu":
        return action

    def both() -> None:
        action()
        torch.cuda.synchronize(device)

    return both


def _kept(published: torch.Tensor, number: int) -> KeptMemory | None:
    """Return memory as a run has it in its block, so that nothing is lost when the process dies; on a GPU there is none.
    `number`: see `arithmetic.zeros_apart`."""
    if published.device.type != "cpu" or not arithmetic.is_compiled():
        return None
    redo = Redo(torch.zeros(REDO_BYTES, dtype=torch.uint8))
    return KeptMemory(redo, arithmetic.zeros_apart(published.numel(), number, published.device))


class StoreUpdate:
    """The store's work on N full slots: take them in, make the update, publish the new parameters."""

    def __init__(self, slots: list[torch.Tensor], published: torch.Tensor, optimizer: OptimizerConfig = OPTIMIZER) -> None:
        """Set up the store. `slots`: N gradients, [size] float32, read-only; `published`: [size] float32, written in turns
        with a second buffer."""
        strategy = StrategyConfig(kind="async", arrivals_per_update=len(slots))
        second = arithmetic.zeros_apart(published.numel(), len(slots) + 4, published.device)
        shard = Shard([published, second], optimizer, kept=_kept(published, len(slots) + 5))
        self._store = ParameterStore(shard, published.numel(), optimizer, strategy, num_workers=len(slots))
        # The largest magnitude comes with a push: the worker that writes the slot has seen every element.
        self._gradients = [Gradient.measure(slot) for slot in slots]
        self._batch = 0

    def __call__(self) -> None:
        """Make one update."""
        for worker, gradient in enumerate(self._gradients):
            arrival = Arrival(worker, self._batch, self._store.version, weight=_WEIGHT, loss=1.0)
            self._store.accept([arrival], gradient)
            self._batch += 1
        update = self._store.advance()
        assert update is not None  # gradients are finite, and all have arrived


class ProvisionalArrival:
    """The store's work on one full slot if workers pull provisional parameters: take it in, and make those parameters."""

    def __init__(self, slots: list[torch.Tensor], published: torch.Tensor) -> None:
        """Set up the store. `slots`: gradients, [size] float32, read in turns; `published`: [size] float32, version 1."""
        # Nothing is provisional before the first update; after it, no update is ever complete.
        schedule = (ArrivalsFrom(version=0, arrivals=1), ArrivalsFrom(version=1, arrivals=10**9))
        strategy = StrategyConfig(kind="async", arrivals_per_update=schedule, provisional=True)
        size = published.numel()
        vectors = [
            arithmetic.zeros_apart(size, len(slots) + 6 + number, published.device) for number in range(NUM_PROVISIONAL)
        ]
        # The first update, which is not measured, writes over the only version: no record of it.
        shard = Shard([published], OPTIMIZER, provisional=vectors)
        self._store = ParameterStore(shard, size, OPTIMIZER, strategy, num_workers=len(slots))
        self._gradients = [Gradient.measure(slot) for slot in slots]
        self._batch = 0
        self._take_in()
        self._store.advance()
        self._take_in()  # the sum has begun

    def __call__(self) -> None:
        """Take in one arrival."""
        self._take_in()
        self._store.make_provisional(self._batch)

    def _take_in(self) -> None:
        worker = self._batch % len(self._gradients)
        arrival = Arrival(worker, self._batch, self._store.version, weight=_WEIGHT, loss=1.0)
        self._store.accept([arrival], self._gradients[worker])
        self._batch += 1


class TorchUpdate:
    """An update by plain torch code: add the gradients, let torch's fused Adam step, copy the parameters."""

    def __init__(self, slots: list[torch.Tensor], published: torch.Tensor) -> None:
        """Allocate the vectors. `slots` and `published`: as in `StoreUpdate`."""
        self._parameters = torch.zeros_like(published).requires_grad_()
        self._optimizer = torch.optim.Adam(
            [self._parameters], OPTIMIZER.learning_rate, betas=OPTIMIZER.betas, eps=OPTIMIZER.epsilon, fused=True
        )
        self._sum = torch.zeros_like(published)
        self._slots = slots
        self._published = published

    def __call__(self) -> None:
        """Make one update."""
        torch.add(self._slots[0], self._slots[1], out=self._sum)
        for slot in self._slots[2:]:
            self._sum.add_(slot)
        self._parameters.grad = self._sum
        self._optimizer.step()
        self._published.copy_(self._parameters.detach())


def _figures(size: float, seconds: dict[str, Spread], device: str) -> list[BenchFigure]:
    """Return the figures of one size. A copy of b bytes moves 2 b: the limit is `_VECTORS_MOVED / 2` copies of a vector."""
    limit, clipped_limit = (seconds["memcpy"].scaled(moved / 2) for moved in (_VECTORS_MOVED, _CLIPPED_MOVED))
    against_torch = _TORCH_TARGET if size >= _LARGE else _NEVER_SLOWER
    name = f"update of {NUM_ARRIVALS} arrivals, Adam, {size:g} M"
    clipped = f"update of {NUM_ARRIVALS} arrivals, Adam, clipped, {size:g} M"
    provisional = f"provisional parameters of an arrival, Adam, {size:g} M"
    copied = "memcpy of as many bytes"
    if device != "cpu":
        gpu = torch.cuda.get_device_name(device)
        name, clipped, provisional = (f"{each}, {gpu}" for each in (name, clipped, provisional))
        copied = "copy of as many bytes in device memory"
    least = seconds["memcpy"].scaled(_PROVISIONAL_MOVED / 2)
    return [
        duration(name, seconds["store"], (copied, limit), _MEMCPY_TARGET),
        duration(name, seconds["store"], ("torch: add, fused Adam, copy", seconds["torch"]), against_torch),
        duration(clipped, seconds["clipped"], (copied, clipped_limit), _MEMCPY_TARGET),
        duration(provisional, seconds["provisional"], (copied, least), _MEMCPY_TARGET),
    ]


def check_memory(num: int, available_bytes: int | None) -> None:
    """Raise `SetupError` if vectors of `num` parameters do not fit into `available_bytes` (None: unknown)."""
    needed = 4 * num * _VECTORS_HELD
    if available_bytes is not None and needed > available_bytes:
        raise SetupError(
            f"memory: got {available_bytes / 1e9:.1f} GB free, expected {needed / 1e9:.1f} GB for {num / 1e6:g} million"
            " parameters; give smaller --sizes"
        )


def _available_bytes(device: str) -> int | None:
    if device != "cpu":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory()
