"""Image files that ask for more than their pixels need, made by code: of each format, each kind.

`SOUND` are images like any other but for what lies beside their pixels, each with the plain image
that it shows. `EXCESSIVE` can be told by their headers. `SLOW` cannot: only time tells.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

_PNG = b"\x89PNG\r\n\x1a\n"


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def shown(side: int = 24) -> Image.Image:
    pixels = np.random.default_rng(5).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


# --- JPEG ---------------------------------------------------------------------------------------


def jpeg_with_scans(scans: int, side: int = 3000) -> bytes:
    """The last scan of a progressive image, over and over."""
    data = encoded(Image.new("RGB", (side, side), (9, 9, 9)), "JPEG", progressive=True)
    last = data.rfind(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + b"\xff\xd9"


def jpeg_with_segments(marker: int, body: bytes, count: int) -> bytes:
    data = encoded(shown(), "JPEG")
    segment = struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body
    return data[:2] + segment * count + data[2:]


# --- PNG ----------------------------------------------------------------------------------------


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with(*chunks: bytes) -> bytes:
    """After the header."""
    data = encoded(shown(), "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def png_of(width: int, height: int, *, mode: tuple[int, int] = (8, 2), bytes_a_row: int) -> bytes:
    """Of one grey, whose pixels compress a thousandfold."""
    rows = zlib.compressobj(9)
    row = b"\0" + b"\x7f" * bytes_a_row
    packed = b"".join(rows.compress(row * 100) for _ in range(height // 100)) + rows.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, *mode, 0, 0, 0))
    return _PNG + head + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def bomb(megabytes: int) -> bytes:
    return zlib.compress(b"A" * (megabytes << 20), 9)


# --- GIF ----------------------------------------------------------------------------------------


def gif_with_comment(size: int, at_once: int = 255) -> bytes:
    data = encoded(shown().quantize(16), "GIF")
    start = 13 + (3 << ((data[10] & 7) + 1) if data[10] & 0x80 else 0)
    block = bytes([at_once]) + b"x" * at_once
    comment = b"!\xfe" + block * (size // len(block)) + b"\0"
    return data[:start] + comment + data[start:]


def gif_with_frames(count: int) -> bytes:
    data = encoded(Image.new("L", (16, 16), 9).quantize(2), "GIF")
    frame = data[data.index(b",\0\0\0\0\x10\0\x10\0") : -1]
    return data[:-1] + frame * (count - 1) + b";"


# --- TIFF ---------------------------------------------------------------------------------------


def tiff(tags: list[tuple[int, int, int, int]], pixels: bytes = b"") -> bytes:
    """Of (tag, type, count, value), in a directory after the pixels, which begin at 8."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory


def tiff_of(side: int, *more: tuple[int, int, int, int]) -> bytes:
    """Grey of 8 bits, not compressed."""
    tags = [
        (256, 3, 1, side),
        (257, 3, 1, side),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (278, 3, 1, side),
        (279, 4, 1, side * side),
    ]
    return tiff([*tags, *more], b"\x55" * side * side)


