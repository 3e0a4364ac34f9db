"""The tasks that a configuration can name; besides the command line, only this module knows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvd_async.config import FactoryConfig, RunConfig, ScriptConfig, TranslationConfig
from hvd_async.errors import ConfigError
from hvd_async.system.extras import require

if TYPE_CHECKING:
    from hvd_async.tasks.task import Task


def make_task(config: RunConfig) -> Task:
    """Return the task of `config`, with its data prepared, which may leave files behind for other ranks.

    Imports the module of a factory. Raises `HvdAsyncError` if the data are missing or unusable, and `ConfigError` for a
    factory that fails, or a script, which trains by itself.
    """
    if isinstance(config.task, FactoryConfig):
        from hvd_async.tasks.factory import make_factory_task

        return make_factory_task(config, config.task)
    if isinstance(config.task, ScriptConfig):
        raise ConfigError("task.kind: got script, which trains in a loop of its own; start the script itself")
    require("translation")
    from hvd_async.tasks.translation import TranslationTask, prepare  # slow to import

    return TranslationTask(config, prepare(config))


def check_data(config: RunConfig) -> None:
    """Raise `DataError` if data of the task of `config` are missing, as far as that is known without reading them, and
    `SetupError` if a package is."""
    if isinstance(config.task, TranslationConfig):
        require("translation")
        from hvd_async.tasks.translation.model_folder import check_places
        from hvd_async.tasks.translation.text import find_texts

        find_texts(config.task.data)
        check_places(config.task)


def weight_unit(config: RunConfig) -> str:
    """Return what weights count in the task of `config`, in the plural, as far as that is known without reading data."""
    return "tokens" if isinstance(config.task, TranslationConfig) else "units"


def estimate(config: RunConfig) -> tuple[int, float]:
    """Return the number of parameters and the weight of a batch, without reading data or allocating the model.

    The keys of `simulation` count first. Raises `ConfigError` if they are missing for a task of which nothing is known.
    """
    parameters, weight = config.simulation.parameters, config.simulation.weight
    if parameters is not None and weight is not None:
        return parameters, weight
    if not isinstance(config.task, TranslationConfig):
        raise ConfigError(
            f"simulation.parameters, simulation.weight: got {parameters} and {weight}, expected both: nothing else is known"
            f" of a task of kind {config.task.kind}"
        )
    return parameters or _count_parameters(config.task), weight or config.task.batching.tokens


def _count_parameters(task: TranslationConfig) -> int:
    """Count the parameters of the model that `task` describes, whose memory is never allocated."""
    from hvd_async.tasks.translation.architectures import shapes_of_model  # imports torch, which is slow
    from hvd_async.tasks.translation.model_folder import check_places, given_vocabularies
    from hvd_async.tasks.translation.vocabularies import Vocabularies

    check_places(task)
    given = given_vocabularies(task)
    source_size, target_size = Vocabularies.load(given).sizes if given else (task.vocabulary.size, task.vocabulary.size)
    return sum(parameter.numel() for parameter in shapes_of_model(task.model, target_size, source_size).parameters())
