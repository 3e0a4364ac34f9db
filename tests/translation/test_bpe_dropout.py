"""BPE dropout: cuts are a function of seed, epoch and sentence, and those of SentencePiece without dropout."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch

from hvd_async.__main__ import main
from hvd_async.config import VocabularyConfig, dump_config
from hvd_async.errors import DataError
from hvd_async.tasks.translation import TranslationTask
from hvd_async.tasks.translation.bpe_dropout import BpeDropout, Tokens
from hvd_async.tasks.translation.builtin.grammar import generate
from hvd_async.tasks.translation.corpus import PreparedCorpus
from hvd_async.tasks.translation.vocabulary import UNK, Vocabulary
from tests.translation.settings import make_config

TEXTS = [side for pair in generate(300, seed=3) for side in pair]
ODD = ["日本 dog", "a日b😀c", "x", "The\u2581dog", "Hunde-Hund, 3.14!", *(" ".join(pair) for pair in pairwise(TEXTS[:20]))]
LONGEST = 10**6


def make_vocabulary(**settings: object) -> Vocabulary:
    return Vocabulary.train(TEXTS, VocabularyConfig.model_validate({"size": 450, **settings}), seed=1)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return make_vocabulary()


def given_vocabulary(prefix: Path, size: int, **options: object) -> Vocabulary:
    """Return a BPE vocabulary that SentencePiece has trained with `options` of its own."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(prefix),
        model_type="bpe",
        vocab_size=size,
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        minloglevel=2,
        **options,
    )
    return Vocabulary.load(prefix.with_suffix(".model"))


def encoded(vocabulary: Vocabulary, texts: list[str]) -> list[Tokens]:
    return [np.array(tokens, dtype=np.uint16) for tokens in vocabulary.encode(texts)]


def cut(dropout: BpeDropout, sentences: list[Tokens], numbers: list[int] | None = None, epoch: int = 0) -> list[list[int]]:
    return [each.tolist() for each in dropout.cut(sentences, numbers or [*range(len(sentences))], epoch, 0, LONGEST)]


@pytest.mark.parametrize(
    "settings",
    [{}, {"size": 60, "character_coverage": 0.98}, {"byte_fallback": True}, {"normalization": "identity"}],
    ids=str,
)
def test_without_dropout_the_pieces_are_those_of_sentencepiece(settings: dict[str, object]) -> None:
    vocabulary = make_vocabulary(**settings)
    sentences = encoded(vocabulary, [*TEXTS, *ODD])
    dropout = BpeDropout(vocabulary, 0.0, seed=1)
    assert cut(dropout, sentences) == [each.tolist() for each in sentences]
    dropout.check(sentences)  # makes all merges
    assert any(UNK in each for each in sentences) or settings.get("byte_fallback")


def test_symbols_that_users_defined_stay_whole(tmp_path: Path) -> None:
    vocabulary = given_vocabulary(tmp_path / "own", 450, user_defined_symbols=["Zoo", "hund", "<2de>"])
    sentences = encoded(vocabulary, [*TEXTS, "<2de> Der Zoohund im Zoo"])
    BpeDropout(vocabulary, 0.0, seed=1).check(sentences)
    symbols = {vocabulary.pieces(range(len(vocabulary))).index(symbol) for symbol in ("Zoo", "hund", "<2de>")}
    found = cut(BpeDropout(vocabulary, 0.9, seed=1), sentences)
    assert found != [each.tolist() for each in sentences]
    for before, after in zip(sentences, found, strict=True):
        assert [each for each in after if each in symbols] == [each for each in before.tolist() if each in symbols]
    assert symbols <= set(found[-1]) and vocabulary.decode([found[-1]]) == ["<2de> Der Zoohund im Zoo"]


def test_without_dropout_pieces_that_go_on_after_a_space_are_those_of_sentencepiece(tmp_path: Path) -> None:
    vocabulary = given_vocabulary(tmp_path / "given", 400, split_by_whitespace=False)
    assert any("\u2581" in piece[1:] for piece in vocabulary.pieces(range(len(vocabulary))))
    sentences = encoded(vocabulary, TEXTS)
    BpeDropout(vocabulary, 0.0, seed=1).check(sentences)
    cuts = cut(BpeDropout(vocabulary, 0.3, seed=1), sentences)
    assert vocabulary.decode(cuts) == vocabulary.decode([each.tolist() for each in sentences])


