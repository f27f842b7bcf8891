"""What was charged: sums, every charge and statements, of the own key or, for admins, of all."""

from __future__ import annotations

import csv
import html
import io
import re
from dataclasses import dataclass
from typing import Any

import pytest

from craft_server.ledger import leases
from craft_server.ledger.charges import Work, reserve, settle
from craft_server.ledger.keys import authenticate, create_key, prefix_of
from craft_server.ledger.prices import set_prices
from craft_shared.units import Units
from server.console.conftest import Browser, NewBrowser
from server.console.test_pages import words

OCTOBER, NOVEMBER, DECEMBER = 1_790_812_800_000, 1_793_491_200_000, 1_796_083_200_000
USAGE = "/console/usage"


@dataclass
class Lab:
    """A server on which two teams were charged; who looks at it."""

    admin: Browser
    ann: Browser
    prefixes: dict[str, str]


@pytest.fixture
def lab(stored: Any, browse: NewBrowser) -> Lab:
    secrets = {}
    with stored.database.writing() as connection:
        leases.renew(connection, "a server", 2 * DECEMBER)
        set_prices(connection, "tiny", {"queries": 1500})
        for name, team in (("ann", "vision"), ("bob", "vision"), ("cleo", "<text> & more")):
            secrets[name] = create_key(connection, owner=name, name="=key", team=team, at=1)
            caller = authenticate(connection, secrets[name], 2)
            assert caller is not None
            for at, queries, adapter in (
                (OCTOBER, 1, None),
                (NOVEMBER, 10, "lab/pets@1"),
                (DECEMBER - 1, 100, "lab/pets@2"),
            ):
                work = Work("predictions", "tiny", "r", Units(queries=queries), "run", adapter)
                settle(connection, reserve(connection, caller, work, holder="a server", at=at), at)
    ann = browse(at=stored, signed_in=False)
    ann.key = secrets["ann"]
    assert ann.sign_in().status_code == 303
    prefixes = {name: prefix_of(secret) for name, secret in secrets.items()}
    return Lab(browse(at=stored, admin=True), ann, prefixes)


def rows(text: str) -> list[list[str]]:
    """The cells of the rows of a page's tables."""
    found = re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    return [
        [words(cell) for cell in re.findall(r"<t[hd][^>]*>.*?</t[hd]>", row, re.DOTALL)]
        for row in found
    ]


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_an_admin_sees_what_each_team_key_and_adapter_was_charged(lab: Lab) -> None:
    text = lab.admin.get(f"{USAGE}?period=2026-11").text
    shown = [row[:3] for row in rows(text)]
    assert ["vision", "0.33", "220"] in shown
    assert ["&lt;text&gt; &amp; more", "0.165", "110"] in shown
    assert ["lab/pets", "0.495", "330"] in shown
    assert ["30 Nov", "0.45", "300"] in shown
    assert [f"{lab.prefixes['bob']} bob, =key (vision)", "0.165", "110"] in shown
    chosen = lab.admin.get(f"{USAGE}?period=2026-11&team=vision&key={lab.prefixes['ann']}").text
    assert ["lab/pets", "0.165", "110"] in [row[:3] for row in rows(chosen)]
    assert lab.prefixes["bob"] not in re.sub(r"<select.*?</select>", "", chosen, flags=re.DOTALL)
    year = lab.admin.get(f"{USAGE}?period=2026").text
    assert [row[:3] for row in rows(year) if re.fullmatch(r"\w+ 2026", row[0])] == [
        ["November 2026", "0.495", "330"],
        ["October 2026", "0.0045", "3"],
    ]


