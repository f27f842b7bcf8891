from __future__ import annotations

import codecs
import csv
import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craft_shared.text_files import NotTextError, line_of, lines_of, read_text, rows_of, text_of

# Characters at which str.splitlines cuts, and no editor.
NO_LINE_ENDS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"

NAMES = st.text(
    st.one_of(
        st.characters(exclude_characters="\0", exclude_categories=["Cs"]),
        st.sampled_from(f'\r\n,;"\ufeff{NO_LINE_ENDS}'),
        st.integers(0xDC80, 0xDCFF).map(chr),
    )
    # With bytes that are not UTF-8, as Python has file names.
).map(lambda name: os.fsdecode(name.encode(errors="surrogateescape")))


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_text_is_the_same_whatever_its_mark_encoding_and_line_ends(
    tmp_path: Path, mark: bytes, encoding: str, end: str
) -> None:
    file = tmp_path / "names.txt"
    file.write_bytes(mark + end.join(["käfer", "", "owl "]).encode(encoding))
    assert read_text(file) == "käfer\n\nowl "
    assert lines_of(read_text(file)) == [(1, "käfer"), (3, "owl")]


def test_lines_end_where_editors_end_them() -> None:
    inner = "x".join(NO_LINE_ENDS)
    assert lines_of(text_of(f"a{inner}b\r\nc".encode())) == [(1, f"a{inner}b"), (2, "c")]


@pytest.mark.parametrize("data", ["café".encode("latin-1"), "cat".encode("utf-16-le")])
def test_what_is_no_utf_8_is_named_with_the_remedy(data: bytes) -> None:
    with pytest.raises(NotTextError, match=r"UTF-8|UTF-16.*save it as UTF-8"):
        text_of(data)


@given(st.lists(st.lists(NAMES, min_size=2, max_size=4), max_size=4), st.booleans())
def test_rows_are_read_as_they_were_written_whatever_their_cells_hold(
    rows: list[list[str]], marked: bool
) -> None:
    data = "".join(map(line_of, rows)).encode(errors="surrogateescape")
    # A file that begins with such a character cannot be told from one with a mark.
    if rows and rows[0][0].startswith("\ufeff"):
        return
    assert rows_of(codecs.BOM_UTF8 * marked + data) == rows


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1+1", "-1+1", "@SUM(1)", "\tx", "\rx", " =1", "\uff1d1", "-x", "=", "'=1", "-"],
)
def test_no_cell_is_a_formula_and_each_is_read_as_it_was(text: str) -> None:
    line = line_of([text, "b"])
    ((cell, _),) = csv.reader(io.StringIO(line, newline=""))
    assert cell.startswith("'")
    assert rows_of(line.encode()) == [[text, "b"]]


def test_numbers_in_cells_stay_numbers() -> None:
    cells = [-1, -0.5, "-1.25", "+3", "-1e-7", 7, "12", None, "", True]
    assert line_of(cells) == "-1,-0.5,-1.25,+3,-1e-7,7,12,,,True\n"


def test_no_module_cuts_texts_where_no_editor_does() -> None:
    root = Path(__file__).parents[2]
    sources = [
        file for part in ("client", "server", "shared") for file in (root / part).rglob("*.py")
    ]
    assert [str(file) for file in sources if ".splitlines(" in file.read_text()] == []
    assert len(sources) > 200
