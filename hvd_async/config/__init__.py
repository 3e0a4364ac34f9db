"""The configuration of a run: one YAML file, typed, frozen and strict.

Every key has a description in these sections; `docs/configuration.md` is generated from the descriptions. All errors of a
file are reported at once, before any rank starts work.
"""

from hvd_async.config.data import BatchingConfig, DataConfig, VocabularyConfig
from hvd_async.config.decoding import DecodingConfig
from hvd_async.config.emulation import EmulationConfig
from hvd_async.config.leaves import leaves
from hvd_async.config.loading import check, dotted, dump_config, load_config, parse_config, read_tree, set_value
from hvd_async.config.model import ModelConfig
from hvd_async.config.optimizer import GroupConfig, OptimizerConfig, ScheduleConfig
from hvd_async.config.run import RunConfig
from hvd_async.config.section import (
    Beam,
    Fraction,
    PathText,
    Positive,
    PositiveAmount,
    PositiveSeconds,
    Ranks,
    Section,
    Seed,
    Threads,
)
from hvd_async.config.simulation import MemoryConfig, NetworkConfig, SimulationConfig
from hvd_async.config.strategy import ArrivalsFrom, PushConfig, StoreConfig, StrategyConfig
from hvd_async.config.task import FactoryConfig, ScriptConfig, TaskConfig, TranslationConfig
from hvd_async.config.training import BOUNDS, MOST_EPOCHS, TrainingConfig, ValidationConfig
from hvd_async.config.without_effect import keys_without_effect
from hvd_async.config.yaml import dump_yaml, dump_yaml_line, read_yaml

__all__ = [
    "BOUNDS",
    "MOST_EPOCHS",
    "ArrivalsFrom",
    "BatchingConfig",
    "Beam",
    "DataConfig",
    "DecodingConfig",
    "EmulationConfig",
    "FactoryConfig",
    "Fraction",
    "GroupConfig",
    "MemoryConfig",
    "ModelConfig",
    "NetworkConfig",
    "OptimizerConfig",
    "PathText",
    "Positive",
    "PositiveAmount",
    "PositiveSeconds",
    "PushConfig",
    "Ranks",
    "RunConfig",
    "ScheduleConfig",
    "ScriptConfig",
    "Section",
    "Seed",
    "SimulationConfig",
    "StoreConfig",
    "StrategyConfig",
    "TaskConfig",
    "Threads",
    "TrainingConfig",
    "TranslationConfig",
    "ValidationConfig",
    "VocabularyConfig",
    "check",
    "dotted",
    "dump_config",
    "dump_yaml",
    "dump_yaml_line",
    "keys_without_effect",
    "leaves",
    "load_config",
    "parse_config",
    "read_tree",
    "read_yaml",
    "set_value",
]
