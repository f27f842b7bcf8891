"""Key, rate, concurrency and budget are looked at before a body costs the server anything."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest

from craft_server.clock import now_ms
from craft_server.ledger import charges
from craft_server.ledger.charges import Work
from craft_server.ledger.keys import Rates, authenticate, create_key
from craft_shared import codec
from craft_shared.adapter import Adapter, AdapterConfig
from craft_shared.head import Unrefined
from craft_shared.units import Units

Picture = Callable[..., bytes]
WORK = {
    *("decode_images", "check_prompts", "text_identities"),
    *("encode_images", "encode_prompts", "score", "score_parts"),
}


class Watched:
    """An engine that notes what is asked of it.

    Attributes:
        asked: names of methods that take time.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name in WORK:
            self.asked.append(name)
        return getattr(self._engine, name)


@pytest.fixture
def watched(tiny_engine: Any) -> Watched:
    return Watched(tiny_engine)


@pytest.fixture
def house(serve: Any, watched: Watched, picture: Picture) -> Iterator[Any]:
    """A server where an image set of the owner `me` and a public adapter are there already."""
    with serve(engine=watched) as server, server.client("me") as client:
        made = client.post("/v1/image-sets", json={"model": "craft-tiny"}).json()
        server.image_set = made["id"]
        upload = {"first_row": 0, "images": [sent(picture(0))]}
        assert client.post(f"/v1/image-sets/{made['id']}/images", json=upload).is_success
        assert publish(client, "a {}.").status_code == 201
        assert client.patch("/v1/adapters/pets", json={"public": True}).is_success
        server.app.state.services.features.discard(lambda _: True)
        server.app.state.services.adapters.discard(lambda _: True)
        watched.asked.clear()
        yield server


