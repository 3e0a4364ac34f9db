"""A small language model on any text file."""
