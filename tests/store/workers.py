"""A store's server and its workers as threads of one process, and an observer that records every call."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from hvd_async.config import OptimizerConfig, PushConfig, StrategyConfig
from hvd_async.errors import SetupError
from hvd_async.store.arrival import Arrival, Refusal, Update
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.store.pushed_gradient import Gradient
from hvd_async.store.schedule import is_synchronous
from hvd_async.store.serve.client import ClientOptions, StoreClient
from hvd_async.store.serve.joining import take_place
from hvd_async.store.serve.liveness import Heartbeat
from hvd_async.store.serve.readings import Base
from hvd_async.store.serve.server import ServerOptions, StoreServer
from hvd_async.store.wire.layout import CLAIMING, Word, WorkerState, WorkerWord
from hvd_async.store.wire.stop import StopNotice, announce_failure
from hvd_async.transport.inprocess import ThreadMemory
from tests.store.stores import arrival, make_store, sgd

JOIN_SECONDS = 90.0  # generous: only a hang takes so long


@dataclass
class Recorder:
    """An `Observer` that records its calls in order."""

    evaluate_every: int = 0
    finish_at: int | None = None
    updates: list[Update] = field(default_factory=list)
    refusals: list[tuple[Arrival, Refusal]] = field(default_factory=list)
    evaluations: list[tuple[int, list[float]]] = field(default_factory=list)
    endings: list[StopNotice | None] = field(default_factory=list)
    rescues: list[StopNotice | None] = field(default_factory=list)
    losses: list[tuple[int, str, list[int]]] = field(default_factory=list)
    newcomers: list[int] = field(default_factory=list)
    leavers: list[tuple[int, list[int]]] = field(default_factory=list)

    def started(self, store: ParameterStore) -> None:
        pass

    def received(self, arrivals: Sequence[Arrival]) -> None:
        pass

    def updating(self) -> None:
        pass

    def refused(self, arrival: Arrival, refusal: Refusal) -> None:
        self.refusals.append((arrival, refusal))

    def updated(self, update: Update) -> None:
        self.updates.append(update)

    def evaluated(self, version: int, statistics: Sequence[float]) -> None:
        self.evaluations.append((version, list(statistics)))

    def ended(self, notice: StopNotice | None) -> None:
        self.endings.append(notice)

    def lost(self, worker: int, reason: str, returned: Sequence[int]) -> None:
        self.losses.append((worker, reason, list(returned)))

    def joined(self, worker: int) -> None:
        self.newcomers.append(worker)

    def left(self, worker: int, returned: Sequence[int]) -> None:
        self.leavers.append((worker, list(returned)))

    def settle(self) -> None:
        pass

    def rescue(self, stop: StopNotice | None = None) -> bool:
        self.rescues.append(stop)
        return True

    def num_evaluations_due(self) -> int:
        return len(self.updates) // self.evaluate_every if self.evaluate_every else 0

    def is_finished(self) -> bool:
        return self.finish_at is not None and len(self.updates) >= self.finish_at

    @property
    def batches(self) -> list[int]:
        """Batches in updates, in the order of their summation."""
        return [one.batch for update in self.updates for one in update.arrivals]

    @property
    def stalenesses(self) -> list[int]:
        """Staleness of every applied arrival."""
        return [update.staleness(one) for update in self.updates for one in update.arrivals]


@dataclass(frozen=True)
class Pull:
    """Parameters as a worker saw them: smallest and largest element, either of `version` or of provisional parameters
    on top of it.
    """

    version: int
    smallest: float
    largest: float
    provisional: int = 0


@dataclass
class Workers:
    """Threads around one block of memory: the store's server, and workers that train on numbered batches."""

    store: ParameterStore
    strategy: StrategyConfig
    memory: ThreadMemory
    num_batches: int
    gradient: Callable[[int], torch.Tensor]
    seed: int = 0
    memories: Sequence[ThreadMemory] = ()
    """Blocks of all shards, if there are several."""
    push: PushConfig = field(default_factory=PushConfig)
    optimizer: OptimizerConfig = field(default_factory=sgd)
    """Optimizer of `store`."""
    observer: Recorder = field(default_factory=Recorder)
    server: ServerOptions = field(default_factory=ServerOptions)
    after_step: Callable[[StoreClient, int, int], bool] = lambda client, worker, num_steps: True
    """Called by a worker between its steps; if it returns False, the worker leaves."""
    abandons: Callable[[int, int], int] | None = None
    """Of worker and number of its steps: 0, or how many batches the worker then claims before it leaves. Workers without a batch
    wait for these."""
    dies: Callable[[int, int], str] = lambda worker, num_steps: ""
    """Of worker and number of its steps: where the worker stops without another word: `claiming`, `claimed`, `writing` or
    `pushed`; empty: it lives on."""
    joins_at: Sequence[int] = ()
    """For each worker that joins the run under way, in the places after those of the others: the version at which it comes."""
    refusals: list[str] = field(default_factory=list)
    """Why workers that came could not join."""
    num_late: int = 0
    """Workers that got a place when the run had ended."""
    deaths: list[int] = field(default_factory=list)
    failures: dict[str, BaseException] = field(default_factory=dict)
    pulls: dict[int, list[Pull]] = field(default_factory=dict)
    notice: StopNotice | None = None

    def run(self) -> Workers:
        """Start all threads and wait for them to end; fail if one hangs."""
        threads = [threading.Thread(target=self._guard, args=("store", self._serve), daemon=True)]
        for version in self.joins_at:
            job = (f"joiner at {version}", lambda version=version: self._join(version))
            threads.append(threading.Thread(target=self._guard, args=job, daemon=True))
        num_workers = self.memory.layout.num_workers
        self.pulls = {worker: [] for worker in range(num_workers)}
        for worker in range(num_workers if self.server.num_workers is None else self.server.num_workers):
            job = (f"worker {worker}", lambda worker=worker: self._work(worker))
            threads.append(threading.Thread(target=self._guard, args=job, daemon=True))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(JOIN_SECONDS)
        assert not any(thread.is_alive() for thread in threads), "a thread hangs"
        return self

    def check(self) -> Workers:
        """Fail with the first error of any thread."""
        for error in self.failures.values():
            raise error
        return self

    def _guard(self, name: str, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self.failures[name] = error
            announce_failure(self.memory, 99)

    def _serve(self) -> None:
        with Heartbeat(self.memory, Word.STORE_HEARTBEAT) as heartbeat:
            server = StoreServer(self.store, self.memory, self.observer, self.server, heartbeat.touch)
            self.notice = server.serve(lambda: None)

    def _join(self, version: int) -> None:
        while self.memory.load(Word.READY) == 0 or self.memory.load(Word.VERSION) < version:
            if self.memory.load(Word.SERVED):
                break
            time.sleep(0.0005)
        try:
            worker = take_place(self.memory)
        except SetupError as error:
            self.refusals.append(str(error))
            return
        self._work(worker, is_late=True)

    def _work(self, worker: int, is_late: bool = False) -> None:
        waits = self.strategy.max_staleness is not None and self.strategy.on_stale == "wait"
        provisional = self.strategy.has_provisional
        options = ClientOptions(waits_for_stragglers=waits, push=self.push, pulls_provisional=provisional)
        with Heartbeat(self.memory, self.memory.layout.worker_word(worker, WorkerWord.HEARTBEAT)) as heartbeat:
            client = StoreClient(self.memories or [self.memory], worker, options, touch=heartbeat.touch)
            if client.join(is_late):
                self._train(client, worker)
            else:
                self.num_late += 1

    def _train(self, client: StoreClient, worker: int) -> None:
        pace = random.Random(self.seed * 1000 + worker)
        parameters = torch.full_like(self.store.parameters, torch.nan)
        num_steps = 0
        self._pull(client, worker, parameters)
        while client.stop_notice() is None and self.after_step(client, worker, num_steps):
            if self.abandons is not None and (number := self.abandons(worker, num_steps)):
                for _ in range(number):
                    if (claimed := client.claim()) >= self.num_batches:
                        client.let_go(claimed)
                break
            death = self.dies(worker, num_steps)
            if death == "claiming":
                self.memory.store(self.memory.layout.worker_word(worker, WorkerWord.HELD + 7), CLAIMING)
                if num_steps % 2:
                    self.memory.fetch_add(Word.CLAIMS, 1)
                return self._die(worker)
            batch: int | None = client.claim()
            if death == "claimed":
                return self._die(worker)
            if batch is not None and batch >= self.num_batches:
                client.let_go(batch)
                if self.abandons is None:
                    break
                client.idle()
                batch = client.wait_for_returned(lambda: None)
                self._pull(client, worker, parameters)
            if batch is None:
                break
            for _ in range(pace.randrange(1, 1 + 1000 * (1 + worker))):  # work of uneven, seeded length
                pass
            base = client.base
            given = arrival(batch, worker=worker, base_version=base.version, provisional=base.provisional)
            if death == "writing":
                client._writer.write(self.gradient(batch), worker)
                return self._die(worker)
            client.push(self.gradient(batch), [given])
            if death == "pushed":
                return self._die(worker)
            num_steps += 1
            if is_synchronous(self.strategy, base.version):
                client.wait_released()
            elif pace.random() < 0.5:  # real strategies always wait here; the protocol must hold without it too
                client.wait_drained()
            self._pull(client, worker, parameters)
        client.leave()

    def _die(self, worker: int) -> None:
        """Be dead to the store, as a process that is gone is: the store looks at the state, which a process that fails writes."""
        self.deaths.append(worker)
        self.memory.store(self.memory.layout.worker_word(worker, WorkerWord.STATE), WorkerState.FAILED)

    def _pull(self, client: StoreClient, worker: int, parameters: torch.Tensor) -> None:
        client.pull(parameters)
        self.see(worker, client.base, parameters)

    def see(self, worker: int, base: Base, parameters: torch.Tensor) -> None:
        smallest, largest = torch.aminmax(parameters)
        self.pulls[worker].append(Pull(base.version, float(smallest), float(largest), base.provisional))

    def expected(self) -> dict[tuple[int, int], float]:
        """Recompute the value of every version and of all provisional parameters from the arrivals applied, in their
        order.

        Keys are (version, number of arrivals on top, 0 for the version itself). All elements of a gradient are equal,
        and none is clipped, so that one number stands for all elements.
        """
        provisional = torch.zeros(1)
        again = make_store(self.strategy, optimizer=self.optimizer, size=1, provisional=[provisional])
        values = {(0, 0): 0.0}
        for update in self.observer.updates:
            for one in update.arrivals:
                gradient = self.gradient(one.batch)[:1]
                again.accept([one], Gradient.measure(gradient))
                if again.version:
                    again.make_provisional(0)
                    values[again.version, len(again.pending)] = provisional.item()
            assert again.finish() is not None
            values[again.version, 0] = again.parameters.item()
        return values
