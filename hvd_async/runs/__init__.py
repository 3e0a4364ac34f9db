"""The folder of a run: what is recorded while it trains, and what it is resumed from."""
