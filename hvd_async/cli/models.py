"""`hvd-async translate` and `score`: exported models at work."""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import TYPE_CHECKING

from hvd_async.cli.arguments import (
    check_beam,
    check_new,
    device,
    verb,
)
from hvd_async.errors import ConfigError, DataError

if TYPE_CHECKING:
    pass


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add them to the command line."""
    _add_translate(verb(verbs, "translate", "translate text with an exported model, line by line", _translate))
    _add_score(verb(verbs, "score", "translate a test set and print BLEU and chrF", _score))


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=pathlib.Path, metavar="MODEL", help="folder such as RUN/models/best")
    parser.add_argument("--beam", type=int, metavar="N", help="beam size; default: the configuration's; 1 is greedy")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda[:INDEX]")


def _add_translate(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--input", type=pathlib.Path, metavar="FILE", help="one sentence a line; default: standard input")


def _translate(arguments: argparse.Namespace) -> int:
    from hvd_async.nmt.export import load_model
    from hvd_async.nmt.text import read_bytes, split_lines

    check_beam(arguments.beam)
    model = load_model(arguments.model, device(arguments.device))
    if arguments.input is not None:
        lines = split_lines(read_bytes(arguments.input), arguments.input)
    else:
        lines = split_lines(sys.stdin.buffer.read(), pathlib.Path("standard input"))
    for line in model.translate(lines, arguments.beam):
        print(line)
    return 0


def _add_score(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--source", required=True, type=pathlib.Path, metavar="FILE", help="text to translate")
    parser.add_argument(
        "--reference", required=True, type=pathlib.Path, metavar="FILE", help="its translation, line by line"
    )
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE", help="keep the translations there")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --output")


def _score(arguments: argparse.Namespace) -> int:
    from hvd_async.atomic import write_file
    from hvd_async.nmt.export import load_model
    from hvd_async.nmt.scoring import score_texts
    from hvd_async.nmt.text import read_bytes, split_lines

    check_beam(arguments.beam)
    check_new("--output", arguments.output, overwrite=arguments.overwrite)
    for flag in ("source", "reference"):
        if arguments.output is not None and arguments.output.resolve() == getattr(arguments, flag).resolve():
            raise ConfigError(f"--output: got {arguments.output}, the file of --{flag}, expected another one")
    model = load_model(arguments.model, device(arguments.device))
    sources = split_lines(read_bytes(arguments.source), arguments.source)
    references = split_lines(read_bytes(arguments.reference), arguments.reference)
    if len(sources) != len(references) or not sources:
        raise DataError(
            f"{arguments.source} and {arguments.reference}: got {len(sources)} and {len(references)} lines, expected as many,"
            " at least one"
        )
    translations = model.translate(sources, arguments.beam)
    if arguments.output is not None:
        write_file(arguments.output, "".join(f"{line}\n" for line in translations).encode())
    scores = score_texts(translations, references)
    print(f"BLEU {scores.bleu:.2f}  {scores.bleu_signature}\nchrF {scores.chrf:.2f}  {scores.chrf_signature}")
    return 0
