"""The way to translate from Python: model folders in, translations with scores out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hvd_async.config import RunConfig
from hvd_async.errors import ConfigError, DataError, SetupError
from hvd_async.tasks.translation import decoding
from hvd_async.tasks.translation.sampling import Sampling
from hvd_async.tasks.translation.translator import Translation, Translator

LINES = ["The dog sees the cat.", "  ", "", "We sleep."]
NOTHING = Translation("", 0.0, 0.0)


def test_lines_are_translated_and_empty_ones_kept(model_folder: Path) -> None:
    translator = Translator.load(str(model_folder), threads=2)
    found = translator.translate(LINES)
    assert len(found) == 4 and found[1:3] == ["", ""]
    assert translator.translate([]) == [] and translator.n_best([], 1) == [] and translator.sample([], Sampling()) == []


def test_the_best_of_several_is_the_translation(model_folder: Path) -> None:
    translator = Translator.load(model_folder, settings={"beam": 1, "length_penalty": 0})
    found = translator.n_best(LINES, 1)
    assert [one.text for [one] in found] == translator.translate(LINES)
    assert found[1] == found[2] == [NOTHING]
    assert all(one.score == one.log_probability < 0.0 for [one] in (found[0], found[3]))
    wide = Translator.load(model_folder, settings={"beam": 4}).n_best(LINES, 4)
    assert [len(each) for each in wide] == [4, 1, 1, 4]


def test_without_chance_samples_are_the_translations(model_folder: Path) -> None:
    translator = Translator.load(model_folder, settings={"beam": 1})
    found = translator.sample(LINES, Sampling(temperature=1e-6))
    assert [one.text for [one] in found] == translator.translate(LINES)
    greedy = [one for [one] in translator.n_best(LINES, 1)]
    assert [one.score for [one] in found] == pytest.approx([one.score for one in greedy], rel=1e-5)
    assert found[1] == [NOTHING]


def test_settings_are_those_of_the_model_but_for_those_given(model_folder: Path, config: RunConfig) -> None:
    assert Translator.load(model_folder).decoding == config.translation.decoding
    changed = Translator.load(model_folder, settings={"batch_tokens": 9}).decoding
    assert changed == config.translation.decoding.model_copy(update={"batch_tokens": 9})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"settings": {"beam": 0}}, ConfigError, r"^settings: beam: got 0, expected: greater than or equal to 1$"),
        ({"settings": {"bean": 2}}, ConfigError, r"^settings: bean: unknown key; did you mean 'beam'\?$"),
        ({"threads": 0}, ConfigError, r"^threads: got 0, expected 1 or more$"),
        ({"device": "tpu"}, ConfigError, r"^device: got 'tpu', expected cpu or cuda\[:INDEX\]$"),
        ({"device": "meta"}, ConfigError, r"^device: got 'meta', expected cpu or cuda"),
        ({"device": "cuda:99"}, SetupError, r"^device: got cuda:99, expected cpu or one of \d+ CUDA devices$"),
    ],
)
def test_wrong_arguments_are_one_line(
    model_folder: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Translator.load(model_folder, **arguments)


@pytest.mark.parametrize("n", [0, 6])
def test_more_translations_than_the_beam_are_refused(model_folder: Path, n: int) -> None:
    with pytest.raises(ConfigError, match=f"^n: got {n}, expected 1 to 5, the beam size; a larger beam finds more$"):
        Translator.load(model_folder).n_best(LINES, n)


@pytest.mark.parametrize(
    "call", [Translator.translate, lambda one, lines: one.n_best(lines, 1), lambda one, lines: one.sample(lines, Sampling())]
)
def test_a_sentence_that_is_too_long_is_named_by_its_number(
    model_folder: Path, config: RunConfig, call: Callable[[Translator, list[str]], object]
) -> None:
    positions = config.translation.model.max_positions
    with pytest.raises(DataError, match=rf"^sentence 3: got \d+ tokens, expected at most {positions - 1} "):
        call(Translator.load(model_folder), ["A cat.", "", "cat " * positions])


def test_one_text_instead_of_a_list_is_refused(model_folder: Path) -> None:
    with pytest.raises(TypeError, match=r"^sentences: got one text, expected a list of texts"):
        Translator.load(model_folder).translate("A cat.")


def test_the_names_of_the_package_are_there() -> None:
    from hvd_async.tasks import translation

    assert translation.Translator is Translator and translation.Sampling is Sampling
    assert all(getattr(translation, name) for name in translation.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Translater'"):
        _ = translation.Translater


@pytest.mark.parametrize("beam", [1, 3])
def test_translations_that_may_be_cut_are_counted(model_folder: Path, beam: int) -> None:
    translator = Translator.load(model_folder, settings={"beam": beam, "max_length_ratio": 0.5})
    encoded = translator._encode(LINES)
    found = decoding.translate(translator.models[0].model, encoded, translator.decoding, beam=beam)
    at_limit = [len(tokens) == 10 + len(source) // 2 for source, tokens in zip(encoded, found, strict=True) if source]
    translator.translate(LINES)
    assert translator.num_cut == sum(at_limit) > 0
    translator.translate(LINES[1:3])
    assert translator.num_cut == sum(at_limit)  # an empty line has nothing to cut
    translator.n_best(LINES, 1)
    assert translator.num_cut == 2 * sum(at_limit)
