"""Asynchronous data-parallel training with summed arrivals, on MPI one-sided communication."""

__version__ = "0.1.0"
