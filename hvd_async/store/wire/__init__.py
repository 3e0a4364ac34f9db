"""The wire format: what lies where in the block of a shard, and how a push is written there and read."""
