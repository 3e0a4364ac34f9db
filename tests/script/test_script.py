"""A training script on real ranks: the same script under every strategy, its mistakes, and what it leaves behind."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from hvd_async.comparison.runs import read_run
from hvd_async.config import OptimizerConfig
from hvd_async.runs.status import read_status
from hvd_async.script.loader import MapSource
from hvd_async.store.optimizers.protocol import StepOrder
from hvd_async.store.pushed_gradient import Gradient
from hvd_async.store.shards.shard import Shard
from hvd_async.tasks.gradient import flatten
from tests.mpi.runs import events_of, losses_of, summary_of
from tests.ranks import Completed, run_limited, run_ranks
from tests.tasks.blobs import blobs

pytestmark = pytest.mark.mpi
SCRIPT = "tests.script.blobs_script"
ROOT = pathlib.Path(__file__).parents[2]


def script(num_ranks: int, folder: pathlib.Path, timeout: float = 60, **arguments: Any) -> Completed:
    """Run the script on `num_ranks` real ranks."""
    return run_ranks(num_ranks, SCRIPT, str(folder), json.dumps(arguments), timeout=timeout)


def final_losses(done: Completed) -> set[str]:
    return {line for line in done.stdout.splitlines() if line.startswith("final loss")}


def test_async_workers_share_the_batches_and_end_with_one_version(tmp_path: pathlib.Path) -> None:
    done = script(5, tmp_path / "run", strategy="async", validation={"every": 5}, options={"log": True}).check()
    assert sorted(arrival["batch"] for arrival in events_of(tmp_path / "run", "arrival")) == list(range(24))
    assert len(final_losses(done)) == 1 and done.stdout.count("final loss") == 5
    summary = summary_of(tmp_path / "run")
    assert summary["status"] == "finished" and summary["num_workers"] == 4 and summary["weight"] == 180
    assert summary["last"]["scores"].keys() == {"loss", "accuracy"}
    saved = torch.load(tmp_path / "run/model.pt", weights_only=True)
    assert set(saved) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    rates = [update["learning_rate"] for update in events_of(tmp_path / "run", "update")]
    assert rates == [0.01 * min(1.0, version / 10) for version in range(1, len(rates) + 1)]
    lines = [
        json.loads(line) for path in (tmp_path / "run/ranks").glob("rank*.jsonl") for line in path.read_text().splitlines()
    ]
    early = [line for line in lines if line["batch"] is None]
    assert sorted(line["worker"] for line in early) == [0, 1, 2, 3]
    lines = [line for line in lines if line not in early]
    assert sorted(line["batch"] for line in lines) == list(range(24))
    assert all(line.keys() == {"time", "batch", "loss", "odd"} and line["loss"] > 0 for line in lines)
    assert sum(line["odd"] is None for line in lines) == len({line["batch"] for line in lines if line["odd"] is None}) <= 4
    again = script(5, tmp_path / "run", strategy="async", overwrite=True, options={"log": True}).check()
    lines = [
        json.loads(line) for path in (tmp_path / "run/ranks").glob("rank*.jsonl") for line in path.read_text().splitlines()
    ]
    assert sorted(line["worker"] for line in lines if line["batch"] is None) == [0, 1, 2, 3] and len(lines) == 28, (
        again.stderr
    )


def test_lock_step_equals_horovod_and_ddp_with_groups_and_uneven_weights(tmp_path: pathlib.Path) -> None:
    strategies: dict[str, tuple[int, Any]] = {
        "lockstep": (3, {"kind": "async", "lockstep": True}),
        "horovod": (2, "horovod"),
        "ddp": (2, "ddp"),
    }
    for name, (num_ranks, strategy) in strategies.items():
        script(num_ranks, tmp_path / name, strategy=strategy).check()
    expected = losses_of(tmp_path / "horovod")
    assert len(expected) == 12
    for name in ("lockstep", "ddp"):
        assert losses_of(tmp_path / name) == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_one_worker_is_the_plain_loop_to_rounding(tmp_path: pathlib.Path, num_ranks: int) -> None:
    strategy = "single" if num_ranks == 1 else {"kind": "async", "arrivals_per_update": 1}
    script(num_ranks, tmp_path / "run", strategy=strategy, options={"loss": "sum"}).check()
    batches = [arrival["batch"] for arrival in events_of(tmp_path / "run", "arrival")]
    assert batches == list(range(24))
    rates = [update["learning_rate"] for update in events_of(tmp_path / "run", "update")]
    assert rates == [0.01 * min(1.0, version / 10) for version in range(1, 25)]

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    groups = [
        {"params": [model[0].weight, model[2].weight]},
        {"params": [model[0].bias, model[2].bias], "weight_decay": 0.0, "lr": 0.02},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.01, eps=1e-4)
    highest = [group["lr"] for group in optimizer.param_groups]
    source = MapSource(torch.utils.data.DataLoader(blobs(90, 1), batch_size=8, shuffle=True), seed=1)
    for version in range(1, 25):
        points, labels = source.batch(version - 1)
        for group, rate in zip(optimizer.param_groups, highest, strict=True):
            group["lr"] = rate * min(1.0, version / 10)
        optimizer.zero_grad()
        (F.cross_entropy(model(points), labels, reduction="sum") / len(labels)).backward()
        optimizer.step()
    saved = torch.load(tmp_path / "run/model.pt", weights_only=True)
    for name, parameter in model.state_dict().items():
        torch.testing.assert_close(saved[name], parameter, rtol=1e-4, atol=1e-5)
    with_our_arithmetic = plain_loop(source)
    assert all(torch.equal(saved[name], parameter) for name, parameter in with_our_arithmetic.items())


def plain_loop(source: MapSource) -> dict[str, torch.Tensor]:
    """Train as the script does, in a loop of a single process with the store's arithmetic; return the parameters."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    config = OptimizerConfig.model_validate(
        {
            "kind": "adamw",
            "learning_rate": 0.01,
            "betas": [0.9, 0.999],
            "epsilon": 1e-4,
            "weight_decay": 0.01,
            "groups": [{"match": ["*.bias"], "weight_decay": 0.0, "learning_rate": 0.02}],
        }
    )
    flat = flatten(model, config)
    shard = Shard([flat.parameters], config, vector_map=flat.map)
    for version in range(1, 25):
        points, labels = source.batch(version - 1)
        flat.zero_gradient()
        F.cross_entropy(model(points), labels, reduction="sum").backward()
        shard.add(Gradient.measure(flat.collect_gradient()), 1.0)
        shard.step(StepOrder(version, min(1.0, version / 10), float(len(labels))))
    return model.state_dict()


