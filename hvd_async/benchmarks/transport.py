"""Push and pull between real ranks, beside the speed of memory on the store's host, or Send and Recv from another host.

Also the latency of a small gradient until the store has taken it in, and the CPU time of an idle store.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import cast

import torch

from hvd_async.benchmarks.echo import EchoClient, EchoServer
from hvd_async.benchmarks.measurement import BenchFigure, BenchTarget, Effort, Spread, duration, take_turns, timed
from hvd_async.benchmarks.memcpy import memcpy_with, page_aligned
from hvd_async.benchmarks.null_observer import NullObserver
from hvd_async.benchmarks.options import Options, num_elements
from hvd_async.benchmarks.ranks import BenchRank
from hvd_async.config import OptimizerConfig, StrategyConfig
from hvd_async.store.arrival import Arrival
from hvd_async.store.optimizers.factory import state_names
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.store.serve.client import ClientOptions, StoreClient
from hvd_async.store.serve.journal import num_records
from hvd_async.store.serve.liveness import Heartbeat
from hvd_async.store.serve.server import ServerOptions, StoreServer
from hvd_async.store.shards.in_block import shard_in
from hvd_async.store.wire.layout import Layout, StoreMemory, StoreWindow, Word
from hvd_async.vectors.redo import REDO_BYTES
from hvd_async.vectors.threads import arithmetic_threads
from hvd_async.vectors.vector_map import VectorMap

DEFAULTS = Options()
TAKES = frozenset({"sizes", "repeats", "threads", "seconds"})

_NEAR_TARGET = BenchTarget("ratio at least", 0.9)
_FAR_TARGET = BenchTarget("ratio at least", 0.85)
_SERVED_TARGET = BenchTarget("value at most", 2.0)
_IDLE_TARGET = BenchTarget("value at most", 3.0)

# The cheapest update, since the update is not measured.
_OPTIMIZER = OptimizerConfig(kind="sgd", learning_rate=0.1)
_SMALL = 1000
_ECHOES = 10
# Longer than the store's threads stay awake after traffic: real workers compute between their pushes, too.
_PAUSE_SECONDS = 0.1
_IDLE_SECONDS = 3.0


def measure(place: BenchRank, options: Options) -> list[BenchFigure]:
    """Measure every size, then the small one, by the first worker on the store's host and the first on another host."""
    figures: list[BenchFigure] = []
    is_measuring = place.rank in measuring_ranks(place.is_near)
    with arithmetic_threads(options.threads):
        for size in options.sizes:
            with _serving(place, num_elements(size)) as session:
                if session is not None and is_measuring:
                    spreads = _measure_copies(session, options)
                    figures += copy_figures(size, place.is_near[place.rank], spreads)
        with _serving(place, _SMALL) as session:
            if session is not None and is_measuring:
                figures += _measure_small(session, place, options)
    return figures


def measuring_ranks(is_near: tuple[bool, ...]) -> list[int]:
    """Return the first worker on the store's host and the first on another host, if they exist. Rank 0 is the store."""
    workers = range(1, len(is_near))
    first = [next((rank for rank in workers if is_near[rank] is wanted), None) for wanted in (True, False)]
    return [rank for rank in first if rank is not None]


class TransportSession:
    """One worker with a store that makes a version of every gradient, so that every pull copies."""

    def __init__(self, window: StoreWindow, client: StoreClient, echo: EchoClient, worker: int) -> None:
        """Pull the parameters. `client` has joined the store."""
        self.window = window
        self.echo = echo
        self.gradient = torch.full((window.layout.num_elements,), 1e-4)
        self.parameters = torch.zeros_like(self.gradient)
        self.worker = worker
        self._client = client
        client.pull(self.parameters)

    def push_and_pull(self) -> dict[str, float]:
        """Do one step without computation; return the seconds of the push, of the push until it is served, and of the
        pull."""
        arrival = Arrival(self.worker, self._client.claim(), self._client.version, weight=1, loss=1.0)
        begin = time.perf_counter()
        self._client.push(self.gradient, [arrival])
        pushed = time.perf_counter()
        self._client.wait_drained()
        served = time.perf_counter()
        self._client.pull(self.parameters)
        return {"push": pushed - begin, "served": served - begin, "pull": time.perf_counter() - served}


