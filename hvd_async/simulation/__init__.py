"""Runs without a cluster, in virtual time: a clock, a cost model, and virtual workers over the real store."""
