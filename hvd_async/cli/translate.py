"""`hvd-async translate`."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import sys
from collections.abc import Iterator
from typing import BinaryIO

from hvd_async.cli.arguments import verb
from hvd_async.cli.model_arguments import add_model, load
from hvd_async.errors import DataError


def add_verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    _add_translate(verb(verbs, "translate", "translate text with an exported model, line by line", _translate))


def _add_translate(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--input", type=pathlib.Path, metavar="FILE", help="text, one sentence per line; default: standard input"
    )


def _translate(arguments: argparse.Namespace) -> int:
    from hvd_async.tasks.translation.streaming import translate_stream

    model, threads = load(arguments)
    source = "standard input" if arguments.input is None else str(arguments.input)
    num_lines = num_faults = 0
    with _input(arguments.input) as stream:
        for lines in translate_stream(model, stream, source, beam=arguments.beam, threads=threads):
            print(*(line.text for line in lines), sep="\n", flush=True)
            faults = [line for line in lines if line.fault]
            for line in faults:
                print(f"hvd-async: {source}: line {line.number}: {line.fault}; left empty", file=sys.stderr)
            num_lines, num_faults = lines[-1].number, num_faults + len(faults)
    if num_faults:
        raise DataError(f"{source}: {num_faults} of {num_lines} lines could not be translated and are empty")
    return 0


@contextlib.contextmanager
def _input(path: pathlib.Path | None) -> Iterator[BinaryIO]:
    from hvd_async.tasks.translation.streaming import open_lines

    if path is not None:
        with open_lines(path) as stream:
            yield stream
    elif sys.stdin is None:
        raise DataError("standard input: closed; expected text, or --input FILE")
    else:
        yield sys.stdin.buffer
