"""How `craft-server` ends: its exit codes."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a script may rely on (docs/command-line.md).

    A serving process that is told to stop, by SIGTERM or Ctrl-C, is OK.
    """

    OK = 0
    FAILED = 1
    USAGE = 2
    INTERRUPTED = 130
