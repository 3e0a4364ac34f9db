"""The optimizers of the store."""
