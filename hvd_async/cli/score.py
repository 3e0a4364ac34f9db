"""`hvd-async score`."""

from __future__ import annotations

import argparse
import json
import math
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hvd_async.cli.arguments import check_new, check_other_file, verb
from hvd_async.cli.model_arguments import add_model, add_search, load, report_cut
from hvd_async.errors import ConfigError, DataError
from hvd_async.system.printable import printable
from hvd_async.system.processes import stopping_on_signals

if TYPE_CHECKING:
    from hvd_async.tasks.translation.likelihood import Likelihood
    from hvd_async.tasks.translation.scoring import TextScore

# Flags that mean nothing without a search, and those that mean nothing without a model.
_OF_THE_SEARCH = ("--beam", "--length-penalty")
_OF_THE_MODEL = (
    *_OF_THE_SEARCH,
    "--batch",
    "--batch-tokens",
    "--device",
    "--threads",
    "--output",
    "--likelihood",
)


def add_verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    purpose = "score translations of a test set by BLEU, chrF, TER and COMET, or its references by their likelihood"
    _add_score(verb(verbs, "score", purpose, _score))


def _add_score(parser: argparse.ArgumentParser) -> None:
    add_model(parser, is_optional=True)
    add_search(parser)
    parser.add_argument(
        "--hypothesis", type=pathlib.Path, metavar="FILE", help="score the translations in this file; in place of MODEL"
    )
    parser.add_argument("--source", type=pathlib.Path, metavar="FILE", help="the text to translate, or that was translated")
    parser.add_argument(
        "--reference",
        required=True,
        type=pathlib.Path,
        metavar="FILE",
        help="a good translation of the source, line by line",
    )
    parser.add_argument(
        "--metrics",
        metavar="NAMES",
        help="bleu, chrf, ter and comet, with commas between them; default: bleu,chrf; a lower TER is better; comet needs the"
        " program comet-score and, beside --hypothesis, --source",
    )
    parser.add_argument(
        "--comet-model",
        metavar="NAME",
        help="model of comet: a name by which comet-score fetches it, or a checkpoint; default: Unbabel/wmt22-comet-da",
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
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="save the scores to this file, as JSON")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of --output and --json")


def _score(arguments: argparse.Namespace) -> int:
    _check(arguments)
    found = _likelihood(arguments) if arguments.likelihood else _scores(arguments)
    if arguments.json is not None:
        from hvd_async.system.files import write_file

        write_file(arguments.json, f"{json.dumps(found, indent=1, allow_nan=False)}\n".encode())
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse arguments that do not go together. Raises `ConfigError`."""
    files = [("--output", arguments.output), ("--json", arguments.json)]
    taken = [("--source", arguments.source), ("--reference", arguments.reference), ("--hypothesis", arguments.hypothesis)]
    for flag, path in files:
        check_new(flag, path, overwrite=arguments.overwrite)
        check_other_file(flag, path, [*taken, *(("--against", each) for each in arguments.against)])
    check_other_file("--json", arguments.json, files[:1])
    if arguments.hypothesis is not None and arguments.models:
        raise ConfigError(f"got MODEL {arguments.models[0]} and --hypothesis {arguments.hypothesis}, expected one of them")
    if arguments.hypothesis is not None:
        _refuse(arguments, _OF_THE_MODEL, "--hypothesis, which needs no model")
    elif not arguments.models:
        raise ConfigError("got neither MODEL nor --hypothesis, expected one of them")
    elif arguments.source is None:
        raise ConfigError("--source: missing, expected the file of the text that MODEL translates")
    if arguments.likelihood:
        _refuse(
            arguments, (*_OF_THE_SEARCH, "--against", "--metrics", "--comet-model"), "--likelihood, which translates nothing"
        )


def _refuse(arguments: argparse.Namespace, flags: Sequence[str], beside: str) -> None:
    for flag in flags:
        name = flag[2:].replace("-", "_")
        if getattr(arguments, name) != arguments.parser.get_default(name):
            raise ConfigError(f"{flag} has no effect with {beside}; remove one of them")


def _scores(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print the scores of translations, and how they differ from those of others. Return both for --json."""
    from hvd_async.tasks.translation.scoring import (
        COMET,
        NUM_SAMPLES,
        Difference,
        bootstrap_seed,
        difference_of,
        score_texts,
    )

    metrics, comet_model = _metrics(arguments)
    seed = bootstrap_seed()
    of_texts = [name for name in metrics if name != COMET]
    references = _lines(arguments.reference)
    others = [_translations(path, references) for path in arguments.against]
    sources = _sources(arguments, references) if arguments.source is not None else []
    translations, origin = _hypotheses(arguments, references, sources)
    scores: dict[str, TextScore] = score_texts(translations, references, of_texts)
    than: list[dict[str, Difference]] = [difference_of(translations, lines, references, of_texts) for lines in others]
    for name in of_texts:
        print(_line(name, scores[name]), flush=True)  # now: COMET takes long, and may fail
    if comet_model is not None:
        from hvd_async.tasks.translation import comet

        with stopping_on_signals("score", "COMET was not computed"):
            own, *theirs = comet.comet_of([translations, *others], sources, references, comet_model)
        scores[COMET] = comet.corpus_score(own, comet_model)
        print(_line(COMET, scores[COMET]))
        for each, values in zip(than, theirs, strict=True):
            each[COMET] = comet.difference(own, values)
    found: dict[str, Any] = {
        **origin,
        **({} if arguments.source is None else {"source": str(arguments.source)}),
        "reference": str(arguments.reference),
        "sentences": len(references),
        "scores": {name: {"score": scores[name].value, "signature": scores[name].signature} for name in metrics},
        "against": [],
        "bootstrap_samples": NUM_SAMPLES,
        "bootstrap_seed": seed,
    }
    mine = "this model" if arguments.models else printable(str(arguments.hypothesis))
    for path, each in zip(arguments.against, than, strict=True):
        parts = [f"{_value(name, each[name].value, '+')} (p = {each[name].p:.3f})" for name in metrics]
        how = f"paired bootstrap of {NUM_SAMPLES:,} samples, seed {'not fixed' if seed is None else seed}"
        print(f"{mine} minus {printable(str(path))}: {', '.join(parts)}; {how}")
        differences = {name: {"difference": each[name].value, "p": each[name].p} for name in metrics}
        found["against"].append({"file": str(path), "differences": differences})
    return found


