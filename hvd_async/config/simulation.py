"""The section `simulation`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from hvd_async.config.section import Positive, Ranks, Seconds, Section
from hvd_async.system.limits import MOST

Speed = Annotated[float, Field(ge=1.0, le=MOST)]


class MemoryConfig(Section):
    """Push and pull within the store's node: copies in shared memory, which do not wait for each other."""

    push_latency_seconds: Seconds = Field(20e-6, description="Time that a push takes in addition to its copy.")
    pull_latency_seconds: Seconds = Field(20e-6, description="Time that a pull takes in addition to its copy.")
    bytes_per_second: Speed = Field(10e9, description="Speed of a copy.")


class NetworkConfig(Section):
    """Push and pull between nodes. They share the link of their node and that of the store, first come, first served."""

    push_latency_seconds: Seconds = Field(
        50e-6,
        description="Time that a push takes in addition to its bytes; also for each message of the synchronous strategies.",
    )
    pull_latency_seconds: Seconds = Field(50e-6, description="Time that a pull takes in addition to its bytes.")
    bytes_per_second: Speed = Field(1.25e9, description="Speed of the link of each shard of the store, in each direction.")
    node_bytes_per_second: Speed | None = Field(
        None, description="Speed of the link of each node of workers, in each direction. Default: `bytes_per_second`."
    )


class SimulationConfig(Section):
    """The cluster of `hvd-async simulate`; `emulation` sets the length of steps. See docs/simulation.md."""

    renamed: ClassVar[Mapping[str, str]] = {"tokens": "weight"}

    workers: Ranks = Field(4, description="Ranks that train; strategy `single` always has one.")
    workers_per_node: Ranks | None = Field(None, description="Workers per node. Default: all are on the store's node.")
    store_node_trains: bool = Field(
        True,
        description="With `workers_per_node`: true: the first of these nodes is the store's; false: the store has a"
        " node of its own.",
    )
    memory: MemoryConfig = Field(MemoryConfig(), description="Within a node.")
    network: NetworkConfig = Field(NetworkConfig(), description="Between nodes.")
    update_seconds: Seconds | None = Field(
        None, description="Time of an update. Default: 28 bytes per parameter at the speed of memory, as for Adam."
    )
    arrival_seconds: Seconds | None = Field(
        None,
        description="Time in which the store takes in a push. Default: the push and 8 bytes per parameter at the"
        " speed of memory.",
    )
    allreduce: Literal["ring", "tree"] = Field(
        "ring", description="How the synchronous strategies sum gradients. It affects the time of the sum, not its result."
    )
    parameters: Positive | None = Field(
        None, description="Number of parameters for which pushes, pulls and updates are timed. Default: that of the model."
    )
    weight: Positive | None = Field(
        None, description="Weight of a batch, for `--timing-only`. Default: that of a full batch (`batching.tokens`)."
    )
