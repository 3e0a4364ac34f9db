"""Suites of comparable runs: what they consist of, how they are computed, and what figures finished ones give."""
