"""The settings that every batch script of a cluster needs, in one file: account, partition, modules."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field

from hvd_async.config import Section, check, read_tree
from hvd_async.config.section import as_list
from hvd_async.errors import ConfigError
from hvd_async.launcher.container import check_bind

CONDA = r"^[\w./~ +@-]+$"
"""Pattern for an environment of conda: a name or a path."""
_PLACE = pathlib.PurePath("hvd_async", "site.yaml")


def _checked_bind(bind: str) -> str:
    try:
        check_bind(bind)
    except ConfigError as error:
        raise ValueError(str(error).removeprefix("--bind: ")) from None
    return bind


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"[\w.,@+-]+", name):
        raise ValueError(f"got {name!r}, expected letters, digits and any of . , @ + - _")
    return name


def _no_number(value: Any) -> Any:
    """Refuse a number, of which YAML has dropped the zeros: an account `0123` would become another."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError('got a number, expected text; write it in quotes, such as "0123"')
    return value


Name = Annotated[str, BeforeValidator(_no_number), AfterValidator(_checked_name)]
Lines = Annotated[tuple[str, ...], BeforeValidator(as_list)]


class SiteConfig(Section):
    """Keys of the site file, which go into every script that `launch` and `compare` write. Flags add to them and override
    them."""

    renamed: ClassVar[Mapping[str, str]] = {"partition": "queue"}

    account: Name | None = Field(None, description="Account of Slurm and PBS, project of LSF.")
    queue: Name | None = Field(
        None, description="Queue of PBS and LSF, partition of Slurm; not for the nodes of a separate store."
    )
    sbatch: Lines = Field((), strict=False, description="Further options of sbatch, such as `--qos=high`.")
    qsub: Lines = Field((), strict=False, description="Further options of PBS's qsub, such as `-W umask=022`.")
    bsub: Lines = Field((), strict=False, description="Further options of LSF's bsub, such as `-sla gold`.")
    setup: Lines = Field(
        (), strict=False, description="Lines of shell before anything is started, such as `module load cuda/12.4`."
    )
    conda: str | None = Field(
        None, pattern=CONDA, description="Environment of conda in which jobs have hvd_async, by name or path."
    )
    container: str | None = Field(
        None, pattern=r"^[^\n]+$", description="Image of Apptainer in which `launch` runs the ranks; not used by `compare`."
    )
    binds: Annotated[tuple[Annotated[str, AfterValidator(_checked_bind)], ...], BeforeValidator(as_list)] = Field(
        (), strict=False, description="Folders of the host to see in the container, such as `/scratch`, as for `--bind`."
    )


def default_site(environ: Mapping[str, str]) -> pathlib.Path:
    """Return the path of a user's own site file."""
    home = environ.get("XDG_CONFIG_HOME") or pathlib.Path(environ.get("HOME", "/"), ".config")
    return pathlib.Path(home) / _PLACE


def read_site(path: pathlib.Path | None, environ: Mapping[str, str]) -> SiteConfig:
    """Read the site file at `path`, by default the user's own file if it exists. Raises `ConfigError`."""
    if path is None:
        path = default_site(environ)
        if not path.is_file():
            return SiteConfig()
    return check(SiteConfig, read_tree(path, "site file"), str(path))
