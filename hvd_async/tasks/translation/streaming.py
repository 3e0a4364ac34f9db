"""Translation of a stream of lines: lines are translated as soon as they come, and leave in their order."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

from hvd_async.errors import DataError
from hvd_async.tasks.translation.translator import Translator

_READ_BYTES = 1 << 16
_BOM = b"\xef\xbb\xbf"
# Lines at a time, in batches of each thread: enough to sort them by length, few enough for the first to come soon.
_BATCHES = 4


Result = TypeVar("Result")


@dataclass(frozen=True)
class Translated(Generic[Result]):
    """A line of the input, numbered from 1: what was made of it, or of an empty line if it has a fault."""

    number: int
    result: Result
    fault: str = ""
    """What is wrong with the line, in words."""


@contextmanager
def open_lines(path: Path) -> Iterator[BinaryIO]:
    """Open `path`, unpacked if it ends in `.gz`. Raises `DataError` if it cannot be opened."""
    try:
        opened = gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    with opened as stream:
        yield stream  # type: ignore[misc]  # both have read1, of which gzip's annotation does not tell


def translate_stream(
    translator: Translator, stream: BinaryIO, name: str, work: Callable[[list[str], int], list[Result]]
) -> Iterator[list[Translated[Result]]]:
    """Yield what `work` makes of the lines of `stream`, in order, of all lines that are available at once.

    `work` gets lines that `translator` can read, and the number of lines before them. Blocks only if `stream` has nothing to
    read. With batches of one sentence, lines are not collected: as many are translated at once as there are threads. Raises
    `DataError`, which calls the stream `name`, if the stream cannot be read.
    """
    size, threads = translator.decoding.batch_sentences, translator.threads or 1
    number = 0
    for lines in _lines_that_came(stream, name, threads if size == 1 else _BATCHES * threads * size):
        if number == 0:
            lines[0] = lines[0].removeprefix(_BOM)
        read = [_decode(line, translator) for line in lines]
        results = work([text for text, _ in read], number)
        faults = [fault for _, fault in read]
        yield [
            Translated(number + i, result, fault) for i, (result, fault) in enumerate(zip(results, faults, strict=True), 1)
        ]
        number += len(lines)


def _decode(line: bytes, translator: Translator) -> tuple[str, str]:
    """Return the text of `line` and no fault, or an empty text and the fault."""
    try:
        text = line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        return "", f"not UTF-8 ({error.reason})"
    fault = translator.length_fault(text)
    return ("", fault) if fault else (text, "")


def _lines_that_came(stream: BinaryIO, name: str, most: int) -> Iterator[list[bytes]]:
    """Yield whole lines, at most `most` at a time, as soon as they are read; the last line may lack its newline."""
    begun: list[bytes] = []  # parts of a line whose end has not come yet
    while data := _read(stream, name):
        first, *others = data.split(b"\n")
        begun.append(first)
        if not others:
            continue
        lines = [b"".join(begun), *others[:-1]]
        begun = [others[-1]]
        for start in range(0, len(lines), most):
            yield lines[start : start + most]
    if any(begun):
        yield [b"".join(begun)]


def _read(stream: BinaryIO, name: str) -> bytes:
    """Return the available bytes, at least one; none at the end."""
    try:
        data: bytes = stream.read1(_READ_BYTES)  # type: ignore[attr-defined]  # of every buffered reader
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{name}: damaged gzip file: {error}") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from None
    return data
