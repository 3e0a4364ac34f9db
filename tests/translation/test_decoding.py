from __future__ import annotations

import itertools

import pytest
import torch

from hvd_async.config import DecodingConfig
from hvd_async.errors import DataError
from hvd_async.tasks.translation.batching import collate
from hvd_async.tasks.translation.decoding import (
    Hypothesis,
    SearchOptions,
    beam_search,
    greedy_search,
    in_batches,
    n_best,
    translate,
)
from hvd_async.tasks.translation.model import TranslationModel
from hvd_async.tasks.translation.vocabulary import EOS, NUM_SPECIAL
from tests.translation.models import MAX_LENGTHS, SIZE, SOURCES, Kind, log_probability, make_model


@pytest.fixture(params=["transformer", "gru"])
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


def exhaustive_search(model: TranslationModel, source: list[int], max_length: int, length_penalty: float) -> list[int]:
    return max(all_targets(max_length), key=lambda t: log_probability(model, source, t) / (len(t) + 1) ** length_penalty)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 1.5])
@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_what_exhaustive_search_finds(kind: Kind, seed: int, length_penalty: float) -> None:
    model = make_model(kind, seed)
    found = beam_search(model, SOURCES, MAX_LENGTHS, SearchOptions(50, length_penalty))
    assert [best.tokens for [best] in found] == [
        exhaustive_search(model, s, m, length_penalty) for s, m in zip(SOURCES, MAX_LENGTHS, strict=True)
    ]


def all_targets(max_length: int) -> list[list[int]]:
    words = range(NUM_SPECIAL, SIZE)
    return [list(t) for length in range(max_length + 1) for t in itertools.product(words, repeat=length)]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 1.5])
@pytest.mark.parametrize("num_best", [1, 4, 100])
def test_a_wide_beam_finds_the_n_best_of_all_translations(kind: Kind, num_best: int, length_penalty: float) -> None:
    model = make_model(kind, 4)
    found = beam_search(model, SOURCES, MAX_LENGTHS, SearchOptions(100, length_penalty, num_best))
    for source, limit, hypotheses in zip(SOURCES, MAX_LENGTHS, found, strict=True):
        scores = {str(t): log_probability(model, source, t) / (len(t) + 1) ** length_penalty for t in all_targets(limit)}
        best = sorted(scores, key=scores.__getitem__, reverse=True)[:num_best]
        assert [str(one.tokens) for one in hypotheses] == best


@pytest.mark.parametrize(("beam", "num_best"), [(1, 1), (3, 1), (3, 3), (6, 4)])
@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.0])
def test_a_score_is_that_of_the_uncached_model(kind: Kind, beam: int, num_best: int, length_penalty: float) -> None:
    model = make_model(kind, 8)
    decoding = DecodingConfig(length_penalty=length_penalty, batch_sentences=2)
    found = n_best(model, SOURCES, decoding, beam=beam, num_best=num_best)
    for source, hypotheses in zip(SOURCES, found, strict=True):
        assert 1 <= len(hypotheses) <= num_best
        assert sorted(hypotheses, key=lambda one: -one.score) == hypotheses
        assert len({str(one.tokens) for one in hypotheses}) == len(hypotheses)
        for one in hypotheses:
            assert one.log_probability == pytest.approx(log_probability(model, source, one.tokens), abs=1e-9)
            assert one.score == pytest.approx(one.log_probability / (len(one.tokens) + 1) ** length_penalty, abs=1e-9)


@pytest.mark.parametrize("beam", [1, 4])
def test_the_first_of_several_is_the_best_translation(kind: Kind, beam: int) -> None:
    for seed in range(5):
        model = make_model(kind, seed)
        best = translate(model, SOURCES, DecodingConfig(), beam=beam)
        [*alone] = n_best(model, SOURCES, DecodingConfig(), beam=beam, num_best=1)
        several = n_best(model, SOURCES, DecodingConfig(), beam=beam, num_best=beam)
        assert [one.tokens for [one] in alone] == best
        # A search for several goes on longer, and can only find a better one.
        assert all(some[0].score >= one.score for [one], some in zip(alone, several, strict=True))


def test_translations_do_not_depend_on_the_size_of_batches(kind: Kind) -> None:
    model = make_model(kind, 9)
    expected = translate(model, SOURCES, DecodingConfig(), beam=3)
    for limits in ({"batch_sentences": 1}, {"batch_sentences": 2}, {"batch_tokens": 1}, {"batch_tokens": 7}):
        assert translate(model, SOURCES, DecodingConfig(**limits), beam=3) == expected


@pytest.mark.parametrize(
    ("sentences", "tokens", "num_batches"),
    [(3, None, 3), (100, 12, 4), (100, 11, 5), (2, 12, 5), (1, 1, 8), (100, 10**6, 1)],
)
def test_a_batch_has_at_most_its_sentences_and_tokens(sentences: int, tokens: int | None, num_batches: int) -> None:
    lengths = [4, 0, 30, 2, 2, 5, 11, 1]
    batches: list[list[int]] = []

    def work(chosen: list[int]) -> list[int]:
        batches.append(chosen)
        return [lengths[i] for i in chosen]

    decoding = DecodingConfig(batch_sentences=sentences, batch_tokens=tokens)
    assert in_batches(lengths, decoding, work, threads=None) == lengths
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    padded = [len(batch) * (max(lengths[i] for i in batch) + 1) for batch in batches]
    assert all(len(batch) <= sentences for batch in batches)
    assert all(len(batch) == 1 or size <= (tokens or 1000) for batch, size in zip(batches, padded, strict=True))
    assert len(batches) == num_batches


