"""How scripts begin and end: errors before there is a run, several runs in a process, what a resumed run must have again."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import hvd_async as ha
from hvd_async.errors import ConfigError, HvdAsyncError
from tests.tasks.blobs import blobs

ROOT = pathlib.Path(__file__).parents[2]


def ended(text: str, folder: pathlib.Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", text], cwd=folder, env=environ, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("call", "status", "line"),
    [
        ("ha.init('x', strategy='asink', epochs=1)", 2, "init: strategy.kind: got 'asink', expected: 'single', 'horovod'"),
        ("ha.init('x', strategy='async', epochs=1)", 4, "strategy async with a dedicated store: got 1 rank, expected at"),
        ("ha.init('x', strategy='single', epoch=1)", 2, "init: epoch: unknown keyword; did you mean 'epochs'?"),
    ],
)
def test_an_error_before_there_is_a_run_is_one_line(tmp_path: pathlib.Path, call: str, status: int, line: str) -> None:
    done = ended(f"import hvd_async as ha\n{call}", tmp_path)
    assert done.returncode == status and done.stderr.startswith(f"hvd-async: rank 0: {line}")
    assert len(done.stderr.splitlines()) == 1


def test_an_error_that_the_script_catches_is_its_own(tmp_path: pathlib.Path) -> None:
    text = (
        "import hvd_async as ha\ntry:\n    ha.init('x', strategy='asink')\nexcept ValueError: pass\nexcept Exception as e:\n"
        "    print(type(e).__name__)\nraise SystemExit(5)"
    )
    done = ended(text, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (5, "ConfigError\n", "")


AFTER = """
import atexit, sys, torch
import hvd_async as ha
run = ha.init('x', strategy='single', epochs=1, tensorboard=False)
model, optimizer, batches = run.prepare(
    layer := torch.nn.Linear(2, 1), torch.optim.SGD(layer.parameters(), lr=0.1), [torch.ones(3, 2)] * 2
)
for batch in batches:
    model(batch).sum().backward()
    optimizer.step(weight=3)
