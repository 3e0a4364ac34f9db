"""What every batch script of a cluster needs, written down once: account, partition, modules."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

from pydantic import Field

from hvd_async.config import Section, check, read_tree

_PLACE = pathlib.PurePath("hvd_async", "site.yaml")


class SiteConfig(Section):
    """One YAML file, whose keys go into every script that `launch` and `compare` write; flags add to them, and win."""

    account: str | None = Field(None, pattern=r"^[\w.,@+-]+$", description="For `#SBATCH --account`.")
    partition: str | None = Field(
        None, pattern=r"^[\w.,@+-]+$", description="For `#SBATCH --partition`; not of a store on nodes of its own."
    )
    sbatch: tuple[str, ...] = Field((), strict=False, description="Further options of sbatch, such as `--qos=high`.")
    setup: tuple[str, ...] = Field(
        (), strict=False, description="Lines of shell before anything is started, such as `module load cuda/12.4`."
    )


def default_site(environ: Mapping[str, str]) -> pathlib.Path:
    """Where a user's own site file is looked for."""
    home = environ.get("XDG_CONFIG_HOME") or pathlib.Path(environ.get("HOME", "/"), ".config")
    return pathlib.Path(home) / _PLACE


def read_site(path: pathlib.Path | None, environ: Mapping[str, str]) -> SiteConfig:
    """Read `path`, or the user's own file where there is one. Raises `ConfigError`."""
    if path is None:
        path = default_site(environ)
        if not path.is_file():
            return SiteConfig()
    return check(SiteConfig, read_tree(path, "site file"), str(path))
