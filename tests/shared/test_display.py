from __future__ import annotations

from html.parser import HTMLParser

import pytest

from craft_shared.adapter import Adapter
from craft_shared.display import MOST_ROWS, Displayed, Listed, View, html
from craft_shared.units import Units
from craft_shared.wire import AdapterCard, Budget, Charge, Usage

HOSTILE = "<script>alert(1)</script><img src=x onerror='alert(2)'>\" & \x1b[31m"
TAGS = {"div", "b", "table", "tr", "th", "td"}


class Tags(HTMLParser):
    """The tags and attributes of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


class Thing(Displayed):
    def __init__(self, view: View) -> None:
        self.view = view

    def _view(self) -> View:
        return self.view


def usage(call: str = "predict", count: int = 1) -> Usage:
    units = Units(queries=1234, requests=1)
    charge = Charge(id=1, at="", call=call, model="m", state="settled", units=units, cost_micros=5)
    return Usage(total=units, charges=[charge] * count, next_after=None)


def card(name: str = "pets") -> AdapterCard:
    return AdapterCard(
        owner=name,
        name=name,
        version=1,
        aliases=[name],
        digest="",
        model=name,
        revision="",
        access_mode="strict",
        classes=[name] * 7,
        prompts=3,
        published_at="",
    )


@pytest.mark.parametrize(
    "shown",
    [
        Thing(View(HOSTILE, {"fact": HOSTILE}, [HOSTILE], [[HOSTILE]])),
        usage(HOSTILE),
        card(HOSTILE),
        Listed([card(HOSTILE)]),
        Budget(unit="queries", limit=1, spent=0, reserved=0, remaining=1, resets_at=HOSTILE),
    ],
    ids=lambda shown: type(shown).__name__,
)
def test_hostile_names_are_text(shown: Displayed) -> None:
    page = Tags(shown._repr_html_())
    assert page.found <= TAGS
    assert page.attributes == {"style"}
    assert "<script>alert(1)</script>" in page.text
    assert "\x1b" not in repr(shown)
    assert "\x1b" not in str(shown)


def test_a_page_has_no_colour_of_its_own_and_loads_nothing() -> None:
    page = html(View("x", {"a": 1}, ["b"], [[2]]), "Thing")
    assert "currentColor" in page
    assert "inherit" in page
    for word in ("#", "rgb(", "src=", "href=", "url(", "<style", "<script", "class="):
        assert word not in page


def test_a_line_says_what_is_known() -> None:
    thing = Thing(View("x", {"a": 1, "b": None, "c": "", "d": 0, "e": 2 / 3, "f": "y" * 1000}))
    assert repr(thing) == f"<Thing 'x', a=1, d=0, e=0.6667, f='{'y' * 199}…'>"
    assert str(usage(count=5000)).startswith("<Usage 'of 5,000 charges', queries=1234")
    assert len(repr(usage(count=5000))) < 200


def test_a_table_shows_its_first_rows_and_how_many_there_are_more() -> None:
    text = Tags(html(View("x", {}, ["n"], [[1000 + n] for n in range(MOST_ROWS + 7)]), "T")).text
    assert "1,000" in text
    assert f"{1000 + MOST_ROWS:,}" not in text
    assert "and 7 more" in text


def test_usage_is_added_up_by_kind_of_call() -> None:
    text = Tags(usage(count=3)._repr_html_()).text.split()
    assert text.count("3,702") == 1


def test_a_list_is_equal_to_a_plain_one_and_shows_a_row_each() -> None:
    cards = [card("cats"), card("dogs")]
    assert Listed(cards) == cards
    text = Tags(Listed(cards)._repr_html_()).text
    assert "cats/cats@1" in text
    assert "dogs/dogs@1" in text
    assert "and 2 more" in text, "of the seven classes five are named"


def test_what_is_shown_changes_nothing_of_a_wire_model() -> None:
    assert AdapterCard.model_validate_json(card().model_dump_json()) == card()
    assert not {name for name in AdapterCard.model_fields if "view" in name}
    assert issubclass(Adapter, Displayed)
