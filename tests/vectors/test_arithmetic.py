"""Vector arithmetic: C compared bit for bit with torch operations, both with torch.optim and float64; every cast, and
bells.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd_async.vectors import arithmetic
from hvd_async.vectors.arithmetic import BLOCK, Input
from hvd_async.vectors.rule import DECOUPLED, Rule, State
from tests.lion import TorchLion

needs_c = pytest.mark.skipif(not arithmetic.is_compiled(), reason="the C extension was not built")
SIZES = [0, 1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 70_001]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
RULES = {
    "adam": Rule("adam", 0.03, beta1=0.9, beta2=0.98, inverse_root=1.7, epsilon=1e-8),
    "adam-decay": Rule("adam", 0.03, decay=0.1, beta1=0.9, beta2=0.98, inverse_root=1.7, epsilon=1e-8),
    "adamw": Rule("adamw", 0.03, decay=0.997, beta1=0.9, beta2=0.98, inverse_root=1.7, epsilon=1e-8),
    "nadam": Rule("nadam", 0.03, beta1=0.9, beta2=0.98, inverse_root=1.7, epsilon=1e-8, gradient_rate=0.007),
    "nadam-decay": Rule("nadam", 0.03, 0.1, beta1=0.9, beta2=0.98, inverse_root=1.7, epsilon=1e-8, gradient_rate=0.007),
    "nadamw": Rule("nadamw", 0.03, 0.997, beta1=0.9, beta2=0.98, inverse_root=1.7, epsilon=1e-8, gradient_rate=0.007),
    "lion": Rule("lion", 0.03, decay=0.997, beta1=0.9, beta2=0.98),
    "adagrad": Rule("adagrad", 0.03, epsilon=1e-8),
    "adagrad-decay": Rule("adagrad", 0.03, decay=0.1, epsilon=1e-8),
    "sgd": Rule("sgd", 0.3),
    "sgd-decay": Rule("sgd", 0.3, decay=0.1),
    "momentum": Rule("sgd", 0.3, beta1=0.7),
    "momentum-decay": Rule("sgd", 0.3, decay=0.1, beta1=0.7),
    "nesterov": Rule("sgd", 0.3, beta1=0.7, nesterov=True),
    "nesterov-decay": Rule("sgd", 0.3, decay=0.1, beta1=0.7, nesterov=True),
}


def numbers(size: int, seed: int, dtype: torch.dtype = torch.float32, offset: int = 0) -> torch.Tensor:
    """Return [size] normal numbers, as a view that begins at element `offset` of a larger tensor."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size + offset + 3, generator=generator).to(dtype)[offset : offset + size]


def make_inputs(size: int, count: int, dtypes: Sequence[torch.dtype] = DTYPES, offset: int = 0) -> list[Input]:
    """Return `count` inputs, of `dtypes` in turn; every other one has a divisor."""
    kinds = itertools.islice(itertools.cycle(dtypes), count)
    return [Input(numbers(size, k, kind, offset), 1.0 + k % 2 * k) for k, kind in enumerate(kinds)]


def make_state(rule: Rule, size: int, offset: int = 0, in_place: bool = False) -> State:
    """Return a state as after a few steps: no vector is zero."""
    parameters = numbers(size, 100, offset=offset)
    first = numbers(size, 101, offset=offset)
    return State(
        parameters,
        parameters if in_place else torch.full((size + offset,), 9.0)[offset:],
        first.abs() if rule.kind == "adagrad" else first if rule.kind != "sgd" or rule.beta1 > 0 else None,
        numbers(size, 102, offset=offset).abs() if "adam" in rule.kind else None,
        numbers(size, 103, offset=offset) if rule.average_weight is not None else None,
    )


def vectors(state: State) -> dict[str, torch.Tensor]:
    """Return the vectors that `state` has."""
    found = {field.name: getattr(state, field.name) for field in fields(state)}
    return {name: vector for name, vector in found.items() if vector is not None}


