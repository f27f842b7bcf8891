"""Accuracy against leakage: one point a level, from two JSON files.

Accuracy is that of `output_levels.py`; leakage is how well `leakage.py` recovered features.
Without the first there is nothing to draw.

    python benchmarks/plot_leakage.py benchmarks/results/leakage.json \
        benchmarks/results/output_levels.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

MARKERS = "o^sD"  # of data sets


def name_of(level: dict[str, Any]) -> str:
    """The level as options say it."""
    return str(level["level"]).replace("--level ", "")


def after_one_query(level: dict[str, Any]) -> float:
    """The cosine of recovered and true features after one query with all class names."""
    return float(level["all_names"][0]["cosine"])


def at_most(level: dict[str, Any]) -> float:
    """The largest cosine after any number of queries of either kind."""
    return max(
        float(one["cosine"]) for lists in ("all_names", "short_lists") for one in level[lists]
    )


def draw(leakage: Path, accuracy: Path) -> Path | None:
    """Writes a PNG beside the first file; None where there is no accuracy by level."""
    if not accuracy.exists():
        print(f"not drawn: there is no {accuracy.name}", file=sys.stderr)
        return None
    report = json.loads(leakage.read_text())
    measured = json.loads(accuracy.read_text())
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    data_sets = list(dict.fromkeys(result["data"] for result in measured))
    panels = figure.subplots(1, 2, sharey=True)
    panels[0].set_ylabel("accuracy after tuning, %")
    for axes, (leaked, words) in zip(
        panels,
        (
            (after_one_query, "cosine of recovered and true image features, one query"),
            (at_most, "the same, the most that was found"),
        ),
        strict=True,
    ):
        axes.set_xlabel(words)
        axes.grid(alpha=0.3)
        axes.set_xlim(0.25, 1.02)
        for data, marker in zip(data_sets, MARKERS, strict=False):
            for number, level in enumerate(report["levels"]):
                for result in measured:
                    if (result["data"], result["level"]) == (data, level["level"]):
                        axes.plot(
                            leaked(level), result["mean"], marker, color=f"C{number}", markersize=8
                        )
    levels = [
        Line2D([], [], marker="s", linestyle="", color=f"C{number}", label=name_of(level))
        for number, level in enumerate(report["levels"])
    ]
    sets = [
        Line2D([], [], marker=marker, linestyle="", color="0.4", label=data)
        for data, marker in zip(data_sets, MARKERS, strict=False)
    ]
    figure.legend(handles=[*levels, *sets], loc="outside right center", fontsize=9)
    figure.suptitle("What answers give away, and what tuning makes of answers of the same level")
    file = Path("docs/leakage.png")
    figure.savefig(file, dpi=110)
    return file


def main() -> None:
    """Draws."""
    draw(Path(sys.argv[1]), Path(sys.argv[2]))


if __name__ == "__main__":
    main()
