"""Decoders are processes: killed ones are replaced, hostile images are cut off, nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from craft_server.decoding.decoders import Decoders
from craft_server.decoding.pixels import ImageError, decode
from craft_shared.image_view import View
from hostile_images import (
    SLOW,
    encoded,
    shown,
    tiff_whose_decoder_complains,
    tiff_with_samples,
)

VIEW = View(32, 32)
MAX_PIXELS = 10**7
DEADLINE = 20.0


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    made = Decoders(VIEW, idle=1, seconds=0.3)
    yield made
    made.close()


def decoded(decoders: Decoders, data: bytes, max_pixels: int = MAX_PIXELS) -> Any:
    return end_of(decoders.decode(data, max_pixels=max_pixels))


def end_of(steps: Any) -> Any:
    """What work in steps returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def seen(data: bytes) -> Any:
    return np.asarray(VIEW.of(decode(data, max_pixels=MAX_PIXELS)))


def only(decoders: Decoders) -> int:
    """The id of the one idle process."""
    (process,) = decoders._idle
    return process._process.pid


def ended(pid: int) -> None:
    """Waits until there is no such process."""
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            os.kill(pid, 0)
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (ProcessLookupError, FileNotFoundError):
            return
        if stat.rpartition(")")[2].split()[0] == "Z":
            return
        assert time.monotonic() < deadline, f"process {pid} goes on"
        time.sleep(0.01)


def memory(pid: int) -> int:
    """The most that a process ever held, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])


def test_a_process_gives_the_pixels_that_one_would_have_here(
    decoders: Decoders, picture: Callable[..., bytes]
) -> None:
    files = [picture(seed, size=(50 + seed, 40)) for seed in range(4)]
    for file in files:
        assert np.array_equal(decoded(decoders, file), seen(file))


def test_one_process_decodes_one_image_after_the_other(
    decoders: Decoders, picture: Callable[..., bytes]
) -> None:
    pids = set()
    for seed in range(5):
        decoded(decoders, picture(seed))
        assert isinstance(decoded(decoders, b"no picture"), ImageError)
        pids.add(only(decoders))
    assert len(pids) == 1


def test_a_process_that_was_killed_is_replaced(
    decoders: Decoders, picture: Callable[..., bytes]
) -> None:
    file = picture(1)
    decoded(decoders, file)
    os.kill(only(decoders), signal.SIGKILL)
    assert np.array_equal(decoded(decoders, file), seen(file))


def test_a_process_that_dies_with_an_image_is_not_held_against_it(
    decoders: Decoders, picture: Callable[..., bytes]
) -> None:
    file = picture(1)
    decoded(decoders, file)
    first = only(decoders)
    os.kill(first, signal.SIGSTOP)
    steps = decoders.decode(file, max_pixels=MAX_PIXELS)
    next(steps)
    os.kill(first, signal.SIGKILL)
    assert np.array_equal(end_of(steps), seen(file))
    assert only(decoders) != first


@pytest.mark.parametrize("name", SLOW)
def test_an_image_that_would_decode_for_ever_is_refused_in_its_time(
    decoders: Decoders, picture: Callable[..., bytes], name: str
) -> None:
    """They were decoded for as long as it took, and could not be stopped."""
    data = SLOW[name]()
    before = os.times()
    result = decoded(decoders, data)
    assert isinstance(result, ImageError)
    assert result.message == "it takes far longer to decode than an image of its size should"
    assert "plain JPEG" in result.remedy
    after = os.times()
    assert after.children_user - before.children_user < 3
    file = picture(1)
    assert np.array_equal(decoded(decoders, file), seen(file))


def test_work_that_is_given_up_ends_its_process() -> None:
    decoders, before = Decoders(VIEW, idle=1), _children()
    steps = decoders.decode(next(iter(SLOW.values()))(), max_pixels=MAX_PIXELS)
    next(steps)
    started = [pid for pid in _children() if pid not in before]
    assert started
    steps.close()
    for pid in started:
        ended(pid)
    assert decoders._idle == []


@pytest.mark.parametrize(("beside", "fits"), [(0, True), (-150_000_000, False)])
def test_memory_is_bounded(picture: Callable[..., bytes], beside: int, fits: bool) -> None:
    decoders = Decoders(VIEW, idle=1, bytes_beside=beside)
    large = encoded(Image.new("RGB", (3000, 3000)), "PNG")
    file = picture(1)
    with closing(decoders):
        result = decoded(decoders, large, 9_000_000)
        if not fits:
            assert result.message.startswith("it takes more memory to decode")
        assert isinstance(result, np.ndarray) == fits
        assert np.array_equal(decoded(decoders, file, 9_000_000), seen(file))


def test_wide_grey_takes_little_more_memory_than_colour(decoders: Decoders) -> None:
    """A TIFF of 32 bits took 24 bytes a pixel."""
    side = 3000
    data = encoded(Image.new("F", (side, side), 0.5), "TIFF", compression="tiff_adobe_deflate")
    decoded(decoders, encoded(Image.fromarray(np.zeros((9, 9), np.float32)), "TIFF"))
    before = memory(only(decoders))
    assert isinstance(decoded(decoders, data), np.ndarray)
    assert memory(only(decoders)) - before < 14 * side * side + 2**26


def test_a_process_knows_nothing_of_the_servers_environment(
    decoders: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRAFT_DATABASE_URL", "postgresql://someone:secret@somewhere")
    decoded(decoders, encoded(shown(), "PNG"))
    assert b"secret" not in Path(f"/proc/{only(decoders)}/environ").read_bytes()


def test_a_process_imports_no_more_than_it_needs(decoders: Decoders) -> None:
    decoded(decoders, encoded(shown(), "PNG"))
    maps = Path(f"/proc/{only(decoders)}/maps").read_text()
    assert "PIL" in maps
    assert "torch" not in maps
    assert "numpy" not in maps


STOPPED_MIDWAY = """
import sys
from craft_server.decoding.decoders import Decoders
from craft_shared.image_view import View
from hostile_images import SLOW
steps = Decoders(View(32, 32), idle=1).decode(next(iter(SLOW.values()))(), max_pixels=10**7)
next(steps)
print("waits", flush=True)
sys.stdin.read()
"""


def test_a_process_that_waits_for_its_turn_ends_with_a_server_that_is_killed() -> None:
    path = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED_MIDWAY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": path},
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"waits\n"
        (decoder,) = _children(server.pid)
        server.kill()
    ended(decoder)


def test_what_a_closed_one_had_has_ended(picture: Callable[..., bytes]) -> None:
    decoders = Decoders(VIEW, idle=1)
    decoded(decoders, picture(1))
    pid = only(decoders)
    decoders.close()
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        raise AssertionError("it goes on")


def _children(of: int | None = None) -> list[int]:
    """The decoders that a process has started."""
    parent = of or os.getpid()
    found = []
    for task in Path(f"/proc/{parent}/task").iterdir():
        found += [int(pid) for pid in (task / "children").read_text().split()]
    return [
        pid
        for pid in found
        if b"craft_server.decoding" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def test_what_libraries_print_of_an_image_stays_out_of_the_log(decoders: Decoders) -> None:
    # A pipe: a decoder may write to no file, such as pytest's own capture has.
    reading, writing = os.pipe()
    kept = os.dup(2)
    os.dup2(writing, 2)
    os.close(writing)
    try:
        decoded(decoders, tiff_whose_decoder_complains())
        decoded(decoders, tiff_with_samples(65535))
        decoders.close()
    finally:
        os.dup2(kept, 2)
        os.close(kept)

    with os.fdopen(reading, "rb") as said:
        assert said.read() == b""
