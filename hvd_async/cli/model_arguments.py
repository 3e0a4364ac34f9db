"""Arguments of the verbs that use a trained model."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from typing import TYPE_CHECKING, Any

from hvd_async.cli.arguments import check_at_least, check_beam, check_threads, device
from hvd_async.errors import ConfigError

if TYPE_CHECKING:
    from hvd_async.tasks.translation.translator import Translator


def add_model(parser: argparse.ArgumentParser, *, is_optional: bool = False) -> None:
    """Add the models, the beam size, and the device and threads on which they run."""
    parser.add_argument(
        "models",
        nargs="*" if is_optional else "+",
        type=pathlib.Path,
        metavar="MODEL",
        help="folder such as RUN/models/best; several are an ensemble",
    )
    parser.add_argument("--beam", type=int, metavar="N", help="beam size; default: the configuration's; 1 is greedy")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda[:INDEX]")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads over which sentences are spread (default: one per core)"
    )


def add_search(parser: argparse.ArgumentParser) -> None:
    """Add what else decides the search for translations, and its memory."""
    parser.add_argument(
        "--length-penalty",
        type=float,
        metavar="A",
        help="compare translations by log probability / length ^ A; default: the configuration's; 0 compares plain sums",
    )
    parser.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="sentences translated at once by a thread; default: the configuration's",
    )
    parser.add_argument(
        "--batch-tokens",
        type=int,
        metavar="N",
        help="most source tokens translated at once by a thread, padding included: less takes less memory",
    )


def load(arguments: argparse.Namespace) -> Translator:
    """Return the translator that the arguments of `add_model` and `add_search` describe."""
    from hvd_async.tasks.translation.translator import Translator

    settings = _settings(arguments)
    if arguments.threads is not None:
        check_threads(arguments.threads)
    name = device(arguments.device)
    threads = arguments.threads
    if name == "cpu" and threads is None:
        threads = len(os.sched_getaffinity(0))
    translator = Translator.load(*arguments.models, device=name, threads=threads, settings=settings)
    for model in translator.models:
        if not model.is_finite():
            what = "has parameters that are not finite numbers, since its training diverged; its translations are useless"
            print(f"hvd-async: {model.name}: {what}", file=sys.stderr)
    return translator


def report_cut(translator: Translator) -> None:
    """Say on standard error how many translations reached the greatest length."""
    if translator.num_cut:
        ratio, number = translator.decoding.max_length_ratio, translator.num_cut
        they = "1 translation has" if number == 1 else f"{number:,} translations have"
        print(
            f"hvd-async: {they} the greatest length allowed, 10 + {ratio:g} x source tokens, and may end too soon"
            " (task.decoding.max_length_ratio)",
            file=sys.stderr,
        )


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the keys of `task.decoding` that are given. Raises `ConfigError` for those out of range."""
    check_beam(arguments.beam)
    given = {"beam": arguments.beam}
    if hasattr(arguments, "length_penalty"):
        check_at_least("--batch", arguments.batch, 1)
        check_at_least("--batch-tokens", arguments.batch_tokens, 1)
        if arguments.length_penalty is not None and not arguments.length_penalty >= 0.0:
            raise ConfigError(f"--length-penalty: got {arguments.length_penalty:g}, expected a number from 0 to 100")
        given |= {
            "length_penalty": arguments.length_penalty,
            "batch_sentences": arguments.batch,
            "batch_tokens": arguments.batch_tokens,
        }
    return {key: value for key, value in given.items() if value is not None}
