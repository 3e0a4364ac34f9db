"""Recorded runs computed again, bit for bit."""
