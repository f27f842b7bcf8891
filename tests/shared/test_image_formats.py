from __future__ import annotations

import io
import struct

import pytest
from PIL import Image

from craft_shared.image_formats import (
    FORMATS,
    IN_WORDS,
    OTHER_SUFFIXES,
    SUFFIXES,
    SUFFIXES_OF,
    other_format,
)


def test_suffixes_are_those_that_pillow_gives_the_formats() -> None:
    every = Image.registered_extensions()
    for file_format in FORMATS:
        known = {suffix for suffix, kind in every.items() if kind == file_format}
        assert set(SUFFIXES_OF[file_format]) == known


def test_no_suffix_is_read_and_not_read() -> None:
    assert SUFFIXES.isdisjoint(OTHER_SUFFIXES)
    assert tuple(IN_WORDS.upper().split(", ")) == FORMATS


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (struct.pack(">I4s4s", 24, b"ftyp", b"heic") + b"\0" * 12, "HEIC"),
        (struct.pack(">I4s4s", 24, b"ftyp", b"mif1") + b"\0" * 12, "HEIC"),
        (b"\xff\x0a\0\0", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"<svg/>", None),
        (b"", None),
    ],
)
def test_formats_that_are_not_read_are_known_by_their_first_bytes(
    data: bytes, name: str | None
) -> None:
    assert other_format(data) == name


def test_what_pillow_writes_as_jpeg_2000_is_known_as_that() -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG2000")
    assert other_format(file.getvalue()) == "JPEG 2000"
