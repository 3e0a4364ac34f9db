"""Parallel text files: one sentence a line, `<split>.<language>`, plain or gzipped, in UTF-8."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

from hvd_async.config import DataConfig
from hvd_async.errors import DataError


@dataclass(frozen=True)
class ParallelText:
    """The pairs of a split that have text on both sides, in the order of the files."""

    sources: list[str]
    targets: list[str]
    num_empty: int
    """Pairs left out because one side, or both, had no text."""

    def __len__(self) -> int:
        return len(self.sources)


def find_file(folder: Path, split: str, language: str) -> Path:
    """The file of one side of a split, the plain one if both are there. Raises `DataError` naming both that were tried."""
    plain = folder / f"{split}.{language}"
    for path in (plain, zipped := folder / f"{split}.{language}.gz"):
        if path.is_file():
            return path
    raise DataError(f"{plain}: no such file, nor {zipped.name}; expected one sentence a line")


def find_texts(data: DataConfig) -> list[Path]:
    """The files of both splits, source before target. Raises `DataError` for the first that is not there."""
    folder = Path(data.folder)
    splits, languages = (data.train, data.validation), (data.source, data.target)
    return [find_file(folder, split, language) for split in splits for language in languages]


def read_bytes(path: Path) -> bytes:
    """The content of `path`, unpacked if it ends in `.gz`. Raises `DataError` if it cannot be read."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def split_lines(content: bytes, path: Path) -> list[str]:
    """The lines of `content`, stripped. Raises `DataError` with the line where it is not UTF-8; `path` is for messages.

    Lines end at a newline alone: `str.splitlines` would also end them at characters such as U+2028, and so misalign files.
    """
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not lines[-1]:
        lines.pop()  # what follows the last newline is no line
    texts = []
    for number, line in enumerate(lines, start=1):
        try:
            texts.append(line.decode("utf-8").strip())
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: line {number}: not UTF-8 ({error.reason}); expected UTF-8 text") from None
    return texts


def read_split(folder: Path, split: str, source: str, target: str) -> ParallelText:
    """Read both sides of a split; pairs with an empty side are left out and counted.

    Raises `DataError` for a file that is missing, empty or not UTF-8, and for sides that differ in their number of lines.
    """
    paths = [find_file(folder, split, language) for language in (source, target)]
    sources, targets = (split_lines(read_bytes(path), path) for path in paths)
    if len(sources) != len(targets):
        raise DataError(
            f"{paths[0]} has {len(sources)} lines and {paths[1]} has {len(targets)}; expected as many in both, line i of one"
            " being the translation of line i of the other"
        )
    pairs = [(s, t) for s, t in zip(sources, targets, strict=True) if s and t]
    if not pairs:
        raise DataError(f"{paths[0]}, {paths[1]}: got no line with text on both sides, expected at least one")
    return ParallelText([s for s, _ in pairs], [t for _, t in pairs], num_empty=len(sources) - len(pairs))
