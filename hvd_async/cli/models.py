"""`hvd-async translate` and `score`: exported models at work."""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from hvd_async.cli.arguments import (
    check_beam,
    check_new,
    check_threads,
    device,
    verb,
)
from hvd_async.errors import ConfigError, DataError

if TYPE_CHECKING:
    from hvd_async.tasks.translation.export import ExportedModel


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add them to the command line."""
    _add_translate(verb(verbs, "translate", "translate text with an exported model, line by line", _translate))
    _add_score(verb(verbs, "score", "translate a test set and print BLEU and chrF", _score))


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=pathlib.Path, metavar="MODEL", help="folder such as RUN/models/best")
    parser.add_argument("--beam", type=int, metavar="N", help="beam size; default: the configuration's; 1 is greedy")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda[:INDEX]")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="sentences are spread over so many (default: a thread for each core)"
    )


def _load(arguments: argparse.Namespace) -> tuple[ExportedModel, int | None]:
    """The model, and by how many threads its sentences are to be translated."""
    from hvd_async.tasks.translation.export import load_model

    check_beam(arguments.beam)
    if arguments.threads is not None:
        check_threads(arguments.threads)
    name = device(arguments.device)
    model = load_model(arguments.model, name)
    if not model.is_finite():
        what = "has parameters that are not finite numbers, since its training diverged; it translates nothing"
        print(f"hvd-async: {arguments.model}: {what}", file=sys.stderr)
    if name != "cpu":
        return model, arguments.threads
    return model, arguments.threads or len(os.sched_getaffinity(0))


def _add_translate(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--input", type=pathlib.Path, metavar="FILE", help="one sentence a line; default: standard input")


def _translate(arguments: argparse.Namespace) -> int:
    from hvd_async.tasks.translation.streaming import translate_stream

    model, threads = _load(arguments)
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
        raise DataError(f"{source}: {num_faults} of {num_lines} lines could not be translated, and are empty")
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


def _add_score(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--source", required=True, type=pathlib.Path, metavar="FILE", help="text to translate")
    parser.add_argument(
        "--reference", required=True, type=pathlib.Path, metavar="FILE", help="its translation, line by line"
    )
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE", help="keep the translations there")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --output")


def _score(arguments: argparse.Namespace) -> int:
    from hvd_async.system.files import write_file
    from hvd_async.tasks.translation.scoring import score_texts
    from hvd_async.tasks.translation.text import read_bytes, split_lines

    check_new("--output", arguments.output, overwrite=arguments.overwrite)
    for flag in ("source", "reference"):
        if arguments.output is not None and arguments.output.resolve() == getattr(arguments, flag).resolve():
            raise ConfigError(f"--output: got {arguments.output}, the file of --{flag}, expected another one")
    model, threads = _load(arguments)
    sources = split_lines(read_bytes(arguments.source), arguments.source)
    references = split_lines(read_bytes(arguments.reference), arguments.reference)
    if len(sources) != len(references) or not sources:
        raise DataError(
            f"{arguments.source} and {arguments.reference}: got {len(sources)} and {len(references)} lines, expected as many,"
            " at least one"
        )
    translations = model.translate(sources, arguments.beam, threads)
    if arguments.output is not None:
        write_file(arguments.output, "".join(f"{line}\n" for line in translations).encode())
    scores = score_texts(translations, references)
    print(f"BLEU {scores.bleu:.2f}  {scores.bleu_signature}\nchrF {scores.chrf:.2f}  {scores.chrf_signature}")
    return 0
