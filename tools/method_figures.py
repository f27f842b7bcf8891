"""Draws the figures of docs/method.md: the loop of CraFT, and craftbox's own recipe.

    python tools/method_figures.py

It knows what is told on that page; no number comes from a measurement.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

FOLDER = Path(__file__).parent.parent / "docs"
CLIENT, SERVER, INK = "#dce9f7", "#f7e6d3", "#222222"
# Text stays text, so that it can be searched and read aloud; and the file is the same each time.
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "craftbox", "font.family": "sans-serif"}


def box(
    axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str
) -> None:
    """A box with words, its lower left corner at x, y."""
    shape = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.12", fc=colour, ec=INK, lw=1
    )
    axes.add_patch(shape)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", size=10, color=INK)


def arrow(
    axes: Axes,
    begin: tuple[float, float],
    end: tuple[float, float],
    text: str = "",
    *,
    at: tuple[float, float] | None = None,
    bend: float = 0.0,
) -> None:
    """An arrow, its words centred at a point of their own or halfway."""
    shape = FancyArrowPatch(
        begin,
        end,
        arrowstyle="-|>",
        mutation_scale=14,
        color=INK,
        lw=1.2,
        connectionstyle=f"arc3,rad={bend}",
    )
    axes.add_patch(shape)
    x, y = at or ((begin[0] + end[0]) / 2, (begin[1] + end[1]) / 2 + 0.2)
    axes.text(x, y, text, ha="center", va="center", size=9, color=INK)


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty drawing of width x height boxes' units."""
    figure = Figure(figsize=(width * 0.8, height * 0.8), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.set_axis_off()
    return figure, axes


def loop() -> Figure:
    """CraFT: search and head, each with the other's help, around a server that scores."""
    figure, axes = canvas(12, 5.6)
    box(axes, 0.2, 0.3, 6.6, 5.0, "", CLIENT)
    axes.text(0.45, 4.95, "client", size=11, weight="bold", color=INK)
    box(axes, 8.6, 0.3, 3.2, 5.0, "", SERVER)
    axes.text(8.85, 4.95, "server", size=11, weight="bold", color=INK)
    box(axes, 0.6, 3.1, 2.4, 1.2, "search (CMA-ES)\ncodes z", "white")
    box(axes, 4.0, 3.1, 2.4, 1.2, "losses\nCE + w KL(r || s)", "white")
    box(axes, 4.0, 0.8, 2.4, 1.2, "head\nr = s + MLP(s)", "white")
    box(axes, 8.9, 3.1, 2.6, 1.2, "prompt\np = p0 + A z", "white")
    box(axes, 8.9, 0.8, 2.6, 1.2, "image and text\nencoders", "white")
    arrow(axes, (1.8, 4.3), (9.6, 4.3), "ask: a population of codes", at=(5.4, 5.05), bend=-0.16)
    arrow(axes, (10.2, 3.1), (10.2, 2.0))
    arrow(axes, (8.9, 1.4), (6.4, 1.4), "scores s,\ncharge", at=(7.7, 1.85))
    arrow(axes, (8.9, 1.8), (6.4, 3.3))
    arrow(axes, (4.0, 3.7), (3.0, 3.7), "tell", at=(3.5, 3.95))
    arrow(axes, (5.0, 2.0), (5.0, 3.1), "r", at=(4.8, 2.55))
    arrow(axes, (1.8, 3.1), (4.0, 1.2), "the prompt to train on", at=(1.75, 1.75), bend=0.2)
    return figure


def recipe() -> Figure:
    """Recipe of craftbox: one query, the texts that are enough, a closed form, a check."""
    figure, axes = canvas(14, 3.4)
    box(axes, 0.2, 1.1, 2.4, 1.4, "plain prompt:\nclass names and\na vocabulary", CLIENT)
    box(axes, 3.6, 1.1, 2.2, 1.4, "scores of\nall texts,\none query", SERVER)
    box(axes, 6.8, 1.1, 2.2, 1.4, "those kept that\nspan most,\nuntil enough: X", CLIENT)
    box(
        axes,
        10.0,
        1.9,
        3.8,
        1.2,
        "ridge X to what the plain\nprediction leaves of the labels",
        CLIENT,
    )
    box(axes, 10.0, 0.3, 3.8, 1.2, "deploy it unless the plain\nprediction is better", CLIENT)
    arrow(axes, (2.6, 1.8), (3.6, 1.8), "ask", at=(3.1, 2.05))
    arrow(axes, (5.8, 1.8), (6.8, 1.8), "s", at=(6.3, 2.05))
    arrow(axes, (9.0, 1.9), (10.0, 2.4))
    arrow(axes, (11.9, 1.9), (11.9, 1.5))
    return figure


def main() -> None:
    """Writes the figures."""
    with mpl.rc_context(STYLE):
        for name, figure in (("method-loop", loop()), ("method-recipe", recipe())):
            figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
