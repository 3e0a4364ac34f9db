"""Draws early_and_late.svg of docs/staleness.md: losses by learning rate after 500,000 and after 5 million tokens.

python docs/figures/early_and_late.py
"""

from __future__ import annotations

import pathlib

import matplotlib
from matplotlib.figure import Figure

matplotlib.rcParams.update({"svg.hashsalt": "hvd_async", "svg.fonttype": "none"})  # the same file for the same figures

RATES = (0.003, 0.006, 0.012, 0.024)
# Validation losses of the first seed, four even workers; commands: docs/staleness.md.
LOSSES = {
    "after 500,000 tokens": {
        "synchronous": (4.170, 3.680, 3.433, 3.503),
        "provisional": (4.177, 3.732, 3.497, 3.687),
        "plain": (4.419, 4.160, 4.268, 4.693),
    },
    "after 5 million tokens": {
        "synchronous": (2.721, 2.427, 2.274, 2.284),
        "provisional": (2.721, 2.427, 2.277, 2.338),
        "plain": (2.757, 2.492, 2.555, 3.244),
    },
}
STYLES = {"synchronous": ("s--", "#4c72b0"), "provisional": ("o-", "#55a868"), "plain": ("^:", "#c44e52")}


def draw(path: pathlib.Path) -> None:
    """Write the figure to `path`."""
    figure = Figure(figsize=(8.0, 3.4), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(1, 2), LOSSES.items(), strict=True):
        for name, losses in curves.items():
            style, color = STYLES[name]
            axes.plot(RATES, losses, style, color=color, label=name)
        axes.set(title=title, xlabel="learning rate", ylabel="validation loss in nats per token", xscale="log")
        axes.set_xticks(RATES, [f"{rate:g}" for rate in RATES], minor=False)
        axes.minorticks_off()
        axes.legend()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    draw(pathlib.Path(__file__).with_suffix(".svg"))
