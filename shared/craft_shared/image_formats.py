"""Which image files a server reads: formats, names of files, and what to do with the others.

The one list that server and client use.
"""

from __future__ import annotations

# Pillow's names of the formats, and the suffixes of their files.
SUFFIXES_OF = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
}
FORMATS = tuple(SUFFIXES_OF)
SUFFIXES = frozenset(suffix for suffixes in SUFFIXES_OF.values() for suffix in suffixes)
IN_WORDS = "JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF"

# A server's bounds on one image, unless its operator sets others.
MOST_BYTES = 20 * 2**20
MOST_PIXELS = 50_000_000

# Images are resized by their shorter side, which would make a sliver enormous.
MAX_ASPECT = 100

# Images of other formats that people have, by their suffixes.
OTHER_SUFFIXES = {
    ".heic": "HEIC",
    ".heics": "HEIC",
    ".heif": "HEIC",
    ".heifs": "HEIC",
    ".hif": "HEIC",
    ".jxl": "JPEG XL",
    ".jp2": "JPEG 2000",
    ".j2k": "JPEG 2000",
    ".jpx": "JPEG 2000",
}
CONVERT = (
    "Convert it to JPEG or PNG, for example with ImageMagick: magick photo.heic photo.jpg; or "
    "leave it out."
)

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def other_format(data: bytes) -> str | None:
    """The name of an image's format that is not read, by its first bytes; None if unknown."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS:
        return "HEIC"
    if data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "JPEG XL"
    if data.startswith((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")):
        return "JPEG 2000"
    return None
