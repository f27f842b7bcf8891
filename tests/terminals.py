"""Commands at a terminal: in this process, with stdout a pseudo-terminal of so many columns."""

from __future__ import annotations

import os
import pty
import re
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest


def at_terminal(columns: int, command: Callable[[], object]) -> str:
    """What a command prints on a terminal, without colours."""
    ours, theirs = pty.openpty()
    parts: list[bytes] = []
    reader = threading.Thread(target=_read, args=(ours, parts))
    reader.start()
    with pytest.MonkeyPatch.context() as patch, os.fdopen(theirs, "w", encoding="utf-8") as stdout:
        patch.setattr(sys, "stdout", stdout)
        patch.setenv("COLUMNS", str(columns))
        patch.setenv("TERM", "xterm")
        with suppress(SystemExit):
            command()
    reader.join(30)
    os.close(ours)
    text = b"".join(parts).decode().replace("\r\n", "\n")
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _read(terminal: int, parts: list[bytes]) -> None:
    with suppress(OSError):  # the other end is closed
        while part := os.read(terminal, 65536):
            parts.append(part)
