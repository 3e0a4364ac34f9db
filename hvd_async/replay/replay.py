"""A recorded run computed again by one process, from its event log, configuration and data, and compared on the way.

The same batches on the same versions, summed in the same order by the same store, give the same bits, unless something on
which they depend differs. The first difference is reported together with what is known to differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from hvd_async.config import RunConfig, ScriptConfig, StrategyConfig, load_config
from hvd_async.errors import ConfigError, DataError, DifferenceError
from hvd_async.replay.past_parameters import Past
from hvd_async.replay.recording import RecordedUpdate, Recording, read_recording, repeated_batches
from hvd_async.replay.workers import Recomputation, facts_of, kind_of_device
from hvd_async.runs.folder import RunFolder
from hvd_async.runs.hashes import hash_of
from hvd_async.store.arrival import Arrival, Update
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.store.pushed_gradient import Gradient
from hvd_async.store.shards.shard import Shard
from hvd_async.store.staleness import needs_base_parameters
from hvd_async.tasks.gradient import flatten
from hvd_async.tasks.task import Task
from hvd_async.vectors.threads import restored_threads

_SAY_EVERY_SECONDS = 10.0
_NEVER = 2**62
_OF_A_MODEL = {"meta.json", "model.safetensors"}
# Settings that decide when an update is made and what is refused; in a replay the log has decided.
_AS_RECORDED: dict[str, Any] = {
    "arrivals_per_update": _NEVER,
    "lockstep": False,
    "synchronous_versions": 0,
    "max_staleness": None,
    "pending": "apply",
}


@dataclass(frozen=True)
class ReplayOptions:
    """Options of a replay. `until`: the last version to make (default: that of the log). `output`: folder for its model;
    `overwrite`: replace an existing one. `threads`: used instead of the recorded numbers."""

    until: int | None = None
    output: Path | None = None
    overwrite: bool = False
    threads: int | None = None
    trusts_task: bool = False
    """Whether code that the run's configuration names may be imported."""


@dataclass
class Verdict:
    """Extent to which recorded and recomputed run are equal to the last bit."""

    versions: int = 0
    arrivals: int = 0
    hashes: int = 0
    last_hashed: int | None = None
    """The last version whose hash was compared."""

    def __str__(self) -> str:
        """Return text such as `4 versions, 16 arrivals, 2 hashes`."""
        counts = [
            (self.versions, "version", "versions"),
            (self.arrivals, "arrival", "arrivals"),
            (self.hashes, "hash", "hashes"),
        ]
        return ", ".join(f"{count} {one if count == 1 else many}" for count, one, many in counts)


def replay(
    folder: Path, make_task: Callable[[RunConfig], Task], options: ReplayOptions, say: Callable[[str], None] = print
) -> Verdict:
    """Compute the run in `folder` again and compare; write the model of the last version if requested.

    `say` receives lines for the user. Raises `DifferenceError` at the first difference, `DataError` for a folder without
    a run that can be computed again, and `ConfigError` for options that do not fit the run.
    """
    run = RunFolder(folder)
    if not run.config.exists():
        raise DataError(f"{folder}: got no run, expected a folder with {run.config.name} and {run.events.name} in it")
    if options.output is not None:
        _check_output(options.output, folder, overwrite=options.overwrite)
    config = load_config(run.config)
    _check_task(run, config, options)
    recording = read_recording(run.events, config)
    _check(run, config, recording)
    last = len(recording.updates) if options.until is None else options.until
    if not 0 <= last <= len(recording.updates):
        raise ConfigError(f"--until: got {last}, expected 0 to {len(recording.updates)}, the last version of {run.events}")
    task = make_task(config)
    _check_text(run, recording, task)
    with restored_threads():
        replaying = _Replay(config, recording, task, options, say)
        replaying.run(last)
    if options.output is not None:
        event = recording.evaluations.get(last)
        replaying.export(options.output, {} if event is None else event["scores"])
    return replaying.verdict


def _check_task(run: RunFolder, config: RunConfig, options: ReplayOptions) -> None:
    """Refuse code that is not trusted, and the loop of a script."""
    run.check_trusted(config, trusts_task=options.trusts_task)
    if isinstance(config.task, ScriptConfig):
        raise ConfigError(
            f"{run.config}: task.kind: got script, whose loop this package cannot repeat; run the script again"
        )


