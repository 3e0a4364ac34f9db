from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from hvd_async.config import ModelConfig
from hvd_async.tasks.translation.architectures import build_model
from hvd_async.tasks.translation.attention import attention
from hvd_async.tasks.translation.batching import Batch, collate
from hvd_async.tasks.translation.transformer import SelfAttention, Transformer, sinusoids

SIZE = 11
BATCH = collate([[4, 5, 6], [7]], [[8, 9], [10]])


def make_model(**changes: Any) -> Transformer:
    keys: dict[str, Any] = {
        "encoder_layers": 2,
        "decoder_layers": 2,
        "width": 8,
        "feed_forward": 16,
        "heads": 2,
        "dropout": 0.0,
    }
    torch.manual_seed(1)
    return Transformer(ModelConfig(**{**keys, **changes}), SIZE).double()


def logits(model: Transformer, batch: Batch) -> torch.Tensor:
    result: torch.Tensor = model(batch.source, batch.source_mask, batch.target_input, batch.target_positions)
    return result


def test_under_autocast_attention_of_the_cpu_is_that_of_float32_rounded_once() -> None:
    """In bfloat16 its backward pass takes nine times as long."""
    torch.manual_seed(3)
    query, key, value = (torch.randn(2, 3, 5, 4).bfloat16().requires_grad_() for _ in range(3))
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = attention(query, key, value, mask)
    assert got.dtype == torch.bfloat16
    wide = [each.detach().float().requires_grad_() for each in (query, key, value)]
    expected = attention(*wide, mask)
    assert expected.dtype == torch.float32 and torch.equal(got, expected.bfloat16())
    got.float().square().sum().backward()
    expected.bfloat16().float().square().sum().backward()
    for mine, theirs in zip((query, key, value), wide, strict=True):
        assert mine.grad is not None and theirs.grad is not None
        assert torch.equal(mine.grad, theirs.grad.bfloat16())


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("tie", ["all", "decoder", "none"])
def test_logits_have_a_row_per_target_token(norm: str, tie: str) -> None:
    assert logits(make_model(norm=norm, tie_embeddings=tie), BATCH).shape == (BATCH.num_tokens, SIZE)


@pytest.mark.parametrize(("tie", "matrices"), [("all", 1), ("decoder", 2), ("none", 3)])
def test_tied_embeddings_are_one_parameter(tie: str, matrices: int) -> None:
    model = make_model(tie_embeddings=tie)
    assert sum(parameter.shape == (SIZE, 8) for parameter in model.parameters()) == matrices


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_padding_changes_nothing(norm: str) -> None:
    model = make_model(norm=norm)
    alone = [logits(model, collate([s], [t])) for s, t in (([4, 5, 6], [8, 9]), ([7], [10]))]
    torch.testing.assert_close(logits(model, BATCH), torch.cat(alone))


def test_no_position_sees_later_target_tokens() -> None:
    model = make_model()
    first, second = (logits(model, collate([[4, 5]], [target])) for target in ([8, 9, 10], [8, 9, 4]))
    torch.testing.assert_close(first[:3], second[:3], rtol=0, atol=0)
    assert not torch.allclose(first[3], second[3])


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_decoding_step_by_step_gives_the_logits_of_the_whole(norm: str) -> None:
    model = make_model(norm=norm)
    memory = model.encode(BATCH.source, BATCH.source_mask)
    whole = model.output(model.decode(BATCH.target_input, memory, BATCH.source_mask))
    state = model.start(memory, BATCH.source_mask)
    steps = [model.step(BATCH.target_input[:, i], state) for i in range(BATCH.target_input.shape[1])]
    torch.testing.assert_close(torch.stack(steps, dim=1), whole)


def test_a_selected_state_continues_the_sentences_selected() -> None:
    model = make_model()
    state = model.start(model.encode(BATCH.source, BATCH.source_mask), BATCH.source_mask)
    model.step(BATCH.target_input[:, 0], state)
    rows = torch.tensor([1, 0, 1])
    selected = state.select(rows, sentences=rows)
    tokens = torch.tensor([8, 9])
    torch.testing.assert_close(model.step(tokens[rows], selected), model.step(tokens, state)[rows])


def test_several_hypotheses_of_a_sentence_share_its_source() -> None:
    model = make_model()
    memory = model.encode(BATCH.source, BATCH.source_mask)
    state = model.start(memory, BATCH.source_mask).select(torch.tensor([0, 0, 1, 1]))
    alone = [model.start(memory, BATCH.source_mask) for _ in range(2)]
    first, second = torch.tensor([8, 9, 9, 10]), torch.tensor([4, 8, 10, 4])
    for tokens in (first, second):
        together = model.step(tokens, state)
        apart = [model.step(tokens[k::2], alone[k]) for k in range(2)]
        torch.testing.assert_close(together, torch.stack(apart, dim=1).flatten(0, 1))
    swapped, only_second = torch.tensor([3, 2]), torch.tensor([1])
    third = torch.tensor([5, 6])
    expected = model.step(third[[1, 0]], state.select(torch.tensor([2, 3]), sentences=only_second))[[1, 0]]
    torch.testing.assert_close(model.step(third, state.select(swapped, sentences=only_second)), expected)


def test_attention_equals_its_formula() -> None:
    torch.manual_seed(1)
    attention = SelfAttention(ModelConfig(width=8, heads=1)).double()
    x = torch.randn(1, 3, 8, dtype=torch.float64)
    query, key, value = attention.query_key_value(x[0]).split(8, dim=1)
    weights = torch.softmax(query @ key.T / math.sqrt(8), dim=1)
    torch.testing.assert_close(attention(x, None, causal=False)[0], attention.output(weights @ value))


def test_each_part_of_a_fused_projection_is_initialised_separately() -> None:
    projection = SelfAttention(ModelConfig(width=64, heads=4)).query_key_value
    bound = math.sqrt(6 / (64 + 64))
    for part in projection.weight.chunk(3):
        assert 0.9 * bound < part.abs().max() <= bound


def test_initial_parameters_follow_the_global_seed() -> None:
    for (name, a), b in zip(make_model().named_parameters(), make_model().parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)


def test_every_parameter_has_a_gradient() -> None:
    for tie in ("all", "decoder", "none"):
        model = make_model(tie_embeddings=tie)
        torch.autograd.backward(logits(model, BATCH).logsumexp(dim=1).sum())
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_dropout_acts_only_in_training() -> None:
    model = make_model(dropout=0.5, attention_dropout=0.5)
    assert not torch.equal(logits(model, BATCH), logits(model, BATCH))
    model.eval()
    assert torch.equal(logits(model, BATCH), logits(model, BATCH))


def test_sinusoids_are_those_of_the_paper() -> None:
    table = sinusoids(50, 8)
    assert table.shape == (50, 8)
    for position, column in ((0, 0), (1, 0), (7, 4), (49, 6)):
        angle = position / 10000 ** (column / 8)
        assert table[position, column].item() == pytest.approx(math.sin(angle), abs=1e-6)
        assert table[position, column + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_attention_on_a_gpu_is_not_planned_anew_for_each_shape() -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    build_model(ModelConfig(width=8, heads=2, feed_forward=8), SIZE)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
