"""The parameter store: what it does to arrivals (pure), and how ranks reach it over a window."""

from hvd_async.store.parameter_store import Arrival, ParameterStore, Refusal, Update

__all__ = ["Arrival", "ParameterStore", "Refusal", "Update"]
