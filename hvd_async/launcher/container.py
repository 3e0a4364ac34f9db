"""The container in which ranks run: an image of Apptainer or Singularity, and the folders of the host that are seen in it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hvd_async.config import RunConfig, TranslationConfig
from hvd_async.errors import ConfigError, SetupError

_RUNTIMES = ("apptainer", "singularity")
# By these Open MPI's mpirun tells its ranks where it is installed. The image's MPI is elsewhere; the image may set them itself.
_OF_HOST = ("OPAL_PREFIX", "PMIX_PREFIX", "PRTE_PREFIX")
# The file by which NVIDIA's driver tells that it is loaded.
_DRIVER = Path("/proc/driver/nvidia/version")

_MOST_LINKS = 40
"""Linux follows no more links in a path."""


@dataclass(frozen=True)
class Container:
    """An image for ranks. `runtime`: the program that runs `image`; `binds`: folders of the host that are seen inside, each
    `PATH` or `PATH:PATH INSIDE[:ro]`; `with_gpus`: bring the host's NVIDIA driver along."""

    image: str
    runtime: str = "apptainer"
    binds: tuple[str, ...] = ()
    with_gpus: bool = False

    def wrap(self, program: Sequence[str]) -> tuple[str, ...]:
        """Return the command that runs `program` in the image, in the current folder, which is one of `binds`."""
        gpus = ("--nv",) if self.with_gpus else ()
        binds = tuple(word for bind in self.binds for word in ("--bind", bind))
        without = ("env", *(word for name in _OF_HOST for word in ("-u", name)))
        return (*without, self.runtime, "exec", *gpus, *binds, self.image, *program)


def find_container(image: str, binds: Sequence[str], *, has_gpus: bool, is_shown: bool = False) -> Container:
    """Return the container of `--container IMAGE` with the folders in `binds`. Reads the file system.

    `is_shown`: its command is only shown, so that Apptainer need not be here. Raises `ConfigError` if there is no such image, or
    no folder to bind, and `SetupError` if neither Apptainer nor Singularity is on PATH.
    """
    if re.match(r"[a-z][a-z0-9-]*://", image):
        raise ConfigError(
            f"--container: got {image}, which every rank would fetch; expected a file: apptainer pull image.sif {image}"
        )
    if not os.path.exists(image):
        raise ConfigError(f"--container: {image}: no such file; expected an image of Apptainer")
    for bind in binds:
        check_bind(bind)
        if not os.path.exists(bind.partition(":")[0]):
            raise ConfigError(f"--bind: {bind.partition(':')[0]}: no such file or folder")
    runtime = next(filter(None, map(shutil.which, _RUNTIMES)), _RUNTIMES[0] if is_shown else None)
    if runtime is None:
        raise SetupError(
            "--container: got neither apptainer nor singularity on PATH, expected one of them; in a batch script a line of"
            " --setup may load its module, such as --setup 'module load apptainer'"
        )
    return Container(os.path.abspath(image), runtime, tuple(binds), has_gpus or _DRIVER.exists())


def check_bind(bind: str) -> None:
    """Raise `ConfigError` unless `bind` is `PATH` or `PATH:PATH[:OPTION]`, with absolute paths."""
    if not re.fullmatch(r"/[^:,\n]*(:/[^:,\n]*(:r[ow])?)?", bind):
        raise ConfigError(f"--bind: got {bind!r}, expected /PATH or /PATH:/PATH/INSIDE[:ro], with no comma in it")


def folders_to_bind(config: RunConfig, config_path: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the folders that the ranks of `config` read and write, none of them in another one.

    They are the current folder, those of the configuration, of the run and of its data, and TMPDIR, where MPI has its files.
    For a folder that is not there yet: the folder in which it will be made. For a link, and for a path through links: also the
    folder to which it leads.
    """
    paths = [".", environ.get("TMPDIR", "."), *([config_path] if config_path else [])]
    if config.output != "unknown":
        paths.append(config.output)
    if isinstance(config.task, TranslationConfig):
        task = config.task
        files = (task.vocabulary.file, task.vocabulary.source_file, task.vocabulary.target_file)
        places = (task.data.folder, task.data.prepared, task.init_from, *files)
        paths += [place for place in places if place is not None]
    return tuple(_outermost([*map(_present, paths), *(folder for path in paths for folder in _behind_links(path))]))


def _present(path: str) -> str:
    """Return the innermost folder of `path` that exists. Raises `ConfigError` if that is the root, which cannot be bound."""
    folder = Path(os.path.abspath(path))
    found = next(one for one in (folder, *folder.parents) if one.is_dir())
    if found == Path("/"):
        raise ConfigError(
            f"--container: {path}: not in any folder that could be bound into the container; make its folder first"
        )
    if re.search("[:,\n]", str(found)):
        raise ConfigError(f"--container: got the folder {str(found)!r}, expected no colon and no comma in the name")
    return str(found)


def _behind_links(path: str) -> Iterable[str]:
    """Yield the folders to which the links of `path` lead, one after the other, as `_present` does; none for one to nowhere."""
    place = Path(os.path.abspath(path))
    for _ in range(_MOST_LINKS):
        link = next((one for one in (*reversed(place.parents), place) if one.is_symlink()), None)
        if link is None:
            return
        place = Path(os.path.normpath(link.parent / link.readlink() / place.relative_to(link)))
        if any(one.is_dir() for one in (place, *place.parents[:-1])):
            yield _present(str(place))


def _outermost(folders: Iterable[str]) -> list[str]:
    """Return the folders, sorted, without those that are in another one."""
    found: list[str] = []
    for folder in sorted(set(folders)):
        if not any(folder.startswith(f"{other}/") for other in found):
            found.append(folder)
    return found
