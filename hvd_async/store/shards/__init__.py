"""The arithmetic of one shard, and how several shards act as one."""
