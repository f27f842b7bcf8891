"""The pages' Python, run as it stands against a real server."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path
from typing import Any

import pytest

from craft_client import Client
from craft_shared.wire import PredictionRequest
from doc_pages import GENERATED, Block, blocks
from e2e.conftest import Server

BLOCKS = [block for block in blocks("python") if GENERATED not in block.text]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_pages_python_runs(
    block: Block,
    server: Server,
    digits: Path,
    digits_adapter: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = server.key()
    monkeypatch.setenv("CRAFT_URL", server.url)
    monkeypatch.setenv("CRAFT_API_KEY", key)
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    text = block.text.replace("http://127.0.0.1:8000", server.url).replace("craft_...", key)
    files = [
        file for name in ("one", "two") for file in sorted((digits / "train" / name).iterdir())[:3]
    ]
    with Client() as client:
        names: dict[str, Any] = {
            "client": client,
            "files": files,
            "request": PredictionRequest(
                model=client.model().name, classes=["one", "two"], templates=["a {}."]
            ),
            "pictures": [file.read_bytes() for file in files],
            "new_pictures": files[:1],
            "labels": [file.parent.name for file in files],
        }
        text = text.replace("my-adapter", digits_adapter)
        # As a notebook takes it, where await may stand outside of functions.
        awaited = eval(compile(text, str(block), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
        if awaited is not None:
            asyncio.run(awaited)
