"""Uneven workers on even hardware: the length of each step, and the idling that produces it."""
