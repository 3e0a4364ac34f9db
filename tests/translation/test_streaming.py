"""Translation of a stream: lines are translated as they arrive, in order, and a bad line affects no other."""

from __future__ import annotations

import gzip
import io
import os
import threading
from pathlib import Path

import pytest
import torch

from hvd_async.config import RunConfig
from hvd_async.errors import DataError
from hvd_async.tasks.translation.architectures import build_model
from hvd_async.tasks.translation.corpus import PreparedCorpus
from hvd_async.tasks.translation.export import ExportedModel
from hvd_async.tasks.translation.streaming import Translated, open_lines, translate_stream

LINES = ["The dog sees the cat.", "", "We sleep.", "A cat.", "The dog sleeps and we see the dog."]


@pytest.fixture(scope="module")
def model(config: RunConfig, corpus: PreparedCorpus) -> ExportedModel:
    torch.manual_seed(1)
    return ExportedModel(
        build_model(config.translation.model, len(corpus.vocabulary)).eval(), corpus.vocabulary, config, {"version": 1}
    )


def translated(model: ExportedModel, content: bytes, threads: int | None = None) -> list[Translated]:
    chunks = translate_stream(model, io.BytesIO(content), "text", beam=2, threads=threads)
    return [line for lines in chunks for line in lines]


@pytest.mark.timeout(60)
def test_a_line_is_translated_before_the_next_one_arrives(model: ExportedModel) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream, os.fdopen(writing, "wb", buffering=0) as source:
        chunks = translate_stream(model, stream, "text", beam=1)
        for number, text in enumerate(["We sleep.", "A cat."], start=1):
            source.write(f"{text}\n".encode())
            assert next(chunks) == [Translated(number, model.translate([text], beam=1)[0])]
        source.write(b"The d")
        source.write(b"og.")
        source.close()
        assert next(chunks) == [Translated(3, model.translate(["The dog."], beam=1)[0])]
        assert list(chunks) == []


@pytest.mark.parametrize("threads", [None, 1, 2, 7])
@pytest.mark.parametrize("copies", [1, 40, 1500])
def test_a_stream_gives_the_same_lines_as_translating_all_at_once(
    model: ExportedModel, threads: int | None, copies: int
) -> None:
    lines = [f"{text} {number % 9}" if text else "" for number in range(copies) for text in LINES][: 5 * min(copies, 60)]
    found = translated(model, "\n".join(lines).encode(), threads)
    assert [line.number for line in found] == list(range(1, len(lines) + 1))
    assert [line.text for line in found] == model.translate(lines, 2)
    assert not any(line.fault for line in found)


def test_a_bad_line_is_reported_by_number_and_does_not_affect_the_others(model: ExportedModel) -> None:
    positions = model.config.translation.model.max_positions
    content = b"\xef\xbb\xbfWe sleep.\n\xff\xfe\n\n" + b"cat " * positions + b"\nA cat.\n"
    found = translated(model, content)
    good = model.translate(["We sleep.", "A cat."], 2)
    assert [line.text for line in found] == [good[0], "", "", "", good[1]]
    assert [line.number for line in found if line.fault] == [2, 4]
    assert found[1].fault == "not UTF-8 (invalid start byte)"
    assert f"expected at most {positions - 1} (task.model.max_positions)" in found[3].fault


@pytest.mark.parametrize("content", [b"", b"\n", b"\n\n", b"a", b"a\n", b"a\r\n", b"\na\n\nb"])
def test_a_last_line_without_a_newline_counts(model: ExportedModel, content: bytes) -> None:
    expected = content.count(b"\n") + bool(content and not content.endswith(b"\n"))
    assert len(translated(model, content)) == expected


def test_a_long_line_is_read_in_parts(model: ExportedModel) -> None:
    found = translated(model, b"dog " * 100_000 + b"\nA cat.")
    assert found[0].fault and found[1].text == model.translate(["A cat."], 2)[0]


def test_files_may_be_gzipped_and_failures_name_them(model: ExportedModel, tmp_path: Path) -> None:
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress(b"A cat.\n"))
    with open_lines(path) as stream:
        [[line]] = translate_stream(model, stream, str(path))
    assert line.text == model.translate(["A cat."])[0]
    path.write_bytes(gzip.compress(b"A cat.\n" * 1000)[:-9])
    with pytest.raises(DataError, match=r"text\.gz: damaged gzip file"), open_lines(path) as stream:
        list(translate_stream(model, stream, str(path)))
    with pytest.raises(DataError, match="cannot be read: Is a directory"), open_lines(tmp_path):
        pass


def test_the_number_of_threads_of_torch_is_restored(model: ExportedModel) -> None:
    before, running = torch.get_num_threads(), threading.active_count()
    model.translate(LINES, threads=3)
    assert torch.get_num_threads() == before
    assert threading.active_count() <= running  # threads of the pool are gone; other threads may have ended too
