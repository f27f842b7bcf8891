"""A process that decodes one image after the other, within bounds of time and memory.

It reads files from the socket that is its standard input, and answers each with its pixels, those
that a model sees or a thumbnail's, or with what is wrong with it, until the socket ends. Past its
time for an image the kernel ends it. It imports no more than decoding needs, so that it starts in a
moment.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import resource
import signal
import socket
import struct
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from craft_server.decoding.pixels import ImageError, decode
from craft_shared.image_view import View

# Seconds of a core for an image: several times what the slowest honest ones of any format take.
SECONDS = 2.0
SECONDS_PER_MEGAPIXEL = 0.3
# What a decoder holds: an image that is turned, or converted, is there twice, and some libraries
# keep copies of their own (lossless WebP 17 bytes a pixel).
BYTES_PER_PIXEL = 20
BYTES_BESIDE = 192 * 2**20

THUMBNAIL_SIDE = 320

_PR_SET_PDEATHSIG = 1

HEAD = struct.Struct(">cI")
VIEW, THUMBNAIL = b"V", b"T"
READY, PIXELS, REFUSAL = b"R", b"P", b"E"
SIZE = struct.Struct(">II")


@dataclass(frozen=True)
class Bounds:
    """What a process is given when it starts."""

    view: View  # of the model
    max_pixels: int  # of an image
    seconds: float = SECONDS  # of a core, for an image without its pixels
    bytes_beside: int = BYTES_BESIDE  # that it may hold beside those for an image's pixels

    def to_json(self) -> str:
        """For `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Bounds:
        """What `to_json` wrote."""
        document: dict[str, Any] = json.loads(text)
        return cls(**document | {"view": View(**document["view"])})

    def seconds_for(self, pixels: int) -> float:
        """Of a core, for an image of so many pixels."""
        return self.seconds + SECONDS_PER_MEGAPIXEL * pixels / 1e6


def main(bounds: Bounds, line: socket.socket) -> None:
    """Answers until the line ends."""
    _end_with_the_parent()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    _silence_libraries()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Nothing that a decoder does writes a file.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    _bound_memory(bounds.bytes_beside + BYTES_PER_PIXEL * bounds.max_pixels)
    send(line, READY, b"")
    while (asked := receive(line)) is not None:
        signal.setitimer(signal.ITIMER_PROF, bounds.seconds)
        kind, answer = _answer(bounds, *asked)
        signal.setitimer(signal.ITIMER_PROF, 0)
        send(line, kind, answer)


def send(line: socket.socket, kind: bytes, body: bytes) -> None:
    """Sends a message."""
    line.sendall(HEAD.pack(kind, len(body)))
    line.sendall(body)


def receive(line: socket.socket) -> tuple[bytes, bytearray] | None:
    """The next message's kind and body; None at the line's end."""
    head = _read(line, HEAD.size)
    if head is None:
        return None
    kind, size = HEAD.unpack(head)
    body = _read(line, size)
    return None if body is None else (kind, body)


def _read(line: socket.socket, size: int) -> bytearray | None:
    body = bytearray(size)
    rest = memoryview(body)
    while rest:
        count = line.recv_into(rest)
        if not count:
            return None
        rest = rest[count:]
    return body


def _answer(bounds: Bounds, wanted: bytes, data: bytearray) -> tuple[bytes, bytes]:
    def on_size(pixels: int) -> None:
        signal.setitimer(signal.ITIMER_PROF, bounds.seconds_for(pixels))

    try:
        image = decode(bytes(data), max_pixels=bounds.max_pixels, on_size=on_size)
        if wanted == THUMBNAIL:
            image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        else:
            image = bounds.view.of(image)
        return PIXELS, SIZE.pack(image.height, image.width) + image.tobytes()
    except ImageError as error:
        refusal = error
    except MemoryError:
        refusal = ImageError(
            "it takes more memory to decode than an image of its size may",
            "Save it again as a plain JPEG or PNG, or leave it out.",
        )
    return REFUSAL, json.dumps([refusal.message, refusal.remedy]).encode()


def _silence_libraries() -> None:
    """What they say of a client's file would fill the server's log; Python's own words stay."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)  # noqa: TID251 - what it is is set here
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _end_with_the_parent() -> None:
    """Lets the kernel end this process even while it is stopped, and would not see the line end."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _bound_memory(more: int) -> None:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return  # another system's kernel, which does not keep to this bound either
    pages = int(statm.read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main(Bounds.from_json(sys.argv[1]), socket.socket(fileno=0))
