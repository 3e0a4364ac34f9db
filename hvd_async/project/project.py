"""A small project in a folder: a configuration, a suite, a batch script, and for a task of one's own its module; or a training
script with its batch script."""

from __future__ import annotations

import dataclasses
import importlib.resources
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from hvd_async.errors import ConfigError
from hvd_async.launcher.batch_script import Resources, ScriptJob, render
from hvd_async.system.files import write_file

ProjectKind = Literal["translation", "task", "script"]
KINDS: tuple[ProjectKind, ...] = get_args(ProjectKind)

_CONFIG, _SUITE, _BATCH_SCRIPT, _SCRIPT = "run.yaml", "suite.yaml", "job.sbatch", "train.py"
_COPIED = {"translation": (_CONFIG, _SUITE), "task": ("my_task.py", _CONFIG, _SUITE), "script": (_SCRIPT,)}
_STRATEGY_OF_SCRIPT = ("--set", "strategy.kind=async")


@dataclass(frozen=True)
class Project:
    """The project of `kind` in `folder`."""

    kind: ProjectKind
    folder: Path

    def files(self) -> dict[str, str]:
        """Return the text of each file by its name. The batch script starts from the environment of this process."""
        templates = importlib.resources.files("hvd_async.project").joinpath("templates", self.kind)
        texts = {name: templates.joinpath(name).read_text(encoding="utf-8") for name in _COPIED[self.kind]}
        job = ScriptJob("train", _CONFIG, environment=sys.prefix, path=_BATCH_SCRIPT)
        if self.kind == "script":
            job = dataclasses.replace(job, options=_STRATEGY_OF_SCRIPT, program=("python", _SCRIPT))
        return {
            **texts,
            _BATCH_SCRIPT: render(job, Resources(nodes=1, workers_per_node=2, cpus_per_worker=2, time="1:00:00")),
        }

    def write(self, *, overwrite: bool) -> list[Path]:
        """Write the files, and return their paths. Other files of the folder are left alone.

        Raises `ConfigError`, before anything is written, if a file is there already, unless `overwrite`; `DataError` if the
        file system refuses.
        """
        texts = self.files()
        self._check(texts, overwrite)
        for name, text in texts.items():
            write_file(self.folder / name, text.encode())
        return [self.folder / name for name in texts]

    def _check(self, names: Iterable[str], overwrite: bool) -> None:
        for path in (self.folder, *self.folder.parents):
            if path.exists() and not path.is_dir():
                raise ConfigError(f"FOLDER: got {self.folder}, but {path} is a file; expected a folder")
        taken = [name for name in names if (self.folder / name).is_symlink() or (self.folder / name).exists()]
        folders = [name for name in taken if (self.folder / name).is_dir()]
        if folders:
            raise ConfigError(f"{self.folder / folders[0]}: got a folder, expected a file or nothing; name another FOLDER")
        if taken and not overwrite:
            raise ConfigError(
                f"{self.folder}: got {', '.join(taken)}, expected no files of these names; replace them with --overwrite, or name"
                " another folder"
            )

    def commands(self, missing_extras: Sequence[str] = ()) -> list[tuple[str, str]]:
        """Return the commands that use the project, in their order, each with what it does.

        `missing_extras`: extras of hvd_async that these commands need and that are not installed.
        """
        commands = [] if self.folder == Path() else [(shlex.join(["cd", str(self.folder)]), "")]
        if missing_extras:
            commands.append((f"pip install 'hvd_async[{','.join(missing_extras)}]'", "what is missing here"))
        if self.kind == "script":
            return [*commands, *_commands_of_script()]
        if self.kind == "translation":
            commands.append(("hvd-async data builtin --output data/builtin", "text to train on"))
        commands.append((f"hvd-async launch {_CONFIG} --workers 2", "a store and two workers"))
        if self.kind == "translation":
            translate = "hvd-async translate runs/first/models/best"
            commands.append((f"head -n 3 data/builtin/test.en | {translate}", ""))
        commands.append((f"hvd-async compare {_SUITE}", "Horovod beside async, simulated"))
        return [
            *commands,
            (f"sbatch {_BATCH_SCRIPT} {_CONFIG} --set output=runs/slurm", "on a cluster with Slurm"),
        ]


def _commands_of_script() -> Iterator[tuple[str, str]]:
    yield f"python {_SCRIPT}", "alone"
    for strategy, purpose in (("async", "a store and two workers"), ("ddp", "the synchronous baseline")):
        settings = f"--set strategy.kind={strategy} --set output=runs/{strategy}"
        yield f"hvd-async launch --workers 2 {settings} -- python {_SCRIPT}", purpose
    yield "hvd-async report runs/ddp runs/async", "tables and figures of both"
    yield f"sbatch {_BATCH_SCRIPT} --set output=runs/slurm", "on a cluster with Slurm"
