"""Staleness policies: the treatment of a stale gradient, and the bound on staleness. Pure functions."""

from __future__ import annotations

from hvd_async.config import StrategyConfig


def needs_base_parameters(strategy: StrategyConfig) -> bool:
    """Whether the strategy needs the parameters on which a gradient was computed, for `compensation`."""
    return strategy.staleness_policy == "delay_compensation"


def needs_versions_under_way(strategy: StrategyConfig) -> bool:
    """Whether workers must announce the versions on which they compute gradients."""
    return strategy.waits_for_stragglers or needs_base_parameters(strategy)


def divisor(strategy: StrategyConfig, staleness: int) -> float:
    """Return the divisor of a gradient before summation: 1 + staleness under `inverse`, else 1.

    After Zhang et al. (2016), "Staleness-aware async-SGD for distributed deep learning", whose divisor is the staleness;
    adding 1 leaves fresh gradients unchanged.
    """
    return 1.0 + staleness if strategy.staleness_policy == "inverse" else 1.0


def compensation(strategy: StrategyConfig, staleness: int, weight: float) -> float | None:
    """Return the factor of g * g * drift under `delay_compensation`, g being the gradient summed over `weight`; else None.

    The factor is lambda / weight, since for a mean gradient it is lambda: Zheng et al. (2017), "Asynchronous
    stochastic gradient descent with delay compensation", equation 10. None for a fresh gradient, which needs no
    compensation.
    """
    if staleness == 0 or not needs_base_parameters(strategy):
        return None
    return strategy.delay_compensation / (weight or 1.0)


def is_refused(strategy: StrategyConfig, staleness: int) -> bool:
    """Whether a gradient that would be applied at `staleness` is refused: beyond `max_staleness` with `on_stale: drop`."""
    return strategy.drops_stale and _is_beyond(strategy, staleness)


def must_not_miss(strategy: StrategyConfig, staleness: int) -> bool:
    """Whether an update must wait for a gradient that would be applied at `staleness` if it missed that update: beyond
    `max_staleness` with `on_stale: wait`."""
    return strategy.waits_for_stragglers and _is_beyond(strategy, staleness)


def _is_beyond(strategy: StrategyConfig, staleness: int) -> bool:
    return strategy.max_staleness is not None and staleness > strategy.max_staleness
