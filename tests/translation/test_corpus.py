from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from hvd_async.config import RunConfig
from hvd_async.errors import DataError
from hvd_async.tasks.translation.corpus import Losses, PreparedCorpus, prepare
from hvd_async.tasks.translation.vocabulary import UNK
from tests.translation.settings import make_config


@pytest.fixture
def own_folder(folder: Path, tmp_path: Path) -> Path:
    """A copy of the text that a test may change."""
    return Path(shutil.copytree(folder, tmp_path / "text", ignore=shutil.ignore_patterns("prepared")))


def prepared_folders(folder: Path) -> list[Path]:
    return list((folder / "prepared").iterdir())


def contents(corpus: PreparedCorpus) -> list[list[int]]:
    arrays = corpus.train
    return [side(i).tolist() for i in range(len(arrays)) for side in (arrays.source, arrays.target)]


def test_arrays_hold_the_tokens_of_the_text(corpus: PreparedCorpus, folder: Path) -> None:
    assert (len(corpus.train), len(corpus.validation), len(corpus.vocabularies.target)) == (300, 12, 200)
    texts = {name: (folder / name).read_text().splitlines() for name in ("train.en", "train.de", "val.en", "val.de")}
    for arrays, split in ((corpus.train, "train"), (corpus.validation, "val")):
        sources = [arrays.source(i).tolist() for i in range(len(arrays))]
        targets = [arrays.target(i).tolist() for i in range(len(arrays))]
        assert corpus.vocabularies.target.decode(sources) == texts[f"{split}.en"]
        assert corpus.vocabularies.target.decode(targets) == texts[f"{split}.de"]
        assert arrays.source_lengths.tolist() == [len(source) for source in sources]
        assert arrays.target_lengths.tolist() == [len(target) for target in targets]
    assert corpus.train.source_tokens.dtype == np.uint16
    assert (corpus.validation_sources, corpus.validation_targets) == (texts["val.en"], texts["val.de"])


def test_preparing_again_changes_nothing(own_folder: Path) -> None:
    config = make_config(own_folder)
    first = prepare(config)
    (folder,) = prepared_folders(own_folder)
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    second = prepare(config)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    assert contents(first) == contents(second)
    assert folder.name == second.fingerprint


def test_several_preparations_at_once_make_one_folder(own_folder: Path) -> None:
    config = make_config(own_folder)
    with ThreadPoolExecutor(3) as pool:
        corpora = list(pool.map(prepare, [config] * 3))
    assert [path.name for path in prepared_folders(own_folder)] == [corpora[0].fingerprint]
    assert contents(corpora[0]) == contents(corpora[1]) == contents(corpora[2])


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 2},
        {"vocabulary": {"size": 210}},
        {"data": {"max_tokens_per_sentence": 30}},
        {"data": {"source": "de", "target": "en"}},
        {"data": {"validation": "test"}},
        {"data": {"max_ratio": 50.0}},
        {"data": {"drop_duplicates": True}},
        {"data": {"train": ["train", "test"]}},
        {"data": {"train": ["train", "train"]}},
    ],
)
def test_other_settings_have_another_fingerprint(own_folder: Path, changes: dict[str, object]) -> None:
    assert prepare(make_config(own_folder)).fingerprint != prepare(make_config(own_folder, **changes)).fingerprint


def test_other_text_has_another_fingerprint(own_folder: Path) -> None:
    config = make_config(own_folder)
    before = prepare(config).fingerprint
    with (own_folder / "val.de").open("a") as file:
        file.write("Noch einer.\n")
    with (own_folder / "val.en").open("a") as file:
        file.write("One more.\n")
    assert prepare(config).fingerprint != before


def test_pairs_too_long_or_empty_are_left_out_of_training_and_counted(own_folder: Path) -> None:
    for name in ("train.en", "val.en"):
        lines = (own_folder / name).read_text().splitlines()
        lines[0], lines[1] = "", "word " * 90
        (own_folder / name).write_text("\n".join(lines) + "\n")
    corpus = prepare(make_config(own_folder, data={"max_tokens_per_sentence": 70}))
    assert (corpus.skipped.train_empty, corpus.skipped.validation_empty) == (1, 1)
    assert corpus.skipped.train_too_long >= 1
    assert len(corpus.train) == 300 - 1 - corpus.skipped.train_too_long
    assert len(corpus.validation) == len(corpus.validation_sources) == 11
    assert max(*corpus.train.source_lengths, *corpus.train.target_lengths) <= 70
    assert corpus.validation.source_lengths[0] > 70


