"""The vocabularies of both sides of a translation, which may be one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hvd_async.config import VocabularyConfig
from hvd_async.errors import DataError
from hvd_async.tasks.translation.model_folder import SOURCE_VOCABULARY, TARGET_VOCABULARY, VOCABULARY, vocabulary_files
from hvd_async.tasks.translation.vocabulary import Vocabulary


@dataclass(frozen=True)
class Vocabularies:
    """A vocabulary for each side. If they are shared, both are the same object."""

    source: Vocabulary
    target: Vocabulary

    @classmethod
    def train(cls, sources: Sequence[str], targets: Sequence[str], config: VocabularyConfig, seed: int) -> Vocabularies:
        """Train one vocabulary on both sides, or one on each, as `config` says. Raises `DataError` as `Vocabulary.train` does."""
        if config.shared:
            return cls.of([Vocabulary.train([*sources, *targets], config, seed)])
        found = []
        for side, texts in (("source", sources), ("target", targets)):
            try:
                found.append(Vocabulary.train(texts, config, seed))
            except DataError as error:
                raise DataError(f"{error} (on the {side} side)") from None
        return cls.of(found)

    @classmethod
    def of(cls, found: Sequence[Vocabulary]) -> Vocabularies:
        """Return a single vocabulary as that of both sides, or those of source and target."""
        return cls(found[0], found[-1])

    @classmethod
    def load(cls, paths: Sequence[Path]) -> Vocabularies:
        """Read the file of a vocabulary for both sides, or those of source and target. Raises `DataError` if one is missing or
        damaged."""
        return cls.of([Vocabulary.load(path) for path in paths])

    @classmethod
    def load_folder(cls, folder: Path) -> Vocabularies:
        """Read what `save` wrote. Raises `DataError` if a file is missing or damaged."""
        return cls.load(vocabulary_files(folder))

    def save(self, folder: Path) -> None:
        """Write one file, or one for each side, that other tools can read, too."""
        if self.are_shared:
            self.target.save(folder / VOCABULARY)
        else:
            self.source.save(folder / SOURCE_VOCABULARY)
            self.target.save(folder / TARGET_VOCABULARY)

    @property
    def are_shared(self) -> bool:
        """Whether both sides have one vocabulary."""
        return self.source is self.target

    @property
    def sizes(self) -> tuple[int, int]:
        """The number of pieces of source and target."""
        return len(self.source), len(self.target)

    def is_same(self, other: Vocabularies) -> bool:
        """Whether both cut every text of each side into the same pieces with the same numbers."""
        is_alike = self.are_shared == other.are_shared
        return is_alike and self.source.is_same(other.source) and self.target.is_same(other.target)

    def __str__(self) -> str:
        """Return the number of pieces in words."""
        source, target = self.sizes
        return f"{target} pieces" if self.are_shared else f"{source} and {target} pieces"
