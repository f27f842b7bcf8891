"""Pictures of runs, as PNG: what one came to and its course, or several beside each other.

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

from craft_client.blackbox import currency
from craft_client.evaluation import ClassAccuracy, Evaluation, Interval
from craft_client.exceptions import CraftError
from craft_client.runs import Run
from craft_shared.printing import printable

DOTS_AN_INCH = 150
# Points that are fewer are marked, so that a single one is seen.
FEW_POINTS = 30
TITLE_WIDTH = 86
LABEL_WIDTH = 90
CLASS_WIDTH = 32
CLASSES_SHOWN = 20
_STAR = """★  the adapter that was deployed: with its 95 % interval where it was evaluated,
otherwise on the training pictures, held out"""

# Okabe and Ito's colours, which colour-blind people tell apart, fitted to the ground.
_LIGHT_COLOURS = ["#0072b2", "#d55e00", "#009e73", "#b5588f", "#b07d00", "#2a93cf", "#555555"]
_DARK_COLOURS = ["#56b4e9", "#ff8a3c", "#2fc79a", "#e59ac4", "#f0c04a", "#8fd0ff", "#bbbbbb"]
_STYLES = ["-", "--", ":", "-."]


_Panel = Callable[[Axes, Run], None]


class PlotError(CraftError):
    """There is nothing to draw; the message says why."""


def draw_run(run: Run, *, dark: bool = False) -> bytes:
    """What a run came to, and its accuracy, loss and cost over its queries.

    What is not known is left out, and so is the course of a finished run of one point.

    Raises:
        PlotError: the run has no answers yet.
    """
    if not run.points:
        raise PlotError(
            f"The run in '{run.folder}' has no answers yet: there is nothing to draw.",
            remedy=f"Go on with it: craft tune --resume {run.folder}",
        )
    ends: list[tuple[_Panel, float]] = []
    course: list[tuple[_Panel, float]] = []
    if run.summary:
        ends.append((_draw_end, 1.3))
    if run.evaluation:
        ends.append((_draw_classes, 1 + 0.22 * len(_classes_shown(run.evaluation))))
    if len(run.points) > 1 or not run.summary:
        course += [(_draw_accuracy, 2.6)] * bool(run.accuracies)
        course += [(_draw_loss, 2.6)]
        course += [(_draw_cost, 2.6)] * bool(run.cost_micros)
    panels, heights = zip(*ends, *course, strict=True)
    with _look(dark):
        figure = Figure(figsize=(8.5, 1.1 + sum(heights)), layout="constrained")
        grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        figure.suptitle(_title(run))
        for axes, draw in zip(grid, panels, strict=True):
            draw(axes, run)
            axes.grid(visible=True)
        over_queries = list(grid[len(ends) :])
        if over_queries:
            for axes in over_queries[:-1]:
                axes.sharex(over_queries[-1])
                axes.tick_params(labelbottom=False)
            _label_budget(over_queries[0], over_queries[-1], run)
        figure.align_ylabels(over_queries)
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
        axes.set_title("Accuracy over predictions; lines: on the training pictures")
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


def _draw_end(axes: Axes, run: Run) -> None:
    """Accuracy before and after, with intervals where it was evaluated."""
    leading, tested, summary = run.leading, run.evaluation, run.summary
    spans: list[tuple[float | None, Interval | None]] = []
    if tested:
        spans = [(one.accuracy, one.interval) for one in (tested.before, tested)]
    elif summary:
        spans = [(summary.accuracy_before, None), (summary.accuracy_after, None)]
    for place, (words, (accuracy, interval)) in enumerate(
        zip((leading.before, leading.after), spans, strict=True)
    ):
        middle = 0 if accuracy is None else accuracy
        low, high = interval or (middle, middle)
        if accuracy is not None:
            axes.errorbar(
                middle, place, xerr=[[middle - low], [high - middle]],
                fmt="o", markersize=7, capsize=4, color="C1" if place else "C6",
            )  # fmt: skip
        left = middle > 50  # the side that has room
        axes.annotate(
            words, (low if left else high, place), (-9 if left else 9, 0),
            textcoords="offset points", ha="right" if left else "left", va="center",
        )  # fmt: skip
    axes.set_yticks([0, 1], ["before", "after"])
    axes.set_ylim(1.6, -0.6)
    axes.set_xlim(-1, 101)
    axes.set_xlabel(_cut(f"accuracy (%), {leading.subject}", LABEL_WIDTH))


def _draw_classes(axes: Axes, run: Run) -> None:
    """The change of each class's accuracy; of many classes, of those that changed most."""
    assert run.evaluation  # noqa: S101 - it is drawn where there is one
    shown = _classes_shown(run.evaluation)
    changes = [one.change for one in shown]
    axes.barh(
        [*range(len(shown))], changes, color=["C2" if change >= 0 else "C1" for change in changes]
    )
    axes.axvline(0, color="C6", linewidth=1)
    axes.set_yticks([*range(len(shown))], [_cut(one.name, CLASS_WIDTH) for one in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    count = len(run.evaluation.per_class)
    which = "" if len(shown) == count else f": of {count:,}, {CLASSES_SHOWN // 2} at either end"
    axes.set_xlabel(f"change of a class's accuracy (points){which}")


def _classes_shown(evaluation: Evaluation) -> list[ClassAccuracy]:
    """The classes, the one that gained most first; of many, those at either end."""
    ranked = sorted(evaluation.per_class, key=lambda one: -one.change)
    half = CLASSES_SHOWN // 2
    return ranked if len(ranked) <= CLASSES_SHOWN else [*ranked[:half], *ranked[-half:]]


def _cut(text: str, width: int) -> str:
    shown = printable(text)
    return shown if len(shown) <= width else shown[: width - 3] + "..."


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
    axes.set_ylabel("training accuracy (%)")
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
    known = budget is not None and run.about.settings.budget_unit == "queries"
    label = f"queries (of a budget of {budget:,})" if known else "queries"
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
    tested, place = run.evaluation, run.units.predictions
    if tested:
        low, high = tested.interval
        axes.errorbar(
            place, tested.accuracy, yerr=[[tested.accuracy - low], [high - tested.accuracy]],
            fmt="*", color=colour, markersize=13, capsize=4,
        )  # fmt: skip
    elif run.summary and run.summary.accuracy_after is not None:
        axes.plot(place, run.summary.accuracy_after, "*", color=colour, markersize=13)
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
    if run.evaluation:
        label += f": {run.evaluation.subject}"
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
