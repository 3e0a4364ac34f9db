"""The configuration of a run: one YAML file, typed, frozen and strict.

Every key has a description here; `docs/configuration.md` is generated from them. All faults of a file are reported at
once, before any rank works.
"""

from __future__ import annotations

import difflib
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args

import pydantic
import yaml
from pydantic import Field

from hvd_async.errors import ConfigError

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(pydantic.BaseModel):
    """Base of every section: unknown keys are errors, values are immutable and validated strictly."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False)


SectionT = TypeVar("SectionT", bound=Section)


class DataConfig(Section):
    """Where the text is. `hvd-async data` makes such folders; any aligned text files will do."""

    folder: str = Field(description="Folder of the text files, one sentence a line: `<split>.<language>`, plain or `.gz`.")
    source: str = Field("en", description="Language translated from: the ending of its files.")
    target: str = Field("de", description="Language translated to: the ending of its files.")
    train: str = Field("train", description="Name of the training split.")
    validation: str = Field("val", description="Name of the validation split.")
    prepared: str | None = Field(
        None,
        description="Folder for the trained vocabulary and the tokenized arrays; made on first use and then reused as long"
        " as text and settings stay the same. Default: `<folder>/prepared`.",
    )
    max_tokens_per_sentence: Positive = Field(
        128, description="Training pairs with more tokens than this on either side are left out and counted."
    )


class VocabularyConfig(Section):
    """The SentencePiece model, trained jointly on both sides of the training text."""

    size: Annotated[int, Field(ge=16)] = Field(6000, description="Number of pieces, the four special ones included.")
    kind: Literal["bpe", "unigram"] = Field("bpe", description="How SentencePiece builds the pieces.")
    character_coverage: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="Share of the characters of the text that the pieces must cover."
    )


class ModelConfig(Section):
    """The Transformer (Vaswani et al. 2017), or a GRU with global attention (Luong et al. 2015) to compare it with.

    A GRU leaves `feed_forward`, `heads`, `attention_dropout` and `norm` unread, so that one file will do for both kinds.
    """

    kind: Literal["transformer", "gru"] = Field("transformer", description="The architecture.")
    encoder_layers: Positive = Field(3, description="Layers of the encoder; a GRU's run in both directions.")
    decoder_layers: Positive = Field(3, description="Layers of the decoder.")
    width: Positive = Field(
        256,
        description="Size of embeddings and hidden states: an even multiple of `heads`; for a GRU an even number, half of which"
        " is each direction's of the encoder.",
    )
    feed_forward: Positive = Field(1024, description="Inner size of the feed-forward blocks. Transformer alone.")
    heads: Positive = Field(4, description="Attention heads. Transformer alone; a GRU has one.")
    dropout: Fraction = Field(
        0.1,
        description="Dropout after embeddings, attention and feed-forward blocks; in a GRU after embeddings, layers and"
        " attention.",
    )
    attention_dropout: Fraction = Field(0.0, description="Dropout on attention weights. Transformer alone.")
    norm: Literal["pre", "post"] = Field(
        "pre", description="Layer normalisation before (`pre`) or after (`post`) a block. Transformer alone."
    )
    tie_embeddings: Literal["all", "decoder", "none"] = Field(
        "all", description="Which matrices are one: source, target and output (`all`), target and output, or none."
    )
    max_positions: Positive = Field(512, description="Longest sequence of tokens that the model can read or write.")

    @pydantic.model_validator(mode="after")
    def _width_divides(self) -> ModelConfig:
        if self.kind == "gru":
            if self.width % 2:
                raise ValueError(f"width: got {self.width}, expected an even number for kind gru, half for each direction")
        elif self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width: got {self.width}, expected an even multiple of heads ({self.heads})")
        return self


class BatchingConfig(Section):
    """How sentences become batches. A seeded permutation, the same for every strategy."""

    tokens: Positive = Field(1000, description="Most tokens of a batch on its larger side, padding included.")
    max_sentences: Positive = Field(512, description="Most sentences of a batch.")
    bucket_batches: Positive = Field(
        100, description="Sentences are shuffled, then sorted by length within windows of about this many batches."
    )


class ScheduleConfig(Section):
    """The learning rate, a function of the store's version or of the target tokens seen; never of a worker's steps."""

    kind: Literal["inverse_square_root", "linear", "constant"] = Field(
        "inverse_square_root",
        description="After warm-up: falls with the inverse square root, falls linearly to zero at `total`, or stays.",
    )
    unit: Literal["versions", "tokens"] = Field("versions", description="What `warmup` and `total` count.")
    warmup: Annotated[int, Field(ge=0)] = Field(0, description="The rate rises linearly from 0 over this many units.")
    total: Positive | None = Field(None, description="Where `linear` reaches zero; needed for `linear`, refused elsewhere.")

    @pydantic.model_validator(mode="after")
    def _total_fits(self) -> ScheduleConfig:
        if self.kind == "linear" and (self.total is None or self.total <= self.warmup):
            raise ValueError(f"total: got {self.total}, expected more than warmup ({self.warmup}) for kind linear")
        if self.kind != "linear" and self.total is not None:
            raise ValueError(f"total: got {self.total}, expected no value for kind {self.kind}; remove it or use linear")
        return self


class OptimizerConfig(Section):
    """The update, done by the store (or by each rank alike in a synchronous strategy)."""

    kind: Literal["adam", "adamw", "sgd"] = Field("adam", description="Optimizer of torch.optim, fused where torch has it.")
    learning_rate: Annotated[float, Field(gt=0.0)] = Field(1e-3, description="Highest rate, reached when warm-up ends.")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.98), strict=False, description="Decay of Adam's moments.")
    epsilon: Annotated[float, Field(gt=0.0)] = Field(1e-9, description="Adam's epsilon.")
    momentum: Fraction = Field(0.0, description="Momentum of SGD.")
    nesterov: bool = Field(False, description="Nesterov momentum for SGD.")
    weight_decay: Annotated[float, Field(ge=0.0)] = Field(
        0.0, description="Decoupled for adamw; added to the gradient for adam and sgd."
    )
    clip_norm: Annotated[float, Field(gt=0.0)] | None = Field(
        None, description="Largest norm of an update's combined gradient; it is scaled down to it."
    )
    average_decay: Fraction = Field(
        0.0,
        description="Decay of the exponential moving average of parameters, which is then what is evaluated and"
        " exported; 0 turns it off.",
    )
    schedule: ScheduleConfig = Field(ScheduleConfig(), description="The learning rate over time.")

    @pydantic.model_validator(mode="after")
    def _options_fit(self) -> OptimizerConfig:
        if self.kind != "sgd" and (self.momentum or self.nesterov):
            raise ValueError(f"momentum, nesterov: expected no value for kind {self.kind}; they belong to sgd")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: got true, expected momentum > 0 beside it")
        return self


def _branch_of_arrivals(value: Any) -> str | None:
    """Which member of a union of arrivals `value` is meant for; None, one error, where it fits none of them."""
    if isinstance(value, (list, tuple)):
        return "<schedule>"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return "<number>"
    return "<workers>" if value == "workers" else None


# A plain union would answer a wrong value with one fault per member; the tags, no keys of the file, are left out of errors.
_BRANCHES = ("<number>", "<workers>", "<schedule>")
_Number = Annotated[Positive, pydantic.Tag("<number>")]
_Workers = Annotated[Literal["workers"], pydantic.Tag("<workers>")]


class ArrivalsFrom(Section):
    """One entry of a schedule of `arrivals_per_update`."""

    version: Annotated[int, Field(ge=0)] = Field(description="From this version on.")
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
    """Who computes the update and when. The keys after `kind` are for `async` unless they say otherwise."""

    kind: Literal["single", "horovod", "ddp", "async"] = Field(
        "single",
        description="`single`: one process. `horovod`, `ddp`: synchronous allreduce. `async`: the parameter store.",
    )
    arrivals_per_update: ArrivalsPerUpdate = Field(
        "workers",
        description="N, the arrivals summed for one update: a number (1 is plain asynchronous SGD), `workers` (as many as"
        " are alive), or a schedule: a list of `{version, arrivals}`, the first from version 0.",
    )
    reduction: Literal["token_mean", "sum"] = Field(
        "token_mean",
        description="All strategies. `token_mean`: sum of gradients / sum of target tokens; `sum`: the plain sum.",
    )
    lockstep: bool = Field(False, description="Each worker waits for the update that its arrival went into.")
    synchronous_versions: Annotated[int, Field(ge=0)] = Field(
        0, description="The first updates are made in lock-step with N = workers, then asynchronously."
    )
    max_staleness: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Bound on staleness, in versions; see `on_stale`. No bound when absent; in lock-step none that waits.",
    )
    on_stale: Literal["wait", "drop"] = Field(
        "wait",
        description="`wait`: an update that would leave a gradient under way too stale waits for it and takes it in, and"
        " workers ahead wait; `drop`: an arrival that is too stale is refused and counted.",
    )
    staleness_policy: Literal["none", "inverse", "delay_compensation"] = Field(
        "none",
        description="What is done to a stale gradient: nothing; gradient / (1 + staleness) (Zhang et al. 2016); or a"
        " correction by the squared gradient times the parameters' change (DC-ASGD, Zheng et al. 2017).",
    )
    delay_compensation: Annotated[float, Field(ge=0.0)] = Field(
        0.04, description="Lambda of `delay_compensation`, for the gradient of the mean loss per token."
    )
    provisional: bool | None = Field(
        None,
        description="A worker that pulls while arrivals are pending computes on what the next version would be if only those were"
        " in it, instead of on a version that is about to be replaced (docs/staleness.md). It needs `reduction: token_mean`, and"
        " no `delay_compensation`; absent: true with these. In lock-step, and with N = 1, it is without effect.",
    )
    delay: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Synchronous strategies only: gradients are computed on the parameters of so many versions before, as if they"
        " were stale by that; for experiments.",
    )
    pending: Literal["apply", "drop"] = Field(
        "apply", description="Arrivals accumulated but not yet applied when the data ends: applied, or dropped and counted."
    )
    placement: Literal["dedicated", "colocated"] = Field(
        "dedicated", description="`dedicated`: rank 0 is the store alone; `colocated`: rank 0 trains as well."
    )
    store_timeout_seconds: Annotated[float, Field(gt=0.0)] = Field(
        60.0, description="A worker that sees no sign of life from the store for so long ends the job."
    )
    worker_timeout_seconds: Annotated[float, Field(gt=0.0)] = Field(
        600.0, description="A store that waits for a worker that gave no sign of life for so long ends the job."
    )

    @pydantic.field_validator("arrivals_per_update", mode="after")
    @classmethod
    def _schedule_rises(cls, value: Any) -> Any:
        if isinstance(value, tuple):
            versions = [entry.version for entry in value]
            if not versions or versions[0] != 0 or versions != sorted(set(versions)):
                raise ValueError(f"got versions {versions}, expected a rising list that begins with 0")
        return value

    @pydantic.model_validator(mode="after")
    def _nobody_waits_twice(self) -> StrategyConfig:
        # With N < workers the update would be held for a straggler that is not admitted before it, since batches are in order.
        if self.kind == "async" and self.lockstep and self.max_staleness is not None and self.on_stale == "wait":
            raise ValueError(
                f"max_staleness: got {self.max_staleness} with lockstep true and on_stale wait, expected none; in lock-step each"
                " worker waits for its update already"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _provisional_parameters_can_be(self) -> StrategyConfig:
        if self.kind != "async" or not self.provisional or not self.has_provisional:
            return self
        if self.reduction != "token_mean":
            raise ValueError(
                f"provisional: got true with reduction {self.reduction}, expected false, or token_mean; the sum of some arrivals"
                " makes a shorter step than that of all"
            )
        if self.staleness_policy == "delay_compensation":
            raise ValueError(
                "provisional: got true with staleness_policy delay_compensation, expected false, or none or inverse; what it"
                " corrects is measured from the version, not from where the gradient was computed"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _delay_is_synchronous(self) -> StrategyConfig:
        if self.kind == "async" and self.delay:
            raise ValueError(f"delay: got {self.delay} with kind async, expected 0, or a synchronous kind")
        return self

    @property
    def has_provisional(self) -> bool:
        """Whether there ever are provisional parameters: not in lock-step, nor where each arrival makes a version."""
        wanted = self.provisional
        if wanted is None:
            wanted = self.reduction == "token_mean" and self.staleness_policy != "delay_compensation"
        return wanted and not self.lockstep and self.arrivals_per_update != 1


class StoreConfig(Section):
    """The parameter store of `async`: where its memory lies."""

    shards: Positive = Field(
        1,
        description="Ranks that hold the store, each a contiguous range of the parameters, spread over hosts first; with"
        " placement `dedicated` they do not train. Results do not depend on it.",
    )
    published_buffers: Literal[2, 3] = Field(
        3, description="Copies of the parameters that workers read from; 2 saves memory, 3 makes repeated reads rarer."
    )
    device: str = Field(
        "cpu",
        description="Where updates are computed: `cpu`, `cuda` (a GPU that no worker uses, unless `training.allow_sharing`; a"
        " store that trains as well takes the GPU that it trains on), `cuda:<index>`, or `auto` (`cuda` where there is such a"
        " GPU, else `cpu`). Workers on GPUs of the store's host then push and pull by CUDA IPC.",
    )

    @pydantic.model_validator(mode="after")
    def _device_is_of_one_shard(self) -> StoreConfig:
        if self.device != "cpu" and self.shards > 1:
            raise ValueError(
                f"device: got {self.device} with shards {self.shards}, expected cpu; the first shard reads the state of the"
                " others in the memory of their hosts"
            )
        return self


class PushConfig(Section):
    """How gradients travel to the store of `async`."""

    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="What gradients are rounded to before they are pushed; sums and parameters are float32."
    )
    keep: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0,
        description="Share of a gradient's elements that is pushed, those of largest magnitude: 0.01 drops 99 % (Aji &"
        " Heafield 2017). Below 1 it needs `error_feedback`.",
    )
    error_feedback: bool = Field(
        False,
        description="What rounding and dropping left out is kept at the worker and added to its next gradient. It is not"
        " in checkpoints.",
    )
    node_sum: bool = Field(
        False,
        description="The workers of a node act as one: they compute on one version, their gradients are summed in shared"
        " memory, and one push (of as many arrivals) and one pull serve them all.",
    )
    overlap: bool = Field(
        False,
        description="A worker pushes and pulls while it computes the next batch: that gradient is one version staler.",
    )

    @pydantic.model_validator(mode="after")
    def _nothing_is_lost(self) -> PushConfig:
        if self.keep < 1.0 and not self.error_feedback:
            raise ValueError("error_feedback: got false with keep below 1, expected true; what is not pushed would be lost")
        if self.error_feedback and self.keep == 1.0 and self.dtype == "float32":
            raise ValueError("error_feedback: got true, but nothing is left out with dtype float32 and keep 1; remove it")
        return self


class EmulationConfig(Section):
    """Steps of a chosen length: uneven workers on even hardware, and the workers of a simulation.

    In a real run a worker idles after its real step until the step has lasted as long as is said here; in `hvd-async simulate`
    nobody idles. The k-th step of a worker has the same length in both.
    """

    slow_workers: dict[int, Annotated[float, Field(ge=1.0)]] = Field(
        {}, description="Worker number (0, 1, ...) -> how many times as long its step lasts, e.g. `{0: 2.0}`."
    )
    seconds: Annotated[float, Field(gt=0.0)] | None = Field(
        None, description="Seconds of a step. Absent: in a real run those of the real step, in a simulation 0.1."
    )
    seconds_per_token: Annotated[float, Field(ge=0.0)] = Field(
        0.0, description="Seconds that each target token of the batch adds to `seconds`."
    )
    spread: Literal["none", "log_normal", "gamma"] = Field(
        "none", description="Each step's length is multiplied by a factor drawn from this distribution, whose mean is 1."
    )
    deviation: Annotated[float, Field(ge=0.0)] = Field(
        0.0,
        description="How far factors spread: the standard deviation of their logarithm (`log_normal`), or their own relative"
        " to the mean (`gamma`).",
    )
    pause_probability: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.0, description="Share of the steps that a pause makes longer."
    )
    pause_seconds: Annotated[float, Field(ge=0.0)] = Field(0.0, description="Seconds of such a pause.")
    trace: str | None = Field(
        None,
        description='File of step times in place of `seconds`: lines `{"worker": 0, "seconds": 0.12}`, or the `events.jsonl`'
        " of a run. Each worker repeats its own list; one without takes that of worker number modulo traced workers.",
    )

    @pydantic.model_validator(mode="after")
    def _lengths_fit(self) -> EmulationConfig:
        if (self.spread == "none") != (self.deviation == 0.0):
            raise ValueError(
                f"deviation: got {self.deviation:g} with spread {self.spread}, expected > 0 with log_normal or gamma, else 0"
            )
        if (self.pause_probability == 0.0) != (self.pause_seconds == 0.0):
            raise ValueError("pause_probability, pause_seconds: got one of them, expected both or neither")
        if self.trace is not None and self.seconds is not None:
            raise ValueError("trace: got a file with seconds beside it, expected one of them")
        return self


class MemoryConfig(Section):
    """Push and pull within the store's node: copies in shared memory, which do not wait for each other."""

    push_latency_seconds: Annotated[float, Field(ge=0.0)] = Field(20e-6, description="What a push takes beside its copy.")
    pull_latency_seconds: Annotated[float, Field(ge=0.0)] = Field(20e-6, description="What a pull takes beside its copy.")
    bytes_per_second: Annotated[float, Field(gt=0.0)] = Field(10e9, description="Speed of a copy.")


