"""The prepared corpus: vocabulary and tokenized splits, made once from text and settings and then memory-mapped."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hvd_async.config import DataConfig, RunConfig, VocabularyConfig
from hvd_async.errors import DataError
from hvd_async.system.files import new_folder
from hvd_async.system.json_text import parse_json
from hvd_async.tasks.translation.model_folder import check_places, given_vocabularies
from hvd_async.tasks.translation.text import ParallelText, find_texts, joined, read_split
from hvd_async.tasks.translation.vocabularies import Vocabularies
from hvd_async.tasks.translation.vocabulary import UNK

Tokens = npt.NDArray[np.integer]
Offsets = npt.NDArray[np.int64]

_FORMAT = 2  # raise it when the meaning of the files changes, so that older folders are not mistaken for new ones
SIDES = ("source", "target")
_LARGEST_UINT16 = 2**16
_EMPTY, _TOO_LONG, _UNEQUAL, _REPEATED = "empty", "too long", "unequal", "repeated"

_FILES = ("file", "source_file", "target_file")
_WHILE_TRAINING = ("bpe_dropout", "bpe_dropout_side")
_OF_FILTERS = ("train_unequal", "train_repeated")

_Pair = tuple[list[int], list[int]]
"""The tokens of both sides."""


@dataclass(frozen=True)
class ParallelArrays:
    """The tokens of a split, without begin and end of sentence; one array a side holds all sentences, one after another."""

    source_tokens: Tokens
    """[sum of source lengths] uint16, or int32 where the vocabulary is larger."""
    source_offsets: Offsets
    """[num_sentences + 1]: sentence i is `source_tokens[source_offsets[i] : source_offsets[i + 1]]`."""
    target_tokens: Tokens
    target_offsets: Offsets

    def __len__(self) -> int:
        return len(self.source_offsets) - 1

    def source(self, index: int) -> Tokens:
        """Return the source tokens of a sentence, a view [length]."""
        return self.source_tokens[self.source_offsets[index] : self.source_offsets[index + 1]]

    def target(self, index: int) -> Tokens:
        """Return the target tokens of a sentence, a view [length]."""
        return self.target_tokens[self.target_offsets[index] : self.target_offsets[index + 1]]

    def sentence(self, side: str, index: int) -> Tokens:
        """Return the tokens of a sentence on `side`, `source` or `target`, a view [length]."""
        return self.source(index) if side == SIDES[0] else self.target(index)

    @property
    def source_lengths(self) -> Offsets:
        """Lengths of the source sentences, [num_sentences] int64."""
        return np.diff(self.source_offsets)

    @property
    def target_lengths(self) -> Offsets:
        """Lengths of the target sentences, [num_sentences] int64."""
        return np.diff(self.target_offsets)


@dataclass(frozen=True)
class Skipped:
    """Pairs of the text files that are not in the arrays. A side without tokens is empty, even if it has invisible
    characters."""

    train_empty: int
    train_too_long: int
    validation_empty: int
    train_unequal: int = 0
    """Pairs with sides of too unequal lengths."""
    train_repeated: int = 0
    """Pairs that occurred before. A pair that is left out for several reasons counts once, for the first of empty, too long,
    unequal and repeated."""


@dataclass(frozen=True)
class Losses:
    """Losses in encoding the training text: unknown pieces, and lines that normalisation changes."""

    unknown_pieces: int
    normalized_lines: int


@dataclass(frozen=True)
class PreparedCorpus:
    """All data that training reads. Validation keeps its longest pairs: a limit for training must not change what is
    measured."""

    vocabularies: Vocabularies
    train: ParallelArrays
    validation: ParallelArrays
    validation_sources: list[str]
    """The text of `validation`, line by line."""
    validation_targets: list[str]
    skipped: Skipped
    losses: Losses
    fingerprint: str
    """Hash of text and settings; equal fingerprints mean equal arrays."""

    def unused_symbols(self, symbols: Sequence[str]) -> list[str]:
        """Return those of `symbols`, pieces of the vocabularies, that the training text has on neither side."""
        if not symbols:
            return []
        sides = ((self.vocabularies.source, self.train.source_tokens), (self.vocabularies.target, self.train.target_tokens))
        used = {piece for vocabulary, tokens in sides for piece in vocabulary.pieces(np.unique(tokens).tolist())}
        return [symbol for symbol in symbols if symbol not in used]


def prepare(config: RunConfig) -> PreparedCorpus:
    """Open the prepared corpus of `config`; make it first if it is missing or damaged.

    Safe in several processes at once: each would make the same corpus, and the first to finish gives the folder its name.
    Raises `DataError`.
    """
    fingerprint = _fingerprint(config)
    folder = _folder(config, fingerprint)
    is_damaged = folder.exists() and _fault(folder, fingerprint) is not None
    if is_damaged or not folder.exists():
        train, validation = _read_texts(config)
        with contextlib.ExitStack() as stack:
            try:
                temporary = stack.enter_context(new_folder(folder, replace=is_damaged))
            except DataError as error:
                raise DataError(f"{error}; set task.data.prepared to a writable folder") from None
            _build(temporary, config, train, validation, fingerprint)
    return _open(folder, config, fingerprint)


def _folder(config: RunConfig, fingerprint: str) -> Path:
    return Path(config.translation.data.prepared or Path(config.translation.data.folder) / "prepared") / fingerprint


def _fingerprint(config: RunConfig) -> str:
    """Return a hash of everything on which the prepared folder depends: the files' bytes and the settings that shape it."""
    data = config.translation.data
    settings = {
        "format": _FORMAT,
        "seed": config.seed,
        "vocabulary": _settings_of_vocabulary(config.translation.vocabulary),
        "max_tokens_per_sentence": data.max_tokens_per_sentence,
        "languages": [data.source, data.target],
        "splits": [data.train[0] if len(data.train) == 1 else data.train, data.validation],
        # Absent where nothing is filtered, so that corpora and runs of earlier versions keep their fingerprints.
        **({} if data.max_ratio is None else {"max_ratio": data.max_ratio}),
        **({"drop_duplicates": True} if data.drop_duplicates else {}),
    }
    check_places(config.translation)
    given = given_vocabularies(config.translation)
    if given:
        del settings["vocabulary"]
    total = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in [*given, *find_texts(data)]:
        try:
            total.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    return total.hexdigest()[:16]


