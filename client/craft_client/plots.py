"""Pictures of runs, as PNG: one run over its budget, or several beside each other.

It knows runs and how they are drawn, on light or dark ground; it does not know files or pages.
Importing it imports matplotlib, which takes a while.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import cycle, product
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from craft_client.budgets import currency
from craft_client.exceptions import CraftError
from craft_client.runs import Run
from craft_shared.printing import printable

DOTS_AN_INCH = 150
# Points that are fewer are marked, so that a single one is seen.
FEW_POINTS = 30
TITLE_WIDTH = 86
LABEL_WIDTH = 90
_STAR = "★  the adapter that was deployed"

# Okabe and Ito's colours, which colour-blind people tell apart, fitted to the ground.
_LIGHT_COLOURS = ["#0072b2", "#d55e00", "#009e73", "#b5588f", "#b07d00", "#2a93cf", "#555555"]
_DARK_COLOURS = ["#56b4e9", "#ff8a3c", "#2fc79a", "#e59ac4", "#f0c04a", "#8fd0ff", "#bbbbbb"]
_STYLES = ["-", "--", ":", "-."]


class PlotError(CraftError):
    """There is nothing to draw; the message says why."""


def draw_run(run: Run, *, dark: bool = False) -> bytes:
    """Accuracy, loss and cost of a run over its queries; what is not known is left out.

    Raises:
        PlotError: the run has no answers yet.
    """
    if not run.points:
        raise PlotError(
            f"The run in '{run.folder}' has no answers yet: there is nothing to draw.",
            remedy=f"Go on with it: craft tune --resume {run.folder}",
        )
    panels: list[Callable[[Axes, Run], None]] = [_draw_loss]
    if run.accuracies:
        panels.insert(0, _draw_accuracy)
    if run.cost_micros:
        panels.append(_draw_cost)
    with _look(dark):
        figure = Figure(figsize=(8.5, 1.1 + 2.6 * len(panels)), layout="constrained")
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        figure.suptitle(_title(run))
        for axes, draw in zip(grid, panels, strict=True):
            draw(axes, run)
            axes.grid(visible=True)
        _label_budget(grid[0], grid[-1], run)
        figure.align_ylabels()
        return _png(figure)


def draw_comparison(runs: Sequence[Run], *, dark: bool = False) -> bytes:
    """Accuracies of runs over their predictions; runs without accuracies are left out.

    Raises:
        PlotError: no run has accuracies.
    """
    drawn = [run for run in runs if run.accuracies]
    if not drawn:
        raise PlotError(
            "None of these runs has accuracies to draw.",
            remedy="Accuracies are measured when a run ends: craft tune --resume RUN",
        )
    with _look(dark):
        figure = Figure(figsize=(8.5, 4.8 + 0.22 * len(drawn)), layout="constrained")
        axes = figure.subplots()
        axes.set_title("Accuracy on the training pictures over predictions")
        axes.set_xscale("log")
        axes.set_xlabel("predictions (one prompt scored against one picture)")
        axes.set_ylabel("accuracy (%)")
        handles = [
            _draw_accuracies(axes, run, colour, style)
            for run, (style, colour) in zip(drawn, cycle(product(_STYLES, _colours(dark))))
        ]
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(visible=True)
        figure.legend(
            handles, [_label(run) for run in drawn], loc="outside lower center", title=_STAR
        )
        return _png(figure)


def _draw_accuracy(axes: Axes, run: Run) -> None:
    measured = run.accuracies
    axes.plot(
        [point.queries for point, _ in measured],
        [accuracy for _, accuracy in measured],
        marker=_marker(measured),
        label="while tuning",
    )
    if run.summary:
        before, after = run.summary.accuracy_before, run.summary.accuracy_after
        axes.axhline(before, color="C6", linestyle="--", label="before: the plain prompt")
        if after is not None:
            axes.plot(
                run.units.queries, after, "*", color="C1", markersize=13, clip_on=False,
                zorder=5, label="after: the adapter, held out",
            )  # fmt: skip
    axes.set_ylabel("accuracy (%)")
    axes.legend()


def _draw_loss(axes: Axes, run: Run) -> None:
    queries = [point.queries for point in run.points]
    marker = _marker(run.points)
    mean = [point.loss for point in run.points]
    best = [point.best_loss for point in run.points]
    axes.plot(queries, mean, marker=marker, label="mean of the generation's prompts")
    axes.plot(queries, best, marker=marker, label="best prompt so far")
    axes.set_ylabel("loss (nats)")
    axes.legend()


def _draw_cost(axes: Axes, run: Run) -> None:
    known = [(point.queries, point.cost_micros or 0) for point in run.points]
    axes.plot(
        [0, *(queries for queries, _ in known)],
        [0, *(float(currency(micros)) for _, micros in known)],
        color="C2",
    )
    axes.set_ylim(bottom=0)
    axes.set_ylabel("cost (provider's currency)")


def _label_budget(top: Axes, bottom: Axes, run: Run) -> None:
    """The budget's axes: queries below; predictions above, if a query always is as many."""
    budget = run.about.settings.budget
    label = "queries" if budget is None else f"queries (of a budget of {budget:,})"
    bottom.set_xlim(0, 1.03 * max(point.queries for point in run.points))
    bottom.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    bottom.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    each = {point.predictions / point.queries for point in run.points if point.queries}
    if len(each) == 1 and 0 not in each:
        (ratio,) = each
        above = top.secondary_xaxis("top", functions=(_times(ratio), _times(1 / ratio)))
        above.set_xlabel("predictions")
        above.xaxis.set_major_formatter(EngFormatter(sep=""))
    else:
        label += f"; {run.units.predictions:,} predictions in all"
    bottom.set_xlabel(label)


