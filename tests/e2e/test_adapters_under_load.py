"""Many adapters and callers at once: each answer is of one whole version, and none is lost."""

from __future__ import annotations

import base64
import io
import random
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from craft_client.api import Client
from craft_shared.adapter import Adapter, AdapterConfig
from craft_shared.head import LinearHead, log_softmax
from craft_shared.wire import AdapterChange
from e2e.conftest import Server
from e2e.metering.caller import FULL

ADAPTERS = 200
CALLERS = 32
SECONDS = 8 if FULL else 3
LEAST = 4  # answers to each caller, however busy the machine
CLASSES = 3


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def bias_of(adapter: int, edition: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng((adapter, edition)).normal(size=CLASSES).astype(np.float32)


def make(model: str, revision: str, adapter: int, edition: int) -> Adapter:
    """One that answers what only it can answer, whatever the picture shows."""
    config = AdapterConfig(
        model=model,
        revision=revision,
        classes=[f"thing {adapter} {edition} {number}" for number in range(CLASSES)],
        templates=["a {}."],
        head="ridge",
    )
    weight = np.zeros((CLASSES, CLASSES), np.float32)
    head = LinearHead(weight, bias_of(adapter, edition), 1.0, 0.0)
    return Adapter(config, np.zeros((0, 0), np.float32), head)


@pytest.fixture(scope="module")
def owner_key(server: Server) -> str:
    return server.key(owner="registry")


@pytest.fixture(scope="module")
def owner(server: Server, owner_key: str) -> Iterator[Client]:
    with Client(server.url, owner_key) as client:
        yield client


@pytest.fixture(scope="module")
def hot(owner: Client) -> tuple[str, str]:
    """The model and revision that 200 public adapters are published for."""
    (card,) = owner.models()

    def publish(adapter: int) -> None:
        made = make(card.name, card.revision, adapter, 1)
        owner.publish(f"load-{adapter}", made, aliases=["stable"])
        owner.change_adapter(f"load-{adapter}", AdapterChange(public=True))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(publish, range(ADAPTERS)))
    return card.name, card.revision


def check_whole(name: str, answer: Any) -> None:
    """The classes and numbers must be those of the version that is said to have answered."""
    adapter = int(name.partition("-")[2])
    edition = answer.version
    assert answer.classes == [f"thing {adapter} {edition} {number}" for number in range(CLASSES)]
    expected = np.tile(log_softmax(bias_of(adapter, edition)), (len(answer.log_probs), 1))
    np.testing.assert_allclose(answer.log_probs, expected, atol=1e-5)


def test_every_answer_is_of_one_whole_version_while_others_are_published_and_moved(
    server: Server, owner: Client, hot: tuple[str, str]
) -> None:
    ready = threading.Barrier(CALLERS + 2)
    pictures = [picture(number) for number in range(8)]
    published = dict.fromkeys(range(ADAPTERS), 1)
    changes = 0
    lock = threading.Lock()

    def change(seed: int) -> None:
        nonlocal changes
        rng = random.Random(seed)
        ready.wait()
        stop = time.monotonic() + SECONDS
        while time.monotonic() < stop:
            # Each changer has adapters of its own, so that it knows which versions there are.
            adapter = rng.randrange(seed, ADAPTERS, 2)
            name = f"load-{adapter}"
            if rng.random() < 0.5:
                made = make(*hot, adapter, published[adapter] + 1)
                assert owner.publish(name, made, aliases=["beta"]).adapter.version == (
                    published[adapter] + 1
                )
                published[adapter] += 1
            else:
                version = rng.randint(1, published[adapter])
                owner.change_adapter(name, AdapterChange(aliases={"stable": version}))
            with lock:
                changes += 1

    def call(seed: int) -> int:
        rng = random.Random(seed)
        answers = 0
        with Client(server.url, server_keys[seed]) as client:
            image_set = client.create_image_set(hot[0])
            client.upload_images(image_set, pictures[:4])
            ready.wait()
            stop = time.monotonic() + SECONDS
            while time.monotonic() < stop or answers < LEAST:
                name = f"load-{rng.randrange(ADAPTERS)}"
                alias = rng.choice(["", "@stable", "@1", "@latest"])
                of_set = {"image_set": image_set.id}
                source = rng.choice([of_set, {"images": rng.sample(pictures, 2)}])
                answer = client.adapter_predict(f"registry/{name}{alias}", **source)
                assert alias != "@1" or answer.version == 1
                check_whole(name, answer)
                answers += 1
        return answers

    server_keys = [server.key(owner=f"caller {number}") for number in range(4)] * (CALLERS // 4)
    with ThreadPoolExecutor(CALLERS + 2) as threads:
        changers = [threads.submit(change, seed) for seed in range(2)]
        callers = [threads.submit(call, seed) for seed in range(CALLERS)]
        answers = [caller.result() for caller in callers]
        for changer in changers:
            changer.result()
    assert min(answers) >= LEAST
    assert changes > 10
    for adapter, last in published.items():
        assert owner.adapter(f"load-{adapter}").version == last


def test_pictures_of_a_set_are_encoded_once_for_all_adapters(
    server: Server, owner: Client, owner_key: str, hot: tuple[str, str]
) -> None:
    with httpx.Client(
        headers={"Authorization": f"Bearer {server.key('--scope', 'admin')}"}, trust_env=False
    ) as admin:

        def seconds_on_images() -> float:
            text = admin.get(f"{server.url}/metrics").text
            found = re.search(r'craft_engine_busy_seconds_total\{on="images"\} (\S+)', text)
            assert found is not None
            return float(found[1])

        image_set = owner.create_image_set(hot[0])
        before = owner.usage().total.images
        start = seconds_on_images()
        image_set = owner.upload_images(image_set, [picture(1000 + n) for n in range(16)])
        once = seconds_on_images()
        assert once > start
        for adapter in (0, 1):
            answer = owner.adapter_predict(f"load-{adapter}", image_set=image_set.id)
            check_whole(f"load-{adapter}", answer)
            assert answer.cost.charged.images == 0
        assert seconds_on_images() == once
        assert owner.usage().total.images == before + 16


def test_an_answer_in_json_is_as_whole(server: Server, owner_key: str, hot: Any) -> None:
    answer = httpx.post(
        f"{server.url}/v1/adapters/load-7@1/predictions",
        headers={"Authorization": f"Bearer {owner_key}"},
        json={"images": [base64.b64encode(picture(1)).decode()]},
        trust_env=False,
    ).json()
    np.testing.assert_allclose(answer["log_probs"][0], log_softmax(bias_of(7, 1)), atol=1e-5)
