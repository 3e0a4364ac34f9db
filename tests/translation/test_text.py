from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import pytest

from hvd_async.errors import ConfigError, DataError
from hvd_async.tasks.translation.text import find_file, read_bytes, read_split, write_texts


def write(folder: Path, source: bytes, target: bytes) -> None:
    (folder / "train.en").write_bytes(source)
    (folder / "train.de").write_bytes(target)


def test_pairs_are_read_in_order_and_lines_stripped(tmp_path: Path) -> None:
    write(tmp_path, b" a dog \nyes\r\n", b"ein Hund\nja")
    text = read_split(tmp_path, "train", "en", "de")
    assert (text.sources, text.targets, text.num_empty) == (["a dog", "yes"], ["ein Hund", "ja"], 0)


def test_gzipped_files_are_read_beside_plain_ones(tmp_path: Path) -> None:
    (tmp_path / "train.en").write_text("a\n")
    (tmp_path / "train.de.gz").write_bytes(gzip.compress("ä\n".encode()))
    assert read_split(tmp_path, "train", "en", "de").targets == ["ä"]


def test_pairs_with_an_empty_side_are_left_out_and_counted(tmp_path: Path) -> None:
    write(tmp_path, b"a\n\nc\n  \n", b"x\ny\n\n\n")
    text = read_split(tmp_path, "train", "en", "de")
    assert (text.sources, text.targets, text.num_empty, len(text)) == (["a"], ["x"], 3, 1)


def test_a_line_separator_inside_a_sentence_does_not_end_it(tmp_path: Path) -> None:
    write(tmp_path, "one\u2028still one\x0cstill\n".encode(), b"eins\n")
    assert len(read_split(tmp_path, "train", "en", "de")) == 1


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    write(tmp_path, b"\xef\xbb\xbfa\n", b"x\n")
    assert read_split(tmp_path, "train", "en", "de").sources == ["a"]


def test_a_missing_file_is_named_with_both_names_tried(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"val\.en: no such file, nor val\.en\.gz"):
        find_file(tmp_path, "val", "en")


def test_misaligned_files_are_refused_with_both_counts(tmp_path: Path) -> None:
    write(tmp_path, b"a\nb\nc\n", b"x\ny\n")
    with pytest.raises(DataError, match=r"train\.en has 3 lines and .*train\.de has 2"):
        read_split(tmp_path, "train", "en", "de")


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_files_without_text_are_refused(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, content, content)
    with pytest.raises(DataError, match="no line with text on both sides"):
        read_split(tmp_path, "train", "en", "de")


def test_invalid_utf8_is_reported_with_file_and_line(tmp_path: Path) -> None:
    write(tmp_path, b"a\nb\n", b"x\n\xff\n")
    with pytest.raises(DataError, match=r"train\.de: line 2: not UTF-8"):
        read_split(tmp_path, "train", "en", "de")


@pytest.mark.parametrize("damage", [lambda packed: packed[:-4], lambda packed: b"no gzip"])
def test_a_damaged_gzip_file_is_reported(tmp_path: Path, damage: object) -> None:
    assert callable(damage)
    (tmp_path / "train.en").write_text("a\n")
    (tmp_path / "train.de.gz").write_bytes(damage(gzip.compress(b"x\n" * 100)))
    with pytest.raises(DataError, match=r"train\.de\.gz: damaged gzip file"):
        read_split(tmp_path, "train", "en", "de")


def test_a_file_that_unpacks_to_an_implausible_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(bytes(300 << 20)))
    tracemalloc.start()
    with pytest.raises(
        DataError,
        match=r"got [\d,]+ bytes that unpack to more than [\d,]+, expected text; if it is text, unpack it by hand",
    ):
        read_bytes(path)
    assert tracemalloc.get_traced_memory()[1] < 150 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("text", [b"", b"a\n" * 400_000, b"some words of text\n" * 10])
def test_files_of_several_members_and_padding_unpack_whole(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress(text) + gzip.compress(b"end\n") + bytes(10))
    assert read_bytes(path) == text + b"end\n"


@pytest.mark.parametrize("existing", ["train.en", "train.de", "train.en.gz"])
def test_other_text_is_not_replaced_or_hidden(tmp_path: Path, existing: str) -> None:
    texts = {"train.en": b"one\n", "train.de": b"eins\n"}
    (tmp_path / existing).write_bytes(b"mine\n")
    with pytest.raises(ConfigError) as caught:
        write_texts(tmp_path, texts, overwrite=False)
    assert str(caught.value) == (
        f"--output: got {tmp_path}, where {existing} is other text, expected a folder without it; name another folder, or replace"
        " the file with --overwrite"
    )
    assert [path.name for path in tmp_path.iterdir()] == [existing] and (tmp_path / existing).read_bytes() == b"mine\n"
    write_texts(tmp_path, texts, overwrite=True)
    (tmp_path / "train.en.gz").unlink(missing_ok=True)
    write_texts(tmp_path, texts, overwrite=False)  # equal text may be replaced
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == texts