def _settings_of_vocabulary(config: VocabularyConfig) -> dict[str, Any]:
    """Return the keys that shape a vocabulary; later ones only where they have an effect, for the fingerprints of before."""
    settings = config.model_dump(exclude={*_FILES, *_WHILE_TRAINING})
    if not config.byte_fallback:
        del settings["byte_fallback"]
    if config.shared:
        del settings["shared"]
    if not config.symbols:
        del settings["symbols"]
    return settings


def _read_texts(config: RunConfig) -> tuple[ParallelText, ParallelText]:
    data = config.translation.data
    folder = Path(data.folder)
    train = joined([read_split(folder, split, data.source, data.target) for split in data.train])
    return train, read_split(folder, data.validation, data.source, data.target)


def _build(folder: Path, config: RunConfig, train: ParallelText, validation: ParallelText, fingerprint: str) -> None:
    given = given_vocabularies(config.translation)
    if given:
        vocabularies = Vocabularies.load(given)
    else:
        vocabularies = Vocabularies.train(train.sources, train.targets, config.translation.vocabulary, config.seed)
    vocabularies.save(folder)
    data = config.translation.data
    kept, left_out = _select(vocabularies, train, data)
    if not kept:
        others = "" if data.max_ratio is None else " or task.data.max_ratio"
        raise DataError(
            f"{data.folder}: got no training pair of at most {data.max_tokens_per_sentence} tokens on either side,"
            f" expected at least one; raise task.data.max_tokens_per_sentence{others}"
        )
    _save(folder, "train", kept, max(vocabularies.sizes))
    validated, num_validation_empty = _encode(vocabularies, validation)
    if not validated:
        raise DataError(f"{data.folder}: got no pair of {data.validation} with tokens on both sides, expected at least one")
    _save(folder, "validation", validated, max(vocabularies.sizes))
    skipped = Skipped(
        train_empty=train.num_empty + left_out[_EMPTY],
        train_too_long=left_out[_TOO_LONG],
        validation_empty=validation.num_empty + num_validation_empty,
        train_unequal=left_out[_UNEQUAL],
        train_repeated=left_out[_REPEATED],
    )
    unknown = sum(side.count(UNK) for pair in kept for side in pair)
    num_normalized = vocabularies.source.num_normalized(train.sources) + vocabularies.target.num_normalized(train.targets)
    losses = Losses(unknown, num_normalized)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    meta = {
        "format": _FORMAT,
        "fingerprint": fingerprint,
        "sizes": sizes,
        # Without counts of filters that are not set: earlier versions read such folders, too.
        "skipped": {name: count for name, count in asdict(skipped).items() if count or name not in _OF_FILTERS},
        "losses": asdict(losses),
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")


def _select(vocabularies: Vocabularies, text: ParallelText, data: DataConfig) -> tuple[list[_Pair], Counter[str]]:
    """Return the tokens of the pairs on which to train, and the number of other pairs by the reason."""
    kept: list[_Pair] = []
    left_out: Counter[str] = Counter()
    seen: set[bytes] = set()
    encoded = zip(vocabularies.source.encode(text.sources), vocabularies.target.encode(text.targets), strict=True)
    for pair, *sides in zip(encoded, text.sources, text.targets, strict=True):
        reason = _fault_of(pair, data)
        if not reason and data.drop_duplicates:
            # A digest in place of the text, which may fill memory; a line has no newline.
            digest = hashlib.blake2b("\n".join(sides).encode(), digest_size=16).digest()
            reason = _REPEATED if digest in seen else ""
            seen.add(digest)
        if reason:
            left_out[reason] += 1
        else:
            kept.append(pair)
    return kept, left_out


def _fault_of(pair: _Pair, data: DataConfig) -> str:
    """Return why a pair is left out of training, whatever the others are; empty if it is not."""
    shorter, longer = sorted(map(len, pair))
    if not shorter:
        return _EMPTY
    if longer > data.max_tokens_per_sentence:
        return _TOO_LONG
    return _UNEQUAL if data.max_ratio is not None and longer > data.max_ratio * shorter else ""


def _encode(vocabularies: Vocabularies, text: ParallelText) -> tuple[list[tuple[list[int], list[int]]], int]:
    """Return the tokens of the pairs that have some on both sides, and the number of other pairs."""
    pairs = zip(vocabularies.source.encode(text.sources), vocabularies.target.encode(text.targets), strict=True)
    found = [pair for pair in pairs if all(pair)]
    return found, len(text) - len(found)


def _save(folder: Path, split: str, pairs: Sequence[tuple[list[int], list[int]]], vocabulary_size: int) -> None:
    dtype = np.uint16 if vocabulary_size <= _LARGEST_UINT16 else np.int32
    for side, name in enumerate(SIDES):
        sentences = [pair[side] for pair in pairs]
        offsets = np.cumsum([0, *(len(sentence) for sentence in sentences)], dtype=np.int64)
        tokens = np.fromiter((token for sentence in sentences for token in sentence), dtype=dtype, count=int(offsets[-1]))
        np.save(folder / f"{split}.{name}.tokens.npy", tokens)
        np.save(folder / f"{split}.{name}.offsets.npy", offsets)


def _read_meta(folder: Path) -> dict[str, Any]:
    meta = parse_json((folder / "meta.json").read_bytes())
    return meta if isinstance(meta, dict) else {}


def _fault(folder: Path, fingerprint: str) -> str | None:
    """Return what is wrong with a prepared folder, or None."""
    try:
        meta = _read_meta(folder)
    except (OSError, ValueError) as error:
        return f"meta.json cannot be read ({error})"
    sizes = meta.get("sizes")
    if meta.get("fingerprint") != fingerprint or meta.get("format") != _FORMAT or not isinstance(sizes, dict):
        return "meta.json is from another corpus"
    for name, size in sizes.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            return f"{name} has {found if found is not None else 'no'} bytes, expected {size}"
    return None


def _open(folder: Path, config: RunConfig, fingerprint: str) -> PreparedCorpus:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected a corpus as prepared by `hvd-async data` or a training run")
    if fault := _fault(folder, fingerprint):
        raise DataError(f"{folder}: damaged: {fault}; remove the folder to have it made again")
    data, meta = config.translation.data, _read_meta(folder)
    vocabularies = Vocabularies.load_folder(folder)
    validation = _with_tokens(vocabularies, read_split(Path(data.folder), data.validation, data.source, data.target))
    return PreparedCorpus(
        vocabularies=vocabularies,
        train=_load(folder, "train"),
        validation=_load(folder, "validation"),
        validation_sources=validation.sources,
        validation_targets=validation.targets,
        skipped=Skipped(**meta["skipped"]),
        losses=Losses(**meta["losses"]),
        fingerprint=fingerprint,
    )


def _with_tokens(vocabularies: Vocabularies, text: ParallelText) -> ParallelText:
    """Return the pairs of `text` that are in the arrays."""
    sides = vocabularies.source.encode(text.sources), vocabularies.target.encode(text.targets)
    kept = [i for i, pair in enumerate(zip(*sides, strict=True)) if all(pair)]
    return ParallelText([text.sources[i] for i in kept], [text.targets[i] for i in kept], len(text) - len(kept))


def _load(folder: Path, split: str) -> ParallelArrays:
    """Return the arrays memory-mapped, so that the processes of a machine share one copy."""
    arrays = [
        np.load(folder / f"{split}.{side}.{part}.npy", mmap_mode="r") for side in SIDES for part in ("tokens", "offsets")
    ]
    return ParallelArrays(*arrays)
