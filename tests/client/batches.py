"""`craft predict --out` without its command line, as tests of it run it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from craft_client.remote import RemoteAdapter
from craft_client.results import BatchProgress, Results, classify_files, restore

CLASSES = ["big cat", "dog", "owl"]


def classify(
    remote: RemoteAdapter, files: Sequence[Path], out: Path, *, stop_after: int = 99
) -> BatchProgress:
    """Two classes a picture; killed after so many calls were answered."""
    calls = 0

    def on_progress(_: BatchProgress) -> None:
        nonlocal calls
        if calls == stop_after:
            raise KeyboardInterrupt
        calls += 1

    with Results.opened(out, 2) as results:
        restore(remote, files, results, None)
        return classify_files(remote, files, results, top=2, on_progress=on_progress)
