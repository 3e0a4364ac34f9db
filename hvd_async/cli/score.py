"""`hvd-async score`."""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING

from hvd_async.cli.arguments import check_new, check_other_file, verb
from hvd_async.cli.model_arguments import add_model, add_search, load
from hvd_async.errors import ConfigError, DataError
from hvd_async.system.printable import printable

if TYPE_CHECKING:
    from hvd_async.tasks.translation.likelihood import Likelihood
    from hvd_async.tasks.translation.translator import Translator


def add_verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    _add_score(
        verb(verbs, "score", "translate a test set and print BLEU and chrF, or the perplexity of its references", _score)
    )


def _add_score(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_search(parser)
    parser.add_argument("--source", required=True, type=pathlib.Path, metavar="FILE", help="text to translate")
    parser.add_argument(
        "--reference", required=True, type=pathlib.Path, metavar="FILE", help="its translation, line by line"
    )
    parser.add_argument(
        "--likelihood",
        action="store_true",
        help="translate nothing: print how probable the model finds the references, as a perplexity; --output has each sentence",
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
    _check(arguments)
    translator = load(arguments)
    if arguments.likelihood:
        return _likelihood(translator, arguments)
    from hvd_async.system.files import write_file
    from hvd_async.tasks.translation.scoring import NUM_SAMPLES, difference_of, score_texts

    sources, references = _pairs(arguments)
    others = [_lines(path) for path in arguments.against]
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


def _check(arguments: argparse.Namespace) -> None:
    """Refuse arguments that do not go together. Raises `ConfigError`."""
    check_new("--output", arguments.output, overwrite=arguments.overwrite)
    taken = [
        ("--source", arguments.source),
        ("--reference", arguments.reference),
        *(("--against", path) for path in arguments.against),
    ]
    check_other_file("--output", arguments.output, taken)
    if arguments.likelihood:
        for flag in ("--beam", "--length-penalty", "--against"):
            if getattr(arguments, flag[2:].replace("-", "_")) not in (None, []):
                raise ConfigError(f"{flag} has no effect with --likelihood, which translates nothing; remove one of them")


def _pairs(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Return sources and references, equally many. Raises `DataError`."""
    sources, references = _lines(arguments.source), _lines(arguments.reference)
    if len(sources) != len(references) or not sources:
        raise DataError(
            f"{arguments.source} and {arguments.reference}: got {len(sources)} and {len(references)} lines, expected equal"
            " numbers, at least 1"
        )
    return sources, references


def _lines(path: pathlib.Path) -> list[str]:
    from hvd_async.tasks.translation.text import read_bytes, split_lines

    return split_lines(read_bytes(path), path)


def _likelihood(translator: Translator, arguments: argparse.Namespace) -> int:
    """Print the perplexity of the references; write the log probabilities of each to --output."""
    from hvd_async.system.files import write_file
    from hvd_async.tasks.translation.likelihood import perplexity

    sources, references = _pairs(arguments)
    likelihoods = translator.likelihoods(sources, references)
    if arguments.output is not None:
        rows = [f"{number}\t{_row(one)}\n" for number, one in enumerate(likelihoods, start=1)]
        write_file(arguments.output, "".join(rows).encode())
    total, num_tokens = sum(one.log_probability for one in likelihoods), sum(len(one.pieces) for one in likelihoods)
    unknown = translator.num_unknown(references)
    print(
        f"perplexity {perplexity(likelihoods):.4f}: {-total / num_tokens:.6f} nats per piece, {num_tokens:,} pieces of"
        f" {len(references):,} references, ends included{f', {unknown:,} of them unknown' if unknown else ''}"
    )
    return 0


def _row(one: Likelihood) -> str:
    """Return log probability, pieces and the log probability of each piece, with tabs between them."""
    pieces = " ".join(printable(piece) for piece in one.pieces)
    return f"{one.log_probability:.6f}\t{pieces}\t{' '.join(f'{log:.6f}' for log in one.log_probabilities)}"
