"""Measure how long the death of a worker holds up the others, here and with Horovod Elastic over Gloo: the same model and
batches, three workers on this machine, of which one ends itself by SIGKILL.

    python -m tests.mpi.death_costs [--trials 5]

Printed for each trial: the longest time between two steps of a worker that lives, less the usual time of a step. And, here,
how long a SIGKILL of the store holds up a run of `hvd-async launch`: until its state is saved, and until the next update.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from typing import IO

import torch
import yaml

from tests.ranks import run_ranks

NUM_BATCHES, DIES_AT, STEP_SECONDS = 450, 40, 0.02
ROOT = pathlib.Path(__file__).parents[2]


def make_model() -> torch.nn.Module:
    """Return a small network, the same everywhere."""
    torch.manual_seed(7)
    return torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.Tanh(), torch.nn.Linear(256, 10))


def make_batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return batch `number`: [32, 64] points and their classes."""
    points = torch.randn(32, 64, generator=torch.Generator().manual_seed(number))
    return points, points[:, :10].argmax(1)


def backward(model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Compute a gradient, which takes as long as that of a larger model; return the loss."""
    loss = torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    time.sleep(STEP_SECONDS)
    return loss


class Notes:
    """The times of this process's steps, in a file of its own."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._file: IO[str] = (folder / f"{os.getpid()}.steps").open("w")
        self._num_steps = 0

    def step(self, dies: bool) -> None:
        """Note a step; end the process if it is the one that `dies`, after some steps."""
        self._num_steps += 1
        self._file.write(f"{time.monotonic()}\n")
        self._file.flush()
        if dies and self._num_steps == DIES_AT:
            os.kill(os.getpid(), signal.SIGKILL)


def train_here(folder: pathlib.Path, lockstep: bool) -> None:
    """Train on this rank with an asynchronous store; in lock-step, each waits for all."""
    import hvd_async as ha

    mode = {"lockstep": True} if lockstep else {"arrivals_per_update": "workers"}
    run = ha.init(folder / "run", strategy="async", device="cpu", tensorboard=False, epochs=1, **mode)
    network, notes = make_model(), Notes(folder)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    model, step, batches = run.prepare(network, optimizer, [make_batch(number) for number in range(NUM_BATCHES)])
    for batch in batches:
        step.zero_grad()
        backward(model, batch)
        step.step(weight=1)
        notes.step(dies=run.worker == 1)


def train_elastic(folder: pathlib.Path) -> None:
    """Train on this rank with Horovod Elastic, which commits after each step, so that no more than one is done again."""
    import horovod.torch as hvd

    hvd.init()
    model, notes = make_model(), Notes(folder)
    inner = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer = hvd.DistributedOptimizer(inner, named_parameters=model.named_parameters())

    @hvd.elastic.run  # type: ignore[untyped-decorator]
    def train(state: hvd.elastic.TorchState) -> None:
        while state.batch < NUM_BATCHES:
            optimizer.zero_grad()
            backward(model, make_batch(state.batch + hvd.rank()))
            optimizer.step()
            state.batch += hvd.size()
            state.commit()
            notes.step(dies=hvd.rank() == 1 and hvd.size() == 3)

    train(hvd.elastic.TorchState(model=model, optimizer=optimizer, batch=0))


def start_here(role: str, folder: pathlib.Path) -> None:
    """Run three workers and a store under mpirun."""
    run_ranks(4, "tests.mpi.death_costs", role, str(folder), timeout=120, mpirun_args=("--with-ft", "ulfm")).check()


def start_elastic(folder: pathlib.Path) -> None:
    """Run three workers under horovodrun. A host with a dead worker is given up, so each worker gets a name of this machine."""
    script = folder / "hosts.sh"
    script.write_text(f"#!/bin/sh\nprintf 'localhost:1\\n127.0.0.1:1\\n{socket.gethostname()}:1\\n'\n")
    script.chmod(0o755)
    horovodrun = pathlib.Path(sys.prefix) / "bin" / "horovodrun"
    command = [horovodrun, "--gloo", "-np", "3", "--min-np", "1", "--max-np", "3", "--host-discovery-script", script]
    program = [sys.executable, "-m", "tests.mpi.death_costs", "elastic", folder]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w") as log:
        subprocess.run(
            [*map(str, [*command, *program])], env=environ, stdout=log, stderr=subprocess.STDOUT, timeout=240, check=False
        )


def held_up(folder: pathlib.Path) -> tuple[float, int]:
    """Return for how many seconds the workers that lived were held up at most, and how many there were."""
    pauses = []
    for file in folder.glob("*.steps"):
        times = [float(line) for line in file.read_text().splitlines()]
        steps = [later - earlier for earlier, later in itertools.pairwise(times)]
        if len(steps) >= DIES_AT:
            pauses.append(max(steps) - statistics.median(steps))
    return (max(pauses), len(pauses)) if pauses else (float("nan"), 0)


def restart_store(folder: pathlib.Path) -> tuple[float, float]:
    """Kill the store of a run; return the seconds until its state is saved, and until the next update."""
    tree = {
        "output": str(folder / "run"),
        "task": {"factory": "tests.tasks.blobs:make_task", "options": {"size": 480, "buffers": "recalibrate"}},
        "training": {"epochs": 6, "device": "cpu", "tensorboard": False, "threads": 1},
        "strategy": {"kind": "async"},
        "emulation": {"seconds": 0.1},
        "validation": {"every": 1000},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    command = (sys.executable, "-m", "hvd_async", "launch", str(folder / "run.yaml"), "--workers", "3")

    def wait_for(kind: str, *, after: int = 0) -> int:
        """Wait for an event of this kind; return its place in the log."""
        while True:
            with contextlib.suppress(OSError):
                lines = (folder / "run/events.jsonl").read_text().split("\n")
                found = [number for number, line in enumerate(lines[:-1]) if f'"{kind}"' in line and number >= after]
                if found:
                    return found[0]
            time.sleep(0.01)  # only the log tells

    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        wait_for("update", after=10)
        (place,) = json.loads((folder / "run/join.json").read_text())["places"]
        os.kill(place["process"], signal.SIGKILL)
        died = time.monotonic()
        lost = wait_for("store_lost")
        saved = time.monotonic() - died
        wait_for("update", after=lost)
        return saved, time.monotonic() - died


def main() -> int:
    """Run what the arguments ask for."""
    roles = {
        "async": functools.partial(train_here, lockstep=False),
        "lockstep": functools.partial(train_here, lockstep=True),
        "elastic": train_elastic,
    }
    if len(sys.argv) == 3 and sys.argv[1] in roles:
        torch.set_num_threads(1)
        roles[sys.argv[1]](pathlib.Path(sys.argv[2]))
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=5)
    trials = parser.parse_args().trials
    starts = {name: functools.partial(start_here, name) for name in ("async", "lockstep")} | {"elastic": start_elastic}
    for name, start in starts.items():
        for _ in range(trials):
            with tempfile.TemporaryDirectory() as folder, contextlib.suppress(subprocess.TimeoutExpired):
                start(pathlib.Path(folder))
                seconds, num_left = held_up(pathlib.Path(folder))
                print(f"{name}: {seconds:.2f} s, {num_left} workers went on", flush=True)
    for _ in range(trials):
        with tempfile.TemporaryDirectory() as folder:
            saved, goes_on = restart_store(pathlib.Path(folder))
            print(f"death of the store: saved after {saved:.2f} s, the next update after {goes_on:.2f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
