"""Runs bounded by time, and snapshots by weight: in virtual time and on real ranks."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import pytest
import torch

from hvd_async.simulation.simulate import SimulateOptions, simulate
from tests.mpi.runs import Settings, events_of, run_toy, summary_of
from tests.mpi.toy import BATCHES_PER_EPOCH, ToyTask, make_config
from tests.simulation.simulated import UNEVEN, parse, run

STRATEGIES: list[dict[str, Any]] = [{"kind": "async"}, {"kind": "async", "lockstep": True}, {"kind": "ddp"}]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_simulated_run_ends_with_the_first_update_after_its_time(tmp_path: pathlib.Path, strategy: dict[str, Any]) -> None:
    training = {"epochs": None, "seconds": 10.0}
    summary = run(tmp_path / "run", 10_000, strategy=strategy, training=training, emulation=UNEVEN)
    made = [update["seconds"] for update in events_of(tmp_path / "run", "update")]
    assert summary["status"] == "finished"
    after = [seconds for seconds in made if seconds >= 10.0]
    assert len(after) == 1 and made[-1] == after[0]


@pytest.mark.slow
@pytest.mark.mpi
def test_real_ranks_end_when_their_time_is_over(tmp_path: pathlib.Path) -> None:
    def settings(kind: str) -> Settings:
        training = {"epochs": None, "seconds": 0.5}
        return Settings(
            make_config(tmp_path / kind, strategy={"kind": kind}, training=training, emulation={"seconds": 0.05}),
            num_batches=10_000,
        )

    run_toy(3, settings("horovod"), settings("async")).check()
    for kind in ("horovod", "async"):
        made = [update["seconds"] for update in events_of(tmp_path / kind, "update")]
        assert summary_of(tmp_path / kind)["status"] == "finished"
        late = [seconds for seconds in made if seconds >= 0.5]
        assert len(late) <= 2 and len(made) > len(late)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_snapshots_show_the_first_version_after_each_multiple(tmp_path: pathlib.Path, strategy: dict[str, Any]) -> None:
    validation = {"every_weight": 50, "when": "after"}
    run(tmp_path / "run", 60, strategy=strategy, validation=validation, emulation=UNEVEN)
    weight, expected = 0, []
    for update in events_of(tmp_path / "run", "update"):
        weight += update["weight"]
        if weight // 50 > (weight - update["weight"]) // 50:
            expected.append(update["version"])
    last = update["version"]
    measured = [m["version"] for m in summary_of(tmp_path / "run")["measurements"]]
    assert len(expected) > 3 and measured == sorted({*expected, last})


def test_a_simulated_run_is_measured_after_each_epoch(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "run", 40, strategy={"kind": "async"}, validation={"every_epochs": 0.5}, simulation={"workers": 4})
    every = math.ceil(0.5 * BATCHES_PER_EPOCH / 4)
    assert f"validation every {every} versions, for 0.5 epochs" in capsys.readouterr().out
    measured = [m["version"] for m in summary_of(tmp_path / "run")["measurements"]]
    assert measured == sorted({*range(every, 11, every), 10}) and len(measured) > 1


@pytest.mark.parametrize("is_live", [False, True])
def test_ctrl_c_says_what_is_left_and_what_computes_the_rest(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], is_live: bool
) -> None:
    class InterruptedTask(ToyTask):
        def batch(self, index: int, device: torch.device | str) -> Any:
            if index == 10:
                raise KeyboardInterrupt
            return super().batch(index, device)

    config = parse(tmp_path / "run", strategy={"kind": "async"})
    with pytest.raises(KeyboardInterrupt):
        simulate(config, lambda _: InterruptedTask(Settings({}), 0), SimulateOptions(live_progress=is_live))
    said = f"interrupted: {tmp_path / 'run'} holds the run up to here; simulations do not resume, --overwrite computes it anew\n"
    assert capsys.readouterr().out.endswith(said)
    assert events_of(tmp_path / "run", "update")
