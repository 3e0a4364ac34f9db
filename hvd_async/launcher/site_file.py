"""The settings that every batch script of a cluster needs, in one file: account, partition, modules."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

from pydantic import Field

from hvd_async.config import Section, check, read_tree

_PLACE = pathlib.PurePath("hvd_async", "site.yaml")


class SiteConfig(Section):
    """Keys of the site file, which go into every script that `launch` and `compare` write. Flags add to them and override
    them."""

    account: str | None = Field(None, pattern=r"^[\w.,@+-]+$", description="For `#SBATCH --account`.")
    partition: str | None = Field(
        None, pattern=r"^[\w.,@+-]+$", description="For `#SBATCH --partition`; not for the nodes of a separate store."
    )
    sbatch: tuple[str, ...] = Field((), strict=False, description="Further options of sbatch, such as `--qos=high`.")
    setup: tuple[str, ...] = Field(
        (), strict=False, description="Lines of shell before anything is started, such as `module load cuda/12.4`."
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