def assert_same_bits(one: torch.Tensor, other: torch.Tensor) -> None:
    """Compare bit for bit, so that zeros of either sign differ; all NaNs count as equal."""
    assert torch.equal(one.isnan(), other.isnan())
    kind = torch.int32 if one.dtype == torch.float32 else torch.int16
    number = ~one.isnan()
    assert torch.equal(one[number].view(kind), other[number].view(kind))


def assert_same_sum(inputs: Sequence[Input], divisor: float) -> None:
    totals = [torch.full_like(inputs[0].vector, 9.0, dtype=torch.float32) for _ in range(2)]
    partials = [arithmetic.sum_inputs(inputs, totals[use_c], divisor, use_c=bool(use_c)) for use_c in range(2)]
    assert_same_bits(*totals)
    assert partials[0] == partials[1]
    assert arithmetic.sum_inputs(inputs, None, divisor) == partials[0]


def assert_same_step(inputs: Sequence[Input], rule: Rule, size: int, offset: int = 0, in_place: bool = False) -> None:
    states = [make_state(rule, size, offset, in_place) for _ in range(2)]
    before = [each.vector.clone() for each in inputs]
    if rule.is_provisional:
        totals = [torch.full((size,), 9.0) for _ in range(2)]
        for use_c in range(2):
            arithmetic.provisional_step(inputs, totals[use_c], states[use_c], rule, use_c=bool(use_c))
        assert_same_bits(*totals)
    else:
        partials = [arithmetic.step(inputs, states[use_c], rule, use_c=bool(use_c)) for use_c in range(2)]
        assert partials[0] == partials[1]
        assert len(partials[0]) == -(-size // BLOCK)
    slow, quick = map(vectors, states)
    assert slow.keys() == quick.keys()
    for name in slow:
        assert_same_bits(slow[name], quick[name])
    assert all(torch.equal(each.vector, kept) for each, kept in zip(inputs, before, strict=True))
    if not in_place:
        assert torch.equal(quick["parameters"], numbers(size, 100, offset=offset))


# --- C against torch --------------------------------------------------------------------------------------------------


@needs_c
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 20])
def test_sums_equal_those_of_torch(size: int, count: int) -> None:
    assert_same_sum(make_inputs(size, count), 1.0)
    assert_same_sum(make_inputs(size, count, [torch.float32], offset=1), 7.0)


@needs_c
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", RULES)
def test_steps_equal_those_of_torch(name: str, size: int) -> None:
    rule = RULES[name]
    # Up to 4 inputs that are whole and have no divisor take another path through the code than the rest.
    for count in (1, 2, 3, 4, 5) if size < 70_000 else (3, 5):
        plain = [Input(numbers(size, k)) for k in range(count)]
        assert_same_step(plain, rule, size)
        assert_same_step(plain, replace(rule, divisor=3.0, clip=0.3, average_weight=0.25), size, in_place=True)
    assert_same_step(make_inputs(size, 6), replace(rule, divisor=11.0), size)


@needs_c
@pytest.mark.parametrize("size", [1, BLOCK + 1, 70_001])
@pytest.mark.parametrize("name", RULES)
def test_a_provisional_step_equals_that_of_torch_and_changes_only_its_target(name: str, size: int) -> None:
    # The second moments begin small enough that the gradients of some elements bound them.
    rule = replace(RULES[name], divisor=3.0, clip=0.3, average_weight=0.25, beta2=0.5)
    provisional = replace(rule, is_provisional=True)
    for dtypes, count in (([torch.float32], 1), (DTYPES, 3)):
        inputs = make_inputs(size, count, dtypes)
        assert_same_step(inputs, provisional, size)
        tried, before = make_state(provisional, size), make_state(provisional, size)
        stepped, same = make_state(rule, size), rule
        if "adam" in rule.kind:  # a step that finds the second moment of the provisional step, and keeps it
            gradient = torch.empty(size)
            arithmetic.sum_inputs(inputs, gradient, 1.0)
            gradient = gradient / 3.0 * 0.3 + (
                stepped.parameters * rule.decay if rule.kind not in DECOUPLED and rule.decay else 0.0
            )
            assert stepped.second is not None
            torch.maximum(stepped.second, gradient * gradient * (1 - rule.beta2), out=stepped.second)
            same = replace(rule, beta2=1.0)
        total, summed = torch.full((size,), 9.0), torch.empty(size)
        arithmetic.provisional_step(inputs, total, tried, provisional)
        arithmetic.step(inputs, stepped, same)
        arithmetic.sum_inputs(inputs, summed, 1.0)
        assert_same_bits(total, summed)
        assert_same_bits(tried.target, stepped.target)
        for key, vector in vectors(tried).items():
            assert key == "target" or torch.equal(vector, vectors(before)[key]), key