class NetworkConfig(Section):
    """Push and pull between nodes, which share the link of their node, and that of the store: first come, first served."""

    push_latency_seconds: Annotated[float, Field(ge=0.0)] = Field(
        50e-6, description="What a push takes beside its bytes; also a message of the synchronous strategies."
    )
    pull_latency_seconds: Annotated[float, Field(ge=0.0)] = Field(50e-6, description="What a pull takes beside its bytes.")
    bytes_per_second: Annotated[float, Field(gt=0.0)] = Field(
        1.25e9, description="Speed of the link of each of the store's shards, in each direction."
    )
    node_bytes_per_second: Annotated[float, Field(gt=0.0)] | None = Field(
        None, description="Speed of the link of a node of workers, in each direction. Default: `bytes_per_second`."
    )


class SimulationConfig(Section):
    """The cluster that `hvd-async simulate` computes with; how long steps last is said in `emulation`. See docs/simulation.md."""

    workers: Positive = Field(4, description="Ranks that train; strategy `single` always has one.")
    workers_per_node: Positive | None = Field(None, description="Workers of a node. Absent: all are on the store's node.")
    store_node_trains: bool = Field(
        True,
        description="With `workers_per_node`: whether the first of these nodes is the store's, or the store has its own.",
    )
    memory: MemoryConfig = Field(MemoryConfig(), description="Within a node.")
    network: NetworkConfig = Field(NetworkConfig(), description="Between nodes.")
    update_seconds: Annotated[float, Field(ge=0.0)] | None = Field(
        None, description="What an update takes. Default: 28 bytes a parameter at the speed of memory, as for Adam."
    )
    arrival_seconds: Annotated[float, Field(ge=0.0)] | None = Field(
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


# Keys of `training` of which one says when a run ends.
BOUNDS = ("epochs", "tokens", "updates", "seconds")


class TrainingConfig(Section):
    """How much, on what, and what is kept. Exactly one of `epochs`, `tokens`, `updates` and `seconds` bounds the run."""

    epochs: Positive | None = Field(None, description="Passes over the training data.")
    tokens: Positive | None = Field(None, description="Target tokens: whole batches until they are reached.")
    updates: Positive | None = Field(None, description="Updates: the run ends at this version.")
    seconds: Annotated[float, Field(gt=0.0)] | None = Field(
        None, description="Seconds of training: the run ends then, at most two updates later."
    )
    device: str = Field(
        "auto", description="`auto` (a GPU per worker where there are any), `cpu`, `cuda`, or `cuda:<index>` for all."
    )
    allow_sharing: bool = Field(False, description="Several workers may share a GPU.")
    threads: Positive | None = Field(
        None, description="Threads per rank for arithmetic on CPU. Default: the node's cores divided among its ranks."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="`bfloat16`: autocast for forward and backward; parameters and updates stay float32."
    )
    label_smoothing: Fraction = Field(0.1, description="Label smoothing of the training loss; validation is without.")
    log_every_seconds: Annotated[float, Field(gt=0.0)] = Field(
        10.0, description="Interval of the progress lines where the output is not a terminal."
    )
    checkpoint_every: Annotated[int, Field(ge=0)] = Field(
        0, description="Versions between checkpoints; 0: only at the end and when a signal stops the run."
    )
    keep_checkpoints: Positive = Field(1, description="How many of the latest checkpoints are kept.")
    digest_every: Annotated[int, Field(ge=0)] = Field(
        100,
        description="Versions between digests of the parameters in the event log, which `hvd-async replay` compares with;"
        " 0: none, not even of the first and the last version.",
    )
    tensorboard: bool = Field(True, description="Write TensorBoard scalars to `<output>/tensorboard`.")

    @pydantic.model_validator(mode="after")
    def _one_bound(self) -> TrainingConfig:
        bounds = {name: getattr(self, name) for name in BOUNDS if getattr(self, name) is not None}
        if len(bounds) != 1:
            raise ValueError(f"got {bounds or 'none of them'}, expected exactly one of {', '.join(BOUNDS)}")
        return self


class ValidationConfig(Section):
    """When the model is measured. Measurements are made on snapshots, each of exactly one version."""

    every: Positive | None = Field(None, description="Versions between snapshots that are validated; absent: only the last.")
    every_tokens: Positive | None = Field(
        None,
        description="Target tokens between them, in place of `every`, so that runs with updates of different sizes are measured"
        " alike: the first version after each multiple. It needs `when: after`.",
    )
    when: Literal["during", "after"] = Field(
        "during",
        description="`during`: the first worker with a finished step takes the evaluation, the store goes on; `after`: when"
        " training has ended, so that its clock measures training alone.",
    )
    bleu: bool = Field(True, description="Translate the validation split and compute BLEU too.")
    bleu_sentences: Positive | None = Field(None, description="Only the first so many sentences for BLEU.")
    patience: Positive | None = Field(
        None, description="Stop after so many validations without a better loss; needs `when: during`."
    )

    @pydantic.model_validator(mode="after")
    def _patience_fits(self) -> ValidationConfig:
        if self.patience is not None and (self.when != "during" or self.every is None):
            raise ValueError("patience: expected `when: during` and a value for `every` beside it")
        return self

    @pydantic.model_validator(mode="after")
    def _every_tokens_fits(self) -> ValidationConfig:
        if self.every_tokens is not None and (self.when != "after" or self.every is not None):
            raise ValueError("every_tokens: expected `when: after` and no value for `every` beside it")
        return self

    def is_due(self, version: int, tokens: int, update_tokens: int) -> bool:
        """Whether `version` is validated, made by an update with `update_tokens` of the `tokens` target tokens so far."""
        if self.every_tokens is not None:
            return tokens // self.every_tokens > (tokens - update_tokens) // self.every_tokens
        return self.every is not None and version % self.every == 0


class DecodingConfig(Section):
    """How translations are searched for."""

    beam: Positive = Field(5, description="Beam size of `translate` and `score`; 1 is greedy search.")
    validation_beam: Positive = Field(1, description="Beam size in validation.")
    length_penalty: Annotated[float, Field(ge=0.0)] = Field(
        1.0, description="Hypotheses are compared by log probability / length ^ penalty; 0 compares plain sums."
    )
    max_length_ratio: Annotated[float, Field(gt=0.0)] = Field(
        2.0, description="A translation has at most 10 + ratio x source tokens."
    )
    batch_sentences: Positive = Field(64, description="Sentences translated at once, of similar length.")


class RunConfig(Section):
    """A training run."""

    output: str = Field(description="Folder of the run: configuration, event log, snapshots, checkpoints, models.")
    seed: int = Field(1, description="Decides initial parameters, order of batches and dropout.")
    data: DataConfig = Field(description="The text.")
    vocabulary: VocabularyConfig = Field(VocabularyConfig(), description="The pieces.")
    model: ModelConfig = Field(ModelConfig(), description="The network.")
    batching: BatchingConfig = Field(BatchingConfig(), description="The batches.")
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description="The update.")
    strategy: StrategyConfig = Field(StrategyConfig(), description="Single, synchronous or asynchronous.")
    store: StoreConfig = Field(StoreConfig(), description="Where the parameter store lies.")
    push: PushConfig = Field(PushConfig(), description="How gradients travel to it.")
    training: TrainingConfig = Field(description="Length, device, what is kept.")
    validation: ValidationConfig = Field(ValidationConfig(), description="Measurements on the way.")
    decoding: DecodingConfig = Field(DecodingConfig(), description="Search.")
    emulation: EmulationConfig = Field(EmulationConfig(), description="How long steps last, for experiments.")
    simulation: SimulationConfig = Field(SimulationConfig(), description="A cluster to simulate.")

    @pydantic.model_validator(mode="after")
    def _overlap_fits(self) -> RunConfig:
        strategy = self.strategy
        if not self.push.overlap or strategy.kind != "async":
            return self
        if strategy.lockstep:
            raise ValueError("push.overlap: got true with strategy.lockstep, expected false; in lock-step a worker waits")
        if strategy.max_staleness == 0:
            raise ValueError(
                "push.overlap: got true with strategy.max_staleness 0, expected max_staleness >= 1 or none; overlapped"
                " gradients are at least one version stale"
            )
        return self


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number, as YAML 1.2 does and PyYAML does not."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _read_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # a SafeLoader, see above


