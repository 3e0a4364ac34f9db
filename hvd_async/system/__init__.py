"""What the operating system is for: files, locks, signals, processes, streams, and text that comes from outside."""
