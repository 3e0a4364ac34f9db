"""Uneven workers on even hardware: how long each step is to last, and the idling that makes it so."""
