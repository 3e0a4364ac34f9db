"""The parameters on which recorded gradients were computed: past versions, and provisional parameters on top of them."""

from __future__ import annotations

import torch

from hvd_async.errors import DataError
from hvd_async.replay.recording import Recording
from hvd_async.store.arrival import Arrival

# A version, and the number of arrivals provisionally on top of it.
Key = tuple[int, int]


class Past:
    """Past parameters ([size] float32, on the CPU), each stored as long as a recorded gradient needs it."""

    def __init__(self, recording: Recording) -> None:
        """Start empty."""
        self._last_use: dict[Key, int] = {}
        for update in recording.updates:
            for push in update.to_send():
                for arrival in push.arrivals:
                    self._last_use.update(dict.fromkeys(arrival.bases, update.version))
        self._kept: dict[Key, torch.Tensor] = {}

    def is_wanted(self, version: int, num_arrivals: int) -> bool:
        """Whether gradients were computed on these provisional parameters."""
        return (version, num_arrivals) in self._last_use

    def keep(self, version: int, num_arrivals: int, parameters: torch.Tensor) -> None:
        """Copy `parameters` ([size], float32) if they are needed; `num_arrivals` 0: those of the version itself."""
        if self.is_wanted(version, num_arrivals):
            self._kept[version, num_arrivals] = parameters.to("cpu", copy=True)

    def forget(self, version: int) -> None:
        """Drop, after `version` was made, what no later version needs."""
        for key in [key for key in self._kept if self._last_use[key] <= version]:
            del self._kept[key]

    @property
    def versions(self) -> set[int]:
        """Return the versions on which later gradients were computed."""
        return {version for version, _ in self._kept}

    def base_parameters(self, arrival: Arrival) -> list[torch.Tensor]:
        """Return the parameters on which the gradient of each micro-batch of `arrival` was computed: [size], float32."""
        for key in arrival.bases:
            if key not in self._kept:
                raise DataError(
                    f"batch {arrival.batch}: computed on version {key[0]} with {key[1]} arrivals provisionally"
                    " on top, which the log does not have: some of them were refused later"
                )
        return [self._kept[key] for key in arrival.bases]
