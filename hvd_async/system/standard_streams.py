"""Standard input, output and error of a command: UTF-8 whatever the locale, with failures of output reported in one line."""

from __future__ import annotations

import contextlib
import io
import os
import sys

from hvd_async.errors import DataError

_NAMES = {1: "standard output", 2: "standard error"}


class _Output(io.RawIOBase):
    """An open descriptor whose errors name it. A reader that has gone remains a `BrokenPipeError`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: bytes) -> int:  # type: ignore[override]  # the base class takes any buffer
        """Write all of `data`, as the layer above expects of an unbuffered stream."""
        view = memoryview(data).cast("B")
        written = 0
        while written < len(view):
            try:
                written += os.write(self._descriptor, view[written:])
            except BrokenPipeError:
                raise
            except OSError as error:
                raise DataError(f"{_NAMES[self._descriptor]}: cannot be written: {error.strerror}") from None
        return written


def prepare_streams() -> None:
    """Make standard output and error write UTF-8, and raise `DataError` on failure. Raises `DataError` if output is
    closed.

    Streams that a test or a caller has replaced stay.
    """
    output = sys.stdout
    _occupy_descriptors()
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # as long as the process lives
    elif sys.stderr is sys.__stderr__:
        sys.stderr.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]  # a text stream of Python's own
    if output is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
        raise DataError("standard output: closed; expected a file, a pipe or a terminal (/dev/null works)")
    if output is not sys.__stdout__ or not isinstance(output, io.TextIOWrapper):
        return
    output.flush()
    raw = _Output(output.fileno())
    is_unbuffered = output.write_through
    sys.stdout = io.TextIOWrapper(
        raw if is_unbuffered else io.BufferedWriter(raw),
        encoding="utf-8",
        errors="backslashreplace",  # names of files may contain bytes that are not text
        line_buffering=raw.isatty(),
        write_through=is_unbuffered,
    )


def _occupy_descriptors() -> None:
    """Open descriptors 0, 1 and 2 if they are closed: otherwise our next file gets that number, and receives what libraries
    print."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def discard_output() -> None:
    """Discard output that is still to be written: it failed, and would fail again when the interpreter ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def tell(text: str) -> None:
    """Write lines to standard error, ignoring its failure: nothing more can be done then."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
