"""The parameter store: what it does to arrivals (pure), and how ranks reach it over a window."""