def load_config(path: str | pathlib.Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read `path` (YAML), apply `overrides` (each `key.path=value`, the value in YAML) and check everything.

    Raises `ConfigError` with one line per fault, each `file: key: got, expected`.
    """
    path = pathlib.Path(path)
    tree = read_tree(path, "configuration of a run")
    for override in overrides:
        _apply_override(tree, override)
    return parse_config(tree, source=str(path))


def read_tree(path: pathlib.Path, purpose: str) -> dict[Any, Any]:
    """The keys of the YAML file `path`, the `purpose`, unchecked. Raises `ConfigError` if there are none."""
    try:
        tree = _read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; expected the YAML {purpose}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: got {_kind(tree)}, expected keys, those of the {purpose}")
    return tree


def parse_config(tree: Mapping[str, Any], source: str) -> RunConfig:
    """Check a configuration given as plain data; `source` names it in errors. Raises `ConfigError`."""
    return check(RunConfig, tree, source)


def check(kind: type[SectionT], tree: Mapping[str, Any], source: str) -> SectionT:
    """`tree` as a section of that kind; `source` names it in errors. Raises `ConfigError` with one line per fault."""
    try:
        return kind.model_validate(tree)
    except pydantic.ValidationError as error:
        lines = [f"{source}: {line}" for line in dict.fromkeys(_describe(fault, kind) for fault in error.errors())]
        raise ConfigError("\n".join(lines)) from None


def dump_config(config: RunConfig) -> str:
    """The YAML text of `config`, every key present; `load_config` reads it back equal."""
    return yaml.safe_dump(_plain(config.model_dump()), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _apply_override(tree: dict[Any, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ConfigError(f"--set {override}: expected key.path=value, such as strategy.arrivals_per_update=4")
    try:
        value = _read_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not YAML: {' '.join(str(error).split())}") from None
    for part in parts[:-1]:
        below = tree.setdefault(part, {})
        if below is None:
            below = tree[part] = {}
        if not isinstance(below, dict):
            raise ConfigError(f"--set {override}: {part} holds {_kind(below)}, expected a section of keys")
        tree = below
    tree[parts[-1]] = value


def _describe(fault: Any, root: type[Section]) -> str:
    """One line for one of pydantic's faults: key, what was found, what is expected."""
    location = [part for part in fault["loc"] if not _is_branch_name(part)]
    key = ".".join(str(part) for part in location) or "(top level)"
    kind, message = fault["type"], fault["msg"]
    if kind == "extra_forbidden":
        names = _sibling_names(fault["loc"], root)
        near = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(sorted(names))}"
        return f"{key}: unknown key; {hint}"
    if kind == "missing":
        return f"{key}: missing, expected a value"
    if kind == "value_error":
        return f"{key}: {message.removeprefix('Value error, ')}"
    if message.startswith("expected "):
        return f"{key}: got {fault['input']!r}, {message}"
    message = message[0].lower() + message[1:]
    return f"{key}: got {fault['input']!r}, expected: {message.removeprefix('input should be ')}"


def _is_branch_name(part: Any) -> bool:
    """Pydantic names the member of a union in the location; that is no key of the file."""
    return part in _BRANCHES


def _sibling_names(location: Sequence[Any], root: type[Section]) -> list[str]:
    section: Any = root
    for part in location[:-1]:
        if isinstance(part, int) or _is_branch_name(part):
            section = ArrivalsFrom
            continue
        annotation = section.model_fields[part].annotation
        branches = [branch for branch in get_args(annotation) if isinstance(branch, type) and issubclass(branch, Section)]
        section = branches[0] if branches else annotation  # of `Section | None` the section
    return list(section.model_fields)


def _kind(value: Any) -> str:
    names = {dict: "a section", list: "a list", str: "text", type(None): "nothing"}
    return names.get(type(value), repr(value))
