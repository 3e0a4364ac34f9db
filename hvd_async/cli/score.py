"""`hvd-async score`."""

from __future__ import annotations

import argparse
import pathlib

from hvd_async.cli.arguments import check_new, check_other_file, verb
from hvd_async.cli.model_arguments import add_model, add_search, load
from hvd_async.errors import DataError
from hvd_async.system.printable import printable


def add_verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    _add_score(verb(verbs, "score", "translate a test set and print BLEU and chrF", _score))


def _add_score(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_search(parser)
    parser.add_argument("--source", required=True, type=pathlib.Path, metavar="FILE", help="text to translate")
    parser.add_argument(
        "--reference", required=True, type=pathlib.Path, metavar="FILE", help="its translation, line by line"
    )
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        type=pathlib.Path,
        metavar="FILE",
        help="translations of the same text by another model, as --output saves them: print how much better this model is, and"
        " how probable such a difference would be between equally good ones (p, by a paired bootstrap); may be repeated",
    )
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE", help="save the translations to this file")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --output")


def _score(arguments: argparse.Namespace) -> int:
    from hvd_async.system.files import write_file
    from hvd_async.tasks.translation.scoring import NUM_SAMPLES, difference_of, score_texts
    from hvd_async.tasks.translation.text import read_bytes, split_lines

    check_new("--output", arguments.output, overwrite=arguments.overwrite)
    taken = [
        ("--source", arguments.source),
        ("--reference", arguments.reference),
        *(("--against", path) for path in arguments.against),
    ]
    check_other_file("--output", arguments.output, taken)
    translator = load(arguments)
    sources = split_lines(read_bytes(arguments.source), arguments.source)
    references = split_lines(read_bytes(arguments.reference), arguments.reference)
    if len(sources) != len(references) or not sources:
        raise DataError(
            f"{arguments.source} and {arguments.reference}: got {len(sources)} and {len(references)} lines, expected equal"
            " numbers, at least 1"
        )
    others = [split_lines(read_bytes(path), path) for path in arguments.against]
    for path, lines in zip(arguments.against, others, strict=True):
        if len(lines) != len(references):
            raise DataError(f"{path}: got {len(lines)} lines, expected {len(references)}, a translation of each")
    translations = translator.translate(sources)
    if arguments.output is not None:
        write_file(arguments.output, "".join(f"{line}\n" for line in translations).encode())
    scores = score_texts(translations, references)
    print(f"BLEU {scores.bleu:.2f}  {scores.bleu_signature}\nchrF {scores.chrf:.2f}  {scores.chrf_signature}")
    for path, lines in zip(arguments.against, others, strict=True):
        than = difference_of(translations, lines, references)
        print(
            f"this model less {printable(str(path))}: BLEU {than.bleu:+.2f} (p = {than.bleu_p:.3f}), chrF {than.chrf:+.2f}"
            f" (p = {than.chrf_p:.3f}); paired bootstrap of {NUM_SAMPLES:,} samples"
        )
    return 0
