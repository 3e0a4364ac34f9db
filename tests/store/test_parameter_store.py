"""The pure store, compared with oracles: torch.optim, counting, and an uninterrupted run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd_async.config import OptimizerConfig, ScheduleConfig, StrategyConfig
from hvd_async.store.arrival import Arrival, Refusal, Update
from hvd_async.store.optimizers.protocol import StepOrder
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.store.pushed_gradient import Gradient
from hvd_async.store.schedule import rate_factor
from hvd_async.store.shards.shard import Shard
from hvd_async.vectors import arithmetic
from tests.store.stores import CONSTANT, accept, arrival, asynchronous, make_store, sgd

SIZE = 17
REFERENCES: dict[str, tuple[dict[str, Any], Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    "adam": (
        {"kind": "adam", "weight_decay": 0.1, "epsilon": 1e-6},
        torch.optim.Adam,
        {"betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1},
    ),
    "adamw": (
        {"kind": "adamw", "weight_decay": 0.1, "epsilon": 1e-6},
        torch.optim.AdamW,
        {"betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1},
    ),
    "sgd": (
        {"kind": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        torch.optim.SGD,
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ),
}


@pytest.mark.parametrize("name", sorted(REFERENCES))
@pytest.mark.parametrize("reduction", ["weight_mean", "sum"])
def test_fresh_arrivals_make_one_synchronous_step_of_torch_optim(name: str, reduction: str) -> None:
    options, make, arguments = REFERENCES[name]
    random = torch.Generator().manual_seed(1)
    initial = torch.randn(SIZE, generator=random)
    optimizer = OptimizerConfig(learning_rate=0.01, schedule=CONSTANT, **options)
    store = make_store(
        asynchronous(arrivals_per_update=3, reduction=reduction), num_workers=3, optimizer=optimizer, initial=initial
    )
    expected = initial.clone().requires_grad_()
    reference = make([expected], lr=0.01, foreach=False, **arguments)
    weights = (2, 7, 1)
    for version in range(5):
        gradients = torch.randn(3, SIZE, generator=random)
        for worker in range(3):
            assert store.advance() is None
            which = arrival(3 * version + worker, worker=worker, base_version=version, weight=weights[worker])
            store.accept([which], Gradient.measure(gradients[worker]))
        update = store.advance()
        assert update is not None and update.version == version + 1 and update.weight == sum(weights)
        expected.grad = gradients.sum(0) / (sum(weights) if reduction == "weight_mean" else 1)
        reference.step()
        torch.testing.assert_close(store.parameters, expected.detach(), rtol=0, atol=1e-6)


def test_one_arrival_is_the_update_rule_on_its_mean_gradient_bit_for_bit() -> None:
    random = torch.Generator().manual_seed(2)
    initial = torch.randn(SIZE, generator=random)
    optimizer = OptimizerConfig(clip_norm=0.5, average_decay=0.9, schedule=ScheduleConfig(warmup=3))
    store = make_store(asynchronous(arrivals_per_update=1), optimizer=optimizer, initial=initial)
    shard = Shard([initial.clone()], optimizer)
    for version in range(1, 7):
        gradient = torch.randn(SIZE, generator=random)
        store.accept([arrival(version - 1, base_version=version - 1, weight=7)], Gradient.measure(gradient))
        update = store.advance()
        shard.add(Gradient.measure(gradient), 1.0)
        norm = arithmetic.norm(shard.norm(7.0))
        assert update is not None and update.gradient_norm == norm
        shard.step(StepOrder(version, rate_factor(optimizer.schedule, version, 7 * version), 7.0, min(1.0, 0.5 / norm)))
        assert torch.equal(store.parameters, shard.parameters)
        assert torch.equal(store.evaluated_parameters, shard.read("average"))


def test_an_accepted_gradient_is_left_unchanged() -> None:
    store = make_store(asynchronous(arrivals_per_update=2, staleness_policy="inverse"))
    gradients = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    kept = gradients.clone()
    for batch in range(2):
        store.accept([arrival(batch)], Gradient.measure(gradients[batch]))
    assert store.advance() is not None
    assert torch.equal(gradients, kept)


@pytest.mark.parametrize(("reduction", "expected"), [("weight_mean", -(3.0 + 5.0) / (1 + 3)), ("sum", -(3.0 + 5.0))])
def test_gradients_are_divided_by_the_sum_of_their_weights(reduction: str, expected: float) -> None:
    store = make_store(asynchronous(arrivals_per_update=2, reduction=reduction))
    accept(store, arrival(0, weight=1), 3.0)
    accept(store, arrival(1, weight=3), 5.0)
    assert store.advance() is not None
    assert store.parameters.tolist() == [expected] * 4


@pytest.mark.parametrize(("weights", "mean"), [((0.25, 0.25), 16.0), ((0.5, 1.5), 4.0), ((0, 0), 8.0), ((0, 2), 4.0)])
def test_weights_may_be_fractions_and_a_total_of_0_divides_by_1(weights: tuple[float, float], mean: float) -> None:
    store = make_store(asynchronous(arrivals_per_update=2))
    for batch, weight in enumerate(weights):
        accept(store, arrival(batch, weight=weight, loss=4.0), 4.0)
    update = store.advance()
    assert update is not None and update.loss == mean and store.parameters.tolist() == [-mean] * 4


def test_a_total_weight_that_is_whole_is_an_int() -> None:
    store = make_store(asynchronous(arrivals_per_update=2))
    totals = []
    for batch, weight in enumerate((0.5, 0.5, 0.25, 0.5)):
        accept(store, arrival(batch, weight=weight))
        if (update := store.advance()) is not None:
            totals.append((update.weight, store.weight))
    assert repr(totals) == "[(1, 1), (0.75, 1.75)]" and repr(store.state()[1]["weight"]) == "1.75"


def test_an_update_reports_its_weight_mean_loss_and_staleness() -> None:
    store = make_store(asynchronous(arrivals_per_update=1))
    accept(store, arrival(0))
    assert store.advance() is not None
    accept(store, arrival(1, weight=4, loss=10.0))
    update = store.advance()
    assert update is not None
    assert (update.version, update.weight, update.loss) == (2, 4, 2.5)
    assert [update.staleness(one) for one in update.arrivals] == [1]
    assert store.weight == 5


def arrivals_of_updates(strategy: StrategyConfig, num_workers: int, num_arrivals: int) -> list[int]:
    """Return the number of arrivals in each update when arrivals come one after the other."""
    store, sizes = make_store(strategy, num_workers=num_workers), []
    for batch in range(num_arrivals):
        accept(store, arrival(batch, worker=batch % num_workers, base_version=store.version))
        if (update := store.advance()) is not None:
            sizes.append(len(update.arrivals))
    return sizes


def test_n_may_be_a_number() -> None:
    assert arrivals_of_updates(asynchronous(arrivals_per_update=2), 3, 7) == [2, 2, 2]


def test_n_may_be_the_number_of_workers() -> None:
    assert arrivals_of_updates(asynchronous(arrivals_per_update="workers"), 3, 7) == [3, 3]


def test_n_may_be_a_schedule_over_versions() -> None:
    schedule = [{"version": 0, "arrivals": 1}, {"version": 2, "arrivals": "workers"}, {"version": 3, "arrivals": 2}]
    assert arrivals_of_updates(asynchronous(arrivals_per_update=schedule), 3, 10) == [1, 1, 3, 2, 2]


def test_the_first_synchronous_versions_take_every_worker() -> None:
    assert arrivals_of_updates(asynchronous(arrivals_per_update=1, synchronous_versions=2), 3, 8) == [3, 3, 1, 1]


def test_a_worker_that_leaves_is_no_longer_waited_for() -> None:
    store = make_store(asynchronous(arrivals_per_update="workers"), num_workers=3)
    accept(store, arrival(0, worker=0))
    accept(store, arrival(1, worker=1))
    assert store.advance() is None
    store.leave(2)
    assert store.num_active == 2
    update = store.advance()
    assert update is not None and [one.batch for one in update.arrivals] == [0, 1]


def test_pending_arrivals_of_a_fixed_n_are_applied_at_the_end() -> None:
    store = make_store(asynchronous(arrivals_per_update=5))
    accept(store, arrival(0), 2.0)
    accept(store, arrival(1), 4.0)
    assert store.advance() is None
    update = store.finish()
    assert update is not None and [one.batch for one in update.arrivals] == [0, 1]
    assert store.parameters.tolist() == [-3.0] * 4
    assert store.finish() is None and store.version == 1


def test_pending_arrivals_of_a_fixed_n_are_dropped_with_a_count_at_the_end() -> None:
    store = make_store(asynchronous(arrivals_per_update=5, pending="drop"), num_workers=2)
    accept(store, arrival(0, worker=1))
    assert store.finish() is None
    assert store.version == 0 and store.parameters.tolist() == [0.0] * 4
    assert store.refused == {(1, Refusal.DROPPED_PENDING): 1}
    assert store.pending == ()


def test_a_bound_that_drops_refuses_only_what_is_staler() -> None:
    store = make_store(asynchronous(arrivals_per_update=1, max_staleness=1, on_stale="drop"))
    for batch in range(3):
        accept(store, arrival(batch, base_version=batch))
        assert store.advance() is not None
    before = store.parameters.clone()
    accept(store, arrival(3, base_version=1))  # staleness 2
    assert store.advance() is None and torch.equal(store.parameters, before)
    assert store.take_refused() == [(arrival(3, base_version=1), Refusal.TOO_STALE)]
    assert store.take_refused() == []
    accept(store, arrival(4, base_version=2))  # staleness 1
    assert store.advance() is not None
    assert store.refused == {(0, Refusal.TOO_STALE): 1}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("position", [0, 3])
def test_a_gradient_that_is_not_finite_is_refused_and_leaves_no_trace(value: float, position: int) -> None:
    store = make_store(asynchronous(arrivals_per_update=2))
    accept(store, arrival(0), 1.0)
    poisoned = torch.ones(4)
    poisoned[position] = value
    store.accept([arrival(1)], Gradient.measure(poisoned))
    assert store.take_refused() == [(arrival(1), Refusal.NOT_FINITE)]
    assert store.advance() is None and len(store.pending) == 1
    accept(store, arrival(2), 3.0)
    assert store.advance() is not None
    assert store.parameters.tolist() == [-2.0] * 4


def test_an_overflow_of_finite_gradients_is_refused_whole_and_makes_no_version() -> None:
    store = make_store(asynchronous(arrivals_per_update=2), num_workers=2, optimizer=sgd(momentum=0.9))
    for batch in range(2):
        accept(store, arrival(batch, worker=batch), 3e38)
    assert store.advance() is None
    assert store.version == 0 and store.weight == 0 and store.parameters.tolist() == [0.0] * 4
    assert store.refused == {(0, Refusal.SUM_NOT_FINITE): 1, (1, Refusal.SUM_NOT_FINITE): 1}
    for batch in (2, 3):
        accept(store, arrival(batch), 5.0)
    update = store.advance()
    assert update is not None and update.version == 1
    assert store.parameters.tolist() == [-5.0] * 4  # the momentum did not take it in either


def test_a_batch_that_arrives_twice_is_an_error() -> None:
    store = make_store(asynchronous(arrivals_per_update=3))
    accept(store, arrival(0))
    with pytest.raises(ValueError, match="batch 0 arrived twice"):
        accept(store, arrival(0))
    assert len(store.pending) == 1


def test_a_batch_that_arrived_after_the_end_may_be_computed_again_by_a_longer_run() -> None:
    store = make_store(asynchronous(arrivals_per_update=3))
    store.refuse([arrival(0)], Refusal.AFTER_THE_END)
    assert store.ledger.claim_order().batch(0) == 0
    accept(store, arrival(0))
    assert len(store.pending) == 1 and store.refused == {(0, Refusal.AFTER_THE_END): 1}


def test_a_stale_gradient_is_compensated_by_the_drift_since_its_version() -> None:
    strategy = asynchronous(arrivals_per_update=1, staleness_policy="delay_compensation", delay_compensation=0.5)
    store = make_store(strategy)
    accept(store, arrival(0), 2.0)
    assert store.advance() is not None  # parameters -2
    store.keep_base_versions([0])
    accept(store, arrival(1, base_version=0, weight=4), 8.0)  # mean 2; 2 + 0.5 * 2 * 2 * (-2 - 0) = -2
    assert store.advance() is not None
    assert store.parameters.tolist() == [0.0] * 4


def test_compensation_keeps_only_the_versions_in_use_however_old_the_oldest_is() -> None:
    store = make_store(asynchronous(arrivals_per_update=1, staleness_policy="delay_compensation"))
    for batch in range(300):
        accept(store, arrival(batch, base_version=batch))
        assert store.advance() is not None
        store.keep_base_versions([0, 250])  # a straggler, and a worker that started later
    kept = store._vectors._bases  # type: ignore[attr-defined]
    assert sorted(kept) == [0, 250, 300]
    accept(store, arrival(300, base_version=250))


# --- Provisional parameters -------------------------------------------------------------------------------------------


def make_provisional_store(**settings: Any) -> tuple[ParameterStore, torch.Tensor]:
    """Return plain SGD on four elements with N = 3, unless `settings` say otherwise, and the vector for provisional
    parameters.
    """
    provisional = torch.full((4,), torch.nan)
    optimizer = settings.pop("optimizer", sgd())
    strategy = asynchronous(**{"provisional": True, "arrivals_per_update": 3, **settings})
    return make_store(strategy, num_workers=2, optimizer=optimizer, provisional=[provisional]), provisional


def make_version(store: ParameterStore, first_batch: int = 0, value: float = 1.0) -> None:
    for batch in range(first_batch, first_batch + store.num_needed):
        accept(store, arrival(batch, worker=batch % 2), value)
    assert store.advance() is not None


def test_provisional_parameters_are_those_of_an_update_with_the_pending_arrivals() -> None:
    store, provisional = make_provisional_store()
    make_version(store)
    accept(store, arrival(3, weight=1), 2.0)
    assert store.make_provisional(0) == 1 and provisional.tolist() == [-3.0] * 4
    accept(store, arrival(4, weight=3), 6.0)
    assert store.make_provisional(0) == 2 and provisional.tolist() == [-1.0 - 8 / 4] * 4
    assert store.unread_slots == [] and store.parameters.tolist() == [-1.0] * 4 and len(store.pending) == 2


def test_provisional_parameters_are_made_while_arrivals_are_pending_on_a_version() -> None:
    store, _ = make_provisional_store()
    accept(store, arrival(0))
    assert not store.makes_provisional()  # on top of version 0
    for batch in (1, 2):
        accept(store, arrival(batch))
    store.advance()
    assert not store.makes_provisional()  # nothing is pending
    for batch in (3, 4):
        accept(store, arrival(batch))
        assert store.makes_provisional()
    accept(store, arrival(5))
    assert not store.makes_provisional()  # complete


@pytest.mark.parametrize(
    "settings",
    [
        {"provisional": False},
        {"lockstep": True},
        {"synchronous_versions": 2},
        {"arrivals_per_update": 1, "max_staleness": 0},
    ],
)
def test_no_provisional_parameters_are_made_if_no_worker_would_read_them(settings: dict[str, Any]) -> None:
    store, _ = make_provisional_store(**settings)
    make_version(store)
    accept(store, arrival(9, base_version=1), 1.0)
    assert not store.makes_provisional()


def test_no_provisional_parameters_are_made_that_may_overflow() -> None:
    store, _ = make_provisional_store()
    make_version(store)
    accept(store, arrival(3), 8e18)
    assert store.makes_provisional()
    accept(store, arrival(4), 1.8e19)  # a norm of 1.8e19 * 2, or less
    assert not store.makes_provisional()


def test_a_provisional_step_is_clipped_like_the_last_update() -> None:
    store, provisional = make_provisional_store(optimizer=sgd(clip_norm=1.0))
    make_version(store, 0, value=2.0)  # of norm 4
    assert store.parameters.tolist() == [-0.5] * 4
    accept(store, arrival(3), 4.0)
    store.make_provisional(0)
    assert provisional.tolist() == [-1.5] * 4
    for batch in (4, 5):
        accept(store, arrival(batch), -1.75)
    store.advance()  # of norm 1 / 3: not clipped
    accept(store, arrival(6), 4.0)
    store.make_provisional(0)
    assert provisional.tolist() == (store.parameters - 4.0).tolist()


def test_a_provisional_step_has_the_rate_of_the_next_update() -> None:
    warm = ScheduleConfig(kind="constant", unit="weight", warmup=8)
    store, provisional = make_provisional_store(optimizer=sgd(schedule=warm))
    make_version(store)
    before = store.parameters[0].item()
    accept(store, arrival(3), 1.0)
    store.make_provisional(0)
    assert provisional.tolist() == [before - 4 / 8] * 4


@pytest.mark.parametrize("num_more", [0, 1])
def test_a_resumed_store_makes_the_same_provisional_parameters(num_more: int) -> None:
    optimizer = OptimizerConfig(clip_norm=0.1, schedule=ScheduleConfig(unit="weight", warmup=50))
    strategy, made = asynchronous(arrivals_per_update=5, provisional=True), []
    unbroken = make_store(strategy, num_workers=2, optimizer=optimizer, size=SIZE, provisional=[torch.empty(SIZE)])
    feed(unbroken, range(13))
    resumed = reload(unbroken, optimizer, strategy)
    assert unbroken.makes_provisional() and not resumed.makes_provisional()  # its sum of the old version is not saved
    for store in (unbroken, resumed):
        feed(store, range(13, 13 + num_more))
        store.make_provisional(0)
        made.append(store._vectors._provisional[0])
    assert torch.equal(*made) and not torch.equal(made[0], unbroken.parameters)
    feed(resumed, range(13 + num_more, 17))
    assert resumed.version == 3 and resumed.makes_provisional()


# --- A bound that waits, under any interleaving -----------------------------------------------------------------------


@dataclass
class Driver:
    """Workers and a server loop in miniature: a worker pulls, computes and fills its slot; the store is offered the slot."""

    store: ParameterStore
    num_workers: int

    def __post_init__(self) -> None:
        self.computing: dict[int, int] = {}  # worker -> base version
        self.slots: dict[int, Arrival] = {}
        self.num_batches = 0
        self.updates: list[Update] = []

    def pull(self, worker: int) -> None:
        """Begin a step, unless one is under way or the next version is about to be made: see `StoreClient._announce`."""
        if worker not in self.computing and not self.store.is_complete():
            self.computing[worker] = self.store.version

    def push(self, worker: int) -> None:
        """End a step, if the slot is free."""
        if worker in self.computing and worker not in self.slots:
            base_version = self.computing.pop(worker)
            self.slots[worker] = arrival(self.num_batches, worker=worker, base_version=base_version)
            self.num_batches += 1

    def serve(self, worker: int) -> None:
        """Offer a full slot to the store and let it move on."""
        which = self.slots.get(worker)
        if which is not None and self.store.admits([which]):
            accept(self.store, self.slots.pop(worker))
        under_way = [*self.computing.values(), *(one.base_version for one in self.slots.values())]
        if (update := self.store.advance(under_way)) is not None:
            self.updates.append(update)


@settings(deadline=None, max_examples=150)
@given(
    num_workers=st.integers(1, 4),
    wanted=st.one_of(st.integers(1, 5), st.just("workers")),
    bound=st.integers(0, 3),
    script=st.lists(st.tuples(st.sampled_from(["pull", "push", "serve"]), st.integers(0, 3)), max_size=120),
)
def test_a_bound_that_waits_is_kept_and_never_deadlocks(
    num_workers: int, wanted: int | str, bound: int, script: list[tuple[str, int]]
) -> None:
    store = make_store(asynchronous(arrivals_per_update=wanted, max_staleness=bound), num_workers=num_workers, size=1)
    driver = Driver(store, num_workers)
    for action, worker in script:
        getattr(driver, action)(worker % num_workers)
    for _ in range(3):  # whatever the script did: if all act in turn, there is always another version
        version = store.version
        for _ in range(2 + (num_workers if wanted == "workers" else int(wanted))):
            for worker in range(num_workers):
                driver.pull(worker)
                driver.push(worker)
                driver.serve(worker)
        assert store.version > version
    assert max(update.staleness(one) for update in driver.updates for one in update.arrivals) <= bound
    assert not store.refused


# --- Conservation -----------------------------------------------------------------------------------------------------

VALUES = {"fair": 1.0, "large": 3e38, "nan": float("nan")}


@settings(deadline=None, max_examples=150)
@given(
    wanted=st.one_of(st.integers(1, 4), st.just("workers")),
    bound=st.one_of(st.none(), st.integers(0, 2)),
    pending=st.sampled_from(["apply", "drop"]),
    script=st.lists(
        st.tuples(
            st.sampled_from(["fair", "fair", "fair", "large", "nan", "pair", "advance", "leave", "refuse", "finish"]),
            st.integers(0, 2),
            st.integers(0, 4),
        ),
        max_size=60,
    ),
)
def test_every_arrival_is_in_exactly_one_update_or_refused_or_pending(
    wanted: int | str, bound: int | None, pending: str, script: list[tuple[str, int, int]]
) -> None:
    strategy = asynchronous(arrivals_per_update=wanted, max_staleness=bound, on_stale="drop", pending=pending)
    store = make_store(strategy, num_workers=3)
    offered: Counter[int] = Counter()
    settled: list[int] = []
    num_batches = 0
    for action, worker, lag in script:
        which = arrival(num_batches, worker=worker, base_version=max(0, store.version - lag))
        update = None
        if action in VALUES:
            accept(store, which, VALUES[action])
        elif action == "pair":  # a synchronous strategy hands over the sum of all ranks
            second = arrival(num_batches + 1, worker=(worker + 1) % 3, base_version=which.base_version)
            store.accept([which, second], Gradient.measure(torch.ones(4)))
            offered[second.worker] += 1
        elif action == "refuse":
            store.refuse([which], Refusal.AFTER_THE_END)
        elif action == "leave":
            store.leave(worker)
        else:
            update = store.advance() if action == "advance" else store.finish()
        if action in VALUES or action in ("pair", "refuse"):
            offered[worker] += 1
        num_batches = offered.total()
        settled += [] if update is None else [one.batch for one in update.arrivals]
        settled += [one.batch for one, _ in store.take_refused()]
        waiting = [one.batch for one in store.pending]
        assert sorted(settled + waiting) == list(range(num_batches))
        counted = Counter(store.applied)
        for (refused_worker, _), count in store.refused.items():
            counted[refused_worker] += count
        counted.update(one.worker for one in store.pending)
        assert counted == offered
        assert torch.isfinite(store.parameters).all()


# --- State ------------------------------------------------------------------------------------------------------------


def feed(store: ParameterStore, batches: range) -> None:
    for batch in batches:
        gradient = torch.randn(SIZE, generator=torch.Generator().manual_seed(batch))
        store.accept(
            [arrival(batch, worker=batch % 2, base_version=max(0, store.version - 1), weight=1 + batch % 3)],
            Gradient.measure(gradient),
        )
        store.advance()


def reload(store: ParameterStore, optimizer: OptimizerConfig, strategy: StrategyConfig) -> ParameterStore:
    """Return a new store, resumed from the state that a checkpoint of `store` saves."""
    tensors, data = store.state()
    initial, provisional = torch.full((SIZE,), 9.0), [torch.empty(SIZE)]
    copy = make_store(strategy, num_workers=2, optimizer=optimizer, initial=initial, provisional=provisional)
    copy.load_state({name: tensor.clone() for name, tensor in tensors.items()}, json.loads(json.dumps(data)))
    return copy


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("cut", [0, 4, 6, 11])  # before the first update, amid pending arrivals, just after an update
def test_a_store_that_is_saved_and_loaded_continues_bit_for_bit(kind: str, cut: int) -> None:
    optimizer = OptimizerConfig(
        kind=kind,
        momentum=0.9 if kind == "sgd" else 0.0,
        clip_norm=1.0,
        average_decay=0.5,
        weight_decay=0.01,
        schedule=ScheduleConfig(unit="weight", warmup=10),
    )
    schedule = [{"version": 0, "arrivals": 3}, {"version": 3, "arrivals": 2}]
    strategy = asynchronous(arrivals_per_update=schedule, staleness_policy="inverse")
    unbroken = make_store(strategy, num_workers=2, optimizer=optimizer, size=SIZE)
    feed(unbroken, range(cut))
    resumed = reload(unbroken, optimizer, strategy)
    feed(unbroken, range(cut, 20))
    feed(resumed, range(cut, 20))
    assert unbroken.version > 5 and unbroken.pending  # there is something to compare
    assert torch.equal(resumed.parameters, unbroken.parameters)
    assert torch.equal(resumed.evaluated_parameters, unbroken.evaluated_parameters)
    assert resumed.state()[1] == unbroken.state()[1]
    assert resumed.applied == unbroken.applied and resumed.pending == unbroken.pending


def test_refusals_survive_saving_and_loading() -> None:
    strategy = asynchronous(arrivals_per_update=2)
    store = make_store(strategy, num_workers=2, optimizer=sgd(), size=SIZE)
    accept(store, arrival(0, worker=1), float("nan"))
    assert reload(store, sgd(), strategy).refused == {(1, Refusal.NOT_FINITE): 1}


def test_state_of_another_size_is_refused() -> None:
    tensors, data = make_store(asynchronous(), size=5).state()
    with pytest.raises(ValueError, match="got 5 elements of parameters, expected 4"):
        make_store(asynchronous(), size=4).load_state(tensors, data)


@pytest.mark.parametrize("settings", [{"lockstep": True}, {"synchronous_versions": 9}])
def test_in_lock_step_a_checkpoint_leaves_pending_arrivals_to_be_computed_again(settings: dict[str, Any]) -> None:
    strategy = asynchronous(arrivals_per_update="workers", **settings)
    store = make_store(strategy, num_workers=2, optimizer=sgd(), size=SIZE)
    for batch in range(3):
        accept(store, arrival(batch, worker=batch % 2, base_version=store.version), batch + 1.0)
        store.advance()
    assert [one.batch for one in store.pending] == [2]
    resumed = reload(store, sgd(), strategy)
    assert resumed.pending == () and resumed.version == 1
    order = resumed.ledger.claim_order()
    assert [order.batch(claim) for claim in range(3)] == [2, 3, 4]
    assert [one.batch for one in store.pending] == [2]  # saving changed nothing
    for one in (store, resumed):
        for batch in (2, 3):
            if batch not in [waiting.batch for waiting in one.pending]:
                accept(one, arrival(batch, worker=batch % 2, base_version=1), batch + 1.0)
        assert one.advance() is not None
    assert torch.equal(store.parameters, resumed.parameters)


def test_in_lock_step_arrivals_are_admitted_in_the_order_of_their_batches() -> None:
    store = make_store(asynchronous(lockstep=True, arrivals_per_update="workers"), num_workers=3)
    admitted = []
    for batch in (0, 1, 2):
        admitted.append([other for other in range(4) if store.admits([arrival(other, worker=other % 3)])])
        accept(store, arrival(batch, worker=batch))
    assert admitted == [[0], [1], [2]]


def test_out_of_lock_step_arrivals_are_admitted_in_any_order() -> None:
    store = make_store(asynchronous(arrivals_per_update=2), num_workers=3)
    assert all(store.admits([arrival(batch)]) for batch in range(4))
