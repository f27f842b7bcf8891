"""Tables fit a terminal, and are whole elsewhere."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
from decimal import Decimal

import pytest

from craft_shared.terminal_tables import print_table, wide_tables
from terminals import at_terminal

ESCAPES = "\x1b[31mred\x1b]52;c;AAAA\x07\r\nFake: charged 0\u202e\x00"
COLUMNS = ["key", "owner", "limit", "use"]
ROWS: list[list[object]] = [
    ["abcd1234", "Ada Lovelace", 1_000_000, "58.5 %"],
    ["wxyz9876", "Q", 5, "8.25 %"],
]


def lines(columns: int, *, spare: tuple[str, ...] = (), wide: bool = False) -> list[str]:
    def command() -> None:
        with wide_tables(wide):
            print_table(COLUMNS, ROWS, spare=spare)

    return at_terminal(columns, command).splitlines()


def test_numbers_have_separators_and_stand_right() -> None:
    assert lines(80) == [
        "key       owner             limit     use",
        "abcd1234  Ada Lovelace  1,000,000  58.5 %",
        "wxyz9876  Q                     5  8.25 %",
    ]


def test_a_pipe_and_wide_tables_have_a_line_for_each_row(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [["a", ["first line", "second line"], "word " * 40], ["b", [], None]]
    print_table(["name", "lines", "words"], rows)
    piped = capsys.readouterr().out
    assert len(piped.splitlines()) == 3
    assert "first line, second line" in piped
    assert lines(20, wide=True) == lines(200)


def test_spare_columns_go_one_after_the_other_and_are_named() -> None:
    spare = ("limit", "owner")
    assert lines(40, spare=spare)[:2] == [
        "key       owner            use",
        "abcd1234  Ada Lovelace  58.5 %",
    ]
    assert lines(40, spare=spare)[-1] == "Left out: limit. --wide shows all."
    assert lines(18, spare=spare)[:1] == ["key          use"]
    assert lines(18, spare=spare)[-1] == "Left out: limit, owner. --wide shows all."


def test_a_head_goes_below_itself_before_a_column_is_spared_or_a_row_is() -> None:
    def table() -> None:
        print_table(["a", "a long head", "b"], [["one two", 1, "x"]], spare=["b"])

    assert at_terminal(23, table).splitlines()[0] == "a        a long head  b"
    assert at_terminal(18, table).splitlines() == [
        "a        a long  b",
        "           head",
        "one two       1  x",
    ]


def test_words_go_below_each_other_where_no_column_is_spare() -> None:
    assert lines(37)[:3] == [
        "key       owner         limit     use",
        "abcd1234  Ada       1,000,000  58.5 %",
        "          Lovelace",
    ]


@pytest.mark.parametrize("columns", [1, 20, 30])
def test_what_fits_nowhere_is_wider_than_the_terminal_and_whole(columns: int) -> None:
    text = " ".join(lines(columns))
    for word in ("abcd1234", "wxyz9876", "1,000,000", "58.5 %", "Lovelace"):
        assert word in text


def test_characters_of_two_columns_are_counted_as_two() -> None:
    shown = at_terminal(80, lambda: print_table(["name", "n"], [["日本語", 1], ["a", 20]]))
    assert shown.splitlines() == ["name     n", "日本語   1", "a       20"]


def test_money_and_nothing_are_shown_alike() -> None:
    rows = [["a", Decimal("1234.500000")], ["b", None], ["c", "unknown"]]
    shown = at_terminal(80, lambda: print_table(["", "cost"], rows))
    assert shown.splitlines() == ["           cost", "a  1,234.500000", "b", "c       unknown"]


def test_nothing_in_a_table_is_obeyed_or_markup(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [["[red]x[/red]", ESCAPES], ["y", None]]
    print_table(["name", ESCAPES], rows)
    piped = capsys.readouterr().out
    shown = at_terminal(400, lambda: print_table(["name", ESCAPES], rows))
    for text in (piped, shown):
        assert all(sign == "\n" or sign.isprintable() for sign in text)
        assert "[red]x[/red]" in text
        assert text.count("\n") == 3


def test_the_width_is_that_of_the_terminal() -> None:
    code = "from craft_shared.terminal_tables import print_table\nprint_table(['a'], [['b ' * 50]])"
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 61))
    env = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    env |= {"TERM": "xterm"}
    command = [sys.executable, "-c", code]
    subprocess.run(command, stdin=theirs, stdout=theirs, env=env, check=True)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert max(map(len, shown.splitlines()[1:])) in (60, 61)