@needs_c
@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    size=st.sampled_from(SIZES),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=20),
    rule=st.builds(
        replace,
        st.sampled_from(list(RULES.values())),
        divisor=st.sampled_from([1.0, 3.0, 1e4]),
        clip=st.sampled_from([1.0, 0.3]),
        average_weight=st.sampled_from([None, 0.25]),
        is_provisional=st.booleans(),
    ),
    offset=st.integers(0, 15),
    in_place=st.booleans(),
    num_threads=st.sampled_from([1, 3]),
)
def test_any_combination_equals_that_of_torch(
    size: int, dtypes: list[torch.dtype], rule: Rule, offset: int, in_place: bool, num_threads: int
) -> None:
    inputs = make_inputs(size, len(dtypes), dtypes, offset)
    in_place = in_place and not rule.is_provisional
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: num_threads)
        patch.setattr(arithmetic, "_SMALLEST_SHARE", BLOCK)
        assert_same_sum(inputs, rule.divisor)
        assert_same_step(inputs, rule, size, offset, in_place)


@pytest.mark.parametrize("use_c", [pytest.param(True, marks=needs_c), False])
@pytest.mark.parametrize("count", [1, 6])
def test_the_first_input_may_be_the_sum(count: int, use_c: bool) -> None:
    inputs = [Input(numbers(9000, 0)), *make_inputs(9000, count)[1:]]
    apart = torch.empty(9000)
    partials = arithmetic.sum_inputs(inputs, apart, 2.0, use_c=use_c)
    again = [Input(inputs[0].vector.clone()), *inputs[1:]]
    assert arithmetic.sum_inputs(inputs, inputs[0].vector, 2.0, use_c=use_c) == partials
    assert torch.equal(inputs[0].vector, apart)
    rule = replace(RULES["adam"], is_provisional=True, divisor=2.0)
    summed, tried = (make_state(rule, 9000) for _ in range(2))
    arithmetic.provisional_step([Input(apart)], None, summed, rule, use_c=use_c)
    arithmetic.provisional_step(again, again[0].vector, tried, rule, use_c=use_c)
    assert torch.equal(again[0].vector, apart) and torch.equal(tried.target, summed.target)


@pytest.mark.parametrize("use_c", [pytest.param(True, marks=needs_c), False])
def test_no_result_depends_on_the_number_of_threads(use_c: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 3 * 64 * BLOCK + 17  # enough for three threads
    inputs = make_inputs(size, 3)
    rule = replace(RULES["adamw"], divisor=5.0, average_weight=0.5)
    results = []
    for num_threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=num_threads: count)
        state, total = make_state(rule, size), torch.empty(size)
        partials = [
            arithmetic.sum_inputs(inputs, total, 5.0, use_c=use_c),
            arithmetic.step(inputs, state, rule, use_c=use_c),
        ]
        half = torch.empty(size, dtype=torch.float16)
        largest = arithmetic.copy_and_measure(total, half, use_c=use_c)
        results.append((partials, [total, half, *vectors(state).values()], largest))
    (partials, tensors, largest), other = results
    assert (partials, largest) == (other[0], other[2]) and partials[0] == partials[1]
    assert all(map(torch.equal, tensors, other[1]))


