"""Translation of text with exported models, for the verbs of the command line and for Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hvd_async.config import DecodingConfig, check
from hvd_async.errors import ConfigError, DataError, SetupError
from hvd_async.tasks.translation import decoding
from hvd_async.tasks.translation.decoding import Hypothesis, length_fault, length_limits
from hvd_async.tasks.translation.ensemble import Ensemble
from hvd_async.tasks.translation.export import ExportedModel, check_vocabularies, load_model
from hvd_async.tasks.translation.likelihood import Likelihood, log_probabilities
from hvd_async.tasks.translation.model import Predictor
from hvd_async.tasks.translation.sampling import Sampling, sample
from hvd_async.tasks.translation.vocabulary import EOS, UNK


@dataclass(frozen=True)
class Translation:
    """A translation of a sentence, and how probable the model finds it."""

    text: str
    """The translation, detokenized."""
    score: float
    """By which translations are compared: `log_probability` / (number of tokens, end included) ^ `length_penalty`."""
    log_probability: float
    """Sum over the tokens and the end of sentence, in nats; minus infinity for a model that finds nothing."""


class Translator:
    """Translates text with a model folder that a run has exported, or with several as an ensemble.

    An ensemble takes the mean of its models' probabilities for each token. Call the methods from one thread at a time. `threads`
    and the device are chosen when a translator is made.
    """

    def __init__(
        self, *models: ExportedModel, threads: int | None = None, settings: Mapping[str, Any] | None = None
    ) -> None:
        """Use models that are loaded already; `load` reads them from their folders.

        Args:
            models: what `load_model` returns; several are an ensemble, and the first one's settings count.
            threads: number of batches that are translated at a time, each by one thread; results do not depend on it. None:
                one batch after another, each with torch's threads.
            settings: keys of `task.decoding` that differ from those of the model, such as `{"beam": 8}`.

        Raises:
            ConfigError: a setting is unknown or out of range, `threads` is below 1, or there is no model.
            DataError: the models have different vocabularies.
        """
        if not models:
            raise ConfigError("models: got none, expected at least one")
        if threads is not None and threads < 1:
            raise ConfigError(f"threads: got {threads}, expected 1 or more")
        for model in models[1:]:
            check_vocabularies(models[0], model)
        self.models = models
        """The models with their vocabularies and configurations."""
        own = models[0].config.translation.decoding.model_dump()
        self.decoding = check(DecodingConfig, {**own, **(settings or {})}, "settings")
        """The settings of the search."""
        self.threads = threads
        """Number of batches that are translated at a time; None: one, with torch's threads."""
        self.num_cut = 0
        """Translations so far that are as long as `decoding.max_length_ratio` and the model allow: most were cut short."""
        self._vocabularies = models[0].vocabularies
        self._predictor: Predictor = models[0].model
        if len(models) > 1:
            self._predictor = Ensemble([each.model for each in models])

    @classmethod
    def load(
        cls,
        *folders: str | Path,
        device: str = "cpu",
        threads: int | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Translator:
        """Return a translator with the model in a folder, such as `runs/multi30k/models/best`, or with several as an ensemble.

        Args:
            folders: model folders.
            device: `cpu` or `cuda[:INDEX]`.
            threads: as for the constructor.
            settings: as for the constructor.

        Raises:
            ConfigError: a setting is wrong, or `device` is no name of a device.
            DataError: a folder is missing or damaged, or the models have different vocabularies.
            SetupError: this machine has no such device.
        """
        _check_device(device)
        return cls(*(load_model(Path(folder), device) for folder in folders), threads=threads, settings=settings)

    def translate(self, sentences: Sequence[str]) -> list[str]:
        """Return the best translation found for each of `sentences`, in their order. An empty sentence stays empty.

        Raises:
            DataError: a sentence is too long for the model; the message has its number, from 1.
        """
        encoded = self._encode(sentences)
        beam, threads = self.decoding.beam, self.threads
        found = decoding.translate(self._predictor, encoded, self.decoding, beam=beam, threads=threads)
        self._count_cut(encoded, [[tokens] for tokens in found])
        # An empty line keeps its place, so that a too long line is reported by its number.
        return [
            text if tokens else "" for text, tokens in zip(self._vocabularies.target.decode(found), encoded, strict=True)
        ]

    def n_best(self, sentences: Sequence[str], n: int) -> list[list[Translation]]:
        """Return the `n` best translations that the search finds for each of `sentences`, best first.

        A sentence has fewer where the search finds no more, but at least one. Two translations of a sentence may have the same
        text in different pieces. An empty sentence has one translation, which is empty and has the score 0.

        Raises:
            ConfigError: `n` is below 1 or above the beam size.
            DataError: as for `translate`.
        """
        beam = self.decoding.beam
        if not 1 <= n <= beam:
            raise ConfigError(f"n: got {n}, expected 1 to {beam}, the beam size; a larger beam finds more")
        encoded = self._encode(sentences)
        found = decoding.n_best(self._predictor, encoded, self.decoding, beam=beam, num_best=n, threads=self.threads)
        return self._translations(encoded, found)

    def sample(self, sentences: Sequence[str], sampling: Sampling) -> list[list[Translation]]:
        """Return translations of each of `sentences` that are drawn at random, in the order in which they are drawn.

        The score of a translation is that of the model, whatever the temperature. Empty sentences are as for `n_best`.

        Raises:
            DataError: as for `translate`.
        """
        encoded = self._encode(sentences)
        return self._translations(encoded, sample(self._predictor, encoded, self.decoding, sampling, threads=self.threads))

    def likelihoods(self, sources: Sequence[str], references: Sequence[str]) -> list[Likelihood]:
        """Return how probable the model finds each of `references` as the translation of its source. Nothing is searched.

        Raises:
            DataError: there are not as many sources as references, or a sentence is too long for the model.
        """
        encoded, targets = self._encode(sources), self._encode(references, is_target=True)
        if len(encoded) != len(targets):
            raise DataError(f"references: got {len(targets)}, expected {len(encoded)}, one for each source")
        found = log_probabilities(self._predictor, encoded, targets, self.decoding, threads=self.threads)
        pieces = [self._vocabularies.target.pieces([*tokens, EOS]) for tokens in targets]
        return [Likelihood(*each) for each in zip(pieces, found, strict=True)]

    def num_unknown(self, sentences: Sequence[str], *, are_targets: bool = False) -> int:
        """Return the number of pieces of `sentences` that the vocabulary does not know: that of the source, or with `are_targets`
        that of the target, where each side has its own."""
        return sum(tokens.count(UNK) for tokens in self._encode(sentences, is_target=are_targets))

    def length_fault(self, sentence: str) -> str:
        """Return what is wrong with the length of `sentence`, in words; empty if the model can read it."""
        return length_fault(self._predictor, self._encode([sentence])[0])

    def _encode(self, sentences: Sequence[str], *, is_target: bool = False) -> list[list[int]]:
        if isinstance(sentences, str):
            raise TypeError("sentences: got one text, expected a list of texts, such as [text]")
        vocabulary = self._vocabularies.target if is_target else self._vocabularies.source
        return vocabulary.encode([sentence.strip() for sentence in sentences])

    def _count_cut(self, encoded: Sequence[Sequence[int]], found: Sequence[Sequence[Sequence[int]]]) -> None:
        """Count the translations in `found`, several of each sentence, that are as long as may be; an empty line has none."""
        limits = length_limits(self._predictor, encoded, self.decoding)
        self.num_cut += sum(
            len(tokens) == limit
            for source, limit, each in zip(encoded, limits, found, strict=True)
            for tokens in each
            if source
        )

    def _translations(
        self, encoded: Sequence[Sequence[int]], found: Sequence[Sequence[Hypothesis]]
    ) -> list[list[Translation]]:
        self._count_cut(encoded, [[one.tokens for one in hypotheses] for hypotheses in found])
        nothing = [Translation("", 0.0, 0.0)]
        results = []
        for tokens, hypotheses in zip(encoded, found, strict=True):
            texts = self._vocabularies.target.decode([one.tokens for one in hypotheses])
            translations = [
                Translation(text, one.score, one.log_probability) for text, one in zip(texts, hypotheses, strict=True)
            ]
            results.append(translations if tokens else nothing)
        return results


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: got {name!r}, expected cpu or cuda[:INDEX]")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SetupError(f"device: got {name}, expected cpu or one of {torch.cuda.device_count()} CUDA devices")
