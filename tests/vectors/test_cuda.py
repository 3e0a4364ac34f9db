"""The single pass over GPU memory, compared with torch operations there and with the arithmetic of the CPU."""

from __future__ import annotations

import importlib.util
import math
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

import numpy
import pytest
import torch

from hvd_async.vectors import arithmetic
from hvd_async.vectors.arithmetic import BLOCK, Input
from hvd_async.vectors.rule import Rule, State

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
has_triton = importlib.util.find_spec("triton") is not None
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
RULES = [
    Rule("sgd", 0.1),
    Rule("sgd", 0.1, decay=0.01, beta1=0.9, divisor=7.0, clip=0.5),
    Rule("sgd", 0.1, decay=0.01, beta1=0.9, nesterov=True, average_weight=0.1),
    Rule("adam", 1e-3, beta1=0.9, beta2=0.98, inverse_root=1.7, epsilon=1e-9, divisor=3.0),
    Rule("adam", 1e-3, decay=0.1, beta1=0.9, beta2=0.98, epsilon=1e-9, average_weight=0.3),
    Rule("adamw", 1e-3, decay=0.99, beta1=0.9, beta2=0.98, epsilon=1e-9, divisor=11.0, clip=0.25),
    Rule("nadam", 1e-3, decay=0.1, beta1=0.9, beta2=0.98, epsilon=1e-9, gradient_rate=2e-4, divisor=3.0),
    Rule("nadamw", 1e-3, decay=0.99, beta1=0.9, beta2=0.98, epsilon=1e-9, gradient_rate=2e-4, average_weight=0.3),
    Rule("lion", 1e-3, decay=0.99, beta1=0.9, beta2=0.98, divisor=3.0, clip=0.5),
    Rule("adagrad", 0.1, epsilon=1e-9, divisor=3.0),
    Rule("adagrad", 0.1, decay=0.1, epsilon=1e-9, average_weight=0.3),
    Rule("sgd", 0.1, decay=0.01, beta1=0.9, nesterov=True, average_weight=0.1, is_provisional=True),
    Rule("nadam", 1e-3, decay=0.1, beta1=0.9, beta2=0.98, epsilon=1e-9, gradient_rate=2e-4, is_provisional=True),
    Rule("lion", 1e-3, decay=0.99, beta1=0.9, beta2=0.98, average_weight=0.3, is_provisional=True),
    Rule("adagrad", 0.1, decay=0.1, epsilon=1e-9, is_provisional=True),
    Rule("adam", 1e-3, decay=0.1, beta1=0.9, beta2=0.98, epsilon=1e-9, average_weight=0.3, is_provisional=True),
]
SIZE = 2 * BLOCK + 16


def make_inputs(dtype: torch.dtype, divisors: Sequence[float], device: str = "cpu") -> list[Input]:
    """Return a float32 sum, and gradients of `dtype`."""
    generator = torch.Generator().manual_seed(5)
    dtypes = [torch.float32, *[dtype] * (len(divisors) - 1)]
    vectors = [torch.randn(SIZE, generator=generator).to(each) for each in dtypes]
    return [Input(vector.to(device), divisor) for vector, divisor in zip(vectors, divisors, strict=True)]


def make_state(rule: Rule, device: str = "cpu", *, in_place: bool = False) -> State:
    generator = torch.Generator().manual_seed(6)
    parameters, first, second, average = (torch.randn(SIZE, generator=generator).to(device) for _ in range(4))
    return State(
        parameters,
        parameters if in_place else torch.full_like(parameters, math.nan),
        first.abs() if rule.kind == "adagrad" else first if rule.kind != "sgd" or rule.beta1 else None,
        second.abs() if "adam" in rule.kind else None,
        average if rule.average_weight is not None else None,
    )


def vectors_of(state: State) -> list[torch.Tensor]:
    vectors = [state.parameters, state.target, state.first, state.second, state.average]
    return [vector.cpu() for vector in vectors if vector is not None]


def check_steps(run: str, device: str, *, rtol: float) -> None:
    """Check steps on `device`. `run`: "fused", "torch" or "pass"."""
    for rule in RULES:
        for dtype, divisors, in_place in (
            (DTYPES[0], (1.0,), False),
            (DTYPES[1], (1.0, 2.0, 3.0), True),
            (DTYPES[2], (1.0,) * 5, False),
        ):
            in_place = in_place and not rule.is_provisional
            expected, state = make_state(rule, in_place=in_place), make_state(rule, device, in_place=in_place)
            inputs = make_inputs(dtype, divisors, device)
            if rule.is_provisional:
                totals = make_totals(run, make_inputs(dtype, divisors), inputs, expected, state, rule)
                torch.testing.assert_close(*totals, rtol=rtol, atol=rtol)
            else:
                partials = arithmetic.step(make_inputs(dtype, divisors), expected, rule)
                if run == "pass":
                    mine = interpreted(inputs, state, rule).tolist()
                else:
                    mine = arithmetic.step(inputs, state, rule, use_c=run == "fused")
                assert arithmetic.norm(mine) == pytest.approx(arithmetic.norm(partials), rel=1e-6)
            for got, wanted in zip(vectors_of(state), vectors_of(expected), strict=True):
                torch.testing.assert_close(got, wanted, rtol=rtol, atol=rtol)


