"""A corpus made by a grammar of our own, for tests and demonstrations without a download."""
