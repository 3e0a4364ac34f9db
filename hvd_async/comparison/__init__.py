"""Suites of comparable runs: which runs they have, how these are computed, and the figures of finished runs."""
