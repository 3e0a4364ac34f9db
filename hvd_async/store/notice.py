"""The run's stop notice, as everybody who waits heeds it."""

from __future__ import annotations

from hvd_async.errors import PeerError
from hvd_async.transport.layout import StopKind, StopNotice


def heed(notice: StopNotice | None) -> StopNotice | None:
    """`notice` itself. Raises `PeerError` if it says that a rank failed, which that rank reports."""
    if notice is not None and notice.kind is StopKind.FAILURE:
        raise PeerError(f"rank {notice.rank} failed; its message says why", is_reported=True)
    return notice