def _check_output(output: Path, folder: Path, *, overwrite: bool) -> None:
    """Allow only an empty folder or a model to be replaced, and nothing in a run's folder."""
    model, run = output.resolve(), folder.resolve()
    if model == run or model in run.parents or run in model.parents:
        raise ConfigError(f"--output: got {output}, expected a folder outside the run's, {folder}")
    if not output.exists():
        return
    if not overwrite:
        raise ConfigError(f"--output: {output} exists already; replace it with --overwrite, or name another folder")
    if not output.is_dir():
        raise ConfigError(f"--output: {output} is a file, expected a folder; name another one")
    names = {path.name for path in output.iterdir()}
    if names and not names >= _OF_A_MODEL:
        raise ConfigError(
            f"--output: {output} contains something other than a model, and --overwrite replaces only"
            " models; name another folder"
        )


def _check_text(run: RunFolder, recording: Recording, task: Task) -> None:
    here = task.fingerprint()
    for process in recording.processes:
        if process.data not in (None, here):
            raise DataError(
                f"{run.events}: the text, or the model of task.init_from, is not that of the run, or was prepared differently:"
                f" recorded {process.data}, here {here}; restore what the run began with"
            )


def _check(run: RunFolder, config: RunConfig, recording: Recording) -> None:
    if config.strategy.kind in ("horovod", "ddp"):
        pushes = (push for update in recording.updates for push in update.pushes)
        if any(len(push.arrivals) > 1 and not recording.processes[push.process].is_simulated for push in pushes):
            raise DataError(
                f"{run.root}: got strategy {config.strategy.kind} with several workers, expected async,"
                " single, one worker or a simulated run: the order in which the library sums gradients is"
                " not known"
            )
    if repeated := repeated_batches(recording.updates):
        raise DataError(f"{run.events}: batch {repeated[0]} is in two updates; the log is damaged")


