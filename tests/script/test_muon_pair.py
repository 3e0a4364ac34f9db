"""A Muon of torch with an AdamW beside it, as the optimizer of a script."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable

import pytest
import torch

import hvd_async as ha
from hvd_async.errors import ConfigError
from hvd_async.script.description import describe_optimizers
from hvd_async.store.optimizers.muon import orthogonalized
from tests.mpi.runs import summary_of
from tests.script.test_launch_program import ASYNC, launch
from tests.script.test_optimizer import BASE

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon before 2.9")
Optimizers = list[torch.optim.Optimizer]


class MuonNet(torch.nn.Module):
    """Two matrices for Muon, and an embedding and vectors for AdamW."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(7, 6)
        self.wide = torch.nn.Linear(6, 10)
        self.tall = torch.nn.Linear(10, 4)
        self.norm = torch.nn.LayerNorm(4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B] -> [B, 4]."""
        result: torch.Tensor = self.norm(self.tall(torch.tanh(self.wide(self.table(tokens)))))
        return result

    @property
    def matrices(self) -> list[torch.nn.Parameter]:
        return [self.wide.weight, self.tall.weight]

    @property
    def others(self) -> list[torch.nn.Parameter]:
        return [each for each in self.parameters() if all(each is not matrix for matrix in self.matrices)]


def made(net: MuonNet, scale: str | None = None) -> Optimizers:
    """Return the pair, in which the second matrix has settings of its own."""
    groups = [{"params": net.matrices[:1]}, {"params": net.matrices[1:], "lr": 0.05, "weight_decay": 0.0}]
    muon = torch.optim.Muon(groups, lr=0.02, weight_decay=0.1, momentum=0.9, adjust_lr_fn=scale)
    return [muon, torch.optim.AdamW(net.others, lr=0.01, betas=(0.8, 0.9), weight_decay=0.2)]


def new_net() -> MuonNet:
    torch.manual_seed(1)
    return MuonNet()


BATCHES = [(torch.arange(start, start + 5) % 7, torch.arange(start, start + 5) % 4) for start in range(6)]


def train(folder: pathlib.Path, net: MuonNet, optimizers: Optimizers) -> ha.ScriptRun:
    """Train on the batches in a run of this process."""
    run = ha.init(folder, strategy="single", tensorboard=False, device="cpu", epochs=1)
    try:
        model, optimizer, batches = run.prepare(net, optimizers, BATCHES)
        for tokens, classes in batches:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(tokens), classes).backward()
            optimizer.step(weight=len(classes))
    finally:
        run.finish()
    return run


def train_in_torch(net: MuonNet, optimizers: Optimizers, order: list[int]) -> None:
    """Train on the batches in torch alone."""
    for number in order:
        tokens, classes = BATCHES[number]
        for each in optimizers:
            each.zero_grad()
        torch.nn.functional.cross_entropy(net(tokens), classes).backward()
        for each in optimizers:
            each.step()


@pytest.mark.parametrize("scale", [None, "original", "match_rms_adamw"])
def test_a_run_makes_the_steps_of_torch_and_its_state_goes_there_and_back(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, scale: str | None
) -> None:
    def in_float32(matrix: torch.Tensor, _: object, iterations: int, __: float) -> torch.Tensor:
        return orthogonalized(matrix, iterations)  # torch's computes in bfloat16

    monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", in_float32)
    net, own = new_net(), new_net()
    of_torch = made(own, scale)
    train_in_torch(own, of_torch, list(range(len(BATCHES))))
    muon, adamw = made(net, scale)
    run = train(tmp_path / "one", net, [muon, adamw])
    torch.testing.assert_close(dict(net.named_parameters()), dict(own.named_parameters()), rtol=1e-4, atol=1e-5)
    for each, expected in zip((muon, adamw), of_torch, strict=True):
        state = run.optimizer_state_dict(each)
        assert state["param_groups"] == expected.state_dict()["param_groups"]
        torch.testing.assert_close(state["state"], expected.state_dict()["state"], rtol=1e-4, atol=1e-5)
        each.load_state_dict(state)
    train_in_torch(own, of_torch, list(range(len(BATCHES))))
    train(tmp_path / "two", net, [adamw, muon])  # in either order
    torch.testing.assert_close(dict(net.named_parameters()), dict(own.named_parameters()), rtol=1e-3, atol=1e-4)


def test_without_the_patch_a_run_is_as_near_to_torch_as_bfloat16(tmp_path: pathlib.Path) -> None:
    net, own = new_net(), new_net()
    train_in_torch(own, made(own), list(range(len(BATCHES))))
    train(tmp_path / "run", net, made(net))
    moved = own.wide.weight.detach() - new_net().wide.weight.detach()
    assert (net.wide.weight - own.wide.weight).norm() < 0.1 * moved.norm()


def test_groups_and_settings_are_read() -> None:
    net = new_net()
    net.norm.requires_grad_(False)
    found = describe_optimizers(made(net), net, BASE)
    assert (found.kind, found.muon_momentum, found.muon_iterations, found.muon_scale) == ("muon", 0.9, 5, "original")
    assert found.muon_except == ("table.weight",)
    assert [found.group_of(name) for name in ("wide.weight", "tall.weight", "table.weight", "wide.bias")] == [0, 1, 2, 2]
    wide, tall, others = found.of_groups()
    assert (wide.learning_rate, wide.weight_decay) == (0.02, 0.1) and (tall.learning_rate, tall.weight_decay) == (0.05, 0.0)
    assert (others.learning_rate, others.weight_decay, others.betas, others.epsilon) == (0.01, 0.2, (0.8, 0.9), 1e-8)
    assert {"norm.weight", "norm.bias"}.isdisjoint(pattern for group in found.groups for pattern in group.match)


def test_a_muon_alone_is_enough_for_a_model_of_matrices() -> None:
    model = torch.nn.Linear(4, 3, bias=False)
    found = describe_optimizers([torch.optim.Muon(model.parameters(), adjust_lr_fn="match_rms_adamw")], model, BASE)
    assert (found.kind, found.muon_scale, found.groups, found.muon_except) == ("muon", "adamw", (), ())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda net: [torch.optim.Adam(net.matrices), torch.optim.SGD(net.others, lr=0.1)],
            "optimizer: got Adam and SGD, expected one optimizer, or a Muon of torch.optim for the matrices and an AdamW",
        ),
        (
            lambda net: [torch.optim.Muon(net.matrices), torch.optim.Adam(net.others)],
            "optimizer: got Muon and Adam, expected",
        ),
        (lambda net: [], "optimizer: got none, expected one optimizer, or a Muon"),
        (lambda net: [torch.optim.Muon(net.matrices)], r"optimizer: got no group for 5 parameters \(table.weight, "),
        (
            lambda net: [torch.optim.Muon(net.matrices), torch.optim.AdamW(net.parameters())],
            "optimizer: got 2 parameters in two optimizers, expected each in one of them",
        ),
        (
            lambda net: [torch.optim.Muon(net.matrices, nesterov=False), torch.optim.AdamW(net.others)],
            "optimizer: Muon: nesterov: got False, expected True, which the store does",
        ),
        (
            lambda net: [torch.optim.Muon(net.matrices, ns_coefficients=(2.0, -1.5, 0.5)), torch.optim.AdamW(net.others)],
            "optimizer: Muon: ns_coefficients: got",
        ),
        (
            lambda net: [
                torch.optim.Muon([{"params": net.matrices[:1]}, {"params": net.matrices[1:], "momentum": 0.5}]),
                torch.optim.AdamW(net.others),
            ],
            r"got groups with muon_momentum 0.95, .* and with muon_momentum 0.5, .* differ in lr and weight_decay alone",
        ),
        (
            lambda net: [torch.optim.Muon(net.matrices), torch.optim.AdamW(net.others, amsgrad=True)],
            "optimizer: AdamW: amsgrad: got True, expected False",
        ),
        (
            lambda net: [torch.optim.Muon(net.matrices, ns_steps=30), torch.optim.AdamW(net.others)],
            "optimizer: Muon: ns_steps: got 30, expected 1 to 20",
        ),
    ],
)
def test_what_the_store_cannot_honour_is_refused(make: Callable[[MuonNet], Optimizers], message: str) -> None:
    net = new_net()
    with pytest.raises(ConfigError, match=message):
        describe_optimizers(make(net), net, BASE)


def test_a_row_is_no_matrix() -> None:
    model = torch.nn.Linear(4, 1, bias=False)
    with pytest.raises(
        ConfigError, match=r"Muon: got weight of shape \[1, 4\], expected matrices with at least two rows and"
    ):
        describe_optimizers([torch.optim.Muon(model.parameters())], model, BASE)


def test_which_state_is_wanted_must_be_said(tmp_path: pathlib.Path) -> None:
    net = new_net()
    run = train(tmp_path / "run", net, made(net))
    with pytest.raises(ConfigError, match="optimizer_state_dict: got no optimizer, expected one of the two"):
        run.optimizer_state_dict()
    with pytest.raises(
        ConfigError, match="optimizer_state_dict: got Muon, expected an optimizer that was passed to prepare"
    ):
        run.optimizer_state_dict(made(net)[0])


SCRIPT = """
import sys, torch
import hvd_async as ha
from tests.script.test_muon_pair import BATCHES, made, new_net

run = ha.init(sys.argv[1], epochs=3)
net = new_net()
muon, adamw = made(net)
model, optimizer, batches = run.prepare(net, [muon, adamw], BATCHES)
for tokens, classes in batches:
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(tokens), classes).backward()
    optimizer.step(weight=len(classes))
if run.rank == 0:
    for each in (muon, adamw):
        each.load_state_dict(run.optimizer_state_dict(each))
    print("momentum", float(muon.state[net.wide.weight]["momentum_buffer"].norm()) > 0)
"""


@pytest.mark.mpi
@pytest.mark.parametrize("settings", [ASYNC, ("--set", "strategy.kind=ddp")])
def test_real_ranks_train_with_it(tmp_path: pathlib.Path, settings: tuple[str, ...]) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    done = launch("--workers", "2", *settings, "--", sys.executable, str(tmp_path / "script.py"), str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "optimizer: muon updates 2 matrices, adamw the other 5 tensors" in done.stdout and "momentum True" in done.stdout
    assert summary_of(tmp_path / "run")["weight"] == 90
