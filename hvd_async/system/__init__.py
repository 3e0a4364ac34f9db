"""Services of the operating system: files, locks, signals, processes, streams, and text from outside."""
