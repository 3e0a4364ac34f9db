from __future__ import annotations

from pathlib import Path

import pytest

from hvd_async.config import RunConfig
from hvd_async.tasks.translation.builtin.grammar import write_corpus
from hvd_async.tasks.translation.corpus import PreparedCorpus, prepare
from tests.translation.models import write_model
from tests.translation.settings import make_config


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus, which tests must not change."""
    folder = tmp_path_factory.mktemp("grammar")
    write_corpus(folder, train=300, validation=12, test=5)
    return folder


@pytest.fixture(scope="session")
def config(folder: Path) -> RunConfig:
    return make_config(folder)


@pytest.fixture(scope="session")
def corpus(config: RunConfig) -> PreparedCorpus:
    return prepare(config)


@pytest.fixture(scope="session")
def model_folder(config: RunConfig, corpus: PreparedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained model, which tests must not change."""
    return write_model(tmp_path_factory.mktemp("exported") / "model", config, corpus, seed=1)
