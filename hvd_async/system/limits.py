"""The largest numbers in a configuration or on a command line. A larger number is a mistake, and would make a library
crash or never end."""

from __future__ import annotations

MOST = 10**15
MOST_FLOAT32 = 3.4e38
MOST_RANKS = 100_000
MOST_THREADS = 1024
MOST_BEAM = 1000
MOST_MICRO_BATCHES = 8
"""An arrival in the store's memory has room for the bases of so many."""
MOST_SECONDS = 10**9
"""Thirty years, which clocks and time limits of libraries can hold."""
