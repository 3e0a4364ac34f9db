from __future__ import annotations

from pathlib import Path

import pytest

from hvd_async.config import VocabularyConfig
from hvd_async.errors import DataError
from hvd_async.tasks.translation.builtin.grammar import generate
from hvd_async.tasks.translation.vocabulary import BOS, EOS, PAD, UNK, Vocabulary

TEXTS = [side for pair in generate(200, seed=3) for side in pair]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    return Vocabulary.train(TEXTS, VocabularyConfig(size=150, kind=request.param), seed=1)


def test_a_vocabulary_has_the_configured_size_and_decodes_its_own_encoding(vocabulary: Vocabulary) -> None:
    assert len(vocabulary) == 150
    encoded = vocabulary.encode(TEXTS)
    assert vocabulary.decode(encoded) == TEXTS
    assert all(4 <= token < 150 for sentence in encoded for token in sentence)


def test_decoding_stops_at_the_end_and_drops_special_pieces(vocabulary: Vocabulary) -> None:
    (tokens,) = vocabulary.encode([TEXTS[0]])
    assert vocabulary.decode([[BOS, UNK, *tokens, PAD, EOS, *tokens], [], [EOS]]) == [TEXTS[0], "", ""]


def test_an_empty_text_has_no_pieces(vocabulary: Vocabulary) -> None:
    assert vocabulary.encode([""]) == [[]]


def saved(vocabulary: Vocabulary, folder: Path) -> bytes:
    """Return the file in which `vocabulary` is saved."""
    vocabulary.save(folder / "saved.model")
    return (folder / "saved.model").read_bytes()


def test_training_is_deterministic(tmp_path: Path) -> None:
    models = {saved(Vocabulary.train(TEXTS, VocabularyConfig(size=150), seed=1), tmp_path) for _ in range(2)}
    assert len(models) == 1


def test_a_vocabulary_that_is_saved_and_loaded_is_unchanged(vocabulary: Vocabulary, tmp_path: Path) -> None:
    vocabulary.save(tmp_path / "new" / "vocabulary.model")
    loaded = Vocabulary.load(tmp_path / "new" / "vocabulary.model")
    assert saved(loaded, tmp_path) == saved(vocabulary, tmp_path)
    assert loaded.encode(TEXTS[:3]) == vocabulary.encode(TEXTS[:3])


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_too_large_a_size_is_refused_with_one_that_works(kind: str) -> None:
    texts = ["the cat sat on the mat", "der Hund"] * 3
    with pytest.raises(DataError, match=r"vocabulary\.size: got 4000, expected at most \d+ for so small a text") as raised:
        Vocabulary.train(texts, VocabularyConfig.model_validate({"size": 4000, "kind": kind}), seed=1)
    largest = int(str(raised.value).split("at most ")[1].split()[0])
    assert len(Vocabulary.train(texts, VocabularyConfig.model_validate({"size": largest, "kind": kind}), seed=1)) == largest


def test_too_small_a_size_is_refused_with_one_that_works() -> None:
    texts = ["abcdefghijklmnopqrstuvwxyz 0123456789"]
    with pytest.raises(DataError, match=r"vocabulary\.size: got 16, expected at least \d+") as raised:
        Vocabulary.train(texts, VocabularyConfig(size=16), seed=1)
    smallest = int(str(raised.value).split("at least ")[1].split()[0])
    assert len(Vocabulary.train(texts, VocabularyConfig(size=smallest), seed=1)) == smallest


STRANGE = ("日本語 und ñ", "😀", "Ω≠ω", "\u0301e", "\x01")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_with_bytes_no_character_is_unknown(kind: str) -> None:
    settings = {"size": 400, "kind": kind, "normalization": "identity"}
    plain, with_bytes = (
        Vocabulary.train(TEXTS, VocabularyConfig.model_validate({**settings, "byte_fallback": fallback}), seed=1)
        for fallback in (False, True)
    )
    assert all(character not in "".join(TEXTS) for text in STRANGE for character in text if character not in " unde")
    assert all(UNK in tokens for tokens in plain.encode(STRANGE)) and plain.decode(plain.encode(STRANGE)) != list(STRANGE)
    encoded = with_bytes.encode([*STRANGE, *TEXTS])
    assert not any(UNK in tokens for tokens in encoded) and with_bytes.decode(encoded) == [*STRANGE, *TEXTS]