def _times(factor: float) -> Callable[[Any], Any]:
    return lambda value: value * factor


def _draw_accuracies(axes: Axes, run: Run, colour: str, style: str) -> Any:
    measured = run.accuracies
    (line,) = axes.plot(
        [point.predictions for point, _ in measured],
        [accuracy for _, accuracy in measured],
        color=colour,
        linestyle=style,
        marker=_marker(measured),
    )
    if run.summary and run.summary.accuracy_after is not None:
        axes.plot(
            run.units.predictions, run.summary.accuracy_after, "*", color=colour, markersize=13
        )
    return line


def _marker(points: Sequence[object]) -> str:
    return "o" if len(points) < FEW_POINTS else ""


def _title(run: Run) -> str:
    settings = run.about.settings
    shots = f"{settings.shots} shots, " if settings.shots is not None else ""
    lines = [
        textwrap.shorten(printable(run.name), TITLE_WIDTH, placeholder="..."),
        textwrap.shorten(
            printable(f"{run.data}, {shots}seed {settings.seed}, {run.about.model}"), TITLE_WIDTH
        ),
    ]
    if not run.summary:
        lines.append("unfinished: accuracy is known when the run ends")
    return "\n".join(lines)


def _label(run: Run) -> str:
    label = printable(str(run.folder))
    return label if len(label) <= LABEL_WIDTH else "..." + label[-LABEL_WIDTH:]


def _colours(dark: bool) -> list[str]:
    return _DARK_COLOURS if dark else _LIGHT_COLOURS


@contextmanager
def _look(dark: bool) -> Iterator[None]:
    """The settings of matplotlib, whatever the user's own are; restored afterwards."""
    ground, text, line, grid = (
        ("#14181d", "#e6e8eb", "#7d8590", "#2c333b")
        if dark
        else ("#ffffff", "#1f2328", "#8c959f", "#dde1e6")
    )
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(
            {
                "figure.facecolor": ground,
                "savefig.facecolor": ground,
                "axes.facecolor": ground,
                "text.color": text,
                "axes.labelcolor": text,
                "xtick.color": text,
                "ytick.color": text,
                "axes.edgecolor": line,
                "axes.prop_cycle": cycler(color=_colours(dark)),
                "axes.axisbelow": True,
                "grid.color": grid,
                "legend.frameon": False,
                "lines.markersize": 4,
                "figure.titlesize": "medium",
                "axes.titlesize": "medium",
                # Names of directories and data sets are no formulas.
                "text.parse_math": False,
            }
        )
        yield


def _png(figure: Figure) -> bytes:
    file = BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(file, format="png", dpi=DOTS_AN_INCH, metadata={"Software": None})
    return file.getvalue()