def test_a_script_of_a_run_that_has_ended_gets_its_last_version_and_no_batches(tmp_path: pathlib.Path) -> None:
    first = script(2, tmp_path / "run", strategy="async", checkpoint_every=5).check()
    (tmp_path / "run/model.pt").unlink()
    again = script(2, tmp_path / "run", strategy="async", checkpoint_every=5, resume="auto", options={"log": True}).check()
    assert final_losses(again) == final_losses(first) and again.stdout.count("final loss") == 2
    assert "finished before, and no more training is configured: nothing to do" in again.stdout
    assert (tmp_path / "run/model.pt").exists() and len(events_of(tmp_path / "run", "arrival")) == 24


@pytest.mark.parametrize(
    ("num_ranks", "strategy", "overlap"),
    [
        (1, "single", False),
        (2, "ddp", False),
        (2, {"kind": "async", "placement": "colocated"}, False),
        pytest.param(2, {"kind": "async", "placement": "colocated"}, True, marks=pytest.mark.slow),
        pytest.param(3, {"kind": "async", "lockstep": True}, False, marks=pytest.mark.slow),
    ],
)
def test_a_script_that_leaves_its_loop_and_ends_saves_the_run(
    tmp_path: pathlib.Path, num_ranks: int, strategy: Any, overlap: bool
) -> None:
    options = {"fault": "break", "rank": -1, "silent": True}
    done = script(num_ranks, tmp_path / "run", strategy=strategy, push={"overlap": overlap}, options=options).check()
    assert "Traceback" not in done.stderr and "the script ended before the last batch, at batch " in done.stderr, done.stderr
    summary = summary_of(tmp_path / "run")
    num = 3 if strategy == "single" else 6
    assert (summary["status"], summary["missing"], summary["weight"]) == ("finished", 24 - num, 8 * num)
    assert (tmp_path / "run/models/last/model.safetensors").exists()


