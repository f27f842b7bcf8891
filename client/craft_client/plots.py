"""Pictures of runs: what one came to and its course, or methods beside each other over a unit.

A method has the same colour and marker in every picture, and accuracies of one kind share an axis.
Importing it imports matplotlib, which takes a while.

Sources: Okabe and Ito, "Color Universal Design", 2008 (the colours).
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any, Literal, get_args
from zlib import crc32

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from craft_client.blackbox import currency
from craft_client.comparison import ZERO_SHOT, Group, unit_name
from craft_client.evaluation import ClassAccuracy, Evaluation, Interval
from craft_client.exceptions import CraftError
from craft_client.runs import Run
from craft_shared.amounts import Measure
from craft_shared.printing import printable

DOTS_AN_INCH = 150
# Points that are fewer are marked, so that a single one is seen.
FEW_POINTS = 30
TITLE_WIDTH = 86
LABEL_WIDTH = 90
CLASS_WIDTH = 32
CLASSES_SHOWN = 20
PANELS_ACROSS = 3

Form = Literal["png", "svg", "pdf"]
FORMS: tuple[Form, ...] = get_args(Form)
# Without the moment and the program: the same numbers give the same file.
_METADATA: dict[Form, dict[str, str | None]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
}

# Okabe and Ito's colours, which colour-blind people tell apart, fitted to the ground.
_LIGHT_COLOURS = ["#0072b2", "#d55e00", "#009e73", "#b5588f", "#b07d00", "#2a93cf", "#555555"]
_DARK_COLOURS = ["#3a96dd", "#ff8a3c", "#2fc79a", "#e59ac4", "#f0c04a", "#a5daff", "#bbbbbb"]
_MARKERS = "osD^vPX<"
# Seven and eight share no factor, so that a place names one colour and marker of 56.
_PLACES = len(_LIGHT_COLOURS) * len(_MARKERS)
_METHODS = (
    *("craftbox", "paper", "bbt", "zip", "blackvip", "spsa", "random"),
    *("bpt-text", "words", "descriptions", "sim"),
)


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
        return _saved(figure, "png")


@dataclass(frozen=True)
class Course:
    """A run's accuracy on the images that it tunes on, while it does."""

    title: str  # the panel's
    method: str
    spent: Sequence[float]  # of the unit, at each point
    accuracies: Sequence[float]  # percent


