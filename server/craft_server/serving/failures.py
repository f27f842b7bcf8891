"""How a process that cannot serve ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from craft_shared.printing import print_lines


@contextmanager
def told(*kinds: type[Exception]) -> Iterator[None]:
    """Ends the process with one line on stderr and exit code 1 where one of these is raised."""
    try:
        yield
    except kinds as error:
        print_lines([f"Error: {' '.join(str(error).split())}"], err=True)
        raise SystemExit(1) from error
