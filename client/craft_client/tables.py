"""What runs came to as a paper needs it: a tidy CSV, a table in Markdown, and two in LaTeX.

Sources: Wickham, "Tidy Data", JSS 2014 (a row an observation); Fear, "Publication quality tables in
LaTeX" (the booktabs package).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence

from craft_client.comparison import SPENT, Asked, Difference, Group, Row, amount_of, unit_name
from craft_client.evaluation import Interval
from craft_shared.amounts import Measure
from craft_shared.printing import printable
from craft_shared.text_files import line_of

_SPREAD = "± is the standard deviation over seeds"
_INTERVALS = "intervals are of 95 % (Student's t, over seeds)"
NOTE = f"{_SPREAD}; {_INTERVALS}"
_TEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def csv(rows: Iterable[Row]) -> str:
    """A row a run; costs are in micros, settings in JSON, and what is not known is empty."""
    head = (
        *("data", "shift", "shots", "recipe", "budget_unit", "budget", "seed"),
        *("zero_shot", "accuracy", "test_images", *SPENT, "model", "revision", "settings"),
    )
    lines = [line_of(head)]
    for row in rows:
        asked = (None, None) if row.asked is None else (row.asked.unit, row.asked.amount)
        facts = (row.data, row.shift, row.shots, row.method, *asked, row.seed)
        found = (row.zero_shot, row.accuracy, row.images)
        spent = (row.spent.get(unit) for unit in SPENT)
        settings = json.dumps(dict(row.settings), separators=(",", ":")) if row.settings else None
        lines.append(line_of([*facts, *found, *spent, row.model, row.revision, settings]))
    return "".join(lines)


def columns(found: Sequence[Group]) -> list[str]:
    """Of the table of groups."""
    return [
        *("data", "shots", "recipe", "budget", "zero-shot", "tuned", "95 % interval", "n"),
        *(unit_name(unit) for unit in _spent_by(found)),
    ]


def cells_of(found: Sequence[Group], shown: Sequence[Group]) -> list[list[str]]:
    """Of `shown`, with the columns of all that were found."""
    units = _spent_by(found)
    return [
        [
            group.title,
            _or_nothing(group.shots),
            group.method,
            _or_nothing(group.asked),
            f"{group.zero_shot:.2f}",
            _mean(group),
            _interval(group.accuracy.interval),
            str(group.accuracy.n),
            *(amount_of(unit, group.spent[unit]) for unit in units),
        ]
        for group in shown
    ]


DIFFERENCE_COLUMNS = (
    *("data", "shots", "recipe", "budget", "less", "points", "95 % interval", "n"),
    *("wins", "ties", "losses"),
)


def difference_cells(found: Iterable[Difference]) -> list[list[str]]:
    """A row a difference."""
    return [
        [
            one.data,
            _or_nothing(one.shots),
            one.method,
            _or_nothing(one.asked),
            one.baseline,
            f"{one.points.mean:+.2f}",
            _interval(one.points.interval, "+.2f"),
            *map(str, (one.points.n, one.wins, one.ties, one.losses)),
        ]
        for one in found
    ]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        f"| {' | '.join(printable(cell).replace('|', chr(92) + '|') for cell in line)} |\n"
        for line in lines
    )


def latex(found: Sequence[Group], over: Sequence[Group], paired: Sequence[Difference]) -> str:
    """Tables for a paper that uses the package booktabs.

    Args:
        found: a line for each method, shots and budget, a column for each data set.
        over: their means over data sets.
        paired: a second table, if there are any.
    """
    every = [*found, *over]
    titles = list(dict.fromkeys(group.title for group in every))
    best: dict[object, float] = {}
    for group in every:
        at = (group.title, group.shots, group.asked)
        best[at] = max(best.get(at, 0), group.accuracy.mean)
    by_line: dict[tuple[str, int | None, Asked | None], dict[str, Group]] = {}
    for group in every:
        by_line.setdefault((group.method, group.shots, group.asked), {})[group.title] = group
    lines: list[list[str]] = []
    place: object = None
    for (method, shots, asked), by_title in by_line.items():
        if place not in (None, (shots, asked)):
            lines.append([])
        place = (shots, asked)
        values = []
        for title in titles:
            one = by_title.get(title)
            value = "--" if one is None else _tex_mean(one)
            is_best = one is not None and one.accuracy.mean >= best[title, shots, asked]
            values.append(rf"\textbf{{{value}}}" if is_best else value)
        own = [one for one in by_title.values() if one.shift is None]
        spent = (statistics.mean(one.spent[unit] for one in own) for unit in SPENT[:2])
        units = (f"{amount:,.0f}" for amount in spent)
        lines.append([_tex(method), _or_nothing(shots), _tex(_or_nothing(asked)), *values, *units])
    head = ["method", "shots", "budget", *map(_tex, titles), *SPENT[:2]]
    seeds = ", ".join(map(str, sorted({group.accuracy.n for group in found})))
    note = (
        f"accuracy on the test split, %; {_SPREAD}; n = {seeds} seeds; bold: the best of its "
        "budget; predictions and queries: spent by tuning, mean over data sets"
    )
    text = _tabular(note, "lrl" + "r" * (len(head) - 3), head, lines)
    if paired:
        text += "\n" + _tabular(
            f"percentage points between runs of one data set, shots, seed, budget; {_INTERVALS}",
            "lrlllrrrrrr",
            [_tex(one) for one in DIFFERENCE_COLUMNS],
            [[_tex(cell) for cell in row] for row in difference_cells(paired)],
        )
    return text


def _tabular(note: str, form: str, head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [f"{' & '.join(line)} \\\\" if line else r"\midrule" for line in lines]
    return "\n".join(
        [
            f"% {note}",
            rf"\begin{{tabular}}{{{form}}}",
            r"\toprule",
            f"{' & '.join(head)} \\\\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _tex(text: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in printable(text))


def _tex_mean(group: Group) -> str:
    spread = group.accuracy.spread
    return f"{group.accuracy.mean:.2f}" + ("" if spread is None else rf" $\pm$ {spread:.2f}")


def _mean(group: Group) -> str:
    spread = group.accuracy.spread
    return f"{group.accuracy.mean:.2f}" + ("" if spread is None else f" ± {spread:.2f}")


def _interval(interval: Interval | None, form: str = ".2f") -> str:
    return "" if interval is None else f"{interval[0]:{form}} to {interval[1]:{form}}"


def _or_nothing(value: object) -> str:
    return "" if value is None else str(value)


def _spent_by(found: Sequence[Group]) -> list[Measure]:
    """All units, and the cost where any is charged."""
    costs = any(group.spent["cost_micros"] for group in found)
    return [unit for unit in SPENT if costs or unit != "cost_micros"]
