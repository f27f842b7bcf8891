from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from craft_server.engine import hub

NAME = "someone/model"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and nobody who answers."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    return tmp_path


def put(cache: Path, file: str) -> Path:
    root = cache / "models--someone--model"
    files = root / "snapshots" / ("0" * 40)
    files.mkdir(parents=True)
    (files / file).write_text("{}")
    (root / "refs").mkdir()
    (root / "refs/main").write_text("0" * 40)
    return files


@pytest.mark.parametrize("file", ["tokenizer.json", "spiece.model", "vocab.txt"])
def test_files_in_the_cache_are_found_without_asking(cache: Path, file: str) -> None:
    files = put(cache, file)
    assert hub.folder(NAME, hub.TOKENIZER) == files


def test_a_folder_stands_for_a_repository(tmp_path: Path) -> None:
    assert hub.folder(str(tmp_path), hub.TOKENIZER) == tmp_path


def test_only_the_part_that_is_needed_is_downloaded(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def download(name: str, *, allow_patterns: list[str]) -> None:
        asked.append((name, allow_patterns))
        put(cache, "config.json")

    monkeypatch.setattr(hub, "reach", lambda: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hub.folder(NAME, hub.CONFIG).is_dir()
    assert asked == [(NAME, ["config.json"])]


def test_where_nobody_answers_no_download_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> None:
        raise AssertionError("it would be retried for a minute")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(hub.MissingFilesError, match=r"cannot be downloaded .*refused"):
        hub.folder(NAME, hub.CONFIG)


def test_a_repository_without_the_files_is_said_to_lack_them(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cache, "README.md")
    monkeypatch.setattr(hub, "reach", lambda: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: None)
    with pytest.raises(hub.MissingFilesError, match=f"needs the tokenizer's files of '{NAME}'"):
        hub.folder(NAME, hub.TOKENIZER)