class _Replay:
    """Drives a store through the recorded updates."""

    def __init__(
        self, config: RunConfig, recording: Recording, task: Task, options: ReplayOptions, say: Callable[[str], None]
    ) -> None:
        self._recording = recording
        self._config = config
        self._task = task
        self._say = say
        self._process = recording.processes[0]
        self._flat = flatten(task.build_model(), config.optimizer)
        first = self._process.ranks[0]
        # A synchronous strategy updates the trained parameters in place.
        recorded_device = str(first["store_device"] or first["device"])
        self._device = kind_of_device(recorded_device)
        strategy = as_recorded(config.strategy)
        provisional = torch.empty_like(self._flat.parameters, device=self._device)
        shard = Shard(
            [self._flat.parameters.to(self._device, copy=True)],
            config.optimizer,
            provisional=[provisional],
            keeps_bases=needs_base_parameters(strategy),
            vector_map=self._flat.map,
        )
        self._store = ParameterStore(shard, self._flat.size, config.optimizer, strategy, 1)
        self._provisional = provisional
        self._past = Past(recording)
        self._past.keep(0, 0, self._store.parameters)
        self._workers = Recomputation(config, task, self._past, options.threads)
        self.verdict = Verdict()
        self._making = 0
        self._warn(recorded_device)

    def run(self, last: int) -> None:
        """Compute up to version `last`."""
        said = time.monotonic()
        self._compare_hashes()
        for update in self._recording.updates[:last]:
            self._make(update)
            self.verdict.versions += 1
            self._compare_hashes()
            if time.monotonic() - said > _SAY_EVERY_SECONDS:
                said = time.monotonic()
                self._say(f"version {update.version} of {last}: equal so far")

    def export(self, folder: Path, scores: Mapping[str, float]) -> None:
        """Write the model of the newest version."""
        tensors = self._flat.named_tensors(self._store.evaluated_parameters)
        self._task.export(folder, tensors, self._store.version, scores)

    def _make(self, update: RecordedUpdate) -> None:
        self._making = update.version
        for push in update.pushes:
            for each in push.with_those_before():
                self._process = self._recording.processes[each.process]
                arrivals, gradient = self._workers.send(self._process, each, self._compare_arrivals)
            self._store.accept(arrivals, self._at_store(gradient))
            self._store.flush()  # the next gradient will overwrite this one
            for arrival, refusal in self._store.take_refused():
                self._differ(f"the gradient of batch {arrival.batch}", "accepted", refusal.value, arrival)
            self._keep_provisional()
        made = self._store.finish()
        if made is None:
            self._differ("the sum of the gradients", "finite", "not finite")
        self._compare_updates(update, made)
        self._past.forget(made.version)
        self._past.keep(made.version, 0, self._store.parameters)
        self._store.keep_base_versions(self._past.versions)
        self.verdict.arrivals += len(made.arrivals)

    def _keep_provisional(self) -> None:
        """Make the provisional parameters again on which workers computed while these arrivals were pending."""
        version, num_arrivals = self._store.version, len(self._store.pending)
        if self._past.is_wanted(version, num_arrivals):
            self._store.make_provisional(0)
            self._past.keep(version, num_arrivals, self._provisional)

    def _at_store(self, gradient: Gradient) -> Gradient:
        if self._device == "cpu":
            return gradient
        indices = None if gradient.indices is None else gradient.indices.to(self._device)
        return Gradient(gradient.values.to(self._device), gradient.largest, indices, gradient.slot)

    def _compare_arrivals(self, recorded: Arrival, recomputed: Arrival) -> None:
        on = ", ".join(str(version) for version, _ in recorded.bases)
        where = f"batch {recorded.batch}, computed by worker {recorded.worker} on version {on}"
        self._compare(f"the weight of {where}", recorded.weight, recomputed.weight, recorded)
        self._compare(f"the loss of {where}", recorded.loss, recomputed.loss, recorded)

    def _compare_updates(self, recorded: RecordedUpdate, made: Update) -> None:
        last = made.arrivals[-1]
        for name in ("weight", "loss", "learning_rate", "gradient_norm"):
            self._compare(f"{name} of the update", recorded.event[name], getattr(made, name), last)

    def _compare_hashes(self) -> None:
        version = self._store.version
        for event in self._recording.hashes.get(version, ()):
            self._compare("the hash of the parameters", event["hash"], hash_of(self._store.parameters.cpu()))
            if "average" in event:
                average = hash_of(self._store.evaluated_parameters.cpu())
                self._compare("the hash of the moving average", event["average"], average)
            self.verdict.hashes += 1
            self.verdict.last_hashed = version

    def _compare(self, what: str, recorded: Any, recomputed: Any, arrival: Arrival | None = None) -> None:
        is_nan = recorded != recorded and recomputed != recomputed
        if recorded != recomputed and not is_nan:
            self._differ(what, recorded, recomputed, arrival)

    def _differ(self, what: str, recorded: Any, recomputed: Any, arrival: Arrival | None = None) -> NoReturn:
        worker = None if arrival is None else arrival.worker
        facts, here = facts_of(self._process, worker), self._workers.where(self._process, worker)
        others = [f"{name}: {facts.get(name)}, here {here[name]}" for name in here if facts.get(name) != here[name]]
        known = "; ".join(others) if others else "software, processor, device and threads equal the recorded ones"
        if self.verdict.last_hashed is not None:
            known = f"the last equal hash is of version {self.verdict.last_hashed}; {known}"
        bases = [] if arrival is None else arrival.bases
        withdrawn = [version for version, k in bases if k and version in self._recording.withdrawn]
        if arrival is not None and withdrawn:
            known += (
                f"; at version {withdrawn[0]} a sum that was not finite was refused: batch"
                f" {arrival.batch} may have been computed on provisional parameters that contain that sum,"
                " which the log does not have"
            )
        raise DifferenceError(
            f"version {self._making}: {what}: recorded {recorded}, recomputed {recomputed}\n"
            f"equal before that: {self.verdict}; {known}"
        )

    def _warn(self, recorded_device: str) -> None:
        recorded = {recorded_device, *(rank["device"] for process in self._recording.processes for rank in process.ranks)}
        if missing := sorted(device for device in recorded if device.partition(":")[0] != kind_of_device(device)):
            self._say(
                f"recorded on {', '.join(missing)}, which does not exist here: computed on the CPU, so the"
                " last bits may differ"
            )


def as_recorded(strategy: StrategyConfig) -> StrategyConfig:
    """Return `strategy` without its decisions; how it treats a gradient is left."""
    policy = {} if strategy.is_async else {"staleness_policy": "none"}
    return strategy.model_copy(update={**_AS_RECORDED, **policy})
