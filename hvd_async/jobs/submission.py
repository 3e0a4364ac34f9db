"""Starting a run as a job from Python, by the same scripts and flags as `hvd-async launch`."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypedDict

from hvd_async.config import load_config
from hvd_async.errors import CheckpointError, ConfigError, DataError, HvdAsyncError, SetupError
from hvd_async.jobs.job import BATCH_SYSTEMS, SubmittedJob, System, batch_job, check_system, local_job
from hvd_async.launcher.batch_dialect import DIALECTS
from hvd_async.runs.folder import RunFolder
from hvd_async.system import interpreter
from hvd_async.system.files import stamp_of
from hvd_async.system.nearest import meant

if TYPE_CHECKING:
    from typing_extensions import Unpack

_ERRORS = {kind.exit_status: kind for kind in (ConfigError, DataError, SetupError, CheckpointError)}


class LaunchFlags(TypedDict, total=False):
    """Flags of `hvd-async launch`, with `_` for `-`; docs/clusters.md explains each. Those from `nodes` on are for batch systems.

    A flag that may be repeated takes a list, a flag without a value takes True.
    """

    workers: int
    workers_per_node: int
    gpus_per_node: int | str
    launcher: str
    restarts: int
    respawn: int
    mpi: str
    pmi: str
    hosts: str
    hostfile: str
    forward: Sequence[str]
    extra: Sequence[str]
    container: str
    bind: Sequence[str]
    resume: bool
    auto_resume: bool
    overwrite: bool
    nodes: int
    cpus_per_worker: int
    time: str
    job_name: str
    account: str
    queue: str
    sbatch: Sequence[str]
    qsub: Sequence[str]
    bsub: Sequence[str]
    setup: Sequence[str]
    conda: str
    site: str


_FLAGS = tuple(LaunchFlags.__annotations__)


def submit(
    config: str | Path,
    *,
    system: System = "slurm",
    script: Literal["train", "train-requeue", "heterogeneous"] = "train",
    overrides: Mapping[str, Any] | None = None,
    **flags: Unpack[LaunchFlags],
) -> SubmittedJob:
    """Start the run of the configuration in the file `config` as a job, and return the job at once.

    `system`: the batch system that gets the script `script`, or `local`: the run starts on this machine, or on those of the
    flag `hosts`, and continues when this program ends. `overrides`: values of keys, such as `{"training.weight": 200_000}`; a
    value may be a Path. `flags`: those of `hvd-async launch`, such as `nodes=4, gpus_per_node="a100:4", time="12:00:00"`; a flag
    that may be repeated takes a list. Paths are relative to the current folder, where the job also runs and has its log.

    Raises what `hvd-async launch` refuses: `ConfigError` for the configuration and the flags, `SetupError` for what is not there.
    Called by programs of users, outside of a run's ranks.
    """
    pairs = _pairs(overrides)
    check_system(system)
    output = load_config(str(config), pairs).output
    words = [str(config), *_words(flags), *(word for pair in pairs for word in ("--set", pair))]
    if system == "local":
        if script != "train":
            raise ConfigError(f"script: got {script!r} with system 'local', expected none: no script is written")
        return _start_here(words, output)
    before = stamp_of(RunFolder(output).summary)
    printed = _run(["launch", *words, f"--{system}", script, "--submit"])
    number = BATCH_SYSTEMS[system].parse_submitted(printed)
    if number is None:
        said = (printed.strip().splitlines() or ["nothing"])[-1]
        raise SetupError(f"{DIALECTS[system].submit}: got {said!r}, expected the number of the job")
    return batch_job(system, number, output, _log_of(system, number, flags.get("job_name") or "hvd-async"), before)


def _pairs(overrides: object) -> list[str]:
    """Return `overrides` as words for --set. Raises `ConfigError` for what has no text in YAML."""
    if overrides is None:
        return []
    if not isinstance(overrides, Mapping) or not all(isinstance(key, str) for key in overrides):
        raise ConfigError(f"overrides: got {overrides!r}, expected a dict of keys and values, such as {{'seed': 2}}")
    pairs = []
    for key, value in overrides.items():
        try:
            pairs.append(f"{key}={json.dumps(value, default=os.fspath)}")  # JSON is YAML; os.fspath: the text of a Path
        except (TypeError, ValueError):
            raise ConfigError(
                f"overrides: {key}: got {value!r}, expected text, a number, True, False, None, a Path, a list or a dict"
            ) from None
    return pairs


def _words(flags: Mapping[str, Any]) -> Iterable[str]:
    """Yield the words of the command line for `flags`. Raises `ConfigError` for a flag that there is not."""
    for name, value in flags.items():
        if name not in _FLAGS:
            likely = meant(name, _FLAGS)
            raise ConfigError(f"submit: got the flag {name}, expected one of `hvd-async launch`{likely and f'; {likely}'}")
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            yield from [flag] if value else []
        elif isinstance(value, list | tuple):
            yield from (f"{flag}={one}" for one in value)
        elif value is not None and not isinstance(value, str | int | float | os.PathLike):
            raise ConfigError(f"{flag}: got {value!r}, expected text, a number, True or False, or a list for several")
        elif value is not None:
            yield f"{flag}={value}"


def _start_here(words: Sequence[str], output: str) -> SubmittedJob:
    """Start a run on this machine, in a process that outlives this one. Raises what `launch` refuses before it starts."""
    _run(["launch", *words, "--dry-run"])
    log = Path(f"hvd-async-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.out")
    file, log = open_new(log)
    with file:
        process = subprocess.Popen(
            _command(["launch", *words]),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C for this program is not for the job
        )
    return local_job(process, output, log)


def open_new(path: Path) -> tuple[BinaryIO, Path]:
    """Open a new file at `path`, or beside it with a number in its name, and return it and its path. Other threads and programs
    may do the same at the same time."""
    for number in itertools.count(1):
        one = path if number == 1 else path.with_name(f"{path.stem}.{number}{path.suffix}")
        with contextlib.suppress(FileExistsError):
            return one.open("xb"), one
    raise AssertionError("unreachable")


def _command(words: Sequence[str]) -> list[str]:
    return [sys.executable, *interpreter.flags(), "-m", "hvd_async", *words]


def _run(words: Sequence[str]) -> str:
    """Run `hvd-async` and return what it prints. Raises the error that it reports."""
    done = subprocess.run(
        _command(words), stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if done.returncode == 0:
        return done.stdout
    lines = [line.removeprefix("hvd-async: ") for line in done.stderr.splitlines() if line.startswith("hvd-async: ")]
    said = lines or done.stderr.strip().splitlines()[-1:] or [f"hvd-async {words[0]}: exit status {done.returncode}"]
    raise _ERRORS.get(done.returncode, HvdAsyncError)("\n".join(said))


def _log_of(system: System, number: str, name: str) -> str:
    """Return the file of what the job prints, as the scripts say, or PBS does by itself."""
    if system == "slurm":
        return f"{name}-{number}.out"
    return f"{name}.o{number.partition('.')[0]}" if system == "pbs" else f"{number}.out"
