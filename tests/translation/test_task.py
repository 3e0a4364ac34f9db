from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from hvd_async.errors import ConfigError, DataError
from hvd_async.tasks.translation import TranslationTask
from hvd_async.tasks.translation.corpus import Losses, PreparedCorpus, prepare
from hvd_async.tasks.translation.export import load_model
from hvd_async.tasks.translation.vocabulary import PAD
from tests.translation.settings import make_config


@pytest.fixture
def task(folder: Path, corpus: PreparedCorpus) -> TranslationTask:
    return TranslationTask(make_config(folder), corpus)


def changed(folder: Path, corpus: PreparedCorpus, **changes: Any) -> TranslationTask:
    return TranslationTask(make_config(folder, **changes), corpus)


def test_the_model_depends_on_the_seed_of_the_run_and_leaves_the_random_state_of_torch_alone(task: TranslationTask) -> None:
    torch.manual_seed(5)
    first = task.build_model()
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
    for a, b in zip(first.parameters(), task.build_model().parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_the_run_has_the_batches_of_its_epochs(folder: Path, corpus: PreparedCorpus) -> None:
    task = changed(folder, corpus, training={"epochs": 2})
    count = task.num_batches()
    assert count is not None
    assert (task.epoch_of(0), task.epoch_of(count - 1), task.epoch_of(count)) == (0, 1, 2)
    assert sum(len(task.batch(i, "cpu")) for i in range(count)) == 2 * len(corpus.train)


def test_the_run_has_the_batches_that_its_weight_needs(folder: Path, corpus: PreparedCorpus) -> None:
    task = changed(folder, corpus, training={"epochs": None, "weight": 1000})
    count = task.num_batches()
    assert count is not None
    tokens = [task.batch(i, "cpu").num_tokens for i in range(count)]
    assert sum(tokens[:-1]) < 1000 <= sum(tokens)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_micro_batches_have_each_sentence_of_the_batch_once(folder: Path, dropout: float) -> None:
    config = make_config(folder, vocabulary={"bpe_dropout": dropout})
    task = TranslationTask(config, prepare(config))
    whole = task.batch(1, "cpu")
    for number in (1, 3, 10**6):
        parts = task.micro_batches(1, number, "cpu")
        assert len(parts) == min(number, len(whole)) > 0
        assert sum(part.num_tokens for part in parts) == whole.num_tokens
        for start, part in enumerate(parts):
            wanted, length = whole.target_output[start::number], part.target_output.shape[1]
            assert torch.equal(part.target_output, wanted[:, :length]) and (wanted[:, length:] == PAD).all()


def test_the_weight_of_a_batch_is_its_number_of_target_tokens(task: TranslationTask) -> None:
    batch = task.batch(0, "cpu")
    assert task.weight(batch) == batch.num_tokens == task.loss(task.build_model(), batch)[1] and task.weight_unit == "tokens"


def test_a_run_bounded_by_updates_has_as_many_batches_as_it_needs(folder: Path, corpus: PreparedCorpus) -> None:
    assert changed(folder, corpus, training={"epochs": None, "updates": 5}).num_batches() is None


def test_the_training_loss_is_smoothed_and_summed(folder: Path, corpus: PreparedCorpus) -> None:
    smoothed = changed(folder, corpus, model={"dropout": 0.0}, label_smoothing=0.3)
    plain = changed(folder, corpus, model={"dropout": 0.0}, label_smoothing=0.0)
    model, batch = smoothed.build_model(), smoothed.batch(0, "cpu")
    loss, num_tokens = smoothed.loss(model, batch)
    assert (loss.shape, loss.dtype, num_tokens) == ((), torch.float32, batch.num_tokens)
    assert loss.item() != plain.loss(model, batch)[0].item()
    torch.autograd.backward(loss)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_bfloat16_computes_in_it_and_sums_in_float32(folder: Path, corpus: PreparedCorpus) -> None:
    mixed = changed(folder, corpus, model={"dropout": 0.0}, training={"precision": "bfloat16"})
    exact = changed(folder, corpus, model={"dropout": 0.0})
    model, batch = mixed.build_model(), mixed.batch(0, "cpu")
    loss, expected = mixed.loss(model, batch)[0], exact.loss(model, batch)[0]
    assert loss.dtype == torch.float32
    assert loss.item() != expected.item()
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)
    torch.autograd.backward(loss)
    assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == {torch.float32}