def interpreted(inputs: list[Input], state: State, rule: Rule, total: torch.Tensor | None = None) -> torch.Tensor:
    """Run the kernel on the CPU, in Triton's interpreter; return the sums of squares."""
    from hvd_async.vectors import cuda

    return cuda.run(arithmetic._fused_step(cuda, inputs, state, rule, total))


def make_totals(
    run: str, inputs_here: list[Input], inputs: list[Input], expected: State, state: State, rule: Rule
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make a provisional step on the CPU, and one as `run` says on the device of `inputs`; return the sums of both."""
    here, there = torch.full((SIZE,), math.nan), torch.full_like(state.parameters, math.nan)
    arithmetic.provisional_step(inputs_here, here, expected, rule)
    if run == "pass":
        assert not interpreted(inputs, state, rule, there).numel()
    else:
        arithmetic.provisional_step(inputs, there, state, rule, use_c=run == "fused")
    return here, there.cpu()


def check_sums(device: str) -> None:
    for dtype in DTYPES:
        expected, inputs = make_inputs(dtype, (1.0, 1.0, 3.0)), make_inputs(dtype, (1.0, 1.0, 3.0), device)
        partials = arithmetic.sum_inputs(expected, expected[0].vector, 5.0)
        mine = arithmetic.sum_inputs(inputs, inputs[0].vector, 5.0)
        torch.testing.assert_close(inputs[0].vector.cpu(), expected[0].vector, rtol=1e-6, atol=1e-6)
        assert arithmetic.norm(mine) == pytest.approx(arithmetic.norm(partials), rel=1e-6)


class TestOnAGpu:
    pytestmark = gpu

    def test_the_kernel_runs_if_triton_is_installed(self) -> None:
        assert (arithmetic._fused(torch.device("cuda", 0)) is not None) == has_triton

    @pytest.mark.parametrize("run", ["fused", "torch"])
    def test_a_step_agrees_with_the_cpu(self, run: str) -> None:
        # Every operation is rounded once on both devices, but the last bit on other hardware is not guaranteed.
        check_steps(run, "cuda:0", rtol=1e-6)

    def test_a_sum_agrees_with_the_cpu_even_in_place(self) -> None:
        check_sums("cuda:0")

    @pytest.mark.parametrize("use_c", [True, False])
    def test_everything_is_complete_on_return(self, use_c: bool) -> None:
        rule, size = RULES[3], 1 << 24
        vectors = [torch.ones(size, device="cuda:0") for _ in range(5)]
        arithmetic.step([Input(vectors[0])], State(*vectors[1:]), rule, use_c=use_c)
        assert torch.cuda.current_stream().query()
        arithmetic.copy_and_measure(vectors[0], vectors[1])
        assert torch.cuda.current_stream().query()
        arithmetic.copy(vectors[0], vectors[1])
        assert torch.cuda.current_stream().query()

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("extreme", [-3.0, math.inf, math.nan])
    def test_a_push_rounds_and_measures_as_on_the_cpu(self, dtype: torch.dtype, extreme: float) -> None:
        source = torch.randn(1000, generator=torch.Generator().manual_seed(1)).clamp(-2, 2)
        source[17] = extreme
        here, there = torch.zeros(1000, dtype=dtype), torch.zeros(1000, dtype=dtype, device="cuda:0")
        largest = [arithmetic.copy_and_measure(source, here), arithmetic.copy_and_measure(source.to("cuda:0"), there)]
        assert torch.equal(here.nan_to_num(9.0), there.cpu().nan_to_num(9.0))
        assert largest[0] == largest[1] or all(map(math.isnan, largest))


@pytest.mark.skipif(not has_triton, reason="no Triton")
def test_the_interpreted_kernel_gives_the_bits_of_the_cpu() -> None:
    """Triton's interpreter follows the kernel's formulas in NumPy, without a GPU."""
    root = pathlib.Path(__file__).parents[2]
    code = "import torch; torch.cuda.device = __import__('contextlib').nullcontext; import tests.vectors.test_cuda as t"
    code += "; t.check_steps('pass', 'cpu', rtol=0.0)"
    environ = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environ, capture_output=True, text=True, timeout=200)
    if "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip(f"Triton's interpreter does not work with NumPy {numpy.__version__}")
    assert done.returncode == 0, done.stderr
