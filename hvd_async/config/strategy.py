"""The sections `strategy`, `store` and `push`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import Field

from hvd_async.config.section import Amount, Device, Natural, Positive, PositiveSeconds, Section
from hvd_async.errors import ConfigError
from hvd_async.system.limits import MOST, MOST_MICRO_BATCHES


def _branch_of_arrivals(value: Any) -> str | None:
    """Return the member of a union of arrivals for which `value` is meant; None (one error) if it fits none of them."""
    if isinstance(value, (list, tuple)):
        return "<schedule>"
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST:
        return "<number>"
    return "<workers>" if value == "workers" else None


# A plain union would report a wrong value with one error per member. The tags are not keys of the file, so errors omit them.
BRANCHES = ("<number>", "<workers>", "<schedule>")
_Number = Annotated[Positive, pydantic.Tag("<number>")]
_Workers = Annotated[Literal["workers"], pydantic.Tag("<workers>")]


class ArrivalsFrom(Section):
    """One entry of a schedule of `arrivals_per_update`."""

    version: Natural = Field(description="First version to which it applies.")
    arrivals: Annotated[
        _Number | _Workers,
        pydantic.Discriminator(
            lambda value: None if (branch := _branch_of_arrivals(value)) == "<schedule>" else branch,
            custom_error_type="arrivals",
            custom_error_message="expected a whole number >= 1 or 'workers'",
        ),
    ] = Field(description="Arrivals summed for one update.")


ArrivalsPerUpdate = Annotated[
    _Number | _Workers | Annotated[tuple[ArrivalsFrom, ...], Field(strict=False), pydantic.Tag("<schedule>")],
    pydantic.Discriminator(
        _branch_of_arrivals,
        custom_error_type="arrivals_per_update",
        custom_error_message="expected a whole number >= 1, 'workers', or a list of {version, arrivals}",
    ),
]


class StrategyConfig(Section):
    """Strategy: who computes the update, and when. The keys after `kind` apply to `async` unless they say otherwise."""

    renamed: ClassVar[Mapping[str, str]] = {"token_mean": "weight_mean"}

    kind: Literal["single", "horovod", "ddp", "async"] = Field(
        "single",
        description="`single`: one process. `horovod`, `ddp`: synchronous allreduce. `async`: the parameter store.",
    )
    arrivals_per_update: ArrivalsPerUpdate = Field(
        "workers",
        description="N, the number of arrivals summed for one update: a number (1 is plain asynchronous SGD),"
        " `workers` (the number of live workers), or a schedule: a list of `{version, arrivals}`, the"
        " first from version 0.",
    )
    reduction: Literal["weight_mean", "sum"] = Field(
        "weight_mean",
        description="All strategies. `weight_mean`: sum of gradients / sum of weights; `sum`: the plain sum.",
    )
    lockstep: bool = Field(False, description="Each worker waits for the update that contains its gradient.")
    synchronous_versions: Natural = Field(
        0, description="The first updates are made in lock-step with N = workers, later ones asynchronously."
    )
    max_staleness: Natural | None = Field(
        None,
        description="Bound on staleness, in versions; see `on_stale`. Unset: unbounded. With lockstep, only"
        " `on_stale: drop` is allowed.",
    )
    on_stale: Literal["wait", "drop"] = Field(
        "wait",
        description="`wait`: an update that would make a gradient under way too stale waits for that gradient and"
        " includes it, and workers ahead wait; `drop`: arrivals that are too stale are refused and"
        " counted.",
    )
    staleness_policy: Literal["none", "inverse", "delay_compensation"] = Field(
        "none",
        description="Treatment of stale gradients. `none`: unchanged; `inverse`: gradient / (1 + staleness) (Zhang et"
        " al. 2016); `delay_compensation`: corrected by the squared gradient times the change of the"
        " parameters (DC-ASGD, Zheng et al. 2017).",
    )
    delay_compensation: Amount = Field(
        0.04, description="Lambda of `delay_compensation`, for the gradient of the mean loss."
    )
    provisional: bool | None = Field(
        None,
        description="A worker that pulls while arrivals are pending computes on what the next version would be with"
        " only these arrivals, instead of on a version that is about to be replaced (docs/staleness.md)."
        " Needs `reduction: weight_mean` and no `delay_compensation`; default: true with these. No effect"
        " in lock-step or with N = 1, where a saved configuration has no value.",
    )
    micro_batches: Annotated[int, Field(ge=1, le=MOST_MICRO_BATCHES)] = Field(
        1,
        description="Parts into which a worker divides each batch. Before each of them it pulls the newest parameters, and it"
        " pushes the sum of their gradients once: with more, gradients are less stale, for more pulls"
        " (docs/staleness.md). Needs a task that can divide its batches; no effect in lock-step.",
    )
    delay: Annotated[int, Field(ge=0, le=10_000)] = Field(
        0,
        description="Synchronous strategies only, for experiments: compute gradients on parameters this many versions"
        " old, as if they were that stale.",
    )
    delay_pattern: Literal["constant", "turns"] = Field(
        "constant",
        description="`constant`: every gradient is `delay` versions old; `turns`: workers take new parameters in turns, one"
        " at each version, so that gradients are 0 to `delay` versions old.",
    )
    pending: Literal["apply", "drop"] = Field(
        "apply",
        description="Treatment of arrivals accumulated but not yet applied when the data ends: apply them, or drop"
        " and count them.",
    )
    on_worker_failure: Literal["continue", "stop"] = Field(
        "continue",
        description="What happens when a worker dies, fails or hangs: the others go on, where the launcher lets them"
        " (docs/reliability.md); or the run is saved and ends.",
    )
    min_workers: Positive = Field(
        1, description="With fewer workers left, the run is saved and ends. At most the number of workers at the start."
    )
    max_workers: Positive | None = Field(
        None,
        description="Most workers at a time, for those that join later (docs/reliability.md): the store has a slot for each."
        " Default: the number at the start, so that only the places of lost workers are filled again.",
    )
    joins_from: Literal["host", "network"] = Field(
        "host",
        description="From where workers may join: the store's host; or other hosts too, for which the store listens on a port"
        " and asks for the secret in the run's folder.",
    )
    placement: Literal["dedicated", "colocated"] = Field(
        "dedicated", description="`dedicated`: rank 0 is the store alone; `colocated`: rank 0 trains as well."
    )
    store_timeout_seconds: PositiveSeconds = Field(
        60.0, description="Abort the job if a worker sees no store heartbeat for this many seconds."
    )
    worker_timeout_seconds: PositiveSeconds | None = Field(
        None,
        description="`async`: a worker counts as dead if its process is stopped or, on another host, shows no heartbeat for"
        " this many seconds; default: 30. Synchronous strategies: save and end the job if a rank waits this long for the"
        " others in a step; default: 600.",
    )
    hang_timeout_seconds: PositiveSeconds = Field(
        3600.0,
        description="A process shows a heartbeat while it computes. If a step, an evaluation or an update takes"
        " longer than this many seconds, the process counts as hung.",
    )
    stop_timeout_seconds: PositiveSeconds = Field(
        60.0,
        description="All strategies. When a run is asked to stop, wait this many seconds for ranks that do not"
        " answer, then save and end the job.",
    )

    @pydantic.field_validator("arrivals_per_update", mode="after")
    @classmethod
    def _schedule_rises(cls, value: Any) -> Any:
        if isinstance(value, tuple):
            versions = [entry.version for entry in value]
            if not versions or versions[0] != 0 or versions != sorted(set(versions)):
                raise ValueError(f"got versions {versions}, expected a rising list that starts at 0")
        return value

    @pydantic.model_validator(mode="after")
    def _nobody_waits_twice(self) -> StrategyConfig:
        # With N < workers the update would wait for a straggler that cannot come before it, since batches are taken in order.
        if self.is_async and self.lockstep and self.waits_for_stragglers:
            raise ValueError(
                f"max_staleness: got {self.max_staleness} with lockstep true and on_stale wait, expected"
                " none; in lock-step each worker already waits for its update"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _resolve_provisional(self) -> StrategyConfig:
        """Resolve `provisional` to the value in effect, so that a saved configuration shows it and nothing derives it again.

        Where the key has no effect that is None, not False: a configuration saved there may be the base of a run in which
        workers pull while arrivals are pending.
        """
        value = self.provisional
        if value is None:
            self.model_fields_set.discard("provisional")  # the value of a key that is not given
        if not self.is_async or self.lockstep or self.arrivals_per_update == 1:
            value = None
        elif value is None:
            value = self.reduction == "weight_mean" and self.staleness_policy != "delay_compensation"
        object.__setattr__(self, "provisional", value)  # the model is frozen from here on
        if self.has_provisional and self.reduction != "weight_mean":
            raise ValueError(
                f"provisional: got true with reduction {self.reduction}, expected false, or reduction"
                " weight_mean; the sum of some arrivals makes a shorter step than the sum of all"
            )
        if self.has_provisional and self.staleness_policy == "delay_compensation":
            raise ValueError(
                "provisional: got true with staleness_policy delay_compensation, expected false, or"
                " policy none or inverse; the correction is measured from the version, not from the"
                " parameters on which the gradient was computed"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _micro_batches_have_no_single_base(self) -> StrategyConfig:
        if self.num_micro_batches > 1 and self.staleness_policy == "delay_compensation":
            raise ValueError(
                f"micro_batches: got {self.micro_batches} with staleness_policy delay_compensation, expected 1, or policy none or"
                " inverse; the correction is measured from one version, and micro-batches are computed on several"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _delay_is_synchronous(self) -> StrategyConfig:
        if self.is_async and self.delay:
            raise ValueError(f"delay: got {self.delay} with kind async, expected 0, or a synchronous kind")
        if self.delay_pattern != "constant" and not self.delay:
            raise ValueError(f"delay_pattern: got {self.delay_pattern} with delay 0, expected a delay of 1 or more")
        return self

    def check_num_workers(self, num_workers: int) -> None:
        """Raise `ConfigError` if a run of `num_workers` workers has fewer than `min_workers` from the start."""
        if self.is_async and self.min_workers > num_workers:
            raise ConfigError(
                f"strategy.min_workers: got {self.min_workers} in a run of {num_workers} workers, expected at most {num_workers}"
            )

    def num_versions_behind(self, version: int, worker: int) -> int:
        """Return how old the parameters are on which `worker` computes gradients for the version after `version`, in versions, as
        far as `delay` says so; they are younger near the start of a run."""
        age = (version - worker) % (self.delay + 1) if self.delay_pattern == "turns" else self.delay
        return min(version, age)

    @property
    def is_async(self) -> bool:
        """Whether workers push to a parameter store, unlike in the synchronous strategies."""
        return self.kind == "async"

    @property
    def patience_seconds(self) -> float:
        """`worker_timeout_seconds`, or its default."""
        return self.worker_timeout_seconds or (30.0 if self.is_async else 600.0)

    @property
    def is_single(self) -> bool:
        """Whether the run has one process, which exchanges nothing."""
        return self.kind == "single"

    @property
    def needs_mpi(self) -> bool:
        """Whether ranks communicate by MPI, and not only by a library that brings its own way."""
        return self.kind in ("async", "ddp")

    @property
    def num_micro_batches(self) -> int:
        """Number of micro-batches into which workers divide a batch: 1 where they would pull nothing between them."""
        return self.micro_batches if self.is_async and not self.lockstep else 1

    @property
    def has_provisional(self) -> bool:
        """Whether there ever are provisional parameters: not in lock-step, nor where each arrival makes a version."""
        return bool(self.provisional)

    @property
    def may_be_synchronous(self) -> bool:
        """Whether some updates are made in lock-step."""
        return self.lockstep or self.synchronous_versions > 0

    @property
    def waits_for_stragglers(self) -> bool:
        """Whether an update waits for gradients under way that it would make too stale."""
        return self.max_staleness is not None and self.on_stale == "wait"

    @property
    def drops_stale(self) -> bool:
        """Whether arrivals that are too stale are refused."""
        return self.max_staleness is not None and self.on_stale == "drop"


class StoreConfig(Section):
    """Placement of the parameter store of `async`."""

    shards: Annotated[int, Field(ge=1, le=10_000)] = Field(
        1,
        description="Number of ranks that hold the store, each a contiguous range of the parameters, spread over"
        " hosts first; with placement `dedicated` they do not train. Results do not depend on it.",
    )
    published_buffers: Literal[2, 3] = Field(
        3, description="Copies of the parameters from which workers read; 2 saves memory, 3 makes repeated reads rarer."
    )
    device: Device = Field(
        "cpu",
        description="Where updates are computed: `cpu`, `cuda` (a GPU that no worker uses, unless"
        " `training.allow_sharing`; a store that also trains uses the GPU on which it trains),"
        " `cuda:<index>`, or `auto` (`cuda` if there is such a GPU, else `cpu`). Workers on GPUs of the"
        " store's host then push and pull by CUDA IPC.",
    )

    recoverable: bool = Field(
        True,
        description="Keep all of the store's state in memory that outlives its process, so that `hvd-async launch` loses no"
        " update when that process dies: docs/reliability.md. Costs one vector. No effect for a store on a GPU, and with"
        " `optimizer.kind: torch`.",
    )

    @pydantic.model_validator(mode="after")
    def _device_is_of_one_shard(self) -> StoreConfig:
        if self.device != "cpu" and self.shards > 1:
            raise ValueError(
                f"device: got {self.device} with shards {self.shards}, expected cpu; the first shard reads"
                " the state of the others in the memory of their hosts"
            )
        return self


class PushConfig(Section):
    """Format and path of gradients on their way to the store of `async`."""

    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Type to which gradients are rounded before they are pushed; sums and parameters are float32."
    )
    keep: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0,
        description="Share of a gradient's elements to push, those of largest magnitude: 0.01 drops 99 % (Aji &"
        " Heafield 2017). Below 1 it requires `error_feedback`.",
    )
    error_feedback: bool = Field(
        False,
        description="Keep what rounding and dropping left out at the worker, and add it to its next gradient. Not"
        " saved in checkpoints.",
    )
    node_sum: bool = Field(
        False,
        description="The workers of a node act as one: they compute on one version, their gradients are summed in"
        " shared memory, and one push (of as many arrivals) and one pull serve them all.",
    )
    overlap: bool = Field(
        False,
        description="A worker pushes and pulls while it computes the next batch, whose gradient is then one version staler.",
    )

    @pydantic.model_validator(mode="after")
    def _nothing_is_lost(self) -> PushConfig:
        if self.keep < 1.0 and not self.error_feedback:
            raise ValueError(
                "error_feedback: got false with keep below 1, expected true; otherwise what is not pushed is lost"
            )
        if self.error_feedback and self.keep == 1.0 and self.dtype == "float32":
            raise ValueError("error_feedback: got true, but nothing is left out with dtype float32 and keep 1; remove it")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether a push is one vector of one worker, at most rounded, which a worker can write into device memory by
        itself."""
        return self.keep == 1.0 and not self.error_feedback and not self.node_sum

    @property
    def pacing_key(self) -> str:
        """The key that decides when a worker pulls, so that it cannot in the middle of a step; empty: none."""
        return next((key for key in ("overlap", "node_sum") if getattr(self, key)), "")
