"""Parallel text files: one sentence a line, `<split>.<language>`, plain or gzipped, in UTF-8."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hvd_async.config import DataConfig
from hvd_async.errors import ConfigError, DataError
from hvd_async.system.files import write_file

# Text shrinks to a third or a tenth. A file that unpacks to more than this, after its first bytes, was made to fill
# memory.
_MOST_UNPACKING = 200
_UNPACKED_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class ParallelText:
    """The pairs of a split that have text on both sides, in the order of the files."""

    sources: list[str]
    targets: list[str]
    num_empty: int
    """Pairs left out because at least one side had no text."""

    def __len__(self) -> int:
        return len(self.sources)


def find_file(folder: Path, split: str, language: str) -> Path:
    """Return the file of one side of a split, the plain one if both exist. Raises `DataError` naming both that were
    tried."""
    plain = folder / f"{split}.{language}"
    for path in (plain, zipped := folder / f"{split}.{language}.gz"):
        if path.is_file():
            return path
    raise DataError(
        f"{plain}: no such file, nor {zipped.name}; expected one sentence a line (`hvd-async data` fetches corpora)"
    )


def find_texts(data: DataConfig) -> list[Path]:
    """Return the files of all splits, source before target, those of training first.

    Raises `DataError` for the first that is missing.
    """
    folder = Path(data.folder)
    splits, languages = (*data.train, data.validation), (data.source, data.target)
    return [find_file(folder, split, language) for split in splits for language in languages]


def read_bytes(path: Path) -> bytes:
    """Return the content of `path`, unpacked if it ends in `.gz`. Raises `DataError` if it cannot be read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    return unpack(content, str(path)) if path.suffix == ".gz" else content


def unpack(packed: bytes, origin: str) -> bytes:
    """Return the content of a gzip file named `origin`. Raises `DataError` if it is damaged, or unpacks to more than text
    could."""
    most = _MOST_UNPACKING * len(packed) + _UNPACKED_AT_ONCE
    parts: list[bytes] = []
    size, rest = 0, packed
    try:
        while rest:  # gzip members of the file, one after another
            member = zlib.decompressobj(wbits=31)
            while not member.eof:
                parts.append(member.decompress(rest, _UNPACKED_AT_ONCE))
                size, rest = size + len(parts[-1]), member.unconsumed_tail
                if size > most:
                    raise DataError(
                        f"{origin}: got {len(packed):,} bytes that unpack to more than {most:,}, expected"
                        " text; if it is text, unpack it by hand"
                    )
                if not parts[-1] and not rest and not member.eof:
                    raise DataError(f"{origin}: damaged gzip file: it ends too early")
            rest = member.unused_data.lstrip(b"\0")
    except zlib.error as error:
        raise DataError(f"{origin}: damaged gzip file: {error}") from None
    return b"".join(parts)


def write_texts(folder: Path, texts: Mapping[str, bytes], *, overwrite: bool) -> None:
    """Write each text to the file of its name in `folder`.

    Nothing is written, and `ConfigError` raised, if a file exists with other text, or would be hidden by the new one, and
    `overwrite` is not set.
    """
    for name, text in texts.items():
        plain, zipped = folder / name, folder / f"{name}.gz"
        for path in (plain, zipped):
            if not overwrite and path.exists() and (path == zipped or not path.is_file() or read_bytes(path) != text):
                raise ConfigError(
                    f"--output: got {folder}, where {path.name} is other text, expected a folder without"
                    " it; name another folder, or replace the file with --overwrite"
                )
    for name, text in texts.items():
        write_file(folder / name, text)


def split_lines(content: bytes, path: Path) -> list[str]:
    """Return the lines of `content`, stripped. Raises `DataError` with the line that is not UTF-8; `path` is for
    messages.

    Only a newline ends a line: `str.splitlines` would also split at characters such as U+2028, and so misalign files.
    """
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not lines[-1]:
        lines.pop()  # nothing after the last newline is a line
    texts = []
    for number, line in enumerate(lines, start=1):
        try:
            texts.append(line.decode("utf-8").strip())
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: line {number}: not UTF-8 ({error.reason}); expected UTF-8 text") from None
    return texts


def joined(texts: Sequence[ParallelText]) -> ParallelText:
    """Return the pairs of all `texts`, one text after another."""
    return ParallelText(
        [source for text in texts for source in text.sources],
        [target for text in texts for target in text.targets],
        sum(text.num_empty for text in texts),
    )


def read_split(folder: Path, split: str, source: str, target: str) -> ParallelText:
    """Read both sides of a split; pairs with an empty side are left out and counted.

    Raises `DataError` for a file that is missing, empty or not UTF-8, and for sides that differ in their number of lines.
    """
    paths = [find_file(folder, split, language) for language in (source, target)]
    sources, targets = (split_lines(read_bytes(path), path) for path in paths)
    if len(sources) != len(targets):
        raise DataError(
            f"{paths[0]} has {len(sources)} lines and {paths[1]} has {len(targets)}; expected equal"
            " numbers, with line i of one the translation of line i of the other"
        )
    pairs = [(s, t) for s, t in zip(sources, targets, strict=True) if s and t]
    if not pairs:
        raise DataError(f"{paths[0]}, {paths[1]}: got no line with text on both sides, expected at least one")
    return ParallelText([s for s, _ in pairs], [t for _, t in pairs], num_empty=len(sources) - len(pairs))
