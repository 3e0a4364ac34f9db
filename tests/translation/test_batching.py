from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd_async.config import BatchingConfig, VocabularyConfig
from hvd_async.errors import ConfigError
from hvd_async.tasks.translation.batching import BatchPlan, Indices, collate, epoch_batches, pad_sources, padding_share
from hvd_async.tasks.translation.text import read_split
from hvd_async.tasks.translation.vocabulary import BOS, EOS, PAD, Vocabulary

LENGTHS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=80)
CONFIGS = st.builds(
    BatchingConfig, tokens=st.integers(1, 200), max_sentences=st.integers(1, 20), bucket_batches=st.integers(1, 5)
)
SMALL = BatchingConfig(tokens=20, bucket_batches=2)


def arrays(lengths: list[tuple[int, int]]) -> tuple[Indices, Indices]:
    both = np.array(lengths, dtype=np.int64)
    return both[:, 0], both[:, 1]


def drawn_lengths(count: int = 50, seed: int = 0) -> tuple[Indices, Indices]:
    rng = np.random.default_rng(seed)
    source = rng.integers(1, 12, count)
    return source, np.maximum(1, source + rng.integers(-2, 3, count))


@settings(deadline=None)
@given(LENGTHS, CONFIGS, st.integers(0, 5), st.integers(0, 5))
def test_every_sentence_is_in_exactly_one_batch_within_budget(
    lengths: list[tuple[int, int]], config: BatchingConfig, seed: int, epoch: int
) -> None:
    source, target = arrays(lengths)
    batches = epoch_batches(source, target, config, seed, epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * (max(source[batch].max(), target[batch].max()) + 1)
        assert len(batch) == 1 or padded <= config.tokens
        assert len(batch) <= config.max_sentences


def test_a_sentence_longer_than_the_budget_is_a_batch_of_its_own() -> None:
    source, target = arrays([(3, 3), (50, 2), (3, 3)])
    batches = epoch_batches(source, target, SMALL, seed=1, epoch=0)
    assert sorted(batch.tolist() for batch in batches if 1 in batch) == [[1]]


def test_order_depends_only_on_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        return [batch.tolist() for batch in epoch_batches(*drawn_lengths(), SMALL, seed, epoch)]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)
    assert order(-1, 0) == order(-1, 0)


def test_padding_share_counts_both_sides_with_their_ends() -> None:
    source, target = arrays([(1, 3), (3, 3)])
    assert padding_share([np.array([0, 1])], source, target) == pytest.approx(1 - (2 + 4 + 4 + 4) / 16)
    assert padding_share([np.array([0]), np.array([1])], source, target) == 0.0
    assert padding_share([], source, target) == 0.0


def test_sorting_keeps_padding_low() -> None:
    source, target = drawn_lengths(20000)
    batches = epoch_batches(source, target, BatchingConfig(), seed=1, epoch=0)
    assert padding_share(batches, source, target) < 0.05


def test_padding_of_multi30k_is_low() -> None:
    folder = os.environ.get("HVD_ASYNC_MULTI30K")
    if folder is None:
        pytest.skip("HVD_ASYNC_MULTI30K does not name a folder with Multi30k")
    text = read_split(Path(folder), "train", "en", "de")
    vocabulary = Vocabulary.train([*text.sources, *text.targets], VocabularyConfig(), seed=1)
    source, target = (np.array([len(s) for s in vocabulary.encode(side)]) for side in (text.sources, text.targets))
    batches = epoch_batches(source, target, BatchingConfig(bucket_batches=100), seed=1, epoch=0)
    assert padding_share(batches, source, target) < 0.04


def test_the_plan_joins_epochs_and_does_not_depend_on_the_order_of_requests() -> None:
    source, target = drawn_lengths()
    expected = [(epoch, batch) for epoch in range(5) for batch in epoch_batches(source, target, SMALL, 3, epoch)]
    plan = BatchPlan(source, target, SMALL, seed=3)
    for index in np.random.default_rng(0).permutation(len(expected)).tolist():
        epoch, batch = expected[index]
        assert plan.epoch_of(index) == epoch
        assert plan[index].tolist() == batch.tolist()
    assert [plan.num_batches(epochs) for epochs in range(6)] == [
        sum(epoch < epochs for epoch, _ in expected) for epochs in range(6)
    ]


def test_the_plan_has_no_batches_before_the_first() -> None:
    plan = BatchPlan(*drawn_lengths(), SMALL, seed=1)
    with pytest.raises(IndexError, match="batch -1"):
        plan[-1]


def test_a_plan_of_nothing_is_refused() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    with pytest.raises(ConfigError, match="got 0 source and 0 target sentences"):
        BatchPlan(nothing, nothing, SMALL, seed=1)


@settings(deadline=None)
@given(st.integers(-1, 2000))
def test_batches_for_tokens_is_the_smallest_number_that_reaches_them(tokens: int) -> None:
    source, target = drawn_lengths()
    plan = BatchPlan(source, target, SMALL, seed=1)
    count = plan.batches_for_tokens(tokens)
    held = [int(target[plan[i]].sum()) + len(plan[i]) for i in range(count)]
    assert sum(held) >= tokens
    assert count == 0 or sum(held[:-1]) < tokens


def test_more_epochs_than_can_be_planned_are_refused_at_once() -> None:
    plan = BatchPlan(np.array([3, 4]), np.array([4, 4]), SMALL, seed=1)
    with pytest.raises(
        ConfigError, match=r"got 1000000000000, which is 99,999,999,999 epochs of 10 tokens, expected at most 10,000 epochs"
    ):
        plan.batches_for_tokens(10**12)


def test_collate_pads_at_the_right_and_shifts_the_target() -> None:
    batch = collate([[5, 6, 7], [8]], [[9], [10, 11]])
    assert batch.source.tolist() == [[5, 6, 7, EOS], [8, EOS, PAD, PAD]]
    assert batch.source_mask is not None
    assert batch.source_mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert batch.target_input.tolist() == [[BOS, 9, PAD], [BOS, 10, 11]]
    assert batch.target_output.tolist() == [[9, EOS, PAD], [10, 11, EOS]]
    assert batch.target_positions is not None
    assert batch.target_positions.tolist() == [0, 1, 3, 4, 5]
    assert (batch.num_tokens, len(batch)) == (5, 2)


def test_a_batch_without_padding_has_no_masks() -> None:
    batch = collate([np.array([5], dtype=np.uint16)] * 2, [np.array([9, 9], dtype=np.uint16)] * 2).to("cpu")
    assert batch.source_mask is None
    assert batch.target_positions is None
    assert batch.num_tokens == 6


def test_an_empty_source_consists_of_its_end() -> None:
    source, mask = pad_sources([[]])
    assert source.tolist() == [[EOS]]
    assert mask is None