@needs_c
def test_numbers_that_are_not_finite_give_the_results_of_torch() -> None:
    special = torch.tensor([math.nan, math.inf, -math.inf, 3e38, 1e-45, 0.0, -0.0, 1.0])
    inputs = [Input(special.repeat_interleave(8)), Input(special.repeat(8))]
    for rule in RULES.values():
        states = [make_state(rule, 64) for _ in range(2)]
        partials = [arithmetic.step(inputs, states[use_c], rule, use_c=bool(use_c)) for use_c in range(2)]
        assert all(math.isnan(arithmetic.norm(each)) for each in partials)
        for one, other in zip(vectors(states[0]).values(), vectors(states[1]).values(), strict=True):
            assert_same_bits(one, other)


def test_without_the_extension_everything_but_the_bells_works(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, rule = make_inputs(9000, 3), RULES["adam"]
    compiled, bare = make_state(rule, 9000), make_state(rule, 9000)
    partials = arithmetic.step(inputs, compiled, rule)
    monkeypatch.setattr(arithmetic, "_c", None)
    assert not arithmetic.is_compiled() and not arithmetic.has_doorbells()
    assert arithmetic.step(inputs, bare, rule) == partials == arithmetic.sum_inputs(inputs, None, 1.0)
    assert all(map(torch.equal, vectors(compiled).values(), vectors(bare).values()))
    target = torch.empty(9000)
    arithmetic.copy(bare.target, target)
    assert arithmetic.copy_and_measure(target, None) == float(target.abs().max())
    assert torch.equal(target, bare.target)


@needs_c
def test_more_than_the_maximum_of_inputs_are_refused() -> None:
    inputs = [Input(torch.ones(3))] * (arithmetic.MAX_INPUTS + 1)
    with pytest.raises(ValueError, match="inputs: got 65, expected 1 to 64"):
        arithmetic.sum_inputs(inputs, None, 1.0)
    total = torch.empty(3)
    arithmetic.sum_inputs(inputs[1:], total, 1.0)
    assert total.tolist() == [64.0] * 3


# --- C and torch against references -----------------------------------------------------------------------------------


def nadam_rule(kind: str, step: int, decay: float) -> Rule:
    """Return the rule of NAdam's step number `step`, with a rate of 0.01 and a momentum decay of 0.5."""
    momenta = [0.9 * (1 - 0.5 * 0.96 ** (number * 0.5)) for number in range(1, step + 2)]
    rate = 0.01 * momenta[-1] / (1 - math.prod(momenta))
    gradient_rate = 0.01 * (1 - momenta[-2]) / (1 - math.prod(momenta[:-1]))
    return Rule(kind, rate, decay, 0.9, 0.98, (1 - 0.98**step) ** -0.5, 1e-8, gradient_rate)


OPTIMIZERS: dict[str, tuple[Callable[[list[torch.Tensor]], torch.optim.Optimizer], Callable[[int], Rule]]] = {
    "adam": (
        lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1),
        lambda t: Rule("adam", 0.01 / (1 - 0.9**t), 0.1, 0.9, 0.98, (1 - 0.98**t) ** -0.5, 1e-8),
    ),
    "adamw": (
        lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1),
        lambda t: Rule("adamw", 0.01 / (1 - 0.9**t), 1 - 0.01 * 0.1, 0.9, 0.98, (1 - 0.98**t) ** -0.5, 1e-8),
    ),
    "nadam": (
        lambda p: torch.optim.NAdam(p, lr=0.01, betas=(0.9, 0.98), weight_decay=0.1, momentum_decay=0.5),
        lambda t: nadam_rule("nadam", t, 0.1),
    ),
    "nadamw": (
        lambda p: torch.optim.NAdam(
            p, lr=0.01, betas=(0.9, 0.98), weight_decay=0.1, momentum_decay=0.5, decoupled_weight_decay=True
        ),
        lambda t: nadam_rule("nadamw", t, 1 - 0.01 * 0.1),
    ),
    "lion": (
        lambda p: TorchLion(p, lr=0.01, betas=(0.9, 0.98), weight_decay=0.1),
        lambda t: Rule("lion", 0.01, 1 - 0.01 * 0.1, 0.9, 0.98),
    ),
    "adagrad": (
        lambda p: torch.optim.Adagrad(p, lr=0.01, lr_decay=0.5, weight_decay=0.1, eps=1e-8),
        lambda t: Rule("adagrad", 0.01 / (1 + (t - 1) * 0.5), 0.1, epsilon=1e-8),
    ),
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.01), lambda t: Rule("sgd", 0.01)),
    "momentum": (
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1),
        lambda t: Rule("sgd", 0.01, 0.1, 0.9),
    ),
    "nesterov": (
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
        lambda t: Rule("sgd", 0.01, 0.0, 0.9, nesterov=True),
    ),
}