def test_a_cut_is_a_function_of_seed_epoch_and_sentence_alone(vocabulary: Vocabulary) -> None:
    sentences = encoded(vocabulary, TEXTS)
    first = cut(BpeDropout(vocabulary, 0.2, seed=1), sentences)
    other = BpeDropout(vocabulary, 0.2, seed=1)
    for epoch in (5, 0):  # what was cut before does not matter, nor in which order and company
        backwards = [cut(other, [sentences[i]], [i], epoch)[0] for i in reversed(range(len(sentences)))]
    assert backwards[::-1] == first
    assert cut(other, sentences, epoch=1) != first != cut(BpeDropout(vocabulary, 0.2, seed=2), sentences)
    sides = [each.tolist() for each in other.cut(sentences, [*range(len(sentences))], 0, 1, LONGEST)]
    assert sides != first
    same = cut(other, [sentences[0]] * 50, [*range(50)])
    assert len({tuple(each) for each in same}) > 10  # equal sentences are cut apart


def test_cuts_have_fixed_bits(vocabulary: Vocabulary) -> None:
    """A fixed trace: runs are resumed and replayed by later versions, with other versions of NumPy."""
    (tokens,) = encoded(vocabulary, ["the old dog sees the garden of the child"])
    found = [
        " ".join(vocabulary.pieces(each)) for each in cut(BpeDropout(vocabulary, 0.3, -7), [tokens] * 3, [0, 1, 2**40], 3)
    ]
    assert found == [
        "▁the ▁o l d ▁ d o g ▁s e e s ▁ t h e ▁g ar d en ▁o f ▁ t h e ▁ ch i l d",
        "▁ t h e ▁ o l d ▁do g ▁ s e es ▁ t h e ▁g ar d en ▁o f ▁the ▁ ch il d",
        "▁t he ▁o l d ▁do g ▁s e e s ▁the ▁g ar d en ▁o f ▁ t he ▁ ch i l d",
    ]


def test_every_cut_has_the_same_text_in_pieces_of_the_vocabulary(vocabulary: Vocabulary) -> None:
    sentences = encoded(vocabulary, [*TEXTS, *ODD])
    known = vocabulary.decode([each.tolist() for each in sentences])
    for share in (0.1, 0.5, 0.999):
        assert vocabulary.decode(cut(BpeDropout(vocabulary, share, seed=1), sentences)) == known
    characters = cut(BpeDropout(vocabulary, 1 - 2**-53, seed=1), sentences)
    assert all(len(piece) == 1 for each in characters for piece in vocabulary.pieces(each) if piece != "<hvd_async:unk>")


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_cuts_are_distributed_as_those_of_sentencepiece(vocabulary: Vocabulary, share: float, tmp_path: Path) -> None:
    text, repeats = "Hunde gardens", 4000
    vocabulary.save(tmp_path / "v.model")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "v.model"))
    theirs = processor.encode([text] * repeats, enable_sampling=True, alpha=share, nbest_size=-1, num_threads=1)
    ours = cut(BpeDropout(vocabulary, share, seed=1), encoded(vocabulary, [text]) * repeats)
    for tokens in {tuple(each) for each in theirs}:
        counts = [sum(tuple(each) == tokens for each in side) for side in (theirs, ours)]
        deviation = (2 * max(counts)) ** 0.5  # of the difference of two counts, at most
        assert abs(counts[0] - counts[1]) < 6 * deviation, (vocabulary.pieces(tokens), counts)


def test_a_cut_that_would_be_too_long_is_not_made(vocabulary: Vocabulary) -> None:
    sentences = encoded(vocabulary, TEXTS)
    dropout = BpeDropout(vocabulary, 0.5, seed=1)
    bound = max(map(len, sentences))
    short = dropout.cut(sentences, [*range(len(sentences))], 0, 0, bound)
    free = cut(dropout, sentences)
    assert max(map(len, short)) <= bound < max(map(len, free))
    for bounded, unbounded, sentence in zip(short, free, sentences, strict=True):
        assert bounded.tolist() == (unbounded if len(unbounded) <= bound else sentence.tolist())


def test_a_vocabulary_without_merges_is_refused() -> None:
    vocabulary = make_vocabulary(kind="unigram")
    with pytest.raises(
        DataError, match=r"bpe_dropout: got a vocabulary that does not cut `.*` by merges, expected one of kind bpe"
    ):
        BpeDropout(vocabulary, 0.1, seed=1).check(encoded(vocabulary, TEXTS))


# --- In the task ------------------------------------------------------------------------------------------------------


def dropping(folder: Path, corpus: PreparedCorpus, side: str = "both", **changes: object) -> TranslationTask:
    vocabulary = {"bpe_dropout": 0.3, "bpe_dropout_side": side}
    return TranslationTask(make_config(folder, vocabulary=vocabulary, **changes), corpus)


