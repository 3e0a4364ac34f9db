"""Arguments that several verbs of the command line share, and checks of the given values."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable, Sequence

from hvd_async.cli.parser import EXIT_STATUS
from hvd_async.errors import ConfigError, SetupError
from hvd_async.system.limits import MOST_BEAM, MOST_RANKS, MOST_SECONDS, MOST_THREADS
from hvd_async.system.paths import path_of
from hvd_async.system.printable import shortened

# The largest accepted number for each argument; the bounds are those of a configuration.
_MOST = {
    **dict.fromkeys(("workers", "workers_per_node", "jobs", "stage", "task"), MOST_RANKS),
    "nodes": 10_000,
    **dict.fromkeys(("threads", "cpus_per_worker", "gpus_per_node"), MOST_THREADS),
    "beam": MOST_BEAM,
    "n_best": MOST_BEAM,
    "length_penalty": 100,
    **dict.fromkeys(("batch", "batch_tokens", "top_k"), 10**9),
    "temperature": 1000,
    "arrivals": 10**9,
    "repeats": 10**9,
    "seconds": MOST_SECONDS,
    "step_seconds": MOST_SECONDS,
}

# More threads than any machine has cores for would only take memory.
_MOST_THREADS = 4096


def verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    purpose: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    """Add the verb `name` and return its parser. `run` maps the parsed arguments to the exit status."""
    parser = verbs.add_parser(
        name,
        help=purpose,
        description=purpose[0].upper() + purpose[1:] + ".",
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, parser=parser)
    read_paths(parser)
    return parser


def read_paths(parser: argparse.ArgumentParser) -> None:
    """Make `parser` read every argument of type `pathlib.Path` by the rules of `hvd_async.system.paths`."""
    parser.register("type", pathlib.Path, lambda text: pathlib.Path(path_argument(text)))


def path_argument(text: str) -> str:
    """Return `text` if it is a valid path. Raises `argparse.ArgumentTypeError` otherwise, which argparse reports."""
    try:
        return path_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add `--set`, which overrides keys of a configuration."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="override a key, such as strategy.arrivals_per_update=4, or validation.every=null for none; may be repeated",
    )


def add_config(parser: argparse.ArgumentParser, *, is_optional: bool = False) -> None:
    """Add the configuration of a run, and the flags that decide how the run begins."""
    parser.add_argument(
        "config",
        type=path_argument,
        metavar="CONFIG",
        nargs="?" if is_optional else None,
        help="YAML file; docs/configuration.md explains every key",
    )
    add_overrides(parser)
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--resume", action="store_true", help="resume from the latest checkpoint in the output folder")
    begin.add_argument(
        "--auto-resume",
        action="store_true",
        help="resume from the latest checkpoint if there is one, otherwise begin; for jobs that a batch system restarts",
    )
    begin.add_argument("--overwrite", action="store_true", help="replace the run in the output folder")


def is_given(arguments: argparse.Namespace, name: str) -> bool:
    """Whether the argument was on the command line; 0 counts as given."""
    given = getattr(arguments, name)
    return not (given is None or given is False or given == [])


def refuse(arguments: argparse.Namespace, names: Sequence[str], beside: str) -> None:
    """Refuse arguments that have no effect with `beside`. Raises `ConfigError` for the first of `names` that was given."""
    for name in names:
        given = getattr(arguments, name)
        if is_given(arguments, name):
            flag = "--set" if name == "overrides" else "--" + name.replace("_", "-")
            value = "" if given is True else f" {given[0] if name == 'overrides' else given}"
            raise ConfigError(f"{flag}{value} has no effect with {beside}; remove one of them")


def check_can_be_read_again(path: str | pathlib.Path) -> None:
    """Refuse a pipe, such as that of `<(...)`: the started processes read the file again, by name. Raises `ConfigError`."""
    path = pathlib.Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ConfigError(
            f"{path}: got no ordinary file, expected one, since the ranks read it too; write it to a file first"
        )


def check_folder(output: pathlib.Path) -> None:
    """Refuse an output folder that cannot be made because a file is in the way. Raises `ConfigError`."""
    for path in (output, *output.parents):
        if path.exists() and not path.is_dir():
            raise ConfigError(f"--output: got {output}, but {path} is a file; expected a folder")


def check_numbers(arguments: argparse.Namespace) -> None:
    """Refuse absurdly large numbers, which would fail inside a library or make an endless list. Raises `ConfigError`.

    Each verb itself refuses numbers that are too small.
    """
    for name, most in _MOST.items():
        given = getattr(arguments, name, None)
        if isinstance(given, (int, float)) and not given <= most:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag}: got {given}, expected at most {most:,}")


def check_new(flag: str, path: pathlib.Path | None, *, overwrite: bool) -> None:
    """Refuse an output file that exists already, before the work is done. Raises `ConfigError`."""
    if path is None:
        return
    if path.is_dir():
        raise ConfigError(f"{flag}: got the folder {path}, expected a file")
    if path.exists() and not overwrite and path.is_file():
        raise ConfigError(f"{flag}: {path} exists already; replace it with --overwrite, or name another file")


def check_other_file(flag: str, path: pathlib.Path | None, taken: Sequence[tuple[str, pathlib.Path | None]]) -> None:
    """Refuse an output file that is one of the input files `taken`, each a flag and its path. Raises `ConfigError`."""
    for other, used in taken:
        if path is not None and used is not None and path.resolve() == used.resolve():
            raise ConfigError(f"{flag}: got {path}, the file of {other}; expected another file")


def check_at_least(flag: str, number: int | None, least: int) -> None:
    """Refuse a number that is too small. Raises `ConfigError`."""
    if number is not None and number < least:
        raise ConfigError(f"{flag}: got {number}, expected {least} or more")


def numbers(flag: str, text: str) -> list[int]:
    """Return the whole numbers of a comma-separated list. Raises `ConfigError` for anything else."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and len(part) < 12 and 1 <= int(part) <= MOST_RANKS for part in parts):
        raise ConfigError(f"{flag}: got {shortened(text)}, expected whole numbers from 1 to {MOST_RANKS:,}, such as 4,16,64")
    return [int(part) for part in parts]


def check_beam(beam: int | None) -> None:
    """Refuse a beam size below 1. Raises `ConfigError`."""
    check_at_least("--beam", beam, 1)


def check_threads(threads: int) -> None:
    """Refuse a number of threads that no machine can use. Raises `ConfigError`."""
    if not 1 <= threads <= _MOST_THREADS:
        raise ConfigError(f"--threads: got {threads}, expected 1 to {_MOST_THREADS}")


def device(name: str) -> str:
    """Return `name` if this machine has that device. Raises `SetupError` if not, `ConfigError` if `name` names no device."""
    import torch

    try:
        device = torch.device(name)
        if device.type == "cuda" and (device.index or 0) < torch.cuda.device_count():
            return name
    except RuntimeError:
        raise ConfigError(f"--device: got {name!r}, expected cpu or cuda[:INDEX]") from None
    if device.type == "cpu":
        return name
    raise SetupError(f"--device: got {name}, expected cpu or one of {torch.cuda.device_count()} CUDA devices")
