"""Ranks that MPI never makes a group of go on alone: each prints what it is then."""

from __future__ import annotations

import time

from hvd_async.strategies.outliving import end_as_dead
from hvd_async.transport import bootstrap


def main() -> None:
    group = bootstrap.MpiGroup(bootstrap.init_mpi())
    group.outlives = True
    bootstrap._GROUP_SECONDS = 0.5
    bootstrap._form = lambda left: time.sleep(1000)  # as MPI does when it never returns
    number = group.rank
    if number == 2:
        time.sleep(2)  # the one that counts as dead
        end_as_dead()  # MPI_Finalize would wait for the others, some of which have gone
    else:
        group.leave_out([2])
        print(f"rank {number}: {group.rank} of {group.size}, {group.allgather('mine')}", flush=True)


if __name__ == "__main__":
    main()
