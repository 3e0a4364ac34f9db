"""Runs without a cluster: simulated ones in virtual time, and recorded ones computed again."""
