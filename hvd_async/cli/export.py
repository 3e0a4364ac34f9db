"""`hvd-async export`."""

from __future__ import annotations

import argparse
import pathlib

from hvd_async.cli.arguments import check_folder, verb
from hvd_async.errors import ConfigError
from hvd_async.system.extras import require

_QUANTIZATIONS = ("int8", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16", "float32")


def add_verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    _add_export(verb(verbs, "export", "write a translation model in the format of CTranslate2, for fast inference", _export))


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=pathlib.Path, metavar="MODEL", help="folder such as RUN/models/best")
    parser.add_argument("--output", required=True, type=pathlib.Path, metavar="FOLDER", help="folder of the new files")
    parser.add_argument(
        "--format",
        choices=("ctranslate2",),
        default="ctranslate2",
        help="the format (default, and the only one: ctranslate2)",
    )
    parser.add_argument(
        "--quantization", choices=_QUANTIZATIONS, help="how parameters are stored; default: as they are, in float32"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in the output folder")


def _export(arguments: argparse.Namespace) -> int:
    require("ctranslate2")
    from hvd_async.tasks.translation.ctranslate2_model import export_ctranslate2, is_export
    from hvd_async.tasks.translation.export import load_model

    output = arguments.output
    check_folder(output)
    if output.exists() and not arguments.overwrite:
        raise ConfigError(f"--output: {output} exists already; replace it with --overwrite, or name another folder")
    if output.exists() and not is_export(output):
        raise ConfigError(
            f"--output: got {output}, which is no export, or has other files too; expected one, or a folder that does not exist"
        )
    export_ctranslate2(load_model(arguments.model), output, arguments.quantization)
    size = sum(path.stat().st_size for path in output.iterdir())
    print(f"{output}: {arguments.model} for CTranslate2, {arguments.quantization or 'float32'}, {size / 1e6:.1f} MB")
    return 0
