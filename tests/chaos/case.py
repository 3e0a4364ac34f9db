"""A case of the campaign: one fault of one run, drawn from a seed and a number."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from typing import Any

STRATEGIES: Mapping[str, Mapping[str, Any]] = {
    "async N=1": {"strategy": {"kind": "async", "arrivals_per_update": 1}},
    "async N=workers": {"strategy": {"kind": "async"}},
    "async lock-step": {"strategy": {"kind": "async", "lockstep": True}},
    "async bounded": {"strategy": {"kind": "async", "arrivals_per_update": 2, "max_staleness": 1}},
    "async overlap": {"strategy": {"kind": "async"}, "push": {"overlap": True}},
    "async 2 shards": {"strategy": {"kind": "async"}, "store": {"shards": 2}},
    "async node sum": {"strategy": {"kind": "async"}, "push": {"node_sum": True}},
    "async colocated": {"strategy": {"kind": "async", "placement": "colocated"}},
    "horovod": {"strategy": {"kind": "horovod"}},
    "ddp": {"strategy": {"kind": "ddp"}},
    "single": {"strategy": {"kind": "single"}},
}
# Drawn more often: the runs that promise to outlive their workers.
_OUTLIVING = tuple(STRATEGIES)[:7]
_JOINABLE = tuple(STRATEGIES)[:6]
DEATHS = ("SIGKILL", "SIGSEGV", "exception", "exit", "SIGSTOP")
"""Faults after which a worker counts as dead."""
FAULTS: Mapping[str, tuple[str, ...]] = {
    "worker": (*DEATHS, "SIGKILL", "SIGKILL", "SIGSEGV", "SIGTERM", "SIGUSR1", "pause", "held lock"),
    "two workers": ("SIGKILL",),
    "store": ("SIGKILL", "SIGSEGV", "SIGTERM", "SIGUSR1", "SIGSTOP", "pause", "held lock", "exit"),
    "shard": ("SIGKILL", "SIGSEGV", "SIGSTOP", "pause", "exit"),
    "all ranks": ("SIGKILL",),
    "mpirun": ("SIGKILL", "SIGTERM", "SIGUSR1", "pause"),
    "launch": ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "pause"),
    "machine": ("no core", "full disk"),
}
"""What happens to what. `pause`: SIGSTOP, and SIGCONT after a while; `held lock`: it holds Python's lock for a while."""
INSIDE = ("exception", "exit", "held lock")
"""Faults that a process causes itself, at a point of the protocol."""
POINTS: Mapping[str, tuple[str, ...]] = {
    "worker": (
        "claim",
        "push",
        "push",
        "pull",
        "wait_drained",
        "wait_for_returned",
        "take_evaluation",
        "report_evaluation",
        "begin",
        "join",
        "leave",
        "wait_for_end",
        "evaluate",
        "before allgather",
        "after allgather",
    ),
    "store": (
        "_take_in",
        "_make_version",
        "_make_version",
        "_write_down",
        "_publish",
        "_serve_slots",
        "_free_wanted_slots",
        "_follow_workers",
        "_close",
        "before allgather",
    ),
    "shard": ("_carry_out",),
}
"""Calls of the protocol's two sides in which a process is struck, before one of its accesses to the block."""
_FREQUENT = ("claim", "push", "pull", "wait_drained", "wait_released", "take_evaluation")


@dataclasses.dataclass(frozen=True)
class Moment:
    """The moment of a fault.

    `phase` is `start` (of the target), `training`, `measuring` or `end`, `seconds` after it began; or `point`: before access
    number `access` to the block of those within the `call`-th call of `point` and later ones.
    """

    phase: str
    seconds: float = 0.0
    point: str = ""
    call: int = 0
    access: int = 0

    def __str__(self) -> str:
        if self.phase == "point":
            return f"{self.point} {self.call} access {self.access}"
        return f"{self.phase} {self.seconds:.2f} s"