def tiff_whose_decoder_complains(side: int = 400) -> bytes:
    """Of a fax's encoding; libtiff prints a line for every five rows."""
    tags = [
        (256, 3, 1, side),
        (257, 3, 1, side),
        (258, 3, 1, 1),
        (259, 3, 1, 4),
        (262, 3, 1, 0),
        (273, 4, 1, 8),
        (278, 3, 1, side),
        (279, 4, 1, side),
    ]
    return tiff(tags, b"\x0f\x03" * (side // 2))


def tiff_with_samples(samples: int) -> bytes:
    return tiff_of(8, (277, 3, 1, samples))


def tiff_with_tiles(count: int) -> bytes:
    offsets = struct.pack(f"<{count}I", *[8] * count)
    sizes = struct.pack(f"<{count}I", *[1] * count)
    tags = [
        (256, 4, 1, 1000),
        (257, 4, 1, count // 1000),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (322, 3, 1, 1),
        (323, 3, 1, 1),
        (324, 4, count, 8),
        (325, 4, count, 8 + len(offsets)),
    ]
    return tiff(tags, offsets + sizes)


# --- BMP ----------------------------------------------------------------------------------------


def bmp(side: int, runs: bytes) -> bytes:
    """Run-length coded, which Pillow reads in Python."""
    info = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(runs), 0, 0, 256, 0)
    palette = bytes(1024)
    start = 14 + len(info) + len(palette)
    return struct.pack("<2sIHHI", b"BM", start + len(runs), 0, 0, start) + info + palette + runs


def _png_text(kind: str, zipped: bool) -> tuple[bytes, bytes]:
    texts = PngImagePlugin.PngInfo()
    add: Any = texts.add_itxt if kind == "iTXt" else texts.add_text
    add("XML:com.adobe.xmp" if kind == "iTXt" else "a", "x" * 3_000_000, zip=zipped)
    return encoded(shown(), "PNG"), encoded(shown(), "PNG", pnginfo=texts)


def _both(file_format: str, **options: Any) -> tuple[bytes, bytes]:
    return encoded(shown(), file_format), encoded(shown(), file_format, **options)


# Each the plain image, and the same with much beside it.
SOUND: dict[str, Callable[[], tuple[bytes, bytes]]] = {
    "PNG, zTXt": lambda: _png_text("zTXt", zipped=True),
    "PNG, iTXt": lambda: _png_text("iTXt", zipped=True),
    "PNG, long tEXt": lambda: _png_text("tEXt", zipped=False),
    "PNG, zTXt bomb": lambda: (
        encoded(shown(), "PNG"),
        png_with(chunk(b"zTXt", b"k\0\0" + bomb(100))),
    ),
    "PNG, iCCP bomb": lambda: (
        encoded(shown(), "PNG"),
        png_with(chunk(b"iCCP", b"k\0\0" + bomb(100))),
    ),
    "PNG, 20,000 texts": lambda: (
        encoded(shown(), "PNG"),
        png_with(*(chunk(b"tEXt", b"k%d\0" % i + b"A" * 9000) for i in range(20_000))),
    ),
    "PNG, profile": lambda: _both("PNG", icc_profile=bytes(2_000_000)),
    "PNG, damaged text": lambda: (
        encoded(shown(), "PNG"),
        png_with(struct.pack(">I", 3) + b"tEXt" + b"a\0b" + b"????"),
    ),
    "JPEG, profile": lambda: _both("JPEG", icc_profile=bytes(2_000_000)),
    "JPEG, comments": lambda: (
        encoded(shown(), "JPEG"),
        jpeg_with_segments(0xFE, b"x" * 60_000, 200),
    ),
    "JPEG, EXIF over and over": lambda: (
        encoded(shown(), "JPEG"),
        jpeg_with_segments(0xE1, b"Exif\0\0" + b"x" * 9000, 1500),
    ),
    "GIF, comment": lambda: (
        encoded(shown().quantize(16), "GIF"),
        gif_with_comment(16 << 20),
    ),
    "GIF, frames": lambda: (gif_with_frames(1), gif_with_frames(300_000)),
    "WebP, profile": lambda: _both("WEBP", icc_profile=bytes(2_000_000)),
    "WebP, EXIF": lambda: _both("WEBP", exif=b"Exif\0\0" + bytes(3_000_000)),
    "TIFF, profile": lambda: _both("TIFF", icc_profile=bytes(2_000_000)),
    "AVIF, profile": lambda: _both("AVIF", icc_profile=bytes(2_000_000)),
}

# Each can be told by what stands before its pixels.
EXCESSIVE: dict[str, Callable[[], bytes]] = {
    "JPEG, scans": lambda: jpeg_with_scans(9000),
    "JPEG, segments": lambda: jpeg_with_segments(0xFE, b"", 4_000_000),
    "JPEG, fill bytes for segments": lambda: jpeg_with_segments(0xE0, b"JFIF\0", 1_000_000),
    "PNG, chunks of data": lambda: png_with(chunk(b"IDAT", b"") * 1_500_000),
    "TIFF, tiles": lambda: tiff_with_tiles(2_000_000),
    "TIFF, tags": lambda: tiff_of(8, *((40_000 + i, 4, 1, 0) for i in range(20_000))),
    "TIFF, tags over each other": lambda: tiff_of(
        500, *((40_000 + i, 7, 250_000, 0) for i in range(1000))
    ),
    "TIFF, tags of EXIF over each other": lambda: tiff_of(500, (34665, 4, 1, 8)).replace(
        b"\x55" * 24_002,
        struct.pack("<H", 2000) + struct.pack("<HHII", 40_000, 7, 250_000, 0) * 2000,
        1,
    ),
}


# Nothing that stands before its pixels tells.
SLOW: dict[str, Callable[[], bytes]] = {
    "BMP, jumps to where it is": lambda: bmp(100, b"\0\2\0\0" * 4_000_000),
    "GIF, a comment byte by byte": lambda: gif_with_comment(32 << 20, at_once=1),
}
