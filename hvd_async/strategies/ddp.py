"""PyTorch's synchronous baseline: DistributedDataParallel over Gloo (CPU) or NCCL (GPU)."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import warnings
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import GradBucket, TCPStore

from hvd_async.cluster.topology import RankPlan
from hvd_async.errors import PeerError
from hvd_async.strategies import synchronous
from hvd_async.strategies.protocol import Job, JobSpec, Session
from hvd_async.strategies.torchrun_group import TorchrunGroup, is_under_torchrun
from hvd_async.transport.bootstrap import MpiGroup, init_mpi
from hvd_async.transport.group import Group
from hvd_async.vectors.flat import FlatParameters


class Ddp(synchronous.WithReplica):
    """Ranks started by MPI or torchrun, which passes the rendezvous address; torch.distributed sums the gradients."""

    name = "ddp"

    def __init__(self) -> None:
        """Initialise MPI, or meet at torchrun's store. Collective over all ranks."""
        self.group: Group = TorchrunGroup() if is_under_torchrun() else MpiGroup(init_mpi())

    @contextlib.contextmanager
    def session(self, job: Job) -> Iterator[Session]:
        device = job.flat.parameters.device
        backend = "nccl" if device.type == "cuda" else "gloo"
        is_local = len({plan.host for plan in job.plans}) == 1
        if is_local:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # Gloo has no other setting; other hosts must not reach it
        # After this time torch raises an error on a rank that waits in backward for a rank that has gone.
        timeout = datetime.timedelta(seconds=job.strategy.patience_seconds)
        rank, size = self.group.rank, self.group.size
        dist.init_process_group(backend, store=self._meet(is_local, timeout), rank=rank, world_size=size, timeout=timeout)
        with synchronous.session(job, self.group, DdpAllReduce(device)) as session, _naming_lost_ranks(timeout):
            yield session
        dist.destroy_process_group()

    def remarks(self, spec: JobSpec) -> Sequence[str]:
        return ()

    def transport(self, plans: Sequence[RankPlan], rank: int) -> str:
        return "torch.distributed"

    def close(self) -> None:
        """Do nothing: the session has released everything."""

    def _meet(self, is_local: bool, timeout: datetime.timedelta) -> TCPStore:
        """Return a rendezvous store on rank 0, on a port chosen by the system. If all ranks are on one host, only this host
        can reach the store."""
        host, server = "", None
        if self.group.rank == 0:
            host = "127.0.0.1" if is_local else socket.gethostname()
            # By itself the store would listen on all interfaces. It takes over the socket, and closes it.
            listening = socket.create_server((host, 0)).detach() if is_local else None
            server = TCPStore(host, 0, self.group.size, True, timeout, wait_for_workers=False, master_listen_fd=listening)
        address = self.group.allgather(f"{host} {server.port}" if server is not None else "")[0]
        if server is not None:
            return server
        host, port = address.split()
        return TCPStore(host, int(port), self.group.size, is_master=False, timeout=timeout)


@contextlib.contextmanager
def _naming_lost_ranks(timeout: datetime.timedelta) -> Iterator[None]:
    """Turn an error of torch.distributed in the block into a `PeerError`."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if isinstance(error, dist.DistBackendError) or "gloo" in reason:  # Gloo has no error type of its own
            raise _peer_error(reason, timeout) from None
        raise


def _peer_error(reason: str, timeout: datetime.timedelta) -> PeerError:
    return PeerError(
        f"torch.distributed: another rank has gone, or did not come for {timeout.total_seconds():.0f} s"
        f" (strategy.worker_timeout_seconds); the last version is saved ({reason[:200]})"
    )


class DdpAllReduce:
    """Lets DDP sum the gradients, bucket by bucket, during backward."""

    def __init__(self, device: torch.device) -> None:
        """`device`: the model's device."""
        self._device = device

    def attach(self, model: torch.nn.Module, flat: FlatParameters) -> torch.nn.Module:
        ids = [self._device.index or 0] if self._device.type == "cuda" else None
        with warnings.catch_warnings():
            # torch advises another argument, which would send buffers at the start; ours are each rank's own.
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
            wrapped = torch.nn.parallel.DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)
        wrapped.register_comm_hook(None, _sum_bucket)
        return wrapped

    def reduce(self, flat: FlatParameters) -> None:
        """Collect DDP's results into the flat gradient. DDP has already waited in backward."""
        flat.collect_gradient()

    def reduce_vector(self, vector: torch.Tensor) -> None:
        dist.all_reduce(vector)

    def gather(self, numbers: Sequence[float]) -> list[list[float]]:
        row = torch.tensor(list(numbers), dtype=torch.float64, device=self._device)
        rows = [torch.empty_like(row) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, row)
        return [other.tolist() for other in rows]


def _sum_bucket(_: object, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Sum a bucket over all ranks. DDP's default divides by the number of ranks, but our gradients are sums."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    summed: torch.futures.Future[torch.Tensor] = work.get_future().then(lambda future: future.value()[0])
    return summed


# DDP compares the annotations of a hook with types, but postponed annotations are strings.
_sum_bucket.__annotations__.clear()
