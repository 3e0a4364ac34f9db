"""Both sides of the protocol: the loop of the server, the client of a worker, and who is alive."""
