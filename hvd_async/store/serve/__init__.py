"""Both sides of the protocol: the server's loop, a worker's client, and heartbeats."""
