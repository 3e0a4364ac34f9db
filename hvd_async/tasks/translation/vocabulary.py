"""The vocabulary of pieces into which text is cut: one SentencePiece model for both languages."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import sentencepiece

from hvd_async.config import VocabularyConfig
from hvd_async.errors import DataError
from hvd_async.system.files import write_file

PAD, UNK, BOS, EOS = range(4)
NUM_SPECIAL = 4

# SentencePiece takes an unsigned 32-bit seed.
_SEED_RANGE = 2**32
SPACE = "\u2581"
"""SentencePiece's symbol for a space."""
_ENDS_OF_LINES = {ord("\n"): " ", ord("\r"): " "}
_NORMAL = 1  # kind of a piece that training found in the text
_QUIET = 2  # log errors only; we get them as exceptions


class Vocabulary:
    """Text <-> lists of piece numbers. 0 to 3 are padding, unknown, begin and end of sentence."""

    def __init__(self, model: bytes, name: str = "vocabulary") -> None:
        """Take a serialized SentencePiece model; `name` is for messages. Raises `DataError` if it is not one of ours."""
        self._model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError, TypeError):
            raise DataError(f"{name}: damaged, expected a SentencePiece model") from None
        processor = self._processor
        special = (processor.pad_id(), processor.unk_id(), processor.bos_id(), processor.eos_id())
        if special != (PAD, UNK, BOS, EOS):
            raise DataError(
                f"{name}: got pad, unk, bos, eos = {special}, expected {(PAD, UNK, BOS, EOS)}; train the SentencePiece model with"
                f" --pad_id={PAD} --unk_id={UNK} --bos_id={BOS} --eos_id={EOS}"
            )

    @classmethod
    def train(cls, texts: Iterable[str], config: VocabularyConfig, seed: int) -> Vocabulary:
        """Train on `texts` (both languages). Equal texts, settings and seed give equal pieces.

        Settings differ from SentencePiece's defaults, which would skip lines of more than 4,192 bytes, and letters of
        special pieces' names in the text. Raises `DataError` if the text has too few or too many different characters and
        words for `config.size`, with a size that would do.
        """
        texts = list(texts)
        sentencepiece.set_random_generator_seed(seed % _SEED_RANGE)
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=model,
                model_type=config.kind,
                vocab_size=config.size,
                character_coverage=config.character_coverage,
                byte_fallback=config.byte_fallback,
                user_defined_symbols=[*config.symbols],
                normalization_rule_name=config.normalization,
                max_sentence_length=max((len(text.encode()) for text in texts), default=0) + 10,  # its minimum is 10
                input_sentence_size=0,  # all of them
                remove_extra_whitespaces=True,
                pad_id=PAD,
                unk_id=UNK,
                bos_id=BOS,
                eos_id=EOS,
                pad_piece="<hvd_async:pad>",  # names that do not occur in text, unlike <s>
                unk_piece="<hvd_async:unk>",
                bos_piece="<hvd_async:bos>",
                eos_piece="<hvd_async:eos>",
                num_threads=1,  # with more threads, the order in which floats are summed varies
                minloglevel=_QUIET,
            )
        except RuntimeError as error:
            raise DataError(_explain(str(error), config)) from None
        return cls(model.getvalue())

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read a model that `save` wrote. Raises `DataError` if it is missing or damaged."""
        try:
            return cls(path.read_bytes(), name=str(path))
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}; expected a SentencePiece model") from None

    def save(self, path: Path) -> None:
        """Write the serialized SentencePiece model, which other tools can read, too."""
        write_file(path, self._model)

    def is_same(self, other: Vocabulary) -> bool:
        """Whether both cut every text into the same pieces with the same numbers: their serialized models are equal."""
        return self._model == other._model

    def __len__(self) -> int:
        return int(self._processor.get_piece_size())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the piece numbers of each text, without begin and end."""
        ids: list[list[int]] = self._processor.encode(list(texts), num_threads=1)
        return ids

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the piece of each number as SentencePiece writes it, `\u2581` for a space."""
        found: list[str] = self._processor.id_to_piece([int(i) for i in ids])
        return found

    def scores(self) -> list[float]:
        """Return the score of each piece: of two merges BPE makes the one with the higher score first."""
        found: list[float] = self._processor.get_score(list(range(len(self))))
        return found

    def are_text(self) -> list[bool]:
        """Return for each piece whether it was found in text: it is neither special, nor a byte, nor unused, nor a symbol that
        users have defined."""
        return [kind == _NORMAL for kind in _kinds(self._model)]

    def num_normalized(self, texts: Sequence[str]) -> int:
        """Return how many of `texts` normalisation changes, apart from spaces."""
        normalized: list[str] = self._processor.normalize(list(texts))
        return sum(_without_spaces(a) != _without_spaces(b) for a, b in zip(texts, normalized, strict=True))

    def decode(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each sequence, up to its first end of sentence, in one line; the special pieces have no text.

        Bytes that are not UTF-8, which a model may put together, are replaced by U+FFFD, and ends of lines by spaces.
        """
        return [self._decode_one(sequence) for sequence in sequences]

    def _decode_one(self, sequence: Sequence[int]) -> str:
        ids = list(sequence)
        if EOS in ids:
            ids = ids[: ids.index(EOS)]
        text: str = self._processor.decode([int(i) for i in ids if i >= NUM_SPECIAL])
        return text.translate(_ENDS_OF_LINES)  # of single bytes: no other piece holds one


def _kinds(model: bytes) -> list[int]:
    """Return the kind of each piece in a serialized SentencePiece model, of which its interface tells only some.

    The model is a message of protocol buffers, with the pieces in field 1; field 3 of a piece is its kind.
    """
    kinds = []
    for field, value in _fields(model):
        if field == 1 and isinstance(value, bytes):
            kinds.append(next((kind for number, kind in _fields(value) if number == 3 and isinstance(kind, int)), _NORMAL))
    return kinds


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field of a message of protocol buffers, in their order."""
    place = 0

    def number() -> int:
        nonlocal place
        found = shift = 0
        while True:
            byte = message[place]
            place += 1
            found |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return found

    while place < len(message):
        field, wire = divmod(number(), 8)
        if wire == 0:
            yield field, number()
            continue
        size = {1: 8, 5: 4}.get(wire) or number()
        yield field, message[place : place + size]
        place += size


def _without_spaces(text: str) -> str:
    return "".join(text.replace(SPACE, "").split())


def _explain(message: str, config: VocabularyConfig) -> str:
    """Return SentencePiece's message about a size that the text does not allow, as one line of ours."""
    size, others = config.size, ", and 256 bytes" if config.byte_fallback else ""
    if config.symbols:
        others += f", and {len(config.symbols)} symbols"
    if found := re.search(r"value <= (\d+)", message):
        return f"task.vocabulary.size: got {size}, expected at most {found[1]} for so small a text"
    if found := re.search(r"\d+ vs (\d+)", message):
        needed = f"text with so many different characters{others}"
        return f"task.vocabulary.size: got {size}, expected at least {found[1]} for {needed}"
    if "sentences_.empty()" in message:
        return "vocabulary: got no text to train on, expected at least one sentence"
    return f"vocabulary: SentencePiece could not be trained with size {size}: {' '.join(message.split())}"
