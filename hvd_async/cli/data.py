"""`hvd-async data`."""

from __future__ import annotations

import argparse
import pathlib

from hvd_async.cli.arguments import (
    read_paths,
    verb,
)
from hvd_async.errors import ConfigError

_MOST_PAIRS = 10_000_000


def add_verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    _add_data(verb(verbs, "data", "make a folder of parallel text to train on", _data))


def _add_data(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(title="corpora", required=True, metavar="CORPUS")
    builtin = kinds.add_parser("builtin", help="generated sentences, English-like to German-like; needs no download")
    builtin.add_argument("--output", required=True, type=pathlib.Path, metavar="FOLDER", help="folder for the text files")
    builtin.add_argument("--seed", type=int, default=1, help="seed of words and sentences (default 1)")
    builtin.add_argument("--train", type=int, default=20000, metavar="N", help="training pairs (default 20000)")
    builtin.add_argument("--validation", type=int, default=500, metavar="N", help="validation pairs (default 500)")
    builtin.add_argument("--test", type=int, default=500, metavar="N", help="test pairs (default 500)")
    builtin.set_defaults(run=_data_builtin, parser=builtin)
    _finish(builtin)
    multi30k = kinds.add_parser("multi30k", help="Multi30k, English to German: from a folder, or downloaded")
    multi30k.add_argument("--output", required=True, type=pathlib.Path, metavar="FOLDER", help="folder for the text files")
    origin = multi30k.add_mutually_exclusive_group(required=True)
    origin.add_argument(
        "--from", type=pathlib.Path, dest="source", metavar="FOLDER", help="folder with train, val, test .en .de[.gz]"
    )
    origin.add_argument("--download", action="store_true", help="download from the public repository, checksums verified")
    multi30k.set_defaults(run=_data_multi30k, parser=multi30k)
    _finish(multi30k)


def _finish(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace other text in the output folder")
    read_paths(parser)


def _data(_: argparse.Namespace) -> int:
    raise AssertionError("argparse asks for a corpus")


def _data_builtin(arguments: argparse.Namespace) -> int:
    from hvd_async.tasks.translation.builtin.grammar import write_corpus

    sizes = {"train": arguments.train, "validation": arguments.validation, "test": arguments.test}
    for name, size in sizes.items():
        if not 1 <= size <= _MOST_PAIRS:
            raise ConfigError(f"--{name}: got {size}, expected 1 to {_MOST_PAIRS:,}")
    write_corpus(arguments.output, seed=arguments.seed, overwrite=arguments.overwrite, **sizes)
    print(f"{arguments.output}: {arguments.train} training, {arguments.validation} validation, {arguments.test} test pairs")
    return 0


def _data_multi30k(arguments: argparse.Namespace) -> int:
    from hvd_async.tasks.translation.multi30k import download_multi30k, import_multi30k

    if arguments.download:
        download_multi30k(arguments.output, overwrite=arguments.overwrite)
    else:
        import_multi30k(arguments.source, arguments.output, overwrite=arguments.overwrite)
    print(f"{arguments.output}: Multi30k, checksums verified")
    return 0
