"""The folder of a trained model: the names of its files, and whether they are there. Loads nothing heavy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from hvd_async.config import TranslationConfig
from hvd_async.errors import DataError

PARAMETERS, CONFIG, VOCABULARY, META = "model.safetensors", "config.yaml", "vocabulary.model", "meta.json"
SOURCE_VOCABULARY, TARGET_VOCABULARY = "vocabulary.source.model", "vocabulary.target.model"


def is_model_folder(folder: Path) -> bool:
    """Whether `folder` has the files of a model, and nothing else."""
    names = {PARAMETERS, CONFIG, META, *(path.name for path in vocabulary_files(folder))}
    return folder.is_dir() and {path.name for path in folder.iterdir()} == names


def vocabulary_files(folder: Path) -> tuple[Path, ...]:
    """Return the file of the vocabulary of both sides in `folder`, or those of source and target, if at least one of these is
    there."""
    of_sides = (folder / SOURCE_VOCABULARY, folder / TARGET_VOCABULARY)
    return of_sides if any(path.is_file() for path in of_sides) else (folder / VOCABULARY,)


def check_folder(folder: Path) -> None:
    """Raise `DataError` unless `folder` has all files of a model, which are not read."""
    run = next((each for each in (folder, *folder.parents[:2]) if (each / "events.jsonl").is_file()), None)
    if run is not None and not any(run.glob(f"models/*/{PARAMETERS}")):
        raise DataError(
            f"{folder}: the run {run} has no model yet: it is under way, or was stopped before one was saved; continue it with"
            f" --resume, or make the model of a version: hvd-async replay {run} --until VERSION --output FOLDER"
        )
    if folder.is_file():
        raise DataError(f"{folder}: got a file, expected the folder of a trained model")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected a trained model, such as runs/NAME/models/best")
    if not (folder / PARAMETERS).is_file() and (models := _models_below(folder)):
        names = ", ".join(str(path.parent) for path in models[:3]) + (", ..." if models[3:] else "")
        raise DataError(f"{folder}: holds models of runs but is not a model itself; expected {names}")
    if (folder / "model.bin").is_file() and not (folder / PARAMETERS).is_file():
        raise DataError(f"{folder}: got an export for CTranslate2, expected the model folder from which `export` made it")
    for name in (PARAMETERS, CONFIG, *(path.name for path in vocabulary_files(folder)), META):
        if not (folder / name).is_file():
            raise DataError(f"{folder / name}: no such file; expected a trained model with {name}")


def _models_below(folder: Path) -> list[Path]:
    """Return the parameters of the models of a run, or of the runs of a comparison."""
    return sorted(each for way in ("", "*/", "runs/*/") for each in folder.glob(f"{way}models/*/{PARAMETERS}"))


def given_vocabularies(task: TranslationConfig) -> tuple[Path, ...]:
    """Return the file of the vocabulary that `task` names, itself or with a model to begin with, or those of source and target;
    none if vocabularies are to be trained."""
    vocabulary = task.vocabulary
    if vocabulary.file is not None:
        return (Path(vocabulary.file),)
    if vocabulary.source_file is not None and vocabulary.target_file is not None:
        return (Path(vocabulary.source_file), Path(vocabulary.target_file))
    return () if task.init_from is None else vocabulary_files(Path(task.init_from))


def check_places(task: TranslationConfig) -> None:
    """Raise `DataError`, which names the key, unless what `task.init_from` and the files of `task.vocabulary` name is there, and
    has one vocabulary for both sides, or one for each, as `task.vocabulary.shared` says."""
    if task.init_from is not None:
        with naming("init_from"):
            check_folder(Path(task.init_from))
        are_shared = len(vocabulary_files(Path(task.init_from))) == 1
        if are_shared != task.vocabulary.shared:
            has = "one vocabulary for both sides" if are_shared else "a vocabulary for each side"
            raise DataError(
                f"task.vocabulary.shared: got {str(task.vocabulary.shared).lower()}, expected {str(are_shared).lower()}:"
                f" {task.init_from} has {has}"
            )
    for key in ("file", "source_file", "target_file"):
        path = getattr(task.vocabulary, key)
        if path is not None and not Path(path).is_file():
            raise DataError(f"task.vocabulary.{key}: {path}: no such file; expected a SentencePiece model")


@contextlib.contextmanager
def naming(key: str) -> Iterator[None]:
    """Begin the message of a `DataError` from the block with `key` of the section `task`."""
    try:
        yield
    except DataError as error:
        raise DataError(f"task.{key}: {error}") from None
