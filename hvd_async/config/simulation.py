"""The section `simulation`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hvd_async.config.section import Positive, Ranks, Seconds, Section
from hvd_async.system.limits import MOST

Speed = Annotated[float, Field(ge=1.0, le=MOST)]


class MemoryConfig(Section):
    """Push and pull within the store's node: copies in shared memory, which do not wait for each other."""

    push_latency_seconds: Seconds = Field(20e-6, description="What a push takes beside its copy.")
    pull_latency_seconds: Seconds = Field(20e-6, description="What a pull takes beside its copy.")
    bytes_per_second: Speed = Field(10e9, description="Speed of a copy.")


class NetworkConfig(Section):
    """Push and pull between nodes, which share the link of their node, and that of the store: first come, first served."""

    push_latency_seconds: Seconds = Field(
        50e-6, description="What a push takes beside its bytes; also a message of the synchronous strategies."
    )
    pull_latency_seconds: Seconds = Field(50e-6, description="What a pull takes beside its bytes.")
    bytes_per_second: Speed = Field(
        1.25e9, description="Speed of the link of each of the store's shards, in each direction."
    )
    node_bytes_per_second: Speed | None = Field(
        None, description="Speed of the link of a node of workers, in each direction. Default: `bytes_per_second`."
    )


class SimulationConfig(Section):
    """The cluster that `hvd-async simulate` computes with; how long steps last is said in `emulation`. See docs/simulation.md."""

    workers: Ranks = Field(4, description="Ranks that train; strategy `single` always has one.")
    workers_per_node: Ranks | None = Field(None, description="Workers of a node. Absent: all are on the store's node.")
    store_node_trains: bool = Field(
        True,
        description="With `workers_per_node`: whether the first of these nodes is the store's, or the store has its own.",
    )
    memory: MemoryConfig = Field(MemoryConfig(), description="Within a node.")
    network: NetworkConfig = Field(NetworkConfig(), description="Between nodes.")
    update_seconds: Seconds | None = Field(
        None, description="What an update takes. Default: 28 bytes a parameter at the speed of memory, as for Adam."
    )
    arrival_seconds: Seconds | None = Field(
        None, description="What the store needs to take in a push. Default: the push and 8 bytes a parameter at that speed."
    )
    allreduce: Literal["ring", "tree"] = Field(
        "ring", description="How the synchronous strategies sum gradients: it decides what the sum takes, not what it is."
    )
    parameters: Positive | None = Field(
        None, description="Parameters that pushes, pulls and updates are reckoned for. Default: those of the model."
    )
    tokens: Positive | None = Field(
        None, description="Target tokens of a batch, for `--timing-only`. Default: `batching.tokens`."
    )
