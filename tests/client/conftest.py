"""Fixtures of the client's tests: a server on the wire, pictures on disk, quick retries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import stamina

from craft_client.api import Client
from craft_client.remote import RemoteAdapter
from craft_shared.adapter import Adapter, AdapterConfig
from craft_shared.head import Unrefined

from .batches import CLASSES
from .pictures import write_picture
from .wire_server import KEY, REVISION, WireServer


@pytest.fixture
def wire_server() -> Iterator[WireServer]:
    """A running server; the client's environment points to it."""
    with WireServer().listening() as server:
        yield server


@pytest.fixture
def connected(wire_server: WireServer, monkeypatch: pytest.MonkeyPatch) -> WireServer:
    """The wire server, with the environment variables that point to it."""
    monkeypatch.setenv("CRAFT_URL", wire_server.url)
    monkeypatch.setenv("CRAFT_API_KEY", KEY)
    return wire_server


@pytest.fixture
def fast_retries() -> Iterator[None]:
    """Retries without waiting, three attempts at most."""
    with stamina.set_testing(True, attempts=3):
        yield


@pytest.fixture
def remote(connected: WireServer, fast_retries: None) -> Iterator[RemoteAdapter]:
    """An adapter on a server that takes four pictures in a call."""
    connected.limits = connected.limits.model_copy(update={"images_per_call": 4})
    config = AdapterConfig(
        model="fake", revision=REVISION, classes=CLASSES, templates=["a {}."], head="none"
    )
    with Client() as client:
        client.publish("animals", Adapter(config, np.zeros((0, 0), np.float32), Unrefined()))
        yield RemoteAdapter(client, client.adapter("animals"))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Ten pictures."""
    return [write_picture(tmp_path / f"pictures/{number:02}.png", number) for number in range(10)]


@pytest.fixture
def picture_folder(tmp_path: Path) -> Path:
    """Three classes in split folders: 6 training and 4 test pictures a class."""
    folder = tmp_path / "animals"
    number = 0
    for split, count in {"train": 6, "test": 4}.items():
        for name in ("big_cat", "dog", "owl"):
            for index in range(count):
                write_picture(folder / split / name / f"{index}.png", number := number + 1)
    return folder