@dataclasses.dataclass(frozen=True)
class Case:
    """A fault of a run. `index`, in [0, 1), chooses among the processes of the `target`; a pause lasts `pause_seconds`.
    `respawns`: workers that die are replaced; `joins`: one more worker joins when training has begun."""

    number: int
    strategy: str
    target: str
    fault: str
    moment: Moment
    index: float
    pause_seconds: float
    checkpoint_every: int
    during: bool
    respawns: bool
    joins: bool

    @classmethod
    def draw(cls, seed: int, number: int) -> Case:
        """Draw case `number` of the campaign `seed`."""
        draw = random.Random(f"{seed} {number}")
        strategy = draw.choice((*STRATEGIES, *_OUTLIVING, *_OUTLIVING))
        target = draw.choice(_targets(strategy))
        fault = draw.choice(FAULTS[target])
        if (strategy, fault) == ("single", "SIGSTOP"):  # nobody else is there to notice
            fault = "pause"
        return cls(
            number=number,
            strategy=strategy,
            target=target,
            fault=fault,
            moment=_moment(draw, strategy, target, fault),
            index=draw.random(),
            pause_seconds=draw.choice((0.3, 1.0, 4.0)),
            checkpoint_every=draw.choice((0, 0, 2, 5)),
            during=draw.random() < 0.4,
            respawns=strategy in _JOINABLE and draw.random() < 0.25,
            joins=strategy in _JOINABLE and draw.random() < 0.25,
        )

    @property
    def is_async(self) -> bool:
        return self.strategy.startswith("async")

    @property
    def outlives(self) -> bool:
        """Whether the run promises to go on without a worker that dies."""
        return self.strategy in _OUTLIVING

    @property
    def kills_workers(self) -> bool:
        """Whether only workers die, in a run that promises to go on."""
        return self.outlives and self.target in ("worker", "two workers") and self.fault in DEATHS

    @property
    def num_workers(self) -> int:
        return 1 if self.strategy == "single" else 3 if self.outlives else 2

    @property
    def num_shards(self) -> int:
        """Number of ranks that hold the store and do not train."""
        return {"async 2 shards": 2, "async colocated": 0}.get(self.strategy, int(self.is_async))

    def __str__(self) -> str:
        more = f", checkpoint_every {self.checkpoint_every}" if self.checkpoint_every else ""
        pause = f" {self.pause_seconds:g} s" if self.fault in ("pause", "held lock", "no core") else ""
        more += (", respawn" if self.respawns else "") + (", join" if self.joins else "")
        return f"{self.number}: {self.strategy}: {self.target} {self.fault}{pause}, {self.moment}{more}"


def _targets(strategy: str) -> list[str]:
    targets = ["worker"] * 6 + ["launch", "machine"]
    if strategy == "single":
        return ["worker", "launch", "machine"]
    targets += ["mpirun", "all ranks"]
    if strategy in _OUTLIVING:
        targets += ["two workers", "two workers", "store", "store"]
    return targets + ["shard"] * 4 if strategy == "async 2 shards" else targets


def _moment(draw: random.Random, strategy: str, target: str, fault: str) -> Moment:
    """Draw the moment: where it can be, half of all faults are at a point of the protocol."""
    is_pointed = strategy in _OUTLIVING and target in POINTS and fault not in ("pause", "SIGTERM", "SIGUSR1")
    if fault in INSIDE and not is_pointed:  # outside of the store's protocol a process can strike itself in its steps
        return Moment("point", point="step", call=draw.randrange(15), access=0)
    if is_pointed and (fault in INSIDE or draw.random() < 0.6):
        point = draw.choice(POINTS[target] if fault != "exception" else ("step", "step", "evaluate"))
        if (strategy, point) == ("async lock-step", "wait_drained"):
            point = "wait_released"
        call = draw.choice((0, 0, 1, 2, 5, 9)) if point in _FREQUENT or target != "worker" else 0
        if point == "step":
            call = draw.randrange(15)
        if point.endswith("allgather"):
            call = draw.randrange(24)
        return Moment("point", point=point, call=call, access=draw.choice((0, 0, 1, 1, 2, 3, 4, 5, 7, 9, 12)))
    # A rank that is stopped for ever when all is done keeps mpirun waiting for ever.
    phases = ("training",) * 4 + ("measuring", "start") + (() if fault == "SIGSTOP" else ("end",))
    phase = draw.choice(phases)
    return Moment(phase, {"start": 5.0, "training": 1.8, "measuring": 0.6, "end": 0.1}[phase] * draw.random())
