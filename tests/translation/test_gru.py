from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hvd_async.config import ModelConfig
from hvd_async.tasks.gradient import compute_gradient
from hvd_async.tasks.registry import estimate
from hvd_async.tasks.translation import TranslationTask
from hvd_async.tasks.translation.architectures import build_model
from hvd_async.tasks.translation.batching import Batch, collate
from hvd_async.tasks.translation.corpus import PreparedCorpus
from hvd_async.tasks.translation.export import load_model
from hvd_async.tasks.translation.gru import AttentionalGru, GlobalAttention, reversal
from hvd_async.tasks.translation.transformer import Transformer
from hvd_async.tasks.translation.translator import Translator
from hvd_async.vectors.flat import FlatParameters
from tests.translation.settings import make_config

SIZE = 11
SOURCES, TARGETS = [[4, 5, 6], [7], [8, 9]], [[8, 9], [10], []]
BATCH = collate(SOURCES, TARGETS)


def make_model(**changes: Any) -> AttentionalGru:
    keys: dict[str, Any] = {"kind": "gru", "encoder_layers": 2, "decoder_layers": 2, "width": 8, "dropout": 0.0}
    torch.manual_seed(1)
    return AttentionalGru(ModelConfig(**{**keys, **changes}), SIZE).double()


def logits(model: AttentionalGru, batch: Batch) -> torch.Tensor:
    result: torch.Tensor = model(batch.source, batch.source_mask, batch.target_input, batch.target_positions)
    return result


@pytest.fixture
def task(folder: Path, corpus: PreparedCorpus) -> TranslationTask:
    return TranslationTask(make_config(folder, model={"kind": "gru", "width": 32}), corpus)


# --- The model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "expected"), [("transformer", Transformer), ("gru", AttentionalGru)])
def test_the_configuration_chooses_the_model(kind: Any, expected: type) -> None:
    assert type(build_model(ModelConfig(kind=kind, width=8), SIZE)) is expected


def test_parameters_of_a_gru_are_counted_without_memory(task: TranslationTask, folder: Path, corpus: PreparedCorpus) -> None:
    config = make_config(folder, model={"kind": "gru", "width": 32}, vocabulary={"size": len(corpus.vocabularies.target)})
    assert estimate(config)[0] == sum(parameter.numel() for parameter in task.build_model().parameters())


@pytest.mark.parametrize(("tie", "matrices"), [("all", 1), ("decoder", 2), ("none", 3)])
def test_tied_embeddings_are_one_parameter(tie: str, matrices: int) -> None:
    model = make_model(tie_embeddings=tie)
    assert sum(parameter.shape == (SIZE, 8) for parameter in model.parameters()) == matrices
    assert logits(model, BATCH).shape == (BATCH.num_tokens, SIZE)


def test_padding_changes_nothing() -> None:
    model = make_model()
    alone = [logits(model, collate([s], [t])) for s, t in zip(SOURCES, TARGETS, strict=True)]
    torch.testing.assert_close(logits(model, BATCH), torch.cat(alone))


def test_tokens_at_padding_change_nothing() -> None:
    model = make_model()
    assert BATCH.source_mask is not None and BATCH.target_positions is not None
    target_mask = torch.zeros_like(BATCH.target_input, dtype=torch.bool).flatten()
    target_mask[BATCH.target_positions] = True
    source = BATCH.source.masked_fill(~BATCH.source_mask, 10)
    target_input = BATCH.target_input.masked_fill(~target_mask.view_as(BATCH.target_input), 10)
    changed = model(source, BATCH.source_mask, target_input, BATCH.target_positions)
    torch.testing.assert_close(changed, logits(model, BATCH), rtol=0, atol=0)


def test_padding_has_no_gradient() -> None:
    model = make_model(tie_embeddings="none")
    torch.autograd.backward(logits(model, BATCH).logsumexp(dim=1).sum())
    for embedding in (model.source_embedding, model.target_embedding):
        assert embedding.weight.grad is not None
        assert not embedding.weight.grad[0].any()


def test_reversal_leaves_padding_where_it_is() -> None:
    mask = torch.tensor([[True, True, True], [True, True, False]])
    assert reversal(torch.zeros(2, 3), mask)[:, :, 0].tolist() == [[2, 1, 0], [1, 0, 2]]
    assert reversal(torch.zeros(2, 3), None)[:, :, 0].tolist() == [[2, 1, 0]]


def test_each_encoded_position_depends_on_the_whole_sentence() -> None:
    model = make_model(encoder_layers=1)
    first, last = (model.encode(torch.tensor([tokens]), None) for tokens in ([4, 5, 6, 3], [7, 5, 6, 8]))
    assert (first != last).all()
    left_changed = model.encode(torch.tensor([[7, 5, 6, 3]]), None)
    assert torch.equal(left_changed[0, 3, 4:], first[0, 3, 4:])  # the second half comes from the backward direction
    assert not torch.equal(left_changed[0, 3, :4], first[0, 3, :4])


def test_no_position_sees_later_target_tokens() -> None:
    model = make_model()
    first, second = (logits(model, collate([[4, 5]], [target])) for target in ([8, 9, 10], [8, 9, 4]))
    torch.testing.assert_close(first[:3], second[:3], rtol=0, atol=0)
    assert not torch.allclose(first[3], second[3])


def test_attention_equals_its_formula() -> None:
    torch.manual_seed(1)
    attention = GlobalAttention(ModelConfig(kind="gru", width=8)).double()
    hidden, memory = torch.randn(3, 8, dtype=torch.float64), torch.randn(4, 8, dtype=torch.float64)
    weights = torch.softmax(hidden @ attention.score.weight @ memory[:3].T, dim=1)
    expected = torch.tanh(torch.cat([weights @ memory[:3], hidden], dim=1) @ attention.combine.weight.T)
    mask = torch.tensor([[True, True, True, False]])
    found = attention(hidden[None], attention.project_memory(memory[None]), memory[None], mask)
    torch.testing.assert_close(found[0], expected)


