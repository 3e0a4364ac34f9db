"""Sampling draws from the model's distribution, and repeats its draws by seed and number of the sentence."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from hvd_async.config import DecodingConfig
from hvd_async.errors import ConfigError, DataError
from hvd_async.tasks.translation.decoding import translate
from hvd_async.tasks.translation.sampling import Sampling, sample
from tests.translation.models import SOURCES, Kind, log_probability, make_model

KINDS: list[Kind] = ["transformer", "gru"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampling", [Sampling(temperature=1e-6), Sampling(top_k=1), Sampling(top_k=1, num_samples=3)])
def test_without_chance_sampling_is_greedy_search(kind: Kind, sampling: Sampling) -> None:
    for seed in range(4):
        model = make_model(kind, seed)
        greedy = translate(model, SOURCES, DecodingConfig(), beam=1)
        found = sample(model, SOURCES, DecodingConfig(), sampling)
        assert [[one.tokens for one in each] for each in found] == [[best] * sampling.num_samples for best in greedy]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_model_whatever_the_temperature(kind: Kind) -> None:
    model = make_model(kind, 3)
    decoding = DecodingConfig(length_penalty=0.5, max_length_ratio=0.1)
    for temperature in (0.5, 1.0, 3.0):
        found = sample(model, SOURCES, decoding, Sampling(temperature, top_k=2, num_samples=4))
        for source, each in zip(SOURCES, found, strict=True):
            assert len(each) == 4
            for one in each:
                assert one.log_probability == pytest.approx(log_probability(model, source, one.tokens), abs=1e-9)
                assert one.score == pytest.approx(one.log_probability / math.sqrt(len(one.tokens) + 1), abs=1e-9)


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_draws_depend_on_seed_and_number_of_the_sentence_alone(threads: int | None) -> None:
    model = make_model("transformer", 3)
    sampling = Sampling(num_samples=2, seed=-5)
    expected = [[one.tokens for one in each] for each in sample(model, SOURCES, DecodingConfig(), sampling)]

    def drawn(sources: list[list[int]], decoding: DecodingConfig, sampling: Sampling) -> list[list[list[int]]]:
        return [[one.tokens for one in each] for each in sample(model, sources, decoding, sampling, threads=threads)]

    assert drawn(SOURCES, DecodingConfig(), sampling) == expected
    assert drawn(SOURCES, DecodingConfig(batch_sentences=2), sampling) == expected
    assert drawn(SOURCES[2:], DecodingConfig(), Sampling(num_samples=2, seed=-5, first=2)) == expected[2:]
    assert drawn(SOURCES, DecodingConfig(), Sampling(num_samples=2, seed=6)) != expected
    assert drawn([SOURCES[0]] * 9, DecodingConfig(), sampling) != [expected[0]] * 9


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("top_k", [None, 2])
def test_tokens_come_as_often_as_the_model_says(temperature: float, top_k: int | None) -> None:
    """The first token of many samples, against the distribution that the temperature and the choice of tokens make of it."""
    model = make_model("gru", 2)
    count = 4000
    [found] = sample(model, [[4, 6]], DecodingConfig(), Sampling(temperature, top_k, num_samples=count))
    seen = Counter(one.tokens[0] if one.tokens else 3 for one in found)
    with torch.no_grad():
        logits = model(torch.tensor([[4, 6, 3]]), None, torch.tensor([[2]]))[0]
    logits[:3] = -torch.inf
    if top_k is not None:
        logits[logits < logits.topk(top_k).values[-1]] = -torch.inf
    expected = torch.softmax(logits / temperature, dim=0).tolist()
    assert sum(seen.values()) == count and len(seen) >= 2
    for token, probability in enumerate(expected):
        spread = math.sqrt(probability * (1.0 - probability) / count)
        assert abs(seen[token] / count - probability) <= 4.0 * spread


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_model_draws_nothing(value: float) -> None:
    model = make_model("transformer", 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    found = sample(model, SOURCES, DecodingConfig(), Sampling(top_k=3))
    assert [(one.tokens, one.score) for [one] in found] == [([], -math.inf)] * len(SOURCES)


def test_no_sample_is_longer_than_its_limit() -> None:
    model = make_model("transformer", 3, max_positions=6)
    found = sample(model, [[4] * 5] * 2, DecodingConfig(), Sampling(temperature=100.0, num_samples=30))
    assert max(len(one.tokens) for each in found for one in each) == 5


def test_sentences_are_checked() -> None:
    assert sample(make_model("gru", 1), [], DecodingConfig(), Sampling()) == []
    with pytest.raises(DataError, match="sentence 2: got 6 tokens, expected at most 5"):
        sample(make_model("gru", 1, max_positions=6), [[4], [4] * 6], DecodingConfig(), Sampling())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, r"^temperature: got 0, expected a number above 0$"),
        ({"temperature": math.nan}, r"^temperature: got nan, expected a number above 0$"),
        ({"temperature": math.inf}, r"^temperature: got inf, expected a number above 0$"),
        ({"top_k": 0}, r"^top_k: got 0, expected a whole number, 1 or more$"),
        ({"top_k": 2.5}, r"^top_k: got 2\.5, expected a whole number, 1 or more$"),
        ({"first": -1}, r"^first: got -1, expected a whole number, 0 or more$"),
        ({"seed": "a"}, r"^seed: got 'a', expected a whole number$"),
        ({"temperature": "hot"}, r"^temperature: got 'hot', expected a number above 0$"),
        ({"num_samples": 0}, r"^num_samples: got 0, expected a whole number, 1 or more$"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(**arguments)