@contextlib.contextmanager
def _serving(place: BenchRank, num: int) -> Iterator[TransportSession | None]:
    """Run a store for vectors of `num` parameters. Collective: rank 0 serves and yields None, workers take turns in the
    block."""
    from hvd_async.transport.messages import PointToPoint, all_but_first, wait_quietly
    from hvd_async.transport.mpi import open_blocks  # late: needs an initialised MPI

    messages, workers = PointToPoint(place.group), all_but_first(place.group)
    with open_blocks(place.group, [_layout(num, place.num_workers)], [0]) as (memory,):
        if workers is None:
            _serve(cast(StoreMemory, memory), EchoServer(messages, 4 * num))  # rank 0 has mapped memory
            yield None
        else:
            worker = place.rank - 1
            client = StoreClient([memory], worker, ClientOptions(announces=False))
            client.join()
            for turn in range(place.num_workers):
                if turn == worker:
                    yield TransportSession(memory, client, EchoClient(messages), worker)
                wait_quietly(workers)
            client.leave()
            client.wait_for_end(lambda: None)
    messages.free()


def _layout(num: int, num_workers: int) -> Layout:
    """Return the layout that a run would have: its state outlives the store's process."""
    num_vectors = len(state_names(_OPTIMIZER)) + 1
    return Layout(
        num, num_workers, num_state_vectors=num_vectors, num_records=num_records(1, num_workers, 1), redo_bytes=REDO_BYTES
    )


def _serve(memory: StoreMemory, echo: EchoServer) -> None:
    layout = memory.layout
    strategy = StrategyConfig(kind="async", arrivals_per_update=1)
    size = layout.num_elements
    shard = shard_in(memory, slice(0, size), VectorMap.of_size(size), _OPTIMIZER, strategy)
    store = ParameterStore(shard, layout.num_elements, _OPTIMIZER, strategy, layout.num_workers)
    with Heartbeat(memory, Word.STORE_HEARTBEAT):
        StoreServer(store, memory, NullObserver(), ServerOptions()).serve(echo.between_turns)


def _measure_copies(session: TransportSession, options: Options) -> dict[str, Spread]:
    """Return the seconds of push and pull, and of their limits: copies `into` and `out of` the block, or messages."""
    effort = Effort(options.repeats, options.seconds)
    layout = session.window.layout
    slot = _mapped(session.window, layout.slot_offset(session.worker))
    published = _mapped(session.window, layout.published_offset(0))
    if slot is None or published is None:
        spare = torch.zeros_like(session.gradient)
        return take_turns(
            lambda: {
                **session.push_and_pull(),
                "into": session.echo.send_seconds(session.gradient),
                "out of": session.echo.receive_seconds(spare),
            },
            effort,
        )
    source, target = page_aligned(layout.num_elements), page_aligned(layout.num_elements)
    with memcpy_with(options.threads) as copy:
        return take_turns(
            lambda: {
                **session.push_and_pull(),
                "into": timed(lambda: copy(source, slot)),  # the slot is drained: no other rank touches it now
                "out of": timed(lambda: copy(published, target)),
            },
            effort,
        )


def copy_figures(size: float, is_near: bool, seconds: dict[str, Spread]) -> list[BenchFigure]:
    """Return the figures of push and pull of `size` million parameters, beside their limits."""
    where, target = ("same host", _NEAR_TARGET) if is_near else ("other host", _FAR_TARGET)
    into, out_of = ("memcpy into the block", "memcpy out of the block") if is_near else ("MPI Send", "MPI Recv")
    return [
        duration(f"push, {where}, {size:g} M", seconds["push"], (into, seconds["into"]), target),
        duration(f"pull, {where}, {size:g} M", seconds["pull"], (out_of, seconds["out of"]), target),
    ]


def _measure_small(session: TransportSession, place: BenchRank, options: Options) -> list[BenchFigure]:
    """Measure the latency of a push after a pause, and, on the first measuring rank, the idle store's CPU time."""

    def turn() -> dict[str, float]:
        time.sleep(_PAUSE_SECONDS)  # the latency after a silence is measured
        served = session.push_and_pull()["served"]
        return {"served": served, "echo": session.echo.echo_seconds(_ECHOES)}

    seconds = take_turns(turn, Effort(options.repeats, options.seconds))
    is_near = place.is_near[place.rank]
    name = f"push served, {'same' if is_near else 'other'} host, {_SMALL} parameters"
    target = None if is_near else _SERVED_TARGET
    figures = [duration(name, seconds["served"], ("MPI message and answer", seconds["echo"]), target)]
    if place.rank == measuring_ranks(place.is_near)[0]:
        share = 100.0 * session.echo.idle_share(min(_IDLE_SECONDS, options.seconds))
        figures.append(BenchFigure("store, idle workers", Spread.of([share]), "% of a core", target=_IDLE_TARGET))
    return figures


def _mapped(window: StoreWindow, offset: int) -> torch.Tensor | None:
    """Return the vector at byte `offset` itself if this rank has the block mapped, else None."""
    vector = getattr(window, "vector", None)
    return None if vector is None else vector(offset)
