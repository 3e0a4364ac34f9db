"""Translation of a stream of lines: lines are translated as soon as they come, and leave in their order."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hvd_async.errors import DataError
from hvd_async.tasks.translation.export import ExportedModel

_READ_BYTES = 1 << 16
_BOM = b"\xef\xbb\xbf"
# Lines at a time, in batches of each thread: enough to sort them by length, few enough for the first to come soon.
_BATCHES = 4


@dataclass(frozen=True)
class Translated:
    """A line of the input, numbered from 1: its translation, or None and what is wrong with the line."""

    number: int
    text: str
    fault: str = ""


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
    model: ExportedModel, stream: BinaryIO, name: str, *, beam: int | None = None, threads: int | None = None
) -> Iterator[list[Translated]]:
    """Yield the lines of `stream` translated, in order, all that are available at once; arguments as in
    `ExportedModel.translate`.

    Blocks only if `stream` has nothing to read. Raises `DataError`, which calls the stream `name`, if it cannot be read.
    """
    most = _BATCHES * (threads or 1) * model.config.translation.decoding.batch_sentences
    number = 0
    for lines in _lines_that_came(stream, name, most):
        if number == 0:
            lines[0] = lines[0].removeprefix(_BOM)
        read = [_decode(line, model) for line in lines]
        texts = model.translate([text for text, _ in read], beam, threads)
        faults = [fault for _, fault in read]
        yield [Translated(number + i, text, fault) for i, (text, fault) in enumerate(zip(texts, faults, strict=True), 1)]
        number += len(lines)


def _decode(line: bytes, model: ExportedModel) -> tuple[str, str]:
    """Return the text of `line` and no fault, or an empty text and the fault."""
    try:
        text = line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        return "", f"not UTF-8 ({error.reason})"
    fault = model.length_fault(text)
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