def _metrics(arguments: argparse.Namespace) -> tuple[Sequence[str], str | None]:
    """Return the names of the scores, and the model of COMET if that is one of them. Raises `ConfigError`."""
    from hvd_async.tasks.translation.scoring import COMET, DEFAULT_METRICS, parse_metrics

    metrics = DEFAULT_METRICS if arguments.metrics is None else parse_metrics(arguments.metrics)
    if COMET not in metrics:
        if arguments.comet_model is not None:
            raise ConfigError("--comet-model has no effect without comet in --metrics; add it, or remove the flag")
        if arguments.hypothesis is not None and arguments.source is not None:
            raise ConfigError(
                "--source: got a file beside --hypothesis, which only comet reads; add comet to --metrics, or remove the flag"
            )
        return metrics, None
    from hvd_async.tasks.translation.comet import DEFAULT_MODEL, check_program

    check_program()
    if arguments.source is None:
        raise ConfigError("--source: missing, expected the file of the text that is translated, which comet reads too")
    return metrics, DEFAULT_MODEL if arguments.comet_model is None else arguments.comet_model


def _line(name: str, score: TextScore) -> str:
    return f"{_value(name, score.value)}  {score.signature}"


def _value(name: str, value: float, sign: str = "") -> str:
    """Return a score with its title."""
    from hvd_async.tasks.translation.scoring import COMET, METRICS

    return f"COMET {value:{sign}.4f}" if name == COMET else f"{METRICS[name].title} {value:{sign}.2f}"


def _hypotheses(
    arguments: argparse.Namespace, references: Sequence[str], sources: Sequence[str]
) -> tuple[list[str], dict[str, Any]]:
    """Return translations, and where they come from; write those of a model to --output. Raises `DataError`."""
    from hvd_async.system.files import write_file

    if arguments.hypothesis is not None:
        return _translations(arguments.hypothesis, references), {"hypothesis": str(arguments.hypothesis)}
    translator = load(arguments)
    translations = translator.translate(sources)
    report_cut(translator)
    if arguments.output is not None:
        write_file(arguments.output, "".join(f"{line}\n" for line in translations).encode())
    settings = {key: getattr(translator.decoding, key) for key in ("beam", "length_penalty")}
    return translations, {"models": [str(path) for path in arguments.models], **settings}


def _likelihood(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print the perplexity of the references; write the log probabilities of each to --output. Return the sums for --json."""
    from hvd_async.system.files import write_file
    from hvd_async.tasks.translation.likelihood import nats_per_piece, perplexity

    references = _lines(arguments.reference)
    sources = _sources(arguments, references)
    translator = load(arguments)
    likelihoods = translator.likelihoods(sources, references)
    if arguments.output is not None:
        rows = [f"{number}\t{_row(one)}\n" for number, one in enumerate(likelihoods, start=1)]
        write_file(arguments.output, "".join(rows).encode())
    num_pieces, unknown = sum(len(one.pieces) for one in likelihoods), translator.num_unknown(references, are_targets=True)
    nats, value = nats_per_piece(likelihoods), perplexity(likelihoods)
    print(
        f"perplexity {value:.4f}: {nats:.6f} nats per piece, {num_pieces:,} pieces of {len(references):,} references, ends"
        f" included{f', {unknown:,} of them unknown' if unknown else ''}"
    )
    return {
        "models": [str(path) for path in arguments.models],
        "source": str(arguments.source),
        "reference": str(arguments.reference),
        "sentences": len(references),
        "perplexity": value if math.isfinite(value) else None,
        "nats_per_piece": nats if math.isfinite(nats) else None,
        "pieces": num_pieces,
        "unknown_pieces": unknown,
    }


def _row(one: Likelihood) -> str:
    """Return log probability, pieces and the log probability of each piece, with tabs between them."""
    pieces = " ".join(printable(piece) for piece in one.pieces)
    return f"{one.log_probability:.6f}\t{pieces}\t{' '.join(f'{log:.6f}' for log in one.log_probabilities)}"


def _sources(arguments: argparse.Namespace, references: Sequence[str]) -> list[str]:
    """Return the text to translate, as many lines as there are references. Raises `DataError`."""
    sources = _lines(arguments.source)
    if len(sources) != len(references):
        raise DataError(
            f"{arguments.source} and {arguments.reference}: got {len(sources)} and {len(references)} lines, expected equal"
            " numbers, at least 1"
        )
    return sources


def _translations(path: pathlib.Path, references: Sequence[str]) -> list[str]:
    """Return the lines of a file of translations, as many as there are references. Raises `DataError`."""
    lines = _lines(path)
    if len(lines) != len(references):
        raise DataError(f"{path}: got {len(lines)} lines, expected {len(references)}, a translation of each")
    return lines


def _lines(path: pathlib.Path) -> list[str]:
    """Return the lines of a text file. Raises `DataError` if there is none."""
    from hvd_async.tasks.translation.text import read_bytes, split_lines

    lines = split_lines(read_bytes(path), path)
    if not lines:
        raise DataError(f"{path}: got no line, expected at least one")
    return lines
