"""The folder of an exported model: the names of its files, and whether they are there. Loads nothing heavy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from hvd_async.config import TranslationConfig
from hvd_async.errors import DataError

PARAMETERS, CONFIG, VOCABULARY, META = "model.safetensors", "config.yaml", "vocabulary.model", "meta.json"


def is_model_folder(folder: Path) -> bool:
    """Whether `folder` has the files of a model, and nothing else."""
    names = {PARAMETERS, CONFIG, VOCABULARY, META}
    return folder.is_dir() and {path.name for path in folder.iterdir()} == names


def check_folder(folder: Path) -> None:
    """Raise `DataError` unless `folder` has all files of a model, which are not read."""
    run = next((each for each in (folder, *folder.parents[:2]) if (each / "events.jsonl").is_file()), None)
    if run is not None and not any(run.glob(f"models/*/{PARAMETERS}")):
        raise DataError(
            f"{folder}: the run {run} has no model yet: it is under way, or was stopped before one was exported; continue it with"
            f" --resume, or export a version: hvd-async replay {run} --until VERSION --output FOLDER"
        )
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected an exported model")
    if not (folder / PARAMETERS).is_file() and (models := sorted(folder.glob(f"models/*/{PARAMETERS}"))):
        names = ", ".join(str(path.parent) for path in models)
        raise DataError(f"{folder}: holds a run, which has several models; expected one of {names}")
    for name in (PARAMETERS, CONFIG, VOCABULARY, META):
        if not (folder / name).is_file():
            raise DataError(f"{folder / name}: no such file; expected an exported model with {name}")


def given_vocabulary(task: TranslationConfig) -> Path | None:
    """Return the file of the vocabulary that `task` names, itself or with a model to begin with; None if one is to be trained."""
    if task.vocabulary.file is not None:
        return Path(task.vocabulary.file)
    return None if task.init_from is None else Path(task.init_from) / VOCABULARY


def check_places(task: TranslationConfig) -> None:
    """Raise `DataError`, which names the key, unless what `task.init_from` and `task.vocabulary.file` name is there."""
    if task.init_from is not None:
        with naming("init_from"):
            check_folder(Path(task.init_from))
    if task.vocabulary.file is not None and not Path(task.vocabulary.file).is_file():
        raise DataError(f"task.vocabulary.file: {task.vocabulary.file}: no such file; expected a SentencePiece model")


@contextlib.contextmanager
def naming(key: str) -> Iterator[None]:
    """Begin the message of a `DataError` from the block with `key` of the section `task`."""
    try:
        yield
    except DataError as error:
        raise DataError(f"task.{key}: {error}") from None