def test_dropout_acts_only_in_training() -> None:
    model = make_model(dropout=0.5)
    assert not torch.equal(logits(model, BATCH), logits(model, BATCH))
    model.eval()
    assert torch.equal(logits(model, BATCH), logits(model, BATCH))


# --- Step by step -----------------------------------------------------------------------------------------------------


def test_decoding_step_by_step_gives_the_logits_of_the_whole() -> None:
    model = make_model()
    memory = model.encode(BATCH.source, BATCH.source_mask)
    whole = model.output(model.decode(BATCH.target_input, memory, BATCH.source_mask))
    state = model.start(memory, BATCH.source_mask)
    steps = [model.step(BATCH.target_input[:, i], state) for i in range(BATCH.target_input.shape[1])]
    assert state.length == len(steps)
    torch.testing.assert_close(torch.stack(steps, dim=1), whole)


def test_a_selected_state_continues_the_sentences_selected() -> None:
    model = make_model()
    state = model.start(model.encode(BATCH.source, BATCH.source_mask), BATCH.source_mask)
    model.step(BATCH.target_input[:, 0], state)
    rows = torch.tensor([2, 0, 2])
    selected = state.select(rows, sentences=rows)
    tokens = torch.tensor([8, 9, 10])
    torch.testing.assert_close(model.step(tokens[rows], selected), model.step(tokens, state)[rows])


def test_several_hypotheses_of_a_sentence_share_its_source() -> None:
    model = make_model()
    memory = model.encode(BATCH.source, BATCH.source_mask)
    state = model.start(memory, BATCH.source_mask).select(torch.arange(3).repeat_interleave(2))
    alone = [model.start(memory, BATCH.source_mask) for _ in range(2)]
    for tokens in (torch.tensor([8, 9, 9, 10, 4, 5]), torch.tensor([4, 8, 10, 4, 7, 7])):
        together = model.step(tokens, state)
        apart = [model.step(tokens[k::2], alone[k]) for k in range(2)]
        torch.testing.assert_close(together, torch.stack(apart, dim=1).flatten(0, 1))
    third = torch.tensor([5, 6])
    expected = model.step(third[[1, 0]], state.select(torch.tensor([2, 3]), sentences=torch.tensor([1])))[[1, 0]]
    found = model.step(third, state.select(torch.tensor([3, 2]), sentences=torch.tensor([1])))
    torch.testing.assert_close(found, expected)


# --- Training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tie", ["all", "decoder", "none"])
def test_every_parameter_has_its_gradient_in_the_flat_vector(tie: str) -> None:
    expected = make_model(tie_embeddings=tie).float()
    torch.autograd.backward(logits(expected, BATCH).logsumexp(dim=1).sum())
    model = make_model(tie_embeddings=tie).float()
    flat = FlatParameters(model)
    torch.autograd.backward(logits(model, BATCH).logsumexp(dim=1).sum())
    for name, parameter in expected.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
        torch.testing.assert_close(flat.named_tensors(flat.gradient)[name], parameter.grad, msg=name)


@pytest.mark.parametrize("name", ["encoder.0.left_to_right.weight_hh_l0", "decoder.1.weight_hh_l0"])
def test_the_model_reads_the_flat_vector(name: str) -> None:
    model = make_model().float()
    flat = FlatParameters(model)
    before = logits(model, BATCH)
    flat.named_tensors(flat.parameters)[name].mul_(3.0)
    assert not torch.allclose(logits(model, BATCH), before)


def test_a_batch_computed_again_gives_the_same_bits(task: TranslationTask) -> None:
    model = task.build_model().train()
    flat = FlatParameters(model)
    gradients = []
    for _ in range(2):
        compute_gradient(task, model, flat, seed=3, batch=1)
        gradients.append(flat.collect_gradient().clone())
    assert torch.equal(*gradients)


def test_a_gru_learns_the_built_in_grammar(task: TranslationTask) -> None:
    model = task.build_model().train()
    flat = FlatParameters(model)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for batch in range(30):
        tokens, loss = compute_gradient(task, model, flat, seed=1, batch=batch)
        flat.collect_gradient().div_(tokens)
        optimizer.step()
        losses.append(loss / tokens)
    assert sum(losses[-3:]) / 3 < losses[0] - 0.7


def test_bfloat16_training_computes_finite_gradients(folder: Path, corpus: PreparedCorpus) -> None:
    task = TranslationTask(make_config(folder, model={"kind": "gru"}, training={"precision": "bfloat16"}), corpus)
    model = task.build_model().train()
    flat = FlatParameters(model)
    _, loss = compute_gradient(task, model, flat, seed=1, batch=0)
    single = TranslationTask(make_config(folder, model={"kind": "gru"}), corpus)
    assert loss == pytest.approx(compute_gradient(single, model, FlatParameters(model), seed=1, batch=0)[1], rel=0.01)
    assert flat.gradient.isfinite().all()


def test_a_loaded_model_is_the_exported_one(task: TranslationTask, tmp_path: Path) -> None:
    model = task.build_model()
    flat = FlatParameters(model)
    task.export(tmp_path / "model", flat.named_tensors(flat.parameters), 3, {})
    loaded = load_model(tmp_path / "model")
    assert isinstance(loaded.model, AttentionalGru)
    for (name, expected), found in zip(model.named_parameters(), loaded.model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, msg=name)
    assert len(Translator(loaded, settings={"beam": 2}).translate(["The dog sees the cat.", ""])) == 2
