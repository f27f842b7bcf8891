"""Processes that decode, started when they are needed, ended when an image is too much for one.

Each image is work in steps; between two of them its caller may let it wait, or give it up.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from craft_server.decoding.pixels import ImageError
from craft_server.decoding.process import PIXELS, SIZE, VIEW, Bounds, receive, send
from craft_shared.image_view import View

TURN_SECONDS = 0.1
# A process that takes so many times its seconds of a core waits for something that never comes.
_MOST_TIMES_SECONDS = 4
_MODULE = "craft_server.decoding.process"
# Nothing of the server's environment, which holds secrets; one thread for each library.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}

Pixels = NDArray[np.uint8]


class DecoderDiedError(Exception):
    """A process ended with an image."""


class OutOfTimeError(DecoderDiedError):
    """It ended because the image took too long."""


class Decoders:
    """Processes that decode images for one model; thread-safe.

    `idle` processes stay while they have nothing to do; `bounds` override those of `Bounds`.
    """

    def __init__(self, view: View, *, idle: int, **bounds: Any) -> None:
        self._bounds: Callable[[int], Bounds] = partial(Bounds, view, **bounds)
        self._most_idle = idle
        self._idle: list[_Process] = []

    def decode(
        self, data: bytes, *, max_pixels: int, wanted: bytes = VIEW
    ) -> Generator[None, None, Pixels | ImageError]:
        """Pixels, uint8 [height, width, 3], or what is wrong with the file.

        Yields whenever its turn is over; closing it ends the work. `wanted` is `VIEW`, what the
        model sees, or `THUMBNAIL`.

        Raises:
            OSError: no process can be started.
        """
        # A process that dies for no reason of the image's, as by the hand of an operator or for
        # lack of the machine's memory, may not be counted against it.
        for _ in range(2):
            process = self._take(max_pixels)
            try:
                found = yield from process.decode(data, wanted)
            except OutOfTimeError:
                process.kill()
                return ImageError(
                    "it takes far longer to decode than an image of its size should",
                    "Save it again as a plain JPEG or PNG, or leave it out.",
                )
            except DecoderDiedError:
                process.kill()
            except BaseException:
                process.kill()
                raise
            else:
                self._give_back(process)
                return found
        return ImageError(
            "its decoder fails on it", "Open it in a viewer and save it again, or leave it out."
        )

    def close(self) -> None:
        """Ends the processes; those that are at work end with their image's work."""
        self._most_idle = 0
        while self._idle:
            self._idle.pop().kill()

    def _take(self, max_pixels: int) -> _Process:
        with suppress(IndexError):
            while True:
                process = self._idle.pop()
                if process.serves(max_pixels):
                    return process
                process.kill()
        return _Process(self._bounds(max_pixels))

    def _give_back(self, process: _Process) -> None:
        if len(self._idle) < self._most_idle:
            self._idle.append(process)
        else:
            process.kill()


class _Process:
    """One process."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._ready = False
        ours, theirs = socket.socketpair()
        self._line = ours
        with theirs:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - our own module
                    [sys.executable, "-m", _MODULE, bounds.to_json()],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    env=_ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                    # Ctrl+C is not for it.
                    process_group=0,
                )
            except BaseException:
                ours.close()
                raise

    def serves(self, max_pixels: int) -> bool:
        return self._bounds.max_pixels == max_pixels and self._process.poll() is None

    def decode(self, data: bytes, wanted: bytes) -> Generator[None, None, Pixels | ImageError]:
        turns, bounds = 0, self._bounds
        most = _MOST_TIMES_SECONDS * bounds.seconds_for(bounds.max_pixels)
        # What is stopped before it is ready would not end with this process.
        while not self._ready:
            if self._answers():
                self._ready = receive(self._line) is not None
                if not self._ready:
                    raise OSError(errno.ECHILD, "a decoder did not start")
            else:
                yield
        try:
            send(self._line, wanted, data)
            while not self._answers():
                turns += 1
                if turns * TURN_SECONDS > most:
                    raise OutOfTimeError
                self._process.send_signal(signal.SIGSTOP)
                yield
                self._process.send_signal(signal.SIGCONT)
            answer = receive(self._line)
        except OSError:
            answer = None
        if answer is None:
            out_of_time = self._process.wait() == -signal.SIGPROF
            raise OutOfTimeError if out_of_time else DecoderDiedError
        kind, body = answer
        if kind == PIXELS:
            height, width = SIZE.unpack_from(body)
            return np.frombuffer(body, np.uint8, offset=SIZE.size).reshape(height, width, 3)
        return ImageError(*json.loads(body))

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._line.close()

    def _answers(self) -> bool:
        """Whether an answer begins, or the line ends, within a turn."""
        self._line.settimeout(TURN_SECONDS)
        try:
            self._line.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return False
        finally:
            self._line.settimeout(None)
        return True