@contextmanager
def keyed(server: Any, **rates: int) -> Iterator[httpx.Client]:
    with server.database.writing() as connection:
        secret = create_key(connection, owner="me", rates=Rates(**rates), at=now_ms())
    headers = {"Authorization": f"Bearer {secret}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60, trust_env=False) as client:
        client.image_set = server.image_set  # type: ignore[attr-defined] # of whom it is
        yield client


def sent(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


def publish(client: httpx.Client, template: str) -> httpx.Response:
    (card,) = client.get("/v1/models").json()["models"]
    config = AdapterConfig(
        model=card["name"],
        revision=card["revision"],
        classes=["cat", "dog"],
        templates=[template],
        head="none",
    )
    body = Adapter(config, np.zeros((0, 0), np.float32), Unrefined()).to_bytes()
    headers = {"Content-Type": codec.MEDIA_TYPE}
    return client.post("/v1/adapters?name=pets", content=body, headers=headers)


def predict(client: httpx.Client, **pictures: Any) -> httpx.Response:
    asked = {"model": "craft-tiny", "classes": ["cat", "dog"], "templates": ["a {}."]}
    return client.post("/v1/predictions", json={**asked, **pictures})


def zero_shot(client: httpx.Client, picture: bytes) -> httpx.Response:
    asked = {"inputs": sent(picture), "parameters": {"candidate_labels": ["cat", "dog"]}}
    return client.post("/v1/zero-shot-image-classification", json=asked)


def classify(client: httpx.Client, **pictures: Any) -> httpx.Response:
    return client.post("/v1/adapters/me/pets/predictions", json=pictures)


def upload(client: httpx.Client, image_set: str, picture: bytes) -> httpx.Response:
    body = {"first_row": 1, "images": [sent(picture)]}
    return client.post(f"/v1/image-sets/{image_set}/images", json=body)


CALLS: dict[str, Callable[[httpx.Client, str, bytes], httpx.Response]] = {
    "images": lambda client, _, picture: predict(client, images=[sent(picture)]),
    "rows": lambda client, image_set, _: predict(client, image_set=image_set),
    "zero-shot": lambda client, _, picture: zero_shot(client, picture),
    "adapter, images": lambda client, _, picture: classify(client, images=[sent(picture)]),
    "adapter, rows": lambda client, image_set, _: classify(client, image_set=image_set),
    "upload": upload,
    "publishing": lambda client, *_: publish(client, f"{secrets.token_hex(4)} {{}}."),
}
PREDICTIONS = [name for name in CALLS if name not in ("upload", "publishing")]


def untouched(server: Any, watched: Watched) -> bool:
    services = server.app.state.services
    kept = (services.features, services.adapters)
    return not watched.asked and not any(cache.nbytes for cache in kept)


@pytest.mark.parametrize("name", CALLS)
def test_a_budget_that_does_not_cover_a_call_is_seen_before_any_work(
    house: Any, watched: Watched, picture: Picture, name: str
) -> None:
    with house.client("me", requests=0) as client:
        answer = CALLS[name](client, house.image_set, picture(1))
    assert answer.status_code == 402, answer.text
    assert untouched(house, watched)
    with house.client("me", requests=1) as client:
        answer = CALLS[name](client, house.image_set, picture(1))
    assert answer.is_success, answer.text
    assert watched.asked


@pytest.mark.parametrize("name", CALLS)
def test_a_bound_on_calls_at_a_time_is_seen_before_any_work(
    house: Any, watched: Watched, picture: Picture, name: str
) -> None:
    with keyed(house, concurrency=1) as client:
        secret = client.headers["authorization"].removeprefix("Bearer ")
        with house.database.writing() as connection:
            caller = authenticate(connection, secret, now_ms())
            assert caller is not None
            holder = house.app.state.services.lease.holder
            work = Work("predictions", "craft-tiny", "r", Units())
            charges.reserve(connection, caller, work, holder=holder, at=now_ms())
        answer = CALLS[name](client, house.image_set, picture(1))
    assert answer.status_code == 429, answer.text
    assert untouched(house, watched)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_a_rate_of_predictions_is_seen_before_any_work(
    house: Any, watched: Watched, picture: Picture, name: str
) -> None:
    with keyed(house, predictions_per_minute=0) as client:
        answer = CALLS[name](client, house.image_set, picture(1))
    assert answer.status_code == 429, answer.text
    assert untouched(house, watched)


BAD: dict[str, Callable[[httpx.Client, str], httpx.Response]] = {
    "image": lambda client, _: predict(client, images=[sent(b"no image")]),
    "zero-shot": lambda client, _: zero_shot(client, b"no image"),
    "template": lambda client, image_set: predict(
        client, image_set=image_set, templates=["no place"]
    ),
    "adapter's image": lambda client, _: classify(client, images=[sent(b"no image")]),
    "upload": lambda client, image_set: upload(client, image_set, b"no image"),
    "publishing": lambda client, _: publish(client, "<start_of_text> {}."),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_costs_nothing(house: Any, name: str) -> None:
    with house.client("me", requests=5, queries=5, images=5, texts=50) as client:
        before = client.get("/v1/budget").json()
        answer = BAD[name](client, house.image_set)
        assert answer.status_code == 422, answer.text
        assert client.get("/v1/budget").json() == before
        assert client.get("/v1/usage").json()["charges"] == []


def test_the_body_of_a_key_that_can_pay_for_nothing_is_not_read(house: Any) -> None:
    malformed = b"[" + b" " * 2**19
    headers = {"Content-Type": "application/json"}
    zero_shot = "/v1/zero-shot-image-classification"
    for path in ("/v1/predictions", zero_shot, f"/v1/image-sets/{house.image_set}/images"):
        for limit, status in ((0, 402), (1, 400)):
            with house.client("me", requests=limit) as client:
                answer = client.post(path, content=malformed, headers=headers)
            assert answer.status_code == status, answer.text


def test_a_call_that_took_the_last_of_a_budget_is_answered_again(
    house: Any, picture: Picture
) -> None:
    image = sent(picture(1) + b"\0" * 2**18)
    asked = {"model": "craft-tiny", "classes": ["cat"], "templates": ["a {}."], "images": [image]}
    with house.client("me", queries=1) as client:
        first, again, other = (
            client.post("/v1/predictions", json=asked, headers={"Idempotency-Key": key})
            for key in ("one", "one", "two")
        )
    assert first.status_code == again.status_code == 200
    assert again.content == first.content
    assert other.status_code == 402