def draw_methods(
    found: Sequence[Group],
    unit: Measure,
    *,
    subject: str = "test accuracy",
    courses: Sequence[Course] = (),
    dark: bool = False,
    form: Form = "png",
) -> bytes:
    """Accuracies of methods over what they spent: a panel for each data set, shots and model.

    Lines join the budgets of a method, each of which has runs of its own; nothing was measured
    between them.

    Args:
        found: means over seeds; those that spent nothing of the unit are left out.
        unit: that lies on the axis, which is logarithmic.
        subject: which accuracies these are.
        courses: panels of their own below.
        dark: for dark ground.
        form: of the file.

    Raises:
        PlotError: there is nothing to draw.
    """
    drawn = [group for group in found if group.spent[unit] > 0]
    if not drawn and not courses:
        raise PlotError(
            f"None of these runs has a {subject} and has spent {unit_name(unit)}.",
            remedy="Measure them with craft evaluate, or name another unit with --over.",
        )
    panels: list[tuple[str, str, Callable[[Axes], None]]] = []
    named = [one.method for one in drawn] + [course.method for course in courses]
    looks = method_looks(set(named))
    with _look(dark):
        for title, same in _by_title(drawn).items():
            panels.append((title, f"{subject} (%)", partial(_draw_groups, same, unit, looks, dark)))
        for title in dict.fromkeys(course.title for course in courses):
            those = [course for course in courses if course.title == title]
            label = "accuracy while tuning,\non the training images (%)"
            panels.append((title, label, partial(_draw_courses, those, looks, dark)))
        across = min(PANELS_ACROSS, len(panels))
        down = -(-len(panels) // across)
        legend = 0.25 * -(-(len(looks) + 1) // (2 * across)) + 0.3
        figure = Figure(figsize=(max(4.2 * across, 6), 3.3 * down + legend), layout="constrained")
        grid = figure.subplots(down, across, squeeze=False).flat
        for axes, (title, label, draw) in zip(grid, panels, strict=False):
            draw(axes)
            axes.set_title(_cut(title, LABEL_WIDTH))
            axes.set_ylabel(label)
            axes.set_xlabel(f"{unit_name(unit)} spent by tuning")
            _scale_by_logarithm(axes)
            axes.grid(visible=True)
        for axes in list(figure.axes)[len(panels) :]:
            axes.remove()
        handles = [
            Line2D(
                [],
                [],
                color=_colours(dark)[colour],
                marker=marker,
                linestyle=_style(name),
                label=_cut(name, 60),
            )
            for name, (colour, marker) in looks.items()
        ]
        if drawn:
            handles.append(Line2D([], [], color="C6", linestyle="--", label=ZERO_SHOT))
        counts = sorted({group.accuracy.n for group in drawn})
        words = "each point: one run" if drawn else ""
        if counts and counts[-1] > 1:
            words = f"mean of n = {', '.join(map(str, counts))} seeds; bars and bands: "
            words += "one standard deviation over seeds"
        figure.legend(
            handles=handles, loc="outside lower center", ncols=2 * across, title=words or None
        )
        return _saved(figure, form)


def method_looks(methods: Collection[str]) -> dict[str, tuple[int, str]]:
    """The number of the colour, and the marker, of each method.

    They are a method's own, whatever it is drawn beside: craftbox's have places that are fixed, all
    others that their names say, or the next one that is free.
    """
    own = [name for name in _METHODS if name in methods]
    places = {name: _METHODS.index(name) for name in own}
    taken = set(range(len(_METHODS)))
    for name in sorted(set(methods) - set(own)):
        place = crc32(name.encode()) % _PLACES
        while place in taken and len(taken) < _PLACES:
            place = (place + 1) % _PLACES
        taken.add(place)
        places[name] = place
    return {
        name: (place % len(_LIGHT_COLOURS), _MARKERS[place % len(_MARKERS)])
        for name, place in places.items()
    }


def panel_title(data: str, shots: int | None, model: str) -> str:
    """What a panel is of."""
    return ", ".join([data, *([] if shots is None else [f"{shots} shots"]), model])


def _by_title(found: Sequence[Group]) -> dict[str, list[Group]]:
    by_title: dict[str, list[Group]] = {}
    for group in found:
        title = panel_title(group.title, group.shots, group.model)
        by_title.setdefault(title, []).append(group)
    return by_title


def _draw_groups(
    found: Sequence[Group],
    unit: Measure,
    looks: dict[str, tuple[int, str]],
    dark: bool,
    axes: Axes,
) -> None:
    for accuracy in sorted({group.zero_shot for group in found}):
        axes.axhline(accuracy, color="C6", linestyle="--", linewidth=1)
    for method in looks:
        points = sorted(
            (one for one in found if one.method == method), key=lambda one: one.spent[unit]
        )
        if not points:
            continue
        number, marker = looks[method]
        colour = _colours(dark)[number]
        spent = [one.spent[unit] for one in points]
        means = [one.accuracy.mean for one in points]
        spreads = [one.accuracy.spread or 0 for one in points]
        low, high = zip(
            *((at - by, at + by) for at, by in zip(means, spreads, strict=True)), strict=True
        )
        axes.errorbar(
            spent, means, [by or float("nan") for by in spreads], color=colour, marker=marker,
            linestyle=_style(method), markersize=6, capsize=3, elinewidth=1,
        )  # fmt: skip
        axes.fill_between(spent, low, high, color=colour, alpha=0.15, linewidth=0)


def _draw_courses(
    courses: Sequence[Course], looks: dict[str, tuple[int, str]], dark: bool, axes: Axes
) -> None:
    for course in courses:
        number, marker = looks[course.method]
        axes.plot(
            course.spent, course.accuracies, color=_colours(dark)[number],
            linestyle=_style(course.method),
            marker=marker if len(course.spent) < FEW_POINTS else "",
        )  # fmt: skip


def _style(method: str) -> Literal["-", "-."]:
    """Methods of others may share a colour with one of craftbox's, but no line."""
    return "-" if method in _METHODS else "-."


def _scale_by_logarithm(axes: Axes) -> None:
    """With room at either end, and labels enough where what was spent hardly differs."""
    axes.set_xscale("log")
    low, high = axes.dataLim.intervalx
    axes.set_xlim(low / 1.5, high * 1.5)
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if high > 50 * low else (1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())


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
                # Letters of a PDF stay letters, and names in an SVG are the same each time.
                "pdf.fonttype": 42,
                "svg.hashsalt": "craftbox",
            }
        )
        yield


def _saved(figure: Figure, form: Form) -> bytes:
    file = BytesIO()
    figure.savefig(file, format=form, dpi=DOTS_AN_INCH, metadata=_METADATA[form])
    return file.getvalue()
