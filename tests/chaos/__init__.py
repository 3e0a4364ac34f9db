"""Real runs whose processes are killed, stopped and starved at random; `python -m tests.chaos` runs a campaign."""
