from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvd_async.errors import DataError
from hvd_async.tasks.translation import multi30k
from hvd_async.tasks.translation.multi30k import CHECKSUMS, download_multi30k, import_multi30k


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder like the real one, with one sentence in each file."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in CHECKSUMS:
        (folder / f"{name}.gz").write_bytes(gzip.compress(f"text of {name}\n".encode()))
    return folder


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the files of `source` the known ones."""
    checksums = {name: hashlib.sha256(f"text of {name}\n".encode()).hexdigest() for name in CHECKSUMS}
    monkeypatch.setattr(multi30k, "CHECKSUMS", checksums)


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def base_url(source: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Silent, directory=str(source))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def assert_complete(folder: Path) -> None:
    assert {path.name: path.read_text() for path in folder.iterdir()} == {name: f"text of {name}\n" for name in CHECKSUMS}


@pytest.mark.usefixtures("known")
def test_import_unpacks_all_splits(source: Path, tmp_path: Path) -> None:
    import_multi30k(source, tmp_path / "to")
    assert_complete(tmp_path / "to")


@pytest.mark.usefixtures("known")
def test_import_reads_plain_files_too(source: Path, tmp_path: Path) -> None:
    import_multi30k(source, tmp_path / "plain")
    import_multi30k(tmp_path / "plain", tmp_path / "to")
    assert_complete(tmp_path / "to")


def test_import_refuses_text_of_another_checksum_and_writes_nothing(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.en\.gz: got SHA-256 [0-9a-f]{64} of the text, expected 460a15fb"):
        import_multi30k(source, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_import_without_verification_takes_other_text(source: Path, tmp_path: Path) -> None:
    import_multi30k(source, tmp_path / "to", verify=False)
    assert_complete(tmp_path / "to")


def test_import_refuses_sides_of_different_length(source: Path, tmp_path: Path) -> None:
    (source / "val.de.gz").write_bytes(gzip.compress(b"one\ntwo\n"))
    with pytest.raises(DataError, match=r"val\.en\.gz has 1 lines and .*val\.de\.gz has 2 lines"):
        import_multi30k(source, tmp_path / "to", verify=False)


def test_import_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.en: no such file"):
        import_multi30k(tmp_path, tmp_path / "to")


@pytest.mark.usefixtures("known")
def test_download_fetches_and_unpacks_all_splits(base_url: str, tmp_path: Path) -> None:
    download_multi30k(tmp_path / "to", base_url=base_url)
    assert_complete(tmp_path / "to")


@pytest.mark.usefixtures("known")
def test_download_refuses_a_changed_file_and_writes_nothing(base_url: str, source: Path, tmp_path: Path) -> None:
    (source / "test_2016_flickr.de.gz").write_bytes(gzip.compress(b"something else\n"))
    with pytest.raises(DataError, match=r"http://.*/test_2016_flickr\.de\.gz: got SHA-256"):
        download_multi30k(tmp_path / "to", base_url=base_url)
    assert not (tmp_path / "to").exists()


@pytest.mark.usefixtures("known")
def test_download_refuses_a_file_cut_short(base_url: str, source: Path, tmp_path: Path) -> None:
    path = source / "train.en.gz"
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(DataError, match=r"train\.en\.gz: damaged gzip file.*--from FOLDER"):
        download_multi30k(tmp_path / "to", base_url=base_url)


def test_a_file_that_the_server_lacks_is_reported_with_the_alternative(base_url: str, source: Path, tmp_path: Path) -> None:
    (source / "train.en.gz").unlink()
    with pytest.raises(DataError, match=r"train\.en\.gz: cannot be fetched: .*--from FOLDER"):
        download_multi30k(tmp_path / "to", base_url=base_url)


def test_an_unreachable_server_is_reported_in_one_line_with_the_alternative(tmp_path: Path) -> None:
    def refuse(url: str) -> multi30k.Response:
        raise ConnectionRefusedError(111, "Connection refused")

    with pytest.raises(
        DataError, match=r"train\.en\.gz: cannot be fetched: .*Connection refused; .*--from FOLDER"
    ) as raised:
        download_multi30k(tmp_path / "to", opener=refuse)
    assert "\n" not in str(raised.value)


def test_the_real_files_have_the_known_checksums_and_counts(tmp_path: Path) -> None:
    folder = os.environ.get("HVD_ASYNC_MULTI30K")
    if folder is None:
        pytest.skip("HVD_ASYNC_MULTI30K does not name a folder with Multi30k")
    import_multi30k(Path(folder), tmp_path)
    counts = {path.name: len(path.read_bytes().splitlines()) for path in tmp_path.iterdir()}
    assert counts == {
        "train.en": 29000, "train.de": 29000, "val.en": 1014, "val.de": 1014,
        "test_2016_flickr.en": 1000, "test_2016_flickr.de": 1000,
    }  # fmt: skip