def test_a_line_without_tokens_is_empty_and_losses_are_counted(own_folder: Path) -> None:
    for name in ("train.en", "val.en"):
        lines = (own_folder / name).read_text().splitlines()
        lines[0], lines[1] = "\u200b\u200b", "½ ﬁ"
        (own_folder / name).write_text("\n".join(lines) + "\n")
    corpus = prepare(make_config(own_folder, vocabulary={"size": 200, "character_coverage": 0.98}))
    assert (corpus.skipped.train_empty, corpus.skipped.validation_empty) == (1, 1)
    assert (len(corpus.train), len(corpus.validation), len(corpus.validation_targets)) == (299, 11, 11)
    assert corpus.validation_sources[0] == "½ ﬁ" and min(corpus.validation.source_lengths) > 0
    tokens = [*corpus.train.source_tokens.tolist(), *corpus.train.target_tokens.tolist()]
    assert corpus.losses == Losses(unknown_pieces=tokens.count(UNK), normalized_lines=2) and tokens.count(UNK) > 0
    assert prepare(make_config(own_folder)).losses.unknown_pieces == 0


def test_a_folder_that_cannot_be_written_is_reported_with_the_key_to_set(own_folder: Path) -> None:
    (own_folder / "prepared").write_text("a file in the way")
    with pytest.raises(DataError, match=r"cannot be made: .*; set task\.data\.prepared to a writable folder"):
        prepare(make_config(own_folder))
    assert len(prepare(make_config(own_folder, data={"prepared": str(own_folder / "else")})).train) == 300


def test_a_limit_that_leaves_nothing_is_refused(own_folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"no training pair of at most 1 tokens .* raise task\.data\.max_tokens_per_sentence"
    ):
        prepare(make_config(own_folder, data={"max_tokens_per_sentence": 1}))
    assert prepared_folders(own_folder) == []


def test_corpora_and_runs_of_earlier_versions_keep_their_fingerprints(own_folder: Path) -> None:
    (own_folder / "train.en").write_text("a b e f\n")
    (own_folder / "train.de").write_text("c d g h\n")
    (own_folder / "val.en").write_text("a\n")
    (own_folder / "val.de").write_text("d\n")
    for train in ("train", ["train"]):
        assert (
            prepare(make_config(own_folder, data={"train": train}, vocabulary={"size": 16})).fingerprint
            == "eca9f01e7b24f77c"
        )


def write_pairs(folder: Path, split: str, pairs: list[tuple[str, str]]) -> None:
    for side, language in enumerate(("en", "de")):
        (folder / f"{split}.{language}").write_text("".join(f"{pair[side]}\n" for pair in pairs))


def pairs_of(folder: Path, split: str) -> list[tuple[str, str]]:
    sides = [(folder / f"{split}.{language}").read_text().splitlines() for language in ("en", "de")]
    return list(zip(*sides, strict=True))


def trained_pairs(corpus: PreparedCorpus) -> list[tuple[str, str]]:
    arrays, decode = corpus.train, corpus.vocabularies.target.decode
    indices = range(len(arrays))
    sources, targets = (
        decode([arrays.source(i).tolist() for i in indices]),
        decode([arrays.target(i).tolist() for i in indices]),
    )
    return list(zip(sources, targets, strict=True))


def test_several_corpora_are_joined_in_their_order(own_folder: Path) -> None:
    one, two = pairs_of(own_folder, "train")[:200], pairs_of(own_folder, "train")[100:]
    two[3] = ("", "leer")
    write_pairs(own_folder, "one", one)
    write_pairs(own_folder, "two", two)
    corpus = prepare(make_config(own_folder, data={"train": ["two", "one", "two"]}))
    left = [pair for pair in two if all(pair)]
    assert trained_pairs(corpus) == [*left, *one, *left]
    assert corpus.skipped.train_empty == 2
    swapped = prepare(make_config(own_folder, data={"train": ["one", "two", "two"]}))
    assert trained_pairs(swapped) == [*one, *left, *left] and swapped.fingerprint != corpus.fingerprint
    with pytest.raises(DataError, match=r"three\.en: no such file, nor three\.en\.gz"):
        prepare(make_config(own_folder, data={"train": ["one", "three"]}))


