"""The ledger, compared with plain sets."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd_async.store.ledger import BatchLedger, ClaimOrder

BATCHES = st.lists(st.integers(0, 30), unique=True)


def ledger_of(batches: list[int]) -> BatchLedger:
    ledger = BatchLedger()
    for batch in batches:
        ledger.record(batch)
    return ledger


def next_batches(ledger: BatchLedger, count: int) -> list[int]:
    order = ledger.claim_order()
    return [order.batch(claim) for claim in range(count)]


@settings(deadline=None)
@given(BATCHES)
def test_claims_enumerate_exactly_the_unrecorded_batches_ascending(batches: list[int]) -> None:
    expected = [batch for batch in range(80) if batch not in batches][:40]
    assert next_batches(ledger_of(batches), 40) == expected


@settings(deadline=None)
@given(BATCHES, st.data())
def test_without_forgets_exactly_the_batches_given(batches: list[int], data: st.DataObject) -> None:
    forgotten = data.draw(st.lists(st.sampled_from(batches), unique=True)) if batches else []
    ledger = ledger_of(batches)
    before = ledger.to_json()
    kept = [batch for batch in batches if batch not in forgotten]
    assert next_batches(ledger.without(forgotten), 40) == next_batches(ledger_of(kept), 40)
    assert ledger.to_json() == before


@settings(deadline=None)
@given(BATCHES)
def test_a_ledger_survives_the_way_through_json(batches: list[int]) -> None:
    ledger = ledger_of(batches)
    again = BatchLedger(**json.loads(json.dumps(ledger.to_json())))
    assert again.to_json() == ledger.to_json()
    assert next_batches(again, 40) == next_batches(ledger, 40)


@settings(deadline=None)
@given(BATCHES.filter(bool), st.data())
def test_a_batch_recorded_twice_is_an_error(batches: list[int], data: st.DataObject) -> None:
    ledger = ledger_of(batches)
    with pytest.raises(ValueError, match="arrived twice"):
        ledger.record(data.draw(st.sampled_from(batches)))


@settings(deadline=None)
@given(st.permutations(range(12)))
def test_whatever_the_order_a_gapless_ledger_is_one_number(order: list[int]) -> None:
    assert ledger_of(order).to_json() == {"watermark": 12, "above": []}


def test_claims_begin_with_the_missing_batches() -> None:
    order = ClaimOrder(missing=(3, 5), first_new=8)
    assert [order.batch(claim) for claim in range(4)] == [3, 5, 8, 9]


def test_missing_batches_are_those_that_did_not_arrive() -> None:
    ledger = BatchLedger(3, [5, 9])
    assert [ledger.num_missing(number) for number in (2, 3, 4, 6, 9, 10, 12)] == [0, 0, 1, 2, 5, 5, 7]
