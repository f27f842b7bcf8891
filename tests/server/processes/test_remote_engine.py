"""A model behind a socket answers, refuses and dies as one in this process does."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn

from craft_server.engine import Engine, HostedModel, Overloaded, Prompts, WorkerDied
from craft_server.processes.remote_engine import PAUSE_SECONDS, RemoteEngine, engine_app
from craft_shared.wire import Context

CLASSES = ["cat", "dog", "bird"]
PROMPTS = Prompts(
    ("a {}.", "the {}."),
    Context(init="a photo of a", dim=4, seed=1, scale=1.0),
    np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32),
)


@contextmanager
def listening(engine: HostedModel, socket: Path) -> Iterator[None]:
    server = uvicorn.Server(
        uvicorn.Config(engine_app(engine), uds=str(socket), log_config=None, access_log=False)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline, "the server did not start in time"
            time.sleep(0.005)
        yield
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture
def socket() -> Iterator[Path]:
    """A short path: that of a Unix socket holds about a hundred characters."""
    with tempfile.TemporaryDirectory(prefix="craft-") as folder:
        yield Path(folder) / "engine"


def connect(socket: Path, on_other_weights: Callable[[], None] = lambda: None) -> RemoteEngine:
    return RemoteEngine.connect(socket, on_other_weights)


def test_every_operation_answers_bit_for_bit_what_the_engine_does(
    tiny_engine: Engine, socket: Path, picture: Callable[..., bytes]
) -> None:
    files = [picture(seed) for seed in range(37)]
    images = asyncio.run(tiny_engine.decode_images(files, max_pixels=10**6))

    async def ask(engine: HostedModel) -> list[Any]:
        features = await engine.encode_images(images, tenant="t")
        texts = await engine.encode_prompts(PROMPTS, CLASSES, tenant="t")
        nothing = await engine.encode_images([], tenant="t")
        return [features, texts, nothing, await engine.score(features, texts, tenant="t")]

    expected = asyncio.run(ask(tiny_engine))
    with listening(tiny_engine, socket):
        remote = connect(socket)
        found = asyncio.run(ask(remote))
        assert remote.facts.model_dump_json() == tiny_engine.facts.model_dump_json()
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)


def test_texts_and_pictures_are_read_here_as_they_are_there(
    tiny_engine: Engine, socket: Path, picture: Callable[..., bytes]
) -> None:
    wrong = Prompts(("no slot",), None, np.zeros((0, 0), np.float32))
    with listening(tiny_engine, socket):
        remote = connect(socket)
    # Its process is gone, and it can still tell what is wrong with a call.

    async def read(engine: HostedModel) -> tuple[Any, ...]:
        errors = await engine.check_prompts(wrong, CLASSES)
        identities = await engine.text_identities(PROMPTS, CLASSES)
        (image,) = await engine.decode_images([picture(1)], max_pixels=10**6)
        return errors, identities, image.tolist()

    assert asyncio.run(read(remote)) == asyncio.run(read(tiny_engine))


@pytest.mark.parametrize("refusal", [Overloaded("too much"), WorkerDied("broken")])
def test_a_refusal_is_raised_as_what_it_was(
    tiny_engine: Engine, socket: Path, monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    async def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise refusal

    monkeypatch.setattr(tiny_engine, "encode_prompts", refuse)
    with listening(tiny_engine, socket):
        remote = connect(socket)
        with pytest.raises(type(refusal), match=str(refusal)):
            asyncio.run(remote.encode_prompts(PROMPTS, CLASSES))
        assert remote.alive, "the process has answered"


def test_silence_is_noticed_and_forgotten_when_another_process_listens(
    tiny_engine: Engine, socket: Path
) -> None:
    with listening(tiny_engine, socket):
        remote = connect(socket)

    async def state() -> None:
        await remote.state()

    with pytest.raises(WorkerDied, match="does not answer"):
        asyncio.run(state())
    assert not remote.alive
    deadline = time.monotonic() + 10 * PAUSE_SECONDS
    while not remote.alive:
        assert time.monotonic() < deadline, "it never asks again"
        time.sleep(0.01)
    with listening(tiny_engine, socket):
        asyncio.run(state())
    assert remote.alive


def test_answers_of_other_weights_are_not_taken(
    tiny_engine: Engine, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noticed: list[bool] = []
    with listening(tiny_engine, socket):
        remote = connect(socket, lambda: noticed.append(True))
    monkeypatch.setattr(tiny_engine, "revision", "f" * 16)
    with (
        listening(tiny_engine, socket),
        pytest.raises(WorkerDied, match="other weights"),
    ):
        asyncio.run(remote.encode_prompts(PROMPTS, CLASSES))
    assert noticed == [True]
