"""What commands print: documents for scripts, tables for people, failures in one line."""

from __future__ import annotations

from enum import IntEnum
from typing import NoReturn

import typer

from craft_shared.printing import print_json as print_json
from craft_shared.printing import print_lines as print_lines
from craft_shared.terminal_tables import print_table as print_table

_quiet = False


class ExitCode(IntEnum):
    """What a script may rely on (docs/command-line.md).

    A serving process that is told to stop, by SIGTERM or Ctrl-C, is OK.
    """

    OK = 0
    FAILED = 1
    USAGE = 2
    INTERRUPTED = 130


def speak(*, quiet: bool) -> None:
    """Sets whether notes are printed."""
    global _quiet
    _quiet = quiet


def note(message: str) -> None:
    """Prints what is no result, unless the program is to be quiet."""
    if not _quiet:
        print_lines([message])


def warn(message: str) -> None:
    """Prints a warning on stderr, unless the program is to be quiet."""
    if not _quiet:
        print_lines([f"Warning: {message}"], err=True)


def fail(message: str, code: ExitCode = ExitCode.FAILED) -> NoReturn:
    """Ends the command with one line on stderr."""
    print_lines([f"Error: {' '.join(message.split())}"], err=True)
    raise typer.Exit(code)


def misuse(message: str) -> NoReturn:
    """Ends the command with one line on stderr that tells what is wrong with how it was called."""
    fail(message, ExitCode.USAGE)
