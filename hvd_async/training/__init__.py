"""A run on one rank: set up, the loop, and the end."""
