"""How `craft` ends: its exit codes, and which failure ends it with which.

It knows failures by their types; it does not know how they are told.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a script may rely on (docs/command-line.md)."""

    OK = 0
    FAILED = 1
    USAGE = 2
    BUDGET = 3
    INTERRUPTED = 130


def exit_code_of(error: Exception) -> ExitCode:
    """The exit code for a failure that is told in one message."""
    from craft_client.cli.configuration import ConfigurationError
    from craft_client.exceptions import BudgetExhausted, BudgetTooSmall

    if isinstance(error, BudgetExhausted | BudgetTooSmall):
        return ExitCode.BUDGET
    return ExitCode.USAGE if isinstance(error, ConfigurationError) else ExitCode.FAILED