def test_a_key_sees_what_it_was_charged_itself_whatever_it_asks_for(lab: Lab) -> None:
    other = f"team=vision&key={lab.prefixes['bob']}"
    for page, charged in (("", "110"), ("/charges", "0.15"), ("/statement", "110")):
        text = lab.ann.get(f"{USAGE}{page}?period=2026-11&{other}").text
        assert charged in text
        assert lab.prefixes["bob"] not in text
        assert "vision" not in text
    for file in ("sums.csv?by=key&", "charges.csv?", "statement.csv?"):
        answer = lab.ann.get(f"{USAGE}/{file}period=2026-11&{other}")
        assert answer.status_code == 200
        found = {row["key"] for row in table(answer.text)} - {""}
        assert found == {lab.prefixes["ann"]}
        # Numbers that count others' lines and keys.
        assert not {"id", "key_id"} & table(answer.text)[0].keys()


def test_sums_are_downloaded_as_csv(lab: Lab) -> None:
    answer = lab.admin.get(f"{USAGE}/sums.csv?by=team&by=month&period=2026")
    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.headers["content-disposition"] == (
        'attachment; filename="usage-2026-by-team-month.csv"'
    )
    assert [(row["team"], row["month"], row["cost_micros"]) for row in table(answer.text)] == [
        ("<text> & more", "2026-10", "1500"),
        ("<text> & more", "2026-11", "165000"),
        ("vision", "2026-10", "3000"),
        ("vision", "2026-11", "330000"),
    ]
    refused = lab.admin.get(f"{USAGE}/sums.csv?by=colour")
    assert refused.status_code == 422
    assert "nothing is summed by" in refused.text


def test_every_charge_is_listed_once_the_newest_first(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("craft_server.console.usage._CHARGES_A_PAGE", 2)
    shown: list[str] = []
    address = f"{USAGE}/charges?period=2026-11&model=tiny"
    while address:
        text = lab.admin.get(address).text
        shown += re.findall(r"<code>(\w{8})</code> <span", text)
        following = re.findall(r'href="([^"]+)" rel="next">More', text)
        address = html.unescape(following[0]) if following else ""
    three = [lab.prefixes[name] for name in ("cleo", "bob", "ann")]
    assert shown == three * 2


def test_charges_of_an_adapter_have_their_cost_and_can_be_downloaded(lab: Lab) -> None:
    query = "period=2026-11&adapter=lab/pets@2"
    text = lab.ann.get(f"{USAGE}/charges?{query}").text
    assert [row[:4] for row in rows(text)[1:]] == [
        ["30 Nov 2026, 23:59 UTC", "predictions lab/pets@2 run", "0.15", "100"]
    ]
    (row,) = table(lab.ann.get(f"{USAGE}/charges.csv?{query}").text)
    assert (row["adapter"], row["queries"], row["cost_micros"]) == ("lab/pets@2", "100", "150000")
    assert "Nothing was charged in November 2026 of what was chosen" in words(
        lab.ann.get(f"{USAGE}/charges?period=2026-11&model=other").text
    )


def test_a_teams_statement_is_a_page_and_a_file(lab: Lab) -> None:
    query = "period=2026-11&team=vision"
    text = lab.admin.get(f"{USAGE}/statement?{query}").text
    assert ["Total", "0.33"] in rows(text)
    *lines, total = table(lab.admin.get(f"{USAGE}/statement.csv?{query}").text)
    assert [(row["owner"], row["unit"], row["amount"], row["price_micros"]) for row in lines] == [
        ("ann", "queries", "110", "1500"),
        ("bob", "queries", "110", "1500"),
    ]
    assert {row["name"] for row in lines} == {"'=key"}
    assert (total["unit"], total["cost_micros"]) == ("total", "330000")


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("?period=November", 422),
        ("?period=2026-13", 422),
        ("?adapter=a%00b", 422),
        ("/charges?after=first", 422),
        ("/charges?after=9999999999999999999-1", 422),
        ("/charges?key=nonesuch", 404),
        ("/charges?team=nobody", 404),
        ("/statement?period=2026", 404),
        ("/statement.csv?team=nobody", 404),
    ],
)
def test_what_cannot_be_shown_is_refused_as_a_page(
    browse: NewBrowser, address: str, status: int
) -> None:
    refused = browse(admin=True).get(f"{USAGE}{address}")
    assert refused.status_code == status
    assert "<h1>" in refused.text
