"""The environment of ranks: variables that MPI needs, and variables of the caller that are forwarded to other hosts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hvd_async.errors import SetupError
from hvd_async.launcher.options import LaunchOptions
from hvd_async.launcher.rank_layout import RankLayout
from hvd_async.system.openmp import is_default

# Variables of the caller that processes on other hosts need; not CUDA_VISIBLE_DEVICES, which is valid on one host only.
_FORWARDED = ("PYTHONPATH", "LD_LIBRARY_PATH")
_FORWARDED_PREFIXES = ("OMP_", "GOMP_", "MKL_", "KMP_", "NCCL_", "UCX_", "FI_", "GLOO_", "HOROVOD_", "TORCH_", "PYTORCH_")


def mpi_environment(layout: RankLayout, options: LaunchOptions) -> dict[str, str]:
    """Return the variables that every rank needs, for the MPI of `options`."""
    if options.mpi == "mpich":
        # Without the first, UCX warns of every missing network device; without the second, ranks of one host listen to
        # others.
        return {"UCX_LOG_LEVEL": "error", **({"UCX_TLS": "^tcp"} if layout.is_local else {})}
    if options.mpi == "intel":
        return {"I_MPI_PIN": "off"}  # otherwise each rank, the store's too, is pinned, with torch's threads, to a few cores
    variables = {"OMPI_MCA_osc": "^ucx"}  # otherwise a message at every window where UCX finds no device
    if layout.is_local:
        # Ranks use shared memory only. With TCP every rank would listen on all interfaces; closing libfabric takes a second.
        variables["OMPI_MCA_btl"] = "^tcp,ofi"
    if layout.is_crowded:
        variables["OMPI_MCA_mpi_yield_when_idle"] = "1"  # otherwise waiting ranks starve working ones
    if options.as_root and options.launcher != "srun":  # mpirun requires them
        variables |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return variables


def variables_to_forward(environ: Mapping[str, str], more: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the names of the caller's variables that ranks on other hosts need, with those in `more`. Raises `SetupError`
    if a variable of `more` is not set."""
    absent = [name for name in more if name not in environ]
    if absent:
        raise SetupError(f"--forward: got {absent[0]}, which is not set; expected the name of an environment variable")
    usual = {
        name
        for name, value in environ.items()
        if name in _FORWARDED or (name.startswith(_FORWARDED_PREFIXES) and not is_default(name, value))
    }
    return tuple(sorted(usual | set(more)))
