"""Handwritten digits: as a task for the verbs, and in a loop of its own."""