@pytest.mark.parametrize(
    ("differs", "strategy", "message"),
    [
        ("rate", "ddp", "optimizer: got learning_rate 0.5 on rank 1, expected learning_rate 0.01 as on rank 0"),
        ("length", "async", "loader: got batches in an epoch: 8 on rank 1, expected batches in an epoch: 12 as on rank 0"),
        ("schedule", "ddp", "prepare: got schedule none on rank 1, expected schedule a function as on rank 0"),
        ("buffers", "horovod", "prepare: got buffers average on rank 1, expected buffers refuse as on rank 0"),
    ],
)
def test_what_must_be_alike_on_all_ranks_is_compared(
    tmp_path: pathlib.Path, differs: str, strategy: str, message: str
) -> None:
    done = script(2, tmp_path / "run", strategy=strategy, options={"differs": differs})
    assert done.returncode == 2 and done.stderr.count("hvd-async: ") == 1 and message in done.stderr, done.stderr
    assert not (tmp_path / "run/config.yaml").exists()


@pytest.mark.parametrize("strategy", ["async", "horovod"])
def test_models_that_differ_between_ranks_are_refused_on_all(tmp_path: pathlib.Path, strategy: str) -> None:
    done = script(2, tmp_path / "run", strategy=strategy, options={"fault": "width", "rank": 1})
    assert done.returncode == 2 and done.stderr.count("hvd-async: ") == 1, done.stderr
    line = "model: got 0.weight [9, 2] float32 on rank 1, expected 0.weight [8, 2] float32 as on rank 0, and the same on all"
    assert line in done.stderr and not (tmp_path / "run/config.yaml").exists()


@pytest.mark.parametrize("fault", ["nan", "overflow"])
def test_a_gradient_that_is_not_finite_is_refused_and_frees_its_place(tmp_path: pathlib.Path, fault: str) -> None:
    strategy = {"kind": "async", "arrivals_per_update": "workers"}
    done = script(3, tmp_path / "run", strategy=strategy, options={"fault": fault}).check()
    assert f"fault {fault} fired" in done.stderr
    assert summary_of(tmp_path / "run")["refused"] == {"not_finite": 1}
    assert sorted(arrival["batch"] for arrival in events_of(tmp_path / "run", "arrival")) == list(range(24))


def test_a_loader_with_processes_gives_each_batch_once_and_the_same_bits(tmp_path: pathlib.Path) -> None:
    read = {"num_workers": 1}
    for name, num_ranks, options in (("single", 1, {}), ("ahead", 1, read), ("async", 3, read), ("horovod", 2, read)):
        strategy = "single" if num_ranks == 1 else name
        script(num_ranks, tmp_path / name, strategy=strategy, options=options).check()
        batches = [arrival["batch"] for arrival in events_of(tmp_path / name, "arrival")]
        assert sorted(batches) == list(range(24)) and (num_ranks > 1 or batches == sorted(batches))
    one, other = (torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("single", "ahead"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_uneven_streams_are_all_read_and_the_number_of_arrivals_follows(tmp_path: pathlib.Path) -> None:
    strategy = {"kind": "async", "arrivals_per_update": "workers"}
    script(4, tmp_path / "run", strategy=strategy, options={"stream": True}, epochs=1).check()
    workers = [arrival["worker"] for arrival in events_of(tmp_path / "run", "arrival")]
    assert sorted(workers) == [0, 1, 1, 2, 2, 2]
    assert summary_of(tmp_path / "run")["status"] == "finished"


def test_the_best_model_has_the_buffers_with_which_it_was_evaluated(tmp_path: pathlib.Path) -> None:
    options = {"norm": True}
    script(3, tmp_path / "run", strategy="async", validation={"every": 3}, checkpoint_every=3, options=options).check()
    points, labels = blobs(60, 2).tensors
    for name in ("best", "last"):
        model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3)).eval()
        model.load_state_dict(safetensors.torch.load_file(tmp_path / "run/models" / name / "model.safetensors"))
        meta = json.loads((tmp_path / "run/models" / name / "meta.json").read_text())
        with torch.no_grad():
            loss = F.cross_entropy(model(points), labels)
        assert meta["validation_loss"] == pytest.approx(float(loss), rel=1e-5)
        assert model[1].num_batches_tracked > 0
    more = script(3, tmp_path / "run", strategy="async", epochs=3, resume=True, options=options).check()
    assert "buffers: none were saved" not in more.stdout


