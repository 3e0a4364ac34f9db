"""The environment of ranks: what MPI needs there, and what of the caller's goes to other hosts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hvd_async.errors import SetupError
from hvd_async.launcher.options import LaunchOptions
from hvd_async.launcher.rank_layout import RankLayout
from hvd_async.system.openmp import is_default

# What processes on other hosts need of the caller's environment; not CUDA_VISIBLE_DEVICES, which is of one host.
_FORWARDED = ("PYTHONPATH", "LD_LIBRARY_PATH")
_FORWARDED_PREFIXES = ("OMP_", "GOMP_", "MKL_", "KMP_", "NCCL_", "UCX_", "FI_", "GLOO_", "HOROVOD_", "TORCH_", "PYTORCH_")


def mpi_environment(layout: RankLayout, options: LaunchOptions) -> dict[str, str]:
    """Return the variables that every rank needs, for the MPI of `options`."""
    if options.mpi == "mpich":
        # Without the first it comments on every missing network device, without the second ranks of one host listen to others.
        return {"UCX_LOG_LEVEL": "error", **({"UCX_TLS": "^tcp"} if layout.is_local else {})}
    if options.mpi == "intel":
        return {"I_MPI_PIN": "off"}  # or each rank, and torch's threads with it, gets a part of the cores, store and all
    variables = {"OMPI_MCA_osc": "^ucx"}  # or it prints a message at every window where UCX finds no device
    if layout.is_local:
        variables["OMPI_MCA_btl"] = "^tcp"  # or every rank listens on all interfaces, though shared memory is all it uses
    if layout.is_crowded:
        variables["OMPI_MCA_mpi_yield_when_idle"] = "1"  # or waiting ranks starve working ones
    if options.as_root and options.launcher != "srun":  # mpirun asks for them
        variables |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return variables


def variables_to_forward(environ: Mapping[str, str], more: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of what ranks on other hosts need of the caller's environment, and of `more`. Raises `SetupError` for one that is
    not set."""
    absent = [name for name in more if name not in environ]
    if absent:
        raise SetupError(
            f"--forward: got {absent[0]}, which is not set; expected the name of a variable of this environment"
        )
    usual = {
        name
        for name, value in environ.items()
        if name in _FORWARDED or (name.startswith(_FORWARDED_PREFIXES) and not is_default(name, value))
    }
    return tuple(sorted(usual | set(more)))
