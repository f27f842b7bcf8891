"""What is printed is seen: no character of what others wrote is obeyed by a terminal."""

from __future__ import annotations

import json
import sys
import unicodedata

import pytest

from craft_shared.display import Displayed, View, html
from craft_shared.printing import json_text, print_json, print_lines, printable

ESCAPES = (
    "\x1b]0;OWNED\x07\x1b[2J\x1b[31mred\x1b]8;;http://x\x1b\\click\x1b]52;c;AAAA\x07\x9b31m\r\n"
    "Fake: charged 0\u202e\u2066\u200b\u200f\ufeff\u2028\u2029\x00\x08\x7f\x85\u00ad\U000e0041"
)


def seen(text: str) -> bool:
    return all(sign == "\n" or sign.isprintable() for sign in text)


def test_every_character_that_is_not_seen_becomes_a_code() -> None:
    every = [chr(code) for code in range(sys.maxunicode + 1)]
    left = [sign for sign in every if not printable(sign).isprintable()]
    assert left == []
    changed = {sign for sign in every if printable(sign) != sign}
    assert {unicodedata.category(sign)[0] for sign in changed} <= {"C", "Z", "M", "L", "S"}
    letters = [sign for sign in changed if unicodedata.category(sign)[0] == "L"]
    assert len(letters) < 10, "the fillers of Hangul are all that is not seen of letters"


@pytest.mark.parametrize(
    "text", ["café 日本語 naïve", "Žluťoučký kůň", "שלום", "مرحبا", "😀", "a+b=c\\n", "[bold]x[/]"]
)
def test_what_is_seen_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_a_line_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_lines([ESCAPES, "two"])
    print_lines([ESCAPES], err=True)
    out, err = capsys.readouterr()
    assert out.count("\n") == 2
    assert err.count("\n") == 1
    assert seen(out + err)
    assert r"\x1b[2J" in out


def test_a_document_is_the_same_and_nothing_in_it_is_obeyed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = {ESCAPES: [ESCAPES, "é", 1.5, None]}
    print_json(content, indent=2)
    out = capsys.readouterr().out
    assert seen(out)
    assert json.loads(out) == content
    assert json.loads(json_text(content)) == content
    assert "é" in out


def test_what_a_notebook_shows_is_escaped_and_seen() -> None:
    class Thing(Displayed):
        def _view(self) -> View:
            return View(f"<b>{ESCAPES}", {"fact": ESCAPES}, [ESCAPES], [[f"<i>{ESCAPES}"]])

    shown = html(Thing()._view(), "Thing")
    assert seen(shown)
    assert "<i>" not in shown
    assert seen(repr(Thing()))
