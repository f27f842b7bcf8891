"""What of an image file a decoder is given: pixels and what they mean, not what else lies beside.

Comments, profiles, thumbnails, previews and texts may be of any size and number; no decoder needs
them, and some read them all first. Files that ask for far more than their pixels need are refused.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

# A file that cameras and programs write has a tenth of these, or less.
MOST_PARTS = 100_000
MOST_SEGMENTS = 2_000
MOST_SCANS = 100
MOST_TAGS = 2_000
MOST_TILES = 100_000
MOST_TILE_SIDE = 2**14
# Where the orientation may stand. Cameras write a few thousand bytes.
MOST_EXIF_BYTES = 2**20

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_NEEDED = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
# Texts in which an orientation may stand.
_PNG_TEXTS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
_JPEG_ENDS_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_TAG_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_TAG_BYTES |= {16: 8, 17: 8, 18: 8}
_TILES = {273, 279, 324, 325}
_TILE_SIDES = {322, 323}
_SUB_DIRECTORIES = {34665, 34853, 40965}


class TooManyPartsError(ValueError):
    """A file asks for far more than its pixels need; the message's subject is "it"."""


def without_extras(data: bytes) -> bytes:
    """The file as a decoder should have it; the same pixels, upright the same way.

    Raises:
        TooManyPartsError: no decoder should have it.
    """
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    if data.startswith(_PNG):
        return _png(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _gif(data)
    if data.startswith((b"II", b"MM")):
        check_tags(data)
    return data


def check_tags(data: bytes) -> None:
    """Checks a TIFF file, or EXIF, which has that form.

    Raises:
        TooManyPartsError: its directory has too many tags, tiles or strips, or tags that lie over
            each other.
    """
    try:
        _check_directories(data)
    except (struct.error, IndexError):
        return


# --- JPEG ---------------------------------------------------------------------------------------


def _jpeg(data: bytes) -> bytes:
    kept: list[bytes] = []
    begin, once = 0, set()
    position = 2
    for count, (marker, start, end) in enumerate(_segments(data)):
        if count > MOST_SEGMENTS:
            raise TooManyPartsError(f"it has over {MOST_SEGMENTS} parts before its pixels")
        kind = data[start + 4 : start + 33].split(b"\0")[0] if marker == 0xE1 else b""
        # JFIF, Adobe's colours and the orientation: each once.
        needed = marker in (0xE0, 0xEE, 0xE1) and (marker, kind) not in once
        if marker == 0xE1:
            needed = needed and kind in (b"Exif", b"http://ns.adobe.com/xap/1.0/")
        once.add((marker, kind))
        if not needed and (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(data[begin:start])
            begin = end
        position = end
    if data.count(b"\xff\xda", position) > MOST_SCANS and _scans(data, position) > MOST_SCANS:
        raise TooManyPartsError(f"it has over {MOST_SCANS} scans")
    return b"".join([*kept, data[begin:]]) if kept else data


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment before the first scan."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8:
            position += 1 if marker == 0xFF else 2
            continue
        if marker in (0xDA, 0xD9, 0x00):
            return
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
        if end > len(data):
            return
        yield marker, position, end
        position = end


def _scans(data: bytes, position: int) -> int:
    """How many there are until the end, or one too many."""
    scans = 0
    while scans <= MOST_SCANS and (found := _JPEG_ENDS_SCAN.search(data, position)):
        marker = data[found.start() + 1]
        if marker == 0xD9:
            break
        scans += marker == 0xDA
        position = found.end()
        if marker != 0x01:
            position += int.from_bytes(data[position : position + 2])
    return scans


# --- PNG ----------------------------------------------------------------------------------------


def _png(data: bytes) -> bytes:
    kept = [data[: len(_PNG)]]
    begin = position = len(_PNG)
    once: set[bytes] = set()
    count = 0
    while position + 12 <= len(data):
        count += 1
        if count > MOST_PARTS:
            raise TooManyPartsError(f"it has over {MOST_PARTS} parts")
        kind = data[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(data[position : position + 4])
        if end > len(data):
            break
        if kind not in _PNG_NEEDED and not _tells_orientation(
            kind, data[position + 8 : min(end - 4, position + 8 + MOST_EXIF_BYTES + 1)], once
        ):
            kept.append(data[begin:position])
            begin = end
        position = end
        if kind == b"IEND":
            break
    kept.append(data[begin:])
    return b"".join(kept)


def _tells_orientation(kind: bytes, body: bytes, once: set[bytes]) -> bool:
    if kind == b"eXIf":
        name = kind
    else:
        name = next((text for text in _PNG_TEXTS if body.startswith(text)), b"")
        if kind not in (b"tEXt", b"zTXt", b"iTXt") or not name:
            return False
    first = name not in once
    once.add(name)
    return first and len(body) <= MOST_EXIF_BYTES and _unpacks(kind, body[len(name) :])


def _unpacks(kind: bytes, body: bytes) -> bool:
    """Whether a text is not too long once it is unpacked."""
    if kind == b"iTXt" and body[:1] == b"\1":
        body = body[2:].split(b"\0", 2)[-1]
    elif kind == b"zTXt":
        body = body[1:]
    else:
        return True
    unpacking = zlib.decompressobj()
    try:
        unpacking.decompress(body, MOST_EXIF_BYTES)
    except zlib.error:
        return False
    return not unpacking.unconsumed_tail


# --- GIF ----------------------------------------------------------------------------------------


def _gif(data: bytes) -> bytes:
    """Without comments and the like before the first frame, after which nothing is read."""
    flags = data[10] if len(data) > 10 else 0
    position = begin = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    kept = [data[:begin]]
    while data[position : position + 1] == b"!":
        end = position + 2
        while end < len(data) and data[end]:
            end += 1 + data[end]
        end += 1
        # What is transparent.
        if data[position + 1 : position + 2] != b"\xf9":
            kept.append(data[begin:position])
            begin = end
        position = end
    kept.append(data[begin:])
    return b"".join(kept)


# --- TIFF and EXIF ------------------------------------------------------------------------------


def _check_directories(data: bytes) -> None:
    order = "<" if data.startswith(b"II") else ">"
    (version,) = struct.unpack_from(order + "H", data, 2)
    big = version == 43
    (first,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    waiting, seen, held = [first], set(), 0
    while waiting:
        directory = waiting.pop()
        if directory in seen:
            continue
        seen.add(directory)
        try:
            for tag, size, value, where in _tags(data, directory, order, big):
                held += min(size, max(0, len(data) - where))
                if tag in _TILES and size > 8 * MOST_TILES:
                    raise TooManyPartsError(f"it has over {MOST_TILES} tiles or strips")
                if tag in _TILE_SIDES and value > MOST_TILE_SIDE:
                    raise TooManyPartsError(f"its tiles are over {MOST_TILE_SIDE} pixels wide")
                if held > 4 * len(data):
                    raise TooManyPartsError("its tags lie over each other")
                if tag in _SUB_DIRECTORIES:
                    waiting.append(value)
        except (struct.error, IndexError):
            continue


def _tags(data: bytes, position: int, order: str, big: bool) -> Iterator[tuple[int, int, int, int]]:
    """Of each tag its number, how many bytes it has, its value or the offset, where it lies."""
    head, entry = (order + "Q", order + "HHQQ") if big else (order + "H", order + "HHII")
    (count,) = struct.unpack_from(head, data, position)
    if count > MOST_TAGS:
        raise TooManyPartsError(f"its directory has over {MOST_TAGS} tags")
    position += struct.calcsize(head)
    for _ in range(count):
        tag, kind, values, value = struct.unpack_from(entry, data, position)
        size = values * _TAG_BYTES.get(kind, 0)
        inline = size <= (8 if big else 4)
        yield tag, size, value, position if inline else value
        position += struct.calcsize(entry)
