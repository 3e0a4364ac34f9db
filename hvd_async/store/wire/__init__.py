"""The wire format: the layout of a shard's block, and how a push is written and read there."""