@pytest.mark.parametrize("seed", range(6))
def test_a_beam_of_one_is_greedy_search(kind: Kind, seed: int) -> None:
    model = make_model(kind, seed)
    limits = [8] * len(SOURCES)
    found = beam_search(model, SOURCES, limits, SearchOptions(beam=1, length_penalty=1.0))
    assert [best.tokens for [best] in found] == greedy_search(model, SOURCES, limits)


@pytest.mark.parametrize("seed", range(4))
def test_greedy_search_takes_the_most_probable_token_of_the_uncached_model(kind: Kind, seed: int) -> None:
    model = make_model(kind, seed)
    for source, found in zip(SOURCES, greedy_search(model, SOURCES, [8] * len(SOURCES)), strict=True):
        expected: list[int] = []
        while len(expected) < 8:
            batch = collate([source], [expected])
            with torch.no_grad():
                last = model(batch.source, batch.source_mask, batch.target_input)[-1]
            last[[0, 1, 2]] = -torch.inf
            if (token := int(last.argmax())) == EOS:
                break
            expected.append(token)
        assert found == expected


@pytest.mark.parametrize("beam", [1, 3])
def test_the_other_sentences_of_a_batch_do_not_change_a_translation(kind: Kind, beam: int) -> None:
    model = make_model(kind, 7)
    together = translate(model, SOURCES, DecodingConfig(), beam=beam)
    alone = [translate(model, [source], DecodingConfig(batch_sentences=1), beam=beam)[0] for source in SOURCES]
    assert together == alone


@pytest.mark.parametrize("beam", [1, 2, 4])
def test_no_translation_is_longer_than_its_limit(kind: Kind, beam: int) -> None:
    model = make_model(kind, 3)
    with torch.no_grad():
        model.output.weight[EOS] = 0.0
        # one of the two tokens is always more probable than an end
        model.output.weight[4], model.output.weight[5] = 9.0, -9.0
    found = translate(model, SOURCES, DecodingConfig(max_length_ratio=1.0), beam=beam)
    assert all(len(target) <= 10 + len(source) for source, target in zip(SOURCES, found, strict=True))
    assert all(NUM_SPECIAL <= token < SIZE for target in found for token in target)


def test_translations_stay_within_the_positions_of_the_model(kind: Kind) -> None:
    found = translate(make_model(kind, 3, max_positions=6), [[4] * 5] * 2, DecodingConfig(), beam=2)
    assert all(len(target) <= 5 for target in found)


def test_a_source_too_long_for_the_model_is_refused_by_number(kind: Kind) -> None:
    with pytest.raises(DataError, match=r"sentence 2: got 6 tokens, expected at most 5 \(task\.model\.max_positions\)"):
        translate(make_model(kind, 1, max_positions=6), [[4], [4] * 6], DecodingConfig(), beam=1)


def test_nothing_to_translate_gives_nothing(kind: Kind) -> None:
    assert translate(make_model(kind, 1), [], DecodingConfig(), beam=2) == []


def fill(model: TranslationModel, value: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_diverged_model_finds_nothing(kind: Kind, value: float, beam: int) -> None:
    model = make_model(kind, 1)
    fill(model, value)
    assert translate(model, SOURCES, DecodingConfig(), beam=beam) == [[] for _ in SOURCES]
    nothing = Hypothesis([], float("-inf"), float("-inf"))
    assert n_best(model, SOURCES, DecodingConfig(), beam=beam, num_best=beam) == [[nothing] for _ in SOURCES]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("token", [EOS, NUM_SPECIAL, NUM_SPECIAL + 2])
def test_a_search_ends_even_if_one_logit_is_nan(kind: Kind, token: int, beam: int) -> None:
    model = make_model(kind, 2)
    with torch.no_grad():
        model.output.weight[token] = torch.nan
    found = translate(model, SOURCES, DecodingConfig(max_length_ratio=1.0), beam=beam)
    assert all(len(target) <= 10 + len(source) for source, target in zip(SOURCES, found, strict=True))
    assert all(token not in target for target in found)


@pytest.mark.parametrize("beam", [1, 3])
def test_translations_do_not_depend_on_the_number_of_threads(kind: Kind, beam: int) -> None:
    model = make_model(kind, 5)
    sources = [[4 + (i * k) % 3 for k in range(1, 2 + i % 7)] for i in range(30)]
    decoding = DecodingConfig(batch_sentences=4)
    expected = translate(model, sources, decoding, beam=beam)
    assert all(translate(model, sources, decoding, beam=beam, threads=threads) == expected for threads in (1, 2, 5))
