"""A run on one rank: setup, the training loop, and the end."""
