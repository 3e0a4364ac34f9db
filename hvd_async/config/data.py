"""The sections `data`, `vocabulary` and `batching`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field

from hvd_async.config.section import EachOnce, Fraction, PathText, Positive, Section, as_list
from hvd_async.system.paths import path_of
from hvd_async.system.printable import shortened

_LONGEST_SYMBOL = 100


def _as_names(value: Any) -> Any:
    """Return a single name as a list of one."""
    if not isinstance(value, str | list | tuple):
        raise ValueError(f"got {value!r}, expected a name, or a list of names")
    return as_list(value)


def _checked_names(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise ValueError("got no name, expected at least one")
    return tuple(path_of(name) for name in names)


SplitNames = Annotated[tuple[str, ...], Field(strict=False), BeforeValidator(_as_names), AfterValidator(_checked_names)]
"""Names of splits; a single one may stand without a list."""


def _symbol(text: str) -> str:
    if not 0 < len(text) <= _LONGEST_SYMBOL or not text.isprintable() or re.search(r"[\s\u2581]", text):
        raise ValueError(
            f"got {shortened(text)}, expected 1 to {_LONGEST_SYMBOL} characters that can be printed, without spaces and \u2581"
        )
    if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>|<hvd_async:.*>", text):
        raise ValueError(f"got {text}, which names a piece of its own in vocabularies, expected another symbol")
    return text


Symbol = Annotated[str, AfterValidator(_symbol)]


class DataConfig(Section):
    """Location of the text. `hvd-async data` writes such folders; any aligned text files work."""

    folder: PathText = Field(
        description="Folder of the text files, one sentence a line: `<split>.<language>`, plain or `.gz`."
    )
    source: PathText = Field("en", description="Source language: the ending of its files.")
    target: PathText = Field("de", description="Target language: the ending of its files.")
    train: SplitNames = Field(
        ("train",),
        description="Names of the training splits, which are joined in this order; a single name needs no list. A name that"
        " occurs twice counts twice.",
    )
    validation: PathText = Field("val", description="Name of the validation split.")
    prepared: PathText | None = Field(
        None,
        description="Folder for the trained vocabulary and the tokenized arrays; created on first use and reused as"
        " long as text and settings stay the same. Default: `<folder>/prepared`.",
    )
    max_tokens_per_sentence: Positive = Field(
        128, description="Training pairs with more tokens than this on either side are left out and counted."
    )
    max_ratio: Annotated[float, Field(ge=1.0, le=1000.0)] | None = Field(
        None,
        description="Training pairs are left out and counted if one side has more than this times the tokens of the other."
        " Default: no limit.",
    )
    drop_duplicates: bool = Field(
        False, description="Leave out, and count, training pairs whose text on both sides is that of an earlier pair."
    )


class VocabularyConfig(Section):
    """The SentencePiece model, trained jointly on both sides of the training text, or one for each side, on every line, even
    those that training leaves out.

    Runs of spaces count as one. Characters that no piece covers are read as unknown and do not appear in translations, unless
    `byte_fallback` is set; a run reports how many there are, and how many lines normalisation changes.
    """

    shared: bool = Field(
        True,
        description="One vocabulary for both sides; false: one for each, of `size` pieces each, which requires"
        " `task.model.tie_embeddings` `decoder` or `none`.",
    )
    file: PathText | None = Field(
        None,
        description="A SentencePiece model to use in place of training one; the keys that shape one then have no effect. It"
        " must have been trained with `--pad_id=0 --unk_id=1 --bos_id=2 --eos_id=3`. Default: that of `task.init_from`, if it is"
        " set.",
    )
    source_file: PathText | None = Field(
        None, description="With `shared: false`: as `file`, for the source; requires `target_file`."
    )
    target_file: PathText | None = Field(
        None, description="With `shared: false`: as `file`, for the target; requires `source_file`."
    )
    size: Annotated[int, Field(ge=16, le=1_000_000)] = Field(
        6000, description="Number of pieces, the four special ones included."
    )
    kind: Literal["bpe", "unigram"] = Field("bpe", description="How SentencePiece builds the pieces.")
    character_coverage: Annotated[float, Field(ge=0.98, le=1.0)] = Field(
        1.0, description="Share of the text's characters that the pieces must cover; rarer ones are unknown."
    )
    byte_fallback: bool = Field(
        False,
        description="Cut characters that no piece covers into the bytes of their UTF-8, so that none is unknown. 256 of the"
        " pieces are then bytes.",
    )
    normalization: Literal["nmt_nfkc", "nfkc", "identity"] = Field(
        "nmt_nfkc",
        description="Normalisation of the training text and of what is translated. `nfkc`: Unicode NFKC, by which `½`"
        " becomes `1⁄2` and `，` a comma; `nmt_nfkc`: also, invisible characters vanish or become spaces;"
        " `identity`: none.",
    )
    symbols: Annotated[tuple[Symbol, ...], Field(strict=False), BeforeValidator(as_list), EachOnce] = Field(
        (),
        description="Texts that stay whole, a piece each, such as tags of languages: `['<2de>', '<2fr>']`.",
    )
    bpe_dropout: Fraction = Field(
        0.0,
        description="Share of the merges that are left out, at random and anew in each epoch, when training text is cut into"
        " pieces (BPE dropout, Provilkov et al. 2020); kind `bpe` only. Sentences have more pieces then; `task.batching` and"
        " `max_tokens_per_sentence` count those without it.",
    )
    bpe_dropout_side: Literal["both", "source", "target"] = Field(
        "both", description="Sides to which `bpe_dropout` applies."
    )

    @pydantic.model_validator(mode="after")
    def _files_fit(self) -> VocabularyConfig:
        of_sides = [key for key in ("source_file", "target_file") if getattr(self, key) is not None]
        if self.shared and of_sides:
            raise ValueError(f"{of_sides[0]}: got a file with shared true, expected shared: false, or the key file")
        if not self.shared and self.file is not None:
            raise ValueError("file: got one with shared false, expected source_file and target_file")
        if len(of_sides) == 1:
            raise ValueError(
                f"{of_sides[0]}: got a file for one side, expected both source_file and target_file, or neither"
            )
        return self

    @property
    def has_files(self) -> bool:
        """Whether the vocabularies are given as files."""
        return self.file is not None or self.source_file is not None

    @pydantic.model_validator(mode="after")
    def _dropout_fits(self) -> VocabularyConfig:
        if self.bpe_dropout and self.kind != "bpe" and not self.has_files:
            raise ValueError(
                f"bpe_dropout: got {self.bpe_dropout:g} with kind {self.kind}, expected 0, or kind bpe, which makes pieces by"
                " merges"
            )
        if self.bpe_dropout_side != "both" and not self.bpe_dropout:
            raise ValueError(f"bpe_dropout_side: got {self.bpe_dropout_side} with bpe_dropout 0, expected bpe_dropout > 0")
        return self

    @property
    def dropout_sides(self) -> tuple[str, ...]:
        """Sides whose merges are left out: `source`, `target`, both or none."""
        if not self.bpe_dropout:
            return ()
        return ("source", "target") if self.bpe_dropout_side == "both" else (self.bpe_dropout_side,)


class BatchingConfig(Section):
    """Composition of batches: a seeded permutation of the sentences, equal for every strategy."""

    tokens: Positive = Field(1000, description="Most tokens of a batch on its larger side, padding included.")
    max_sentences: Positive = Field(512, description="Most sentences of a batch.")
    bucket_batches: Positive = Field(
        100, description="Sentences are shuffled, then sorted by length within windows of about this many batches."
    )