def test_repeated_pairs_are_left_out_and_counted(own_folder: Path) -> None:
    pairs = pairs_of(own_folder, "train")
    unique = list(dict.fromkeys(pairs))
    assert trained_pairs(prepare(make_config(own_folder))) == pairs
    half = (unique[0][0], unique[1][1])  # each side occurred before, but not together
    write_pairs(own_folder, "more", [unique[0], half, unique[1], half, *pairs])
    corpus = prepare(make_config(own_folder, data={"train": ["more"], "drop_duplicates": True}))
    assert sorted(trained_pairs(corpus)) == sorted([*unique, half]) and trained_pairs(corpus)[:3] == [
        unique[0],
        half,
        unique[1],
    ]
    assert corpus.skipped.train_repeated == len(pairs) + 4 - len(unique) - 1 >= 3
    twice = prepare(make_config(own_folder, data={"train": ["train", "train"], "drop_duplicates": True}))
    assert trained_pairs(twice) == unique and twice.skipped.train_repeated == 2 * len(pairs) - len(unique)


def test_pairs_of_unequal_lengths_are_left_out_and_counted(own_folder: Path) -> None:
    everything = prepare(make_config(own_folder))
    lengths = zip(everything.train.source_lengths.tolist(), everything.train.target_lengths.tolist(), strict=True)
    ratios = [max(pair) / min(pair) for pair in lengths]
    limit = sorted(ratios)[-20]
    corpus = prepare(make_config(own_folder, data={"max_ratio": limit}))
    kept = [pair for pair, ratio in zip(trained_pairs(everything), ratios, strict=True) if ratio <= limit]
    assert trained_pairs(corpus) == kept and 0 < corpus.skipped.train_unequal == len(ratios) - len(kept) < 20
    assert corpus.skipped.train_repeated == corpus.skipped.train_too_long == 0
    with pytest.raises(DataError, match=r"raise task\.data\.max_tokens_per_sentence or task\.data\.max_ratio$"):
        prepare(make_config(own_folder, data={"max_ratio": 1.0, "max_tokens_per_sentence": 1}))


def test_a_pair_that_is_left_out_counts_once(own_folder: Path) -> None:
    long, unequal = ("word " * 90, "word " * 90), ("word", "word word word word word")
    write_pairs(own_folder, "odd", [long, long, unequal, unequal, ("", "x"), *pairs_of(own_folder, "train")])
    data = {"train": ["odd"], "max_ratio": 4.0, "max_tokens_per_sentence": 70, "drop_duplicates": True}
    corpus = prepare(make_config(own_folder, data=data))
    skipped = corpus.skipped
    assert skipped.train_too_long >= 2 and skipped.train_unequal >= 2 and skipped.train_empty == 1
    total = skipped.train_too_long + skipped.train_unequal + skipped.train_empty + skipped.train_repeated
    assert len(corpus.train) + total == 305


def test_filters_do_not_change_the_vocabulary(own_folder: Path) -> None:
    corpora = [prepare(make_config(own_folder, data=data)) for data in ({}, {"max_ratio": 1.5, "drop_duplicates": True})]
    assert corpora[0].vocabularies.is_same(corpora[1].vocabularies) and len(corpora[1].train) < len(corpora[0].train)


def cut_short(folder: Path) -> None:
    path = folder / "train.source.tokens.npy"
    path.write_bytes(path.read_bytes()[:-2])


def remove_file(folder: Path) -> None:
    (folder / "vocabulary.model").unlink()


def break_meta(folder: Path) -> None:
    (folder / "meta.json").write_text("{")


def empty_meta(folder: Path) -> None:
    (folder / "meta.json").write_text("[]")


@pytest.mark.parametrize("damage", [cut_short, remove_file, break_meta, empty_meta])
def test_a_damaged_folder_is_made_again(own_folder: Path, damage: Callable[[Path], None]) -> None:
    config = make_config(own_folder)
    expected = contents(prepare(config))
    damage(prepared_folders(own_folder)[0])
    assert contents(prepare(config)) == expected
    assert len(prepared_folders(own_folder)) == 1


def test_the_folder_may_be_elsewhere(own_folder: Path, tmp_path: Path) -> None:
    config: RunConfig = make_config(own_folder, data={"prepared": str(tmp_path / "else" / "where")})
    fingerprint = prepare(config).fingerprint
    assert (tmp_path / "else" / "where" / fingerprint / "meta.json").is_file()
    assert not (own_folder / "prepared").exists()
