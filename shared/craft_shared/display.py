"""How objects show themselves in a notebook and at a prompt: facts in a line, or a small table.

An object says what is worth showing as a `View`, and inherits the rest from `Displayed`. This is
the one module that knows HTML outside pages: all text in it is escaped, it loads nothing, and it
takes its colours from the notebook around it, light or dark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from craft_shared.printing import printable

if TYPE_CHECKING:
    from jinja2 import Template

T = TypeVar("T")

MOST_ROWS = 20
MOST_NAMES = 5
MOST_CHARACTERS = 200

_LINE = "1px solid color-mix(in srgb, currentColor 25%, transparent)"
_CELL = f"text-align:left;padding:2px 10px 2px 0;border-bottom:{_LINE}"
_HTML = """\
<div style="color:inherit;font-size:0.9em;overflow-x:auto">
<b>{{ title }}</b>
{%- for rows in facts, table if rows %}
<table style="border-collapse:collapse;color:inherit;margin:4px 0">
{%- for row in rows %}
<tr style="background:none">
{%- for cell in row %}{% set tag = "th" if loop.first and rows is sameas facts else "td" %}
<{{ tag }} style="{{ style }}">{{ cell }}</{{ tag }}>{% endfor -%}
</tr>
{%- endfor %}
</table>
{%- endfor %}
{%- if left_out %}<div>and {{ left_out }} more</div>{% endif %}
</div>"""


@dataclass(frozen=True)
class View:
    """What is worth showing of an object."""

    title: str  # which one it is
    # By their names, with units in them; None, "" and what is empty is left out.
    facts: Mapping[str, object] = field(default_factory=dict)
    columns: Sequence[str] = ()  # of the table; none without one
    rows: Sequence[Sequence[object]] = ()  # of the table, of which the first ones are shown

    @property
    def known(self) -> dict[str, object]:
        """The facts that there are."""
        return {name: fact for name, fact in self.facts.items() if fact not in (None, "", [], ())}


class Displayed:
    """Shows itself by its view: as one line, and as HTML to notebooks."""

    __slots__ = ()

    def _view(self) -> View:
        raise NotImplementedError

    def __repr__(self) -> str:
        view = self._view()
        # Names in the quotes of `repr`, so that no control character reaches a terminal.
        facts = [f"{name}={_short(fact)!r}" for name, fact in view.known.items()]
        return f"<{type(self).__name__} {', '.join([repr(_short(view.title)), *facts])}>"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        return html(self._view(), type(self).__name__)


class Listed(list[T], Displayed):
    """A list whose elements are shown beside each other, a row each."""

    __slots__ = ()

    __repr__ = list.__repr__
    __str__ = list.__str__

    def _view(self) -> View:
        views = [one._view() for one in self if isinstance(one, Displayed)]
        names = list(dict.fromkeys(name for view in views for name in view.known))
        rows = [[view.title, *(view.known.get(name) for name in names)] for view in views]
        return View(f"{len(self)}", columns=["", *names], rows=rows)


def names(of: Sequence[str]) -> str:
    """Names in a line, the first few of many."""
    more = f" and {len(of) - MOST_NAMES:,} more" if len(of) > MOST_NAMES else ""
    return ", ".join(of[:MOST_NAMES]) + more


def html(view: View, kind: str) -> str:
    """A view as HTML; `kind` is what it is of."""
    rows = [[_cell(value) for value in row] for row in view.rows[:MOST_ROWS]]
    return _template().render(
        title=f"{kind} {_cell(view.title)}",
        facts=[(name, _cell(fact)) for name, fact in view.known.items()],
        table=[list(map(_cell, view.columns)), *rows] if view.columns else [],
        style=_CELL,
        left_out=len(view.rows) - len(rows),
    )


@cache
def _template() -> Template:
    # Not needed by what only counts or serves.
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=harmless)
    return environment.from_string(_HTML)


def harmless(value: object) -> str:
    """What a page shows of a value, before the page escapes it."""
    return printable(str(value))


def _cell(value: object) -> str:
    value = _short(value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def _short(value: object) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, str) and len(value) > MOST_CHARACTERS:
        return value[: MOST_CHARACTERS - 1] + "…"
    return value
