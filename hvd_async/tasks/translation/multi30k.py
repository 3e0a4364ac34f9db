"""Multi30k English-German (Elliott et al. 2016, task 1): from a folder or from its public repository, with checksums."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from hvd_async.errors import DataError
from hvd_async.tasks.translation.text import find_file, read_bytes, split_lines, unpack, write_texts

BASE_URL = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw"
SPLITS = ("train", "val", "test_2016_flickr")
LANGUAGES = ("en", "de")

# SHA-256 of the texts, not of the gzip files, whose bytes depend on who packed them.
CHECKSUMS: Mapping[str, str] = {
    "train.en": "460a15fbd157e34a7a9957ee388c1ca247fe47af3ef25fb50442af6c274e0fc6",
    "train.de": "2c2b73fd2b548fbcde3a875e0a78d6ee94d498bfdee6bd3eae3945779e9ddf72",
    "val.en": "1f2a23d992769b5b3d209b0a10dd0b77c08cceb1f20dfb97ed0aafa49d107227",
    "val.de": "660e09eb7e1da2f856ea13ee5ad3cf6d36b3d5b0b733c857e94c5747a3dfc660",
    "test_2016_flickr.en": "399a4382932c1aadd3ceb9bef1008d388a64c76d4ae4e9d4728c6f4301cac182",
    "test_2016_flickr.de": "4be6b5b3236b79c25475c6bb829800a7ce559e9ba7a1f6c2394fe4d40be46d16",
}

_TIMEOUT_SECONDS = 30.0
_MOST_BYTES = 64 << 20  # packed, each has less than 2 MB


class Response(Protocol):
    """The return value of an opener: something to read and close."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, or all of them."""

    def close(self) -> None:
        """Close the connection."""


def _open(url: str) -> Response:
    response: Response = urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS)
    return response


def import_multi30k(source: Path, folder: Path, *, verify: bool = True, overwrite: bool = False) -> None:
    """Copy the six files, plain or `.gz` in `source`, to plain files of the same names in `folder`.

    Nothing is written unless all files exist, have equally many lines on both sides, and (with `verify`) have the known
    checksums. Raises `DataError` otherwise, and `ConfigError` if they would replace other text and `overwrite` is not
    set.
    """
    _write_all(lambda split, language: _read_local(source, split, language), folder, verify=verify, overwrite=overwrite)


def download_multi30k(
    folder: Path, *, base_url: str = BASE_URL, opener: Callable[[str], Response] = _open, overwrite: bool = False
) -> None:
    """Fetch `<base_url>/<split>.<language>.gz` for the six files, check them and write them to `folder`, unpacked.

    Nothing is written unless all files are complete. Raises `DataError` otherwise, and `ConfigError` if they would
    replace other text and `overwrite` is not set. `opener` takes a URL.
    """

    def read(split: str, language: str) -> tuple[str, bytes]:
        return _fetch(f"{base_url}/{split}.{language}.gz", opener)

    _write_all(read, folder, verify=True, overwrite=overwrite)


def _write_all(read: Callable[[str, str], tuple[str, bytes]], folder: Path, *, verify: bool, overwrite: bool) -> None:
    """Write the files that `read` returns: it takes split and language and returns the origin of the text, and the text."""
    texts = {}
    for split in SPLITS:
        num_lines = {}
        for language in LANGUAGES:
            origin, text = read(split, language)
            if verify:
                _check(f"{split}.{language}", origin, text)
            num_lines[origin] = len(split_lines(text, Path(origin)))
            texts[f"{split}.{language}"] = text
        if len(set(num_lines.values())) > 1:
            counts = " and ".join(f"{origin} has {count} lines" for origin, count in num_lines.items())
            raise DataError(f"{counts}; expected equal numbers")
    write_texts(folder, texts, overwrite=overwrite)


def _read_local(source: Path, split: str, language: str) -> tuple[str, bytes]:
    path = find_file(source, split, language)
    return str(path), read_bytes(path)


def _fetch(url: str, opener: Callable[[str], Response]) -> tuple[str, bytes]:
    hint = "if you have the files, use --from FOLDER instead"
    try:
        response = opener(url)
        try:
            packed = response.read(_MOST_BYTES)
        finally:
            response.close()
    except (OSError, http.client.HTTPException) as error:  # urllib's errors are OSErrors
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise DataError(f"{url}: cannot be fetched: {reason}; {hint}") from None
    try:
        return url, unpack(packed, url)
    except DataError as error:
        raise DataError(f"{error}; try again, or {hint}") from None


def _check(name: str, origin: str, text: bytes) -> None:
    checksum = hashlib.sha256(text).hexdigest()
    if checksum != CHECKSUMS[name]:
        raise DataError(
            f"{origin}: got SHA-256 {checksum} of the text, expected {CHECKSUMS[name]}; the file is damaged or"
            " changed, or not of Multi30k: text of your own needs no such command, name its folder as task.data.folder"
        )
