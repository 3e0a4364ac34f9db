"""`hvd-async average`."""

from __future__ import annotations

import argparse
import pathlib

from hvd_async.cli.arguments import check_folder, verb
from hvd_async.errors import ConfigError


def add_verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    _add_average(verb(verbs, "average", "make one translation model of the mean of the parameters of several", _average))


def _add_average(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models", nargs="+", type=pathlib.Path, metavar="MODEL", help="folders such as RUN/models/best, with one vocabulary"
    )
    parser.add_argument("--output", required=True, type=pathlib.Path, metavar="FOLDER", help="folder of the new model")
    parser.add_argument("--overwrite", action="store_true", help="replace the model in the output folder")


def _average(arguments: argparse.Namespace) -> int:
    from hvd_async.tasks.translation.averaging import average
    from hvd_async.tasks.translation.export import export_model, load_model
    from hvd_async.tasks.translation.model_folder import is_model_folder

    output, folders = arguments.output, arguments.models
    check_folder(output)
    if len(folders) < 2:
        raise ConfigError(f"average: got one model, {folders[0]}, expected two or more")
    if any(folder.resolve() == output.resolve() for folder in folders):
        raise ConfigError(f"--output: got {output}, which is one of the models; expected another folder")
    if output.exists() and not arguments.overwrite:
        raise ConfigError(f"--output: {output} exists already; replace it with --overwrite, or name another folder")
    if output.exists() and not is_model_folder(output):
        raise ConfigError(f"--output: got {output}, which is no model folder; expected one, or a folder that does not exist")
    mean = average(load_model(folder) for folder in folders)
    export_model(
        output,
        mean.named_tensors,
        mean.first.config,
        mean.first.vocabularies,
        version=max(mean.versions),
        extra={"averaged_versions": mean.versions},
    )
    again = ""
    if number := mean.num_repeated:
        again = f"; {number} of them {'repeats' if number == 1 else 'repeat'} an earlier one, which therefore counts more"
    print(f"{output}: mean of {len(folders)} models, of versions {', '.join(map(str, mean.versions))}{again}")
    return 0
