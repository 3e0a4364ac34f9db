from __future__ import annotations

import itertools
from typing import Literal, TypeAlias

import pytest
import torch

from hvd_async.config import DecodingConfig, ModelConfig
from hvd_async.errors import DataError
from hvd_async.tasks.translation.architectures import build_model
from hvd_async.tasks.translation.batching import collate
from hvd_async.tasks.translation.decoding import beam_search, greedy_search, translate
from hvd_async.tasks.translation.model import TranslationModel
from hvd_async.tasks.translation.vocabulary import EOS, NUM_SPECIAL

Kind: TypeAlias = Literal["transformer", "gru"]

SIZE = NUM_SPECIAL + 3
SOURCES = [[4, 5, 6], [], [6], [5, 5, 4, 6], [4]]
MAX_LENGTHS = [3, 2, 3, 3, 1]


@pytest.fixture(params=["transformer", "gru"])
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


def make_model(kind: Kind, seed: int, max_positions: int = 32) -> TranslationModel:
    """Return a random model in float64 whose predictions are far from uniform."""
    torch.manual_seed(seed)
    config = ModelConfig(
        kind=kind,
        encoder_layers=1,
        decoder_layers=2,
        width=8,
        feed_forward=16,
        heads=2,
        max_positions=max_positions,
        dropout=0.0,
    )
    model = build_model(config, SIZE).double().eval()
    with torch.no_grad():
        model.output.weight.mul_(2.0)
    return model


def log_probability(model: TranslationModel, source: list[int], target: list[int]) -> float:
    """Return the score of the target and its end, computed without a cache."""
    batch = collate([source], [target])
    with torch.no_grad():
        logits = model(batch.source, batch.source_mask, batch.target_input, batch.target_positions)
    log_probs = torch.log_softmax(logits, dim=1)
    return float(log_probs.gather(1, batch.target_output.flatten()[:, None]).sum())


def exhaustive_search(model: TranslationModel, source: list[int], max_length: int, length_penalty: float) -> list[int]:
    words = range(NUM_SPECIAL, SIZE)
    targets = [list(t) for length in range(max_length + 1) for t in itertools.product(words, repeat=length)]
    return max(targets, key=lambda t: log_probability(model, source, t) / (len(t) + 1) ** length_penalty)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 1.5])
@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_what_exhaustive_search_finds(kind: Kind, seed: int, length_penalty: float) -> None:
    model = make_model(kind, seed)
    found = beam_search(model, SOURCES, MAX_LENGTHS, beam=50, length_penalty=length_penalty)
    assert found == [exhaustive_search(model, s, m, length_penalty) for s, m in zip(SOURCES, MAX_LENGTHS, strict=True)]


@pytest.mark.parametrize("seed", range(6))
def test_a_beam_of_one_is_greedy_search(kind: Kind, seed: int) -> None:
    model = make_model(kind, seed)
    limits = [8] * len(SOURCES)
    assert beam_search(model, SOURCES, limits, beam=1, length_penalty=1.0) == greedy_search(model, SOURCES, limits)


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