def test_a_few_steps_on_one_batch_lower_its_loss(task: TranslationTask) -> None:
    model, batch = task.build_model(), task.batch(0, "cpu")
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    torch.manual_seed(1)
    for _ in range(20):
        optimizer.zero_grad()
        loss, num_tokens = task.loss(model, batch)
        torch.autograd.backward(loss / num_tokens)
        optimizer.step()
        losses.append(loss.item() / num_tokens)
    assert losses[-1] < losses[0] - 1.0


def test_shards_add_up_to_the_whole_evaluation(folder: Path, corpus: PreparedCorpus) -> None:
    task = changed(folder, corpus, batching={"tokens": 60}, metrics=["bleu", "chrf", "ter"])
    model = task.build_model()
    loss_sum, *whole = task.evaluate(model)
    parts = [task.evaluate(model, shard, num_shards=3) for shard in range(3)]
    total_loss, *total = [sum(column) for column in zip(*parts, strict=True)]
    assert total_loss == pytest.approx(loss_sum) and total == whole
    assert whole[0] == corpus.validation.target_lengths.sum() + len(corpus.validation)
    assert task.scores([loss_sum, *whole]).keys() == {"loss", "bleu", "chrf", "ter"}


def test_a_shard_without_sentences_measures_nothing(task: TranslationTask) -> None:
    assert task.evaluate(task.build_model(), shard=999, num_shards=1000) == [0.0] * task.num_statistics


def test_translating_can_be_left_out_or_bounded(folder: Path, corpus: PreparedCorpus) -> None:
    without = changed(folder, corpus, metrics=[])
    assert [metric.name for metric in without.metrics] == ["loss"]
    assert without.scores(without.evaluate(without.build_model())).keys() == {"loss"}
    bounded = changed(folder, corpus, metric_sentences=2)
    assert bounded.evaluate(bounded.build_model())[2] == 2  # sentences translated


@pytest.mark.parametrize("mode", [True, False])
def test_evaluation_leaves_mode_and_gradients_as_they_were(task: TranslationTask, mode: bool) -> None:
    model = task.build_model().train(mode)
    task.evaluate(model)
    assert model.training is mode
    assert all(module.training is mode for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_description_of_the_data_gives_sizes_padding_and_skipped_pairs(
    task: TranslationTask, corpus: PreparedCorpus
) -> None:
    (remark,) = task.describe_data()
    assert remark.startswith(f"{len(corpus.train):,} training pairs, padding ")
    assert remark.endswith(
        f"left out: {corpus.skipped.train_too_long} too long, {corpus.skipped.train_empty} with an empty side"
    )


def test_the_description_of_the_data_gives_what_the_filters_left_out(folder: Path, corpus: PreparedCorpus) -> None:
    skipped = dataclasses.replace(corpus.skipped, train_unequal=12, train_repeated=34)
    filtered = dataclasses.replace(corpus, skipped=skipped)
    (remark,) = TranslationTask(
        make_config(folder, data={"max_ratio": 2.0, "drop_duplicates": True}), filtered
    ).describe_data()
    assert remark.endswith(" with an empty side, 12 with sides of unequal lengths, 34 repeated")


def test_the_description_of_the_data_gives_losses_of_the_vocabulary(folder: Path, corpus: PreparedCorpus) -> None:
    lossy = dataclasses.replace(corpus, losses=Losses(unknown_pieces=1234, normalized_lines=7))
    assert TranslationTask(make_config(folder), lossy).describe_data()[1:] == [
        "1,234 pieces of the training text are unknown to the vocabulary (task.vocabulary.character_coverage: 1)",
        "normalisation changes 7 lines of the training text (task.vocabulary.normalization: nmt_nfkc)",
    ]


def test_an_export_carries_version_and_measurements(task: TranslationTask, tmp_path: Path) -> None:
    model = task.build_model()
    for version, scores in ((9, {"loss": 2.0, "bleu": 30.0}), (10, {})):
        task.export(tmp_path / "model", dict(model.named_parameters()), version, scores)
        expected = {f"validation_{name}": score for name, score in scores.items()}
        assert load_model(tmp_path / "model").meta == {"version": version, **expected}


def test_a_model_with_too_few_positions_for_training_is_refused(folder: Path, corpus: PreparedCorpus) -> None:
    with pytest.raises(ConfigError, match=r"model\.max_positions: got 128, expected more than .* \(128\)"):
        changed(folder, corpus, model={"max_positions": 128})


def test_a_validation_pair_too_long_for_the_model_is_refused(folder: Path, corpus: PreparedCorpus) -> None:
    with pytest.raises(DataError, match=r"val: pair \d+: got \d+ tokens, expected at most 10"):
        changed(folder, corpus, model={"max_positions": 11}, data={"max_tokens_per_sentence": 10})
