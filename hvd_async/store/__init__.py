"""The parameter store: pure decisions and arithmetic on arrivals, and access by ranks over a window."""
