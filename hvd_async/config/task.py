"""The section `task`: what is trained. Each kind of task has its own keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import BeforeValidator, Field

from hvd_async.config.data import BatchingConfig, DataConfig, VocabularyConfig
from hvd_async.config.decoding import DecodingConfig
from hvd_async.config.model import ModelConfig
from hvd_async.config.section import EachOnce, Fraction, PathText, Positive, Section, as_list

TextScore = Literal["bleu", "chrf", "ter"]
"""Scores of whole texts by sacreBLEU."""
_SAMPLES = 3
_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class TranslationConfig(Section):
    """Translation with SentencePiece, and scores by sacreBLEU. This is the task if `task` names no other."""

    may_change: ClassVar[tuple[str, ...]] = (
        *("metrics", "metric_sentences", "samples", "data.folder", "data.prepared", "decoding"),
        *(
            "init_from",
            "vocabulary.file",
            "vocabulary.source_file",
            "vocabulary.target_file",
        ),  # places: what lies there is in the fingerprint
    )
    """Keys that may differ when a run is resumed: they do not change what is learned."""
    must_be_alike: ClassVar[tuple[str, ...]] = ("data", "vocabulary", "init_from", "metrics", "metric_sentences", "decoding")
    """Keys in which the variants of a suite may not differ."""
    decide_scores: ClassVar[tuple[str, ...]] = (
        *("metrics", "metric_sentences", "data.validation"),
        *(f"decoding.{key}" for key in ("validation_beam", "length_penalty", "max_length_ratio")),
    )
    """Keys on which it depends what evaluations measure."""

    renamed: ClassVar[Mapping[str, str]] = {
        "bleu": "metrics: [bleu], or metrics: [] for false",
        "bleu_sentences": "metric_sentences",
    }

    kind: Literal["translation"] = Field("translation", description="Names the task.")
    data: DataConfig = Field(description="The text.")
    vocabulary: VocabularyConfig = Field(VocabularyConfig(), description="The pieces.")
    model: ModelConfig = Field(ModelConfig(), description="The network.")
    batching: BatchingConfig = Field(BatchingConfig(), description="The batches.")
    init_from: PathText | None = Field(
        None,
        description="Folder of a model, such as `runs/first/models/best`, whose parameters training begins with, and whose"
        " vocabulary is used. `task.model` must describe a model of the same shape; its dropout may differ.",
    )
    label_smoothing: Fraction = Field(0.1, description="Label smoothing of the training loss; validation uses none.")
    metrics: Annotated[tuple[TextScore, ...], Field(strict=False), BeforeValidator(as_list), EachOnce] = Field(
        ("bleu",),
        description="Scores by sacreBLEU for which evaluations translate the validation split: `bleu`, `chrf`, `ter`. With `[]`"
        " they measure the loss alone, which is quicker.",
    )
    metric_sentences: Positive | None = Field(
        None, description="Number of first validation sentences to translate for `metrics`; none: all of them."
    )
    samples: Annotated[int, Field(ge=0, le=1000)] | None = Field(
        None,
        description="Number of first validation sentences whose translations each evaluation keeps in `<output>/samples` and"
        " shows in TensorBoard. Default: 3 if `metrics` has any, otherwise none.",
    )
    decoding: DecodingConfig = Field(DecodingConfig(), description="Search.")

    @pydantic.model_validator(mode="after")
    def _embeddings_fit(self) -> TranslationConfig:
        if not self.vocabulary.shared and self.model.tie_embeddings == "all":
            raise ValueError(
                "model.tie_embeddings: got all with vocabulary.shared false, expected decoder or none: source and target have"
                " different pieces"
            )
        return self

    @property
    def num_samples(self) -> int:
        """Number of validation sentences whose translations are kept."""
        return (_SAMPLES if self.metrics else 0) if self.samples is None else self.samples

    @property
    def measured(self) -> tuple[str, ...] | None:
        """Names of the metrics that evaluations give; None if only the task itself knows them."""
        return ("loss", *self.metrics)


class FactoryConfig(Section):
    """A task of one's own: a function that returns a `hvd_async.Task`; docs/own-model.md."""

    measured: ClassVar[None] = None
    kind: Literal["factory"] = Field("factory", description="Names the task; `factory` is enough.")
    factory: str = Field(
        description="`module:function`. The module is imported as Python does, from the folder of the command too."
        " `function(config, **options)` returns the task."
    )
    options: dict[str, Any] = Field({}, description="Arguments of the function by name: numbers, text, lists and maps.")
    options_that_may_change: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="Options that may differ when a run is resumed: they do not change what is learned."
    )
    options_alike: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="Options in which the variants of a suite may not differ, such as the data."
    )

    @property
    def may_change(self) -> tuple[str, ...]:
        """Keys that may differ when a run is resumed."""
        own = ("options_that_may_change", "options_alike")
        return (*own, *(f"options.{name}" for name in self.options_that_may_change))

    @property
    def must_be_alike(self) -> tuple[str, ...]:
        """Keys in which the variants of a suite may not differ."""
        return ("factory", "options_that_may_change", "options_alike", *(f"options.{name}" for name in self.options_alike))

    @property
    def decide_scores(self) -> tuple[str, ...]:
        """Keys on which it depends what evaluations measure, as far as they are known."""
        return ("factory", *(f"options.{name}" for name in self.options_alike))

    @pydantic.field_validator("factory")
    @classmethod
    def _is_a_place(cls, factory: str) -> str:
        if not _FACTORY.fullmatch(factory):
            raise ValueError(f"got {factory!r}, expected module:function, such as my_package.mine:make_task")
        return factory


class ScriptConfig(Section):
    """A training script with a loop of its own; docs/own-loop.md. Written by the run, for its report."""

    may_change: ClassVar[tuple[str, ...]] = ("script",)
    must_be_alike: ClassVar[tuple[str, ...]] = ()
    decide_scores: ClassVar[tuple[str, ...]] = ()

    measured: ClassVar[None] = None
    kind: Literal["script"] = Field(description="Names the task.")
    script: str = Field("", description="The program that trained.")


BRANCHES: Mapping[str, type[Section]] = {
    "<translation>": TranslationConfig,
    "<factory>": FactoryConfig,
    "<script>": ScriptConfig,
}
"""Kinds of tasks by their tags, which pydantic puts into the place of an error; they are not keys of the file."""


def branch_of(value: Any) -> str:
    """Return the tag in `BRANCHES` of the section `task`, as it was written or as it was read."""
    if isinstance(value, Section):
        return next(tag for tag, section in BRANCHES.items() if isinstance(value, section))
    kind = value.get("kind") if isinstance(value, dict) else None
    if isinstance(value, dict) and ("factory" in value or kind == "factory"):
        return "<factory>"
    return "<script>" if kind == "script" else "<translation>"


TaskConfig = Annotated[
    Annotated[TranslationConfig, pydantic.Tag("<translation>")]
    | Annotated[FactoryConfig, pydantic.Tag("<factory>")]
    | Annotated[ScriptConfig, pydantic.Tag("<script>")],
    pydantic.Discriminator(branch_of),
]
