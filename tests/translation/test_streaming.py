"""Translation of a stream: lines are translated as they arrive, in order, and a bad line affects no other."""

from __future__ import annotations

import gzip
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from hvd_async.config import RunConfig
from hvd_async.errors import DataError
from hvd_async.tasks.translation.architectures import build_model
from hvd_async.tasks.translation.corpus import PreparedCorpus
from hvd_async.tasks.translation.export import ExportedModel
from hvd_async.tasks.translation.streaming import Translated, open_lines, translate_stream
from hvd_async.tasks.translation.translator import Translator

LINES = ["The dog sees the cat.", "", "We sleep.", "A cat.", "The dog sleeps and we see the dog."]


@pytest.fixture(scope="module")
def exported(config: RunConfig, corpus: PreparedCorpus) -> ExportedModel:
    torch.manual_seed(1)
    return ExportedModel(
        build_model(config.translation.model, len(corpus.vocabularies.target)).eval(),
        corpus.vocabularies,
        config,
        {"version": 1},
    )


@pytest.fixture(scope="module")
def translator(exported: ExportedModel) -> Translator:
    return Translator(exported, settings={"beam": 2})


def stream_of(translator: Translator, stream: BinaryIO, name: str = "text") -> Iterator[list[Translated[str]]]:
    return translate_stream(translator, stream, name, lambda lines, _: translator.translate(lines))


def translated(translator: Translator, content: bytes) -> list[Translated[str]]:
    return [line for lines in stream_of(translator, io.BytesIO(content)) for line in lines]


@pytest.mark.timeout(60)
def test_a_line_is_translated_before_the_next_one_arrives(translator: Translator) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream, os.fdopen(writing, "wb", buffering=0) as source:
        chunks = stream_of(translator, stream)
        for number, text in enumerate(["We sleep.", "A cat."], start=1):
            source.write(f"{text}\n".encode())
            assert next(chunks) == [Translated(number, translator.translate([text])[0])]
        source.write(b"The d")
        source.write(b"og.")
        source.close()
        assert next(chunks) == [Translated(3, translator.translate(["The dog."])[0])]
        assert list(chunks) == []


@pytest.mark.parametrize("threads", [None, 1, 2, 7])
@pytest.mark.parametrize("copies", [1, 40, 1500])
def test_a_stream_gives_the_same_lines_as_translating_all_at_once(
    exported: ExportedModel, threads: int | None, copies: int
) -> None:
    translator = Translator(exported, threads=threads, settings={"beam": 2})
    lines = [f"{text} {number % 9}" if text else "" for number in range(copies) for text in LINES][: 5 * min(copies, 60)]
    found = translated(translator, "\n".join(lines).encode())
    assert [line.number for line in found] == list(range(1, len(lines) + 1))
    assert [line.result for line in found] == translator.translate(lines)
    assert not any(line.fault for line in found)


def test_a_bad_line_is_reported_by_number_and_does_not_affect_the_others(translator: Translator) -> None:
    positions = translator.models[0].config.translation.model.max_positions
    content = b"\xef\xbb\xbfWe sleep.\n\xff\xfe\n\n" + b"cat " * positions + b"\nA cat.\n"
    found = translated(translator, content)
    good = translator.translate(["We sleep.", "A cat."])
    assert [line.result for line in found] == [good[0], "", "", "", good[1]]
    assert [line.number for line in found if line.fault] == [2, 4]
    assert found[1].fault == "not UTF-8 (invalid start byte)"
    assert f"expected at most {positions - 1} (task.model.max_positions)" in found[3].fault


@pytest.mark.parametrize("content", [b"", b"\n", b"\n\n", b"a", b"a\n", b"a\r\n", b"\na\n\nb"])
def test_a_last_line_without_a_newline_counts(translator: Translator, content: bytes) -> None:
    expected = content.count(b"\n") + bool(content and not content.endswith(b"\n"))
    assert len(translated(translator, content)) == expected


def test_a_long_line_is_read_in_parts(translator: Translator) -> None:
    found = translated(translator, b"dog " * 100_000 + b"\nA cat.")
    assert found[0].fault and found[1].result == translator.translate(["A cat."])[0]


def test_files_may_be_gzipped_and_failures_name_them(translator: Translator, tmp_path: Path) -> None:
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress(b"A cat.\n"))
    with open_lines(path) as stream:
        [[line]] = stream_of(translator, stream, str(path))
    assert line.result == translator.translate(["A cat."])[0]
    path.write_bytes(gzip.compress(b"A cat.\n" * 1000)[:-9])
    with pytest.raises(DataError, match=r"text\.gz: damaged gzip file"), open_lines(path) as stream:
        list(stream_of(translator, stream, str(path)))
    with pytest.raises(DataError, match="cannot be read: Is a directory"), open_lines(tmp_path):
        pass


@pytest.mark.parametrize(("threads", "size", "expected"), [(1, 1, 1), (3, 1, 3), (1, 2, 8), (2, 2, 16)])
def test_lines_are_collected_for_batches_but_not_for_batches_of_one(
    exported: ExportedModel, threads: int, size: int, expected: int
) -> None:
    translator = Translator(exported, threads=threads, settings={"beam": 1, "batch_sentences": size})
    chunks = list(stream_of(translator, io.BytesIO(b"A cat.\n" * 20)))
    assert len(chunks[0]) == expected and sum(map(len, chunks)) == 20


def test_work_gets_the_number_of_lines_before_its_own(exported: ExportedModel) -> None:
    translator = Translator(exported, settings={"batch_sentences": 1})
    chunks = translate_stream(translator, io.BytesIO(b"a\nb\nc\n"), "text", lambda lines, before: [before] * len(lines))
    assert [line.result for lines in chunks for line in lines] == [0, 1, 2]


def test_the_number_of_threads_of_torch_is_restored(exported: ExportedModel) -> None:
    before, running = torch.get_num_threads(), threading.active_count()
    Translator(exported, threads=3).translate(LINES)
    assert torch.get_num_threads() == before
    assert threading.active_count() <= running  # threads of the pool are gone; other threads may have ended too