@pytest.mark.parametrize("how", ["lockstep", "reads ahead", "overlap", "horovod", "ddp"])
def test_what_a_worker_that_leaves_had_claimed_is_computed_by_another(tmp_path: pathlib.Path, how: str) -> None:
    strategy = how if how in ("horovod", "ddp") else {"kind": "async", "lockstep": how == "lockstep"}
    options = {"fault": "break", "num_workers": int(how == "reads ahead")}
    push = {"overlap": how == "overlap"}
    done = script(3, tmp_path / "run", strategy=strategy, push=push, validation={"every": 4}, options=options).check()
    assert "fault break fired" in done.stderr and len(final_losses(done)) == 1
    arrived = events_of(tmp_path / "run", "arrival")
    assert sorted(arrival["batch"] for arrival in arrived) == list(range(24))
    leaver = 0 if isinstance(strategy, dict) else 1
    assert sum(arrival["worker"] == leaver for arrival in arrived) == 3
    assert summary_of(tmp_path / "run")["missing"] == 0


@pytest.mark.parametrize("strategy", ["horovod", "ddp"])
def test_synchronous_ranks_that_leave_at_different_steps(tmp_path: pathlib.Path, strategy: str) -> None:
    """Rank 0, which evaluates, leaves first; the others leave together, between two epochs' groups."""
    options = {"leave_at": {"0": 1, "1": 5, "2": 5}}
    done = script(3, tmp_path / "run", strategy=strategy, validation={"every": 2}, options=options).check()
    assert len(final_losses(done)) == 1
    workers = [arrival["worker"] for arrival in events_of(tmp_path / "run", "arrival")]
    assert workers == [0, 1, 2, *[1, 2] * 4]
    batches = [arrival["batch"] for arrival in events_of(tmp_path / "run", "arrival")]
    assert sorted(batches) == list(range(11))
    summary = summary_of(tmp_path / "run")
    assert summary["missing"] == 13 and [each["version"] for each in events_of(tmp_path / "run", "evaluation")][:2] == [2, 4]


def test_batches_that_all_workers_left_are_told_and_computed_by_a_resumed_run(tmp_path: pathlib.Path) -> None:
    done = script(3, tmp_path / "run", strategy="async", options={"fault": "break", "rank": -1}).check()
    arrived = [arrival["batch"] for arrival in events_of(tmp_path / "run", "arrival")]
    assert len(arrived) == len(set(arrived)) == 6 and summary_of(tmp_path / "run")["missing"] == 18
    assert (
        "18 of 24 batches were not computed, since all workers left their loops early; a resumed run computes them"
        in done.stdout
    )
    status = read_status(tmp_path / "run")
    assert (status.state, status.share, status.missing) == ("finished", 0.25, 18)
    assert "18 batches not computed, since all workers left their loops; --resume computes the rest" in status.lines()[-1]
    assert read_run(tmp_path / "run").num_missing == 18
    script(3, tmp_path / "run", strategy="async", resume=True).check()
    assert read_status(tmp_path / "run").share == 1.0
    arrived = [arrival["batch"] for arrival in events_of(tmp_path / "run", "arrival")]
    assert sorted(arrived) == list(range(24)) and summary_of(tmp_path / "run")["missing"] == 0


@pytest.mark.parametrize(
    ("fault", "strategy", "message", "status"),
    [
        ("raise", "async", "RuntimeError: of the user", 1),
        ("raise", "horovod", "RuntimeError: of the user", 1),
        ("no step", "async", "batch .*: got no optimizer.step, expected one for each batch", 2),
        ("no step", "horovod", "batch .*: got no optimizer.step, expected one for each batch", 2),
        ("no backward", "async", "optimizer.step: got no gradient, expected loss.backward() before it", 2),
        ("no weight", "ddp", "optimizer.step: got no weight, expected weight=...", 2),
        ("input", "async", "input: rank 1 of a job asks for text, expected none", 2),
        ("two steps", "async", "optimizer.step: called twice for batch .*, expected once for each batch", 2),
    ],
)
def test_a_mistake_on_one_rank_ends_all_with_one_message(
    tmp_path: pathlib.Path, fault: str, strategy: str, message: str, status: int
) -> None:
    done = script(3, tmp_path / "run", strategy=strategy, options={"fault": fault})
    assert done.returncode == status and not done.timed_out
    plain = message.replace(".*", "")
    assert any(all(part in line for part in message.split(".*")) for line in done.stderr.splitlines()), plain
    assert done.stderr.count(f"fault {fault} fired") == 1


