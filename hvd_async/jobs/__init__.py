"""Runs that a Python program starts as jobs, on this machine or in a batch system, and waits for."""
