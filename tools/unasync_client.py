"""Writes the synchronous client from the asynchronous one.

    python tools/unasync_client.py

A test compares the files with what this would write.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import unasync

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "client" / "craft_client"
PAIRS = {"async_api.py": "api.py", "async_transport.py": "transport.py"}
NAMES = {
    "AsyncBaseTransport": "BaseTransport",
    "AsyncByteStream": "SyncByteStream",
    "AsyncClient": "Client",
    "AsyncHTTPTransport": "HTTPTransport",
    "AsyncNetworkBackend": "NetworkBackend",
    "AsyncNetworkStream": "NetworkStream",
    "aclose": "close",
    "aclosing": "closing",
    "aiter_bytes": "iter_bytes",
    "async_transport": "transport",
}


def written() -> dict[Path, str]:
    """The text of each file that is written."""
    texts = {}
    with tempfile.TemporaryDirectory() as temporary:
        rule = unasync.Rule(f"{FOLDER}/", f"{temporary}/", NAMES)
        unasync.unasync_files([str(FOLDER / name) for name in PAIRS], [rule])
        for source, target in PAIRS.items():
            text = Path(temporary, source).read_text()
            text = _ruff(text, target, "check", "--select=I", "--fix")
            texts[FOLDER / target] = _ruff(text, target, "format")
    return texts


def _ruff(text: str, name: str, *command: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--quiet", f"--stdin-filename={FOLDER / name}"],
        input=text,
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


if __name__ == "__main__":
    for path, text in written().items():
        path.write_text(text)