def test_what_bytes_make_is_one_line_of_text() -> None:
    vocabulary = Vocabulary.train(TEXTS, VocabularyConfig(size=400, byte_fallback=True), seed=1)
    pieces = vocabulary.pieces(range(400))
    newline, carriage_return, half, letter = (pieces.index(piece) for piece in ("<0x0A>", "<0x0D>", "<0xC3>", "a"))
    sequences = [[letter, newline, letter], [letter, carriage_return, letter], [letter, half, letter], [half]]
    assert vocabulary.decode(sequences) == ["a a", "a a", "a\ufffda", "\ufffd"]


def test_bytes_need_room_in_the_vocabulary() -> None:
    with pytest.raises(DataError, match=r"size: got 200, expected at least \d+ for text with .* characters, and 256 bytes"):
        Vocabulary.train(TEXTS, VocabularyConfig(size=200, byte_fallback=True), seed=1)


SYMBOLS = ("<2de>", "<2fr>", "a,b", '"', "ⅷ")  # the last is none of Unicode's normal forms


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("fallback", [False, True])
def test_symbols_stay_whole_wherever_they_stand(kind: str, fallback: bool) -> None:
    settings = {"size": 420, "kind": kind, "byte_fallback": fallback, "symbols": list(SYMBOLS)}
    tagged = [f"{SYMBOLS[i % 2]} {text}" for i, text in enumerate(TEXTS)]
    vocabulary = Vocabulary.train(tagged, VocabularyConfig.model_validate(settings), seed=1)
    pieces = vocabulary.pieces(range(420))
    assert [pieces.count(symbol) for symbol in SYMBOLS] == [1] * len(SYMBOLS)
    numbers = {pieces.index(symbol) for symbol in SYMBOLS}
    assert not any(any(symbol in piece for symbol in SYMBOLS) for i, piece in enumerate(pieces) if i not in numbers)
    for symbol in SYMBOLS:
        for text in (f"{symbol} {TEXTS[0]}", f"{TEXTS[0]} {symbol}", f"{TEXTS[0]}{symbol}{symbol}"):
            [tokens] = vocabulary.encode([text])
            assert tokens.count(pieces.index(symbol)) == text.count(symbol) and vocabulary.decode([tokens]) == [text]


def test_no_text_is_refused() -> None:
    with pytest.raises(DataError, match="no text to train on"):
        Vocabulary.train([], VocabularyConfig(), seed=1)


@pytest.mark.parametrize("content", [b"", b"not a model"])
def test_a_damaged_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "v").write_bytes(content)
    with pytest.raises(DataError, match=r"v: (damaged|got pad)"):
        Vocabulary.load(tmp_path / "v")


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        Vocabulary.load(tmp_path / "none")


LONG = "ж " + "word " * 2400  # 12,002 bytes; by default SentencePiece skips lines of more than 4,192 bytes


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_every_line_counts_whatever_its_length(kind: str) -> None:
    config = VocabularyConfig.model_validate({"size": 80, "kind": kind})
    vocabulary = Vocabulary.train([*TEXTS[:40], *[LONG] * 5], config, seed=1)
    assert vocabulary.decode(vocabulary.encode(["ж word"])) == ["ж word"]


@pytest.mark.parametrize("text", ["a <s> b", "</s> and <unk> and <pad>"])
def test_names_of_special_pieces_in_a_text_are_ordinary_text(text: str) -> None:
    vocabulary = Vocabulary.train([*TEXTS, *[text] * 10], VocabularyConfig(size=150), seed=1)
    assert vocabulary.decode(vocabulary.encode([text])) == [text]


def test_normalisation_is_as_configured_and_counted() -> None:
    texts = [*TEXTS, "½ and ，", "two  spaces", "plain"]
    found = {}
    for name in ("nmt_nfkc", "nfkc", "identity"):
        config = VocabularyConfig.model_validate({"size": 150, "normalization": name})
        vocabulary = Vocabulary.train(texts, config, seed=1)
        found[name] = (vocabulary.decode(vocabulary.encode(texts[-3:])), vocabulary.num_normalized(texts))
    assert found == {
        "nmt_nfkc": (["1⁄2 and ,", "two spaces", "plain"], 1),
        "nfkc": (["1⁄2 and ,", "two spaces", "plain"], 1),
        "identity": (["½ and ，", "two spaces", "plain"], 0),
    }


def test_coverage_is_limited_to_the_range_of_sentencepiece() -> None:
    with pytest.raises(ValueError, match=r"greater than or equal to 0\.98"):
        VocabularyConfig(character_coverage=0.3)