@pytest.mark.parametrize("use_c", [pytest.param(True, marks=needs_c), False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_close_to_those_of_torch_optim(name: str, use_c: bool) -> None:
    make_optimizer, rule_of = OPTIMIZERS[name]
    expected = numbers(5000, 1).clone()
    optimizer = make_optimizer([expected])
    parameters = expected.clone()
    state = State(parameters, parameters, torch.zeros(5000), torch.zeros(5000))
    if not isinstance(optimizer, (torch.optim.Adam, torch.optim.NAdam)):
        state = State(parameters, parameters, torch.zeros(5000))
    if name == "sgd":
        state = State(parameters, parameters)
    for step in range(1, 8):
        expected.grad = numbers(5000, step)
        optimizer.step()
        arithmetic.step([Input(numbers(5000, step))], state, rule_of(step), use_c=use_c)
    torch.testing.assert_close(parameters, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("use_c", [pytest.param(True, marks=needs_c), False])
@pytest.mark.parametrize("size", SIZES)
def test_the_norm_agrees_with_float64(size: int, use_c: bool) -> None:
    vector = numbers(size, 1) * 1e15
    partials = arithmetic.sum_inputs([Input(vector)], None, 3.0, use_c=use_c)
    assert arithmetic.norm(partials) == pytest.approx(float((vector / 3.0).double().norm()), rel=1e-14)


def test_the_norm_does_not_depend_on_how_blocks_are_divided() -> None:
    vector = numbers(9 * BLOCK + 5, 1)
    whole = arithmetic.sum_inputs([Input(vector)], None, 1.0)
    for cut in range(BLOCK, vector.numel(), BLOCK):
        parts = [arithmetic.sum_inputs([Input(part)], None, 1.0) for part in (vector[:cut], vector[cut:])]
        assert parts[0] + parts[1] == whole
        assert arithmetic.norm(parts[1] + parts[0]) == arithmetic.norm(whole)


def test_the_norm_of_partial_sums_that_are_not_finite_is_not_finite() -> None:
    assert math.isnan(arithmetic.norm([1.0, math.inf, math.nan]))
    assert arithmetic.norm([1.0, math.inf]) == math.inf
    assert arithmetic.norm([]) == 0.0


@pytest.mark.parametrize("use_c", [pytest.param(True, marks=needs_c), False])
def test_lion_moves_by_the_rate_or_not_at_all(use_c: bool) -> None:
    parameters, momentum = torch.ones(5), torch.tensor([0.0, 1.0, -1.0, 1.0, 0.0])
    gradient = torch.tensor([0.0, 1.0, 0.0, -3.0, 1e-40])
    rule = Rule("lion", 0.25, decay=0.5, beta1=0.75, beta2=0.5)
    arithmetic.step([Input(gradient)], State(parameters, parameters, momentum), rule, use_c=use_c)
    assert parameters.tolist() == [0.5, 0.25, 0.75, 0.5, 0.25]
    assert momentum[:4].tolist() == [0.0, 1.0, -0.5, -1.0]


# --- Copies and casts -------------------------------------------------------------------------------------------------

WAYS = [pytest.param(True, marks=needs_c, id="c"), pytest.param(False, id="torch")]


def every_value(dtype: torch.dtype) -> torch.Tensor:
    """Return [65536], all bit patterns of a 16-bit type."""
    return torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)


@pytest.mark.parametrize("use_c", WAYS)
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_every_16_bit_number_survives_the_way_to_float32_and_back(dtype: torch.dtype, use_c: bool) -> None:
    values = every_value(dtype)
    wide, back = torch.empty(1 << 16), torch.empty(1 << 16, dtype=dtype)
    arithmetic.sum_inputs([Input(values)], wide, 1.0, use_c=use_c)
    assert_same_bits(wide, values.float())
    assert math.isnan(arithmetic.copy_and_measure(wide, back, use_c=use_c))
    assert_same_bits(back, values)


@pytest.mark.parametrize("use_c", WAYS)
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_a_cast_rounds_to_nearest_and_ties_to_even(dtype: torch.dtype, use_c: bool) -> None:
    bits = torch.arange(torch.tensor(math.inf, dtype=dtype).view(torch.int16).item(), dtype=torch.int16)
    below, above = bits.view(dtype).double(), (bits + 1).view(dtype).double()
    above[-1] = 2 * below[-1] - below[-2]  # the next number, if it did not overflow
    middle = ((below + above) / 2).float()
    for source, expected in (
        (middle, bits + bits % 2),
        (torch.nextafter(middle, torch.tensor(0.0)), bits),
        (torch.nextafter(middle, torch.tensor(math.inf)), bits + 1),
    ):
        for sign in (1.0, -1.0):
            target = torch.empty(len(bits), dtype=dtype)
            arithmetic.copy_and_measure(sign * source, target, use_c=use_c)
            assert torch.equal(target.view(torch.int16), (expected.view(dtype) * sign).view(torch.int16))


@needs_c
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_float_is_cast_like_in_torch(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    source = torch.randint(-(2**31), 2**31, (300_000,), generator=generator).to(torch.int32).view(torch.float32)
    source = source[~source.isnan()]
    target = torch.empty_like(source, dtype=dtype)
    assert arithmetic.copy_and_measure(source, target) == float(source.to(dtype).float().abs().max())
    assert_same_bits(target, source.to(dtype))


@pytest.mark.parametrize("use_c", WAYS)
@pytest.mark.parametrize("dtype", [None, *DTYPES])
@pytest.mark.parametrize("value", [0.0, -2.5, math.inf, -math.inf, math.nan, -math.nan])
def test_the_largest_magnitude_is_found_wherever_it_is(value: float, dtype: torch.dtype | None, use_c: bool) -> None:
    for at in (0, 1, 4096, 4999):
        source = torch.full((5000,), -0.0)
        source[at] = value
        target = None if dtype is None else torch.empty(5000, dtype=dtype)
        largest = arithmetic.copy_and_measure(source, target, use_c=use_c)
        assert math.isnan(largest) if math.isnan(value) else largest == abs(value)


@pytest.mark.parametrize("use_c", WAYS)
def test_an_overflow_in_the_target_is_measured_as_infinite(use_c: bool) -> None:
    half, brain = (torch.empty(2, dtype=dtype) for dtype in (torch.float16, torch.bfloat16))
    assert arithmetic.copy_and_measure(torch.tensor([65519.0, -1.0]), half, use_c=use_c) == 65504.0
    assert arithmetic.copy_and_measure(torch.tensor([-65520.0, 1.0]), half, use_c=use_c) == math.inf
    assert half.tolist() == [-math.inf, 1.0]
    assert arithmetic.copy_and_measure(torch.tensor([3.4e38, 1.0]), brain, use_c=use_c) == math.inf
    assert arithmetic.copy_and_measure(torch.tensor([3.4e38, 1.0]), None, use_c=use_c) == torch.tensor(3.4e38).item()


STREAMED = (12 << 20) // 4 + 1001  # elements of float32: copies beyond 12 MiB bypass the cache


@pytest.mark.parametrize("use_c", WAYS)
@pytest.mark.parametrize("size", [0, 1, 15, 16, 100, 4097, STREAMED])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_copy_fills_its_target_and_nothing_else(dtype: torch.dtype, size: int, use_c: bool) -> None:
    for offset in [3] if size == STREAMED else range(17):
        source = numbers(size, 1, offset=16 - offset)
        room = torch.full((size + 40,), 7.0, dtype=dtype)
        target = room[offset : offset + size]
        arithmetic.copy_and_measure(source, target, use_c=use_c)
        assert torch.equal(target, source.to(dtype))
        assert room[:offset].eq(7.0).all() and room[offset + size :].eq(7.0).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.int64])
@pytest.mark.parametrize("num_bytes", [0, 8, 24, 4104, 12 << 20, (12 << 20) + 8])
def test_a_plain_copy_works_for_any_type_and_alignment(dtype: torch.dtype, num_bytes: int) -> None:
    count = num_bytes // dtype.itemsize
    source = torch.arange(count + 9, dtype=torch.int64).to(dtype)[3 : 3 + count]
    for offset in (0, 1, 5) if num_bytes < 12 << 20 else (5,):
        room = torch.full((count + 9,), 7, dtype=dtype)
        arithmetic.copy(source, room[offset : offset + count])
        assert torch.equal(room[offset : offset + count], source)
        assert room[:offset].eq(7).all() and room[offset + count :].eq(7).all()


# --- Bells ------------------------------------------------------------------------------------------------------------

# No wait lasts so long: if a bell fails to wake, the test ends at the time limit of pytest.
FOREVER = 3600.0


class Bell:
    """A bell in memory of its own."""

    def __init__(self) -> None:
        self._memory = np.zeros(8, dtype=np.int64)
        self.address = int(self._memory.ctypes.data)

    def wait_for(self, count: int) -> None:
        """Wait until the bell was rung `count` times."""
        while (heard := arithmetic.heard(self.address)) < count:
            arithmetic.wait(self.address, heard, FOREVER)


@needs_c
def test_a_bell_counts_how_often_it_was_rung() -> None:
    bell = Bell()
    for _ in range(3):
        arithmetic.ring(bell.address)
    assert arithmetic.heard(bell.address) == 3


@needs_c
def test_a_thread_that_waits_after_the_bell_was_rung_returns_at_once() -> None:
    bell = Bell()
    heard = arithmetic.heard(bell.address)
    arithmetic.ring(bell.address)
    arithmetic.wait(bell.address, heard, FOREVER)


@needs_c
def test_a_wait_for_a_bell_that_is_not_rung_ends_in_time() -> None:
    bell = Bell()
    for seconds in (0.0, 1e-9, 0.01):
        arithmetic.wait(bell.address, arithmetic.heard(bell.address), seconds)


@needs_c
def test_a_bell_wakes_all_waiting_threads() -> None:
    bell = Bell()
    threads = [threading.Thread(target=bell.wait_for, args=(1,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    arithmetic.ring(bell.address)
    for thread in threads:
        thread.join()


@needs_c
def test_no_ring_is_lost_however_often_two_threads_wake_each_other() -> None:
    there, back, rounds = Bell(), Bell(), 5000

    def answer() -> None:
        for count in range(1, rounds + 1):
            there.wait_for(count)
            arithmetic.ring(back.address)

    thread = threading.Thread(target=answer)
    thread.start()
    for count in range(1, rounds + 1):
        arithmetic.ring(there.address)
        back.wait_for(count)
    thread.join()