def batches_of(task: TranslationTask, count: int) -> list[list[torch.Tensor]]:
    batches = [task.batch(i, "cpu") for i in range(count)]
    return [[batch.source, batch.target_output] for batch in batches]


@pytest.mark.parametrize(("side", "is_cut"), [("both", [True, True]), ("source", [True, False]), ("target", [False, True])])
def test_training_text_of_the_chosen_sides_is_cut_and_validation_is_not(
    folder: Path, corpus: PreparedCorpus, side: str, is_cut: list[bool]
) -> None:
    plain, task = TranslationTask(make_config(folder), corpus), dropping(folder, corpus, side)
    for one, other in zip(batches_of(plain, 3), batches_of(task, 3), strict=True):
        assert [not torch.equal(a, b) for a, b in zip(one, other, strict=True)] == is_cut
    model = plain.build_model()
    assert task.evaluate(model) == plain.evaluate(model) and task.fingerprint() == plain.fingerprint()
    batch = task.batch(0, "cpu")
    assert task.weight(batch) == batch.num_tokens == int((batch.target_output != 0).sum())
    (line,) = (line for line in task.describe_data() if line.startswith("BPE dropout 0.3: "))
    assert [f"times the {each} pieces" in line for each in ("source", "target")] == is_cut


def test_batches_are_alike_in_any_process_and_differ_between_epochs(folder: Path, corpus: PreparedCorpus) -> None:
    task, again = (dropping(folder, corpus, training={"epochs": 2}) for _ in range(2))
    count = task.num_batches()
    assert count is not None
    in_order = [task.batch(i, "cpu") for i in range(count)]
    for index in reversed(range(count)):  # as another rank or a resumed run may come to them
        batch = again.batch(index, "cpu")
        assert torch.equal(batch.source, in_order[index].source)
        assert torch.equal(batch.target_output, in_order[index].target_output)
    tokens = [sum(in_order[i].num_tokens for i in range(count) if task.epoch_of(i) == epoch) for epoch in (0, 1)]
    assert tokens[0] != tokens[1] and min(tokens) > corpus.train.target_lengths.sum() + len(corpus.train)


def test_a_run_bounded_by_weight_counts_the_tokens_that_are_cut(folder: Path, corpus: PreparedCorpus) -> None:
    bounded = {"epochs": None, "weight": 9000}
    task = dropping(folder, corpus, training=bounded)
    count = task.num_batches()
    assert count is not None
    tokens = [task.batch(i, "cpu").num_tokens for i in range(count)]
    assert sum(tokens[:-1]) < 9000 <= sum(tokens)
    plain = TranslationTask(make_config(folder, training=bounded), corpus).num_batches()
    assert plain is not None and plain > count
    assert dropping(folder, corpus, "source", training=bounded).num_batches() == plain


def test_no_sentence_is_longer_than_the_model_can_read(folder: Path, corpus: PreparedCorpus) -> None:
    longest = int(max(corpus.train.source_lengths.max(), corpus.train.target_lengths.max()))
    data = {"max_tokens_per_sentence": longest}
    task = dropping(folder, corpus, data=data, model={"max_positions": longest + 1})
    count = task.num_batches()
    assert count is not None
    assert max(side.shape[1] for batch in batches_of(task, count) for side in batch) == longest + 1


def test_a_resumed_run_cuts_as_an_unbroken_one(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(dump_config(make_config(folder, vocabulary={"bpe_dropout": 0.2}, metrics=[])))
    common = ["train", str(tmp_path / "run.yaml"), "--set", "training.device=cpu", "--set", "training.threads=1"]
    whole, broken = (["--set", f"output={tmp_path / name}"] for name in ("whole", "broken"))
    assert main([*common, *whole, "--set", "training.epochs=2"]) == 0
    assert main([*common, *broken]) == 0 and main([*common, *broken, "--set", "training.epochs=2", "--resume"]) == 0
    models = [(tmp_path / name / "models/last/model.safetensors").read_bytes() for name in ("whole", "broken")]
    assert models[0] == models[1]


def test_a_vocabulary_of_another_kind_is_refused_when_it_is_given(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_vocabulary(kind="unigram").save(tmp_path / "given.model")
    given = {"file": str(tmp_path / "given.model"), "bpe_dropout": 0.1}
    (tmp_path / "run.yaml").write_text(
        dump_config(make_config(folder, vocabulary=given, data={"prepared": str(tmp_path / "prepared")}))
    )
    assert main(["train", str(tmp_path / "run.yaml"), "--set", f"output={tmp_path / 'run'}"]) == 3
    assert "task.vocabulary.bpe_dropout: got a vocabulary that does not cut" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