_CHANGES = "model: got buffers that training changes (1.mean, 1.count), which each rank would have for itself"
_NO_RATE = "schedule: got nan for version 5, expected a number >= 0, the share of the highest rate"
_NO_SCORES = "evaluate: returned '0.5', expected the loss, or a dict of 'loss', 'accuracy', each a number"


@pytest.mark.parametrize(
    ("strategy", "options", "message"),
    [
        ("async", {"average": True}, _CHANGES),
        ("horovod", {"average": True}, _CHANGES),
        ("async", {"no_rate_at": 5}, _NO_RATE),
        ("ddp", {"no_rate_at": 5}, _NO_RATE),
        ("async", {"evaluate": "text"}, _NO_SCORES),
    ],
)
def test_a_mistake_of_all_ranks_is_told_once(
    tmp_path: pathlib.Path, strategy: str, options: dict[str, Any], message: str
) -> None:
    done = script(4, tmp_path / "run", strategy=strategy, validation={"every": 2}, options=options)
    assert done.returncode == 2 and not done.timed_out and done.stderr.count("hvd-async: ") == 1, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("when", ["during", "after"])
def test_an_error_of_the_users_evaluation_ends_all_ranks_with_its_traceback(tmp_path: pathlib.Path, when: str) -> None:
    validation = {"every": 2, "when": when}
    done = script(3, tmp_path / "run", strategy="async", validation=validation, options={"evaluate": "raise"})
    assert done.returncode == 1 and not done.timed_out
    # Once in the traceback and once in the message of each worker that evaluated; the others go on without the first.
    assert done.stderr.count("ValueError: of the user's evaluation\n") in (1, 2, 4) and "blobs_script.py" in done.stderr


@pytest.mark.parametrize("strategy", ["async", "ddp"])
def test_a_script_is_measured_after_each_epoch(tmp_path: pathlib.Path, strategy: str) -> None:
    validation = {"every_epochs": 1}
    ranks = {"async": 3, "ddp": 2}[strategy]
    done = script(ranks, tmp_path / "run", strategy=strategy, epochs=3, validation=validation).check()
    assert "validation every 6 versions, for 1 epoch" in done.stdout
    first = check_measured(tmp_path / "run")
    script(ranks, tmp_path / "run", strategy=strategy, epochs=4, validation=validation, resume=True).check()
    last = check_measured(tmp_path / "run", first)
    assert last > first
    again = script(ranks, tmp_path / "run", strategy=strategy, epochs=4, validation=validation, resume=True).check()
    assert "final loss" in again.stdout and check_measured(tmp_path / "run", first) == last


def check_measured(folder: pathlib.Path, *ends: int) -> int:
    """Check that each sixth version was measured, and the last of each process, of which earlier ones had the `ends`; return
    the last. With `async` it is one more or less: a worker that ends early leaves an update to the other alone."""
    last: int = events_of(folder, "update")[-1]["version"]
    measured = [each["version"] for each in events_of(folder, "evaluation")]
    assert measured == sorted({*range(6, last + 1, 6), *ends, last})
    return last


def test_a_stopped_script_resumes_with_the_batches_that_are_left(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "run"
    read = {"num_workers": 1}  # so that batches are claimed ahead of time
    script(3, folder, strategy="async", checkpoint_every=2, options={"fault": "raise", **read})
    before = len(events_of(folder, "arrival"))
    assert 0 < before < 24
    script(3, folder, strategy="async", checkpoint_every=2, resume=True, options=read).check()
    assert sorted(arrival["batch"] for arrival in events_of(folder, "arrival")) == list(range(24))


def test_the_report_compares_scripts(tmp_path: pathlib.Path) -> None:
    for name, ranks, strategy in (("async", 3, "async"), ("horovod", 2, "horovod")):
        script(ranks, tmp_path / name, strategy=strategy, validation={"every": 6, "when": "after"}).check()
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = (
        sys.executable,
        "-m",
        "hvd_async",
        "report",
        tmp_path / "async",
        tmp_path / "horovod",
        "--output",
        tmp_path / "report",
    )
    done = run_limited(tuple(map(str, command)), environ, 120)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in (tmp_path / "report/report.md").read_text()


def test_importing_the_package_loads_nothing() -> None:
    code = "import sys, hvd_async; assert 'torch' not in sys.modules; hvd_async.Metric; assert 'mpi4py' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