file = open('file.txt', 'w')
file.write('written')
atexit.register(lambda: print('registered'))
"""


def test_an_error_after_the_run_ends_the_script_in_one_line_and_nothing_else(tmp_path: pathlib.Path) -> None:
    done = ended(f"{AFTER}optimizer.step(weight=3)", tmp_path)
    line = "hvd-async: rank 0: optimizer.step: called without a batch, expected once for each batch, inside the loop\n"
    assert (done.returncode, done.stderr) == (2, line) and done.stdout.endswith("registered\n")
    assert (tmp_path / "file.txt").read_text() == "written"


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        (
            "torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1))",
            "the run does the work of torch.distributed: take",
        ),
        ("torch.distributed.init_process_group('gloo')", "the run does the work of torch.distributed: take"),
        ("import horovod.torch as hvd; hvd.rank()", "the run does Horovod's work: take calls of hvd"),
        ("missing.call()", ""),
    ],
)
def test_calls_that_a_script_has_left_in_are_told_what_to_do_instead(tmp_path: pathlib.Path, call: str, hint: str) -> None:
    if "horovod" in call:
        pytest.importorskip("horovod")
    done = ended(f"import torch\nimport hvd_async as ha\nrun = ha.init('x', strategy='single', epochs=1)\n{call}", tmp_path)
    told = [line.partition("rank 0: ")[2] for line in done.stderr.splitlines() if line.startswith("hvd-async: rank 0: ")]
    assert done.returncode == 1 and done.stderr.startswith("Traceback") and len(told) == bool(hint), done.stderr
    assert not hint or told[0].startswith(hint)


def test_a_second_step_of_a_batch_and_a_step_without_a_loss_are_told(tmp_path: pathlib.Path) -> None:
    done = ended(AFTER.replace("step(weight=3)", "step(weight=3)\n    optimizer.step(weight=3)"), tmp_path)
    assert done.returncode == 2 and "optimizer.step: called twice for batch 0, expected once for each batch" in done.stderr
    assert done.stdout.count("optimizer.step: got no loss=..., so the training loss is nan in logs and reports") == 1


def test_an_error_in_a_session_leaves_the_session_alone(tmp_path: pathlib.Path) -> None:
    done = ended(f"{AFTER}sys.ps1 = '> '\nrun.log(loss='low')", tmp_path)
    assert done.returncode == 1 and "Traceback" in done.stderr and "registered" in done.stdout


def test_a_backward_pass_through_a_forward_pass_from_before_a_pull_is_an_error(tmp_path: pathlib.Path) -> None:
    run = ha.init(tmp_path / "run", strategy="single", tensorboard=False, device="cpu", epochs=1)
    network = torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    try:
        model, optimizer, batches = run.prepare(
            network, torch.optim.SGD(network.parameters(), lr=0.1), [blobs(12, 1).tensors]
        )
        for x, y in batches:
            torch.nn.functional.cross_entropy(model(x[:6]), y[:6]).backward()
            loss = torch.nn.functional.cross_entropy(model(x[6:]), y[6:])
            optimizer.pull()
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()
            optimizer.step(weight=6)
    finally:
        run.finish()


def test_a_script_that_ends_before_prepare_ends_cleanly(tmp_path: pathlib.Path) -> None:
    lines = (
        "import hvd_async as ha",
        "run = ha.init('x', strategy='single', epochs=1)",
        "print(run.device, run.worker, run.num_workers)",
    )
    text = "\n".join(lines)
    done = ended(text, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "cpu 0 1\n", "")


class Partly(torch.nn.Module):
    """A network whose first layer is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(2, 6).requires_grad_(False)
        self.last = torch.nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 2] -> [B, 3]."""
        result: torch.Tensor = self.last(torch.tanh(self.first(x)))
        return result


def trained(folder: pathlib.Path, seed: int, **options: Any) -> ha.ScriptRun:
    """Make a run in this process, with a network of `seed`; `evaluate` draws random numbers."""
    run = ha.init(folder, strategy="single", tensorboard=False, device="cpu", validation={"every": 4}, **options)
    torch.manual_seed(seed)
    network = Partly()
    try:
        model, optimizer, batches = run.prepare(
            network,
            torch.optim.Adamax(network.last.parameters(), lr=0.01),
            DataLoader(TensorDataset(*blobs(24, 1).tensors), batch_size=6, shuffle=True),
            evaluate=lambda module: float(torch.rand(())),
        )
        for x, y in batches:
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(weight=len(y), loss=loss)
    finally:
        run.finish()
    return run


def test_runs_follow_each_other_in_a_process_and_evaluations_draw_alike(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sys.stdin
    run = trained(tmp_path / "one", 1, epochs=2)
    assert sys.stdin == before
    hook = sys.excepthook
    assert run.summary["status"] == "finished" and run.summary["weight"] == 48
    scores = {point["scores"]["loss"] for point in run.summary["measurements"]}
    assert len(run.summary["measurements"]) == 2 and len(scores) == 1
    assert "finished: version 8, 48 examples in" in capsys.readouterr().out
    assert trained(tmp_path / "two", 1, epochs=1).summary["weight"] == 24
    assert sys.excepthook == hook


@pytest.mark.parametrize(
    "make",
    [
        lambda members: torch.optim.Adagrad(members, lr=0.1, initial_accumulator_value=0.5),
        lambda members: torch.optim.Adagrad(members, lr=0.1, maximize=True),
        lambda members: torch.optim.AdamW(members, lr=0.1),
        lambda members: torch.optim.SGD(members, lr=0.1),
    ],
)
def test_the_state_of_frozen_parameters_is_that_of_torch(tmp_path: pathlib.Path, make: Any) -> None:
    torch.manual_seed(1)
    network, own = Partly(), Partly()
    own.load_state_dict(network.state_dict())
    x, y = blobs(12, 1).tensors
    run = ha.init(tmp_path / "run", strategy="single", tensorboard=False, device="cpu", epochs=1)
    try:
        model, optimizer, batches = run.prepare(network, make(network.parameters()), [(x, y)] * 2)
        for inputs, labels in batches:
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step(weight=len(labels))
    finally:
        run.finish()
    of_torch = make(own.parameters())
    for _ in range(2):
        of_torch.zero_grad()
        torch.nn.functional.cross_entropy(own(x), y).backward()
        of_torch.step()
    state, expected = run.optimizer_state_dict(), of_torch.state_dict()
    assert list(state["state"]) == list(expected["state"])
    for number, values in expected["state"].items():
        assert state["state"][number].keys() == values.keys()
        for name, value in values.items():
            torch.testing.assert_close(state["state"][number][name], value, msg=f"{number} {name}")
    continued = make(network.parameters())
    continued.load_state_dict(state)
    network.first.requires_grad_(True)
    torch.nn.functional.cross_entropy(network(x), y).backward()
    continued.step()


def test_frozen_parameters_must_be_as_before_when_a_run_is_resumed(tmp_path: pathlib.Path) -> None:
    trained(tmp_path / "run", 1, epochs=1)
    with pytest.raises(
        HvdAsyncError,
        match=r"got data, shapes of parameters or frozen parameters that differ from the run's; restore",
    ):
        trained(tmp_path / "run", 2, epochs=2, resume=True)
    assert trained(tmp_path / "run", 1, epochs=2, resume=True).summary["weight"] == 48


def test_init_twice_and_a_compiled_model_are_refused(tmp_path: pathlib.Path) -> None:
    run = ha.init(tmp_path / "run", strategy="single", epochs=1)
    try:
        with pytest.raises(ConfigError, match="init: called again before the run has ended"):
            ha.init(tmp_path / "other", strategy="single", epochs=1)
        model = torch.nn.Linear(2, 3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own imports
            compiled: Any = torch.compile(model)
        with pytest.raises(HvdAsyncError, match="expected the model itself: compile what prepare returns"):
            run.prepare(compiled, torch.optim.SGD(model.parameters(), lr=0.1), [1])
    finally:
        run.finish()
