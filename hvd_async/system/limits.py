"""The largest numbers that a configuration or a command line may have. What is larger is a slip, and would end in a library as
a crash, or never."""

from __future__ import annotations

MOST = 10**15
MOST_FLOAT32 = 3.4e38
MOST_RANKS = 100_000
MOST_THREADS = 1024
MOST_BEAM = 1000
MOST_SECONDS = 10**9
"""Thirty years, which clocks and time limits of libraries can hold."""
