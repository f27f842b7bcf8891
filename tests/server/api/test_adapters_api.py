"""`/v1/adapters` over a socket, with the tiny model."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from craft_server.api import adapters as adapters_api
from craft_server.clock import now_ms
from craft_server.ledger.keys import Rates, create_key, revoke_key
from craft_shared import codec
from craft_shared.adapter import Adapter, AdapterConfig
from craft_shared.head import LinearHead
from craft_shared.units import UNITS
from craft_shared.wire import Context

Picture = Callable[..., bytes]
CLASSES = ["cat", "dog", "owl"]
CONTEXT = Context(dim=4, seed=5)


def hosted(client: httpx.Client) -> dict[str, Any]:
    (card,) = client.get("/v1/models").json()["models"]
    return dict(card)


def make(client: httpx.Client, seed: int = 0, **config: Any) -> Adapter:
    rng = np.random.default_rng(seed)
    card = hosted(client)
    fields = {
        "model": card["name"],
        "revision": card["revision"],
        "classes": CLASSES,
        "templates": ["a photo of a {}."],
        "context": CONTEXT,
        "codes": 2,
        "head": "ridge",
        **config,
    }
    head = LinearHead(
        rng.normal(size=(9, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32), 1.0, 0.5
    )
    codes = rng.normal(size=(2, 4)).astype(np.float32)
    return Adapter(AdapterConfig(**fields), codes, head)


def publish(client: httpx.Client, adapter: Adapter | bytes, name: str = "pets") -> httpx.Response:
    body = adapter.to_bytes() if isinstance(adapter, Adapter) else adapter
    return client.post(
        "/v1/adapters",
        params={"name": name},
        content=body,
        headers={"Content-Type": codec.MEDIA_TYPE},
    )


def units(**amounts: int) -> dict[str, int]:
    return {unit: amounts.get(unit, 0) for unit in UNITS}


def own_cards(client: httpx.Client) -> list[dict[str, Any]]:
    """Of the client's own adapters; other tests' public ones are left out."""
    cards = client.get("/v1/adapters").json()["adapters"]
    return [card for card in cards if client.get(f"/v1/adapters/{card['name']}").is_success]


def usage(client: httpx.Client) -> dict[str, int]:
    return dict(client.get("/v1/usage").json()["total"])


def check(answer: httpx.Response, status: int, slug: str, *fields: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.json()["type"] == f"urn:craftbox:problem:{slug}"
    assert [error["field"] for error in answer.json()["errors"]] == list(fields)


def test_a_published_adapter_predicts_as_its_head_on_the_prompts_scores(
    client: httpx.Client, picture: Picture
) -> None:
    adapter = make(client)
    published = publish(client, adapter)
    assert published.status_code == 201, published.text
    assert published.json()["cost"]["charged"] == units(texts=9, requests=1)
    images = [base64.b64encode(picture(seed)).decode() for seed in range(4)]
    scored = client.post(
        "/v1/predictions",
        json={
            "model": adapter.config.model,
            "classes": CLASSES,
            "templates": adapter.config.templates,
            "context": CONTEXT.model_dump(),
            "codes": adapter.codes.tolist(),
            "images": images,
        },
    ).json()["log_probs"]
    expected = adapter.head(np.array(scored, np.float32))
    answer = client.post("/v1/adapters/pets/predictions", json={"images": images})
    assert answer.status_code == 200, answer.text
    assert answer.json()["classes"] == CLASSES
    assert answer.json()["cost"]["charged"] == units(
        queries=3, predictions=12, images=4, requests=1
    )
    np.testing.assert_allclose(answer.json()["log_probs"], expected, atol=1e-3)
    packed = client.post(
        "/v1/adapters/pets@1/predictions",
        json={"images": images},
        headers={"Accept": codec.MEDIA_TYPE},
    )
    document, tensors = codec.decode(packed.content)
    assert document["version"] == 1
    np.testing.assert_array_equal(
        tensors["log_probs"], np.array(answer.json()["log_probs"], np.float32)
    )


@pytest.mark.parametrize("top_k", [None, 2])
def test_large_sets_are_refined_in_parts(
    client: httpx.Client, picture: Picture, monkeypatch: pytest.MonkeyPatch, top_k: int | None
) -> None:
    publish(client, make(client))
    images = [base64.b64encode(picture(seed)).decode() for seed in range(5)]
    body = {"images": images, "top_k": top_k}
    whole = client.post("/v1/adapters/pets/predictions", json=body).json()
    monkeypatch.setattr("craft_server.api.predictions._SCORES_AT_ONCE", 18)
    parts = client.post("/v1/adapters/pets/predictions", json=body).json()
    np.testing.assert_allclose(parts["log_probs"], whole["log_probs"], atol=1e-5)
    assert parts.get("top_classes") == whole.get("top_classes")


def test_top_k_leaves_the_most_probable_classes_of_the_same_answer_at_the_same_charge(
    client: httpx.Client, picture: Picture
) -> None:
    publish(client, make(client))
    images = [base64.b64encode(picture(seed)).decode() for seed in range(4)]
    address = "/v1/adapters/pets/predictions"
    whole = client.post(address, json={"images": images}).json()
    body = {"images": images, "top_k": 2}
    as_json = client.post(address, json=body).json()
    packed = client.post(address, json=body, headers={"Accept": codec.MEDIA_TYPE})
    _, tensors = codec.decode(packed.content)
    assert tensors["top_classes"].dtype == np.int32
    scores = np.array(whole["log_probs"])
    order = np.argsort(-scores, axis=-1, kind="stable")[:, :2]
    for found in (as_json, tensors):
        np.testing.assert_array_equal(found["top_classes"], order)
        np.testing.assert_array_equal(
            np.array(found["log_probs"], np.float32),
            np.take_along_axis(scores, order, -1).astype(np.float32),
        )
    assert as_json["cost"]["charged"] == whole["cost"]["charged"]


def test_more_classes_than_the_adapter_has_are_refused_free_of_charge(
    client: httpx.Client, picture: Picture
) -> None:
    publish(client, make(client))
    before = usage(client)
    body = {"images": [base64.b64encode(picture()).decode()], "top_k": 4}
    answer = client.post("/v1/adapters/pets/predictions", json=body)
    check(answer, 422, "invalid-request", "top_k")
    assert "at most 3" in answer.json()["errors"][0]["remedy"]
    assert usage(client) == before


def test_the_same_content_again_is_the_same_version_without_charge(client: httpx.Client) -> None:
    first = publish(client, make(client)).json()
    before = usage(client)
    again = publish(client, make(client))
    assert again.status_code == 200
    assert again.json()["adapter"] == first["adapter"]
    assert again.json()["cost"]["charged"] == units()
    assert usage(client) == before
    assert publish(client, make(client, seed=1)).json()["adapter"]["version"] == 2
    versions = client.get("/v1/adapters/pets/versions").json()["adapters"]
    assert [card["version"] for card in versions] == [1, 2]


def test_a_retired_adapter_is_gone(client: httpx.Client, picture: Picture) -> None:
    publish(client, make(client))
    images = [base64.b64encode(picture()).decode()]
    assert client.post("/v1/adapters/pets/predictions", json={"images": images}).is_success
    assert client.delete("/v1/adapters/pets").status_code == 204
    assert own_cards(client) == []
    for answer in (
        client.get("/v1/adapters/pets"),
        client.delete("/v1/adapters/pets"),
        client.post("/v1/adapters/pets/predictions", json={"images": images}),
    ):
        check(answer, 404, "adapter-not-found")


def test_a_bad_adapter_is_refused_free_of_charge(client: httpx.Client) -> None:
    good = make(client).to_bytes()
    document, tensors = codec.decode(good)
    named = codec.encode({**document, "classes": ["1234567", "dog", "owl"]}, tensors)
    surrogate = named.replace(b"1234567", rb"\\ud800")  # JSON within JSON: two backslashes
    cases = [
        b"",
        b"x" * 100,
        good[:-1],
        surrogate,
        codec.encode(document, {**tensors, "more": np.zeros(1, np.float32)}),
        codec.encode({**document, "schema_version": 2}, tensors),
        codec.encode(document, {**tensors, "codes": np.full((2, 4), np.nan, np.float32)}),
    ]
    for body in cases:
        check(publish(client, body), 422, "invalid-request", "adapter")
    assert usage(client) == units()


def test_an_adapter_whose_prompts_the_model_cannot_read_is_refused(client: httpx.Client) -> None:
    check(
        publish(client, make(client, templates=["no place"])),
        422,
        "invalid-request",
        "templates[0]",
    )
    long = make(client, classes=["cat", "dog " * 49, "owl"], templates=["very " * 40 + "{}"])
    check(publish(client, long), 422, "invalid-request", "classes[1]")
    assert usage(client) == units()


def test_an_adapter_of_another_model_is_refused(client: httpx.Client) -> None:
    check(publish(client, make(client, model="other")), 404, "model-not-found", "model")
    check(publish(client, make(client, revision="0" * 16)), 409, "revision-mismatch")
    assert usage(client) == units()


def test_an_adapter_of_an_earlier_revision_is_not_served(
    serve: Any, tiny_engine: Any, picture: Picture
) -> None:
    class Retrained:
        revision = "f" * 16

        def __getattr__(self, name: str) -> Any:
            return getattr(tiny_engine, name)

    with serve() as server, server.client("owner") as client:
        assert publish(client, make(client)).status_code == 201
    with serve(engine=Retrained()) as server, server.client("owner") as client:
        images = [base64.b64encode(picture()).decode()]
        answer = client.post("/v1/adapters/pets/predictions", json={"images": images})
        check(answer, 409, "revision-mismatch")
        assert usage(client) == units()


def test_an_adapter_published_in_another_precision_is_read_anew_for_nothing(
    serve: Any, tiny_engine: Any, picture: Picture
) -> None:
    read = []

    class Half:
        facts = tiny_engine.facts.model_copy(update={"texts_in": "float16"})

        def __getattr__(self, name: str) -> Any:
            return getattr(tiny_engine, name)

        async def encode_prompts(self, *asked: Any, **named: Any) -> Any:
            read.append(asked)
            return await tiny_engine.encode_prompts(*asked, **named)

    images = [base64.b64encode(picture()).decode()]
    with serve() as server, server.client("owner") as client:
        assert publish(client, make(client)).status_code == 201
    with serve(engine=Half()) as server, server.client("owner") as client:
        before = usage(client)
        assert publish(client, make(client, 1), "half").status_code == 201
        assert len(read) == 1
        for _ in range(2):
            for name in ("pets", "half"):
                answer = client.post(f"/v1/adapters/{name}/predictions", json={"images": images})
                assert answer.status_code == 200, answer.text
        assert len(read) == 2
        assert usage(client)["texts"] == before["texts"] + 9
        cards = client.get("/v1/adapters").json()["adapters"]
        assert {card["revision"] for card in cards} == {tiny_engine.revision}


def test_an_adapter_with_too_many_texts_is_refused(serve: Any) -> None:
    with serve(texts_per_adapter=8) as server, server.client() as client:
        check(publish(client, make(client)), 422, "invalid-request", "adapter")


@pytest.mark.parametrize("params", [{}, {"name": ""}, {"name": "a b"}, {"name": "../x"}])
def test_a_name_must_be_given_and_plain(client: httpx.Client, params: dict[str, str]) -> None:
    answer = client.post(
        "/v1/adapters",
        params=params,
        content=make(client).to_bytes(),
        headers={"Content-Type": codec.MEDIA_TYPE},
    )
    check(answer, 422, "invalid-request", "name")


def test_an_adapter_does_not_travel_as_json(client: httpx.Client) -> None:
    answer = client.post("/v1/adapters", params={"name": "pets"}, json={})
    check(answer, 415, "unsupported-media-type")


def test_a_publication_past_the_budget_publishes_nothing(server: Any) -> None:
    with server.client(texts=8) as client:
        check(publish(client, make(client)), 402, "budget-exhausted")
        assert usage(client) == units()
        assert client.get("/v1/budget").json()["budgets"][0]["remaining"] == 8


def test_owners_do_not_see_each_others_objects(server: Any, picture: Picture) -> None:
    images = [base64.b64encode(picture()).decode()]
    with server.client() as mine, server.client() as other:
        publish(mine, make(mine))
        path = (
            "/v1/image-sets/"
            + mine.post("/v1/image-sets", json={"model": hosted(mine)["name"]}).json()["id"]
        )
        mine.post(f"{path}/images", json={"first_row": 0, "images": images})
        image_set = path.rpartition("/")[2]
        body = {"model": hosted(mine)["name"], "classes": ["a"], "templates": ["{}"]}

        def ask(path: str, name: str, image_set: str) -> list[httpx.Response]:
            return [
                other.get(path),
                other.delete(path),
                other.post(f"{path}/images", json={"first_row": 1, "images": images}),
                other.post("/v1/predictions", json={**body, "image_set": image_set}),
                other.get(f"/v1/adapters/{name}"),
                other.delete(f"/v1/adapters/{name}"),
                other.post(f"/v1/adapters/{name}/predictions", json={"images": images}),
            ]

        nothing = "is_" + "x" * 22
        foreign = ask(path, "pets", image_set)
        missing = ask(f"/v1/image-sets/{nothing}", "nothing", nothing)
        for one, two in zip(foreign, missing, strict=True):
            assert one.status_code == 404
            assert {**one.json(), "request_id": ""} == {**two.json(), "request_id": ""}
        assert own_cards(other) == []
        assert usage(other) == units()
        uploaded = other.post("/v1/image-sets", json={"model": hosted(mine)["name"]}).json()["id"]
        answer = other.post(
            f"/v1/image-sets/{uploaded}/images", json={"first_row": 0, "images": images}
        )
        assert answer.json()["cost"]["charged"]["images"] == 1
        assert mine.get("/v1/adapters/pets").status_code == 200
        assert mine.get(path).json()["count"] == 1


def test_keys_of_one_owner_share_objects_but_not_usage(server: Any) -> None:
    with server.client("shared") as first, server.client("shared") as second:
        publish(first, make(first))
        assert second.get("/v1/adapters/pets").status_code == 200
        assert usage(first) == units(texts=9, requests=1)
        assert usage(second) == units()


def images_of(picture: Picture, count: int = 2) -> list[str]:
    return [base64.b64encode(picture(seed)).decode() for seed in range(count)]


def predict(client: httpx.Client, reference: str, **body: Any) -> httpx.Response:
    return client.post(f"/v1/adapters/{reference}/predictions", json=body)


def prefix(client: httpx.Client) -> str:
    return client.headers["Authorization"].split("_")[1]


def test_a_granted_key_predicts_by_the_owners_name(server: Any, picture: Picture) -> None:
    images = images_of(picture)
    with server.client("ann") as ann, server.client("bob") as bob:
        publish(ann, make(ann))
        reference = "ann/pets"
        check(predict(bob, reference, images=images), 404, "adapter-not-found")
        shared = ann.patch("/v1/adapters/pets", json={"keys": [prefix(bob)]})
        assert shared.status_code == 200, shared.text
        assert shared.json()["keys"] == [prefix(bob)]
        theirs = predict(bob, reference, images=images)
        mine = predict(ann, "pets@latest", images=images)
        assert theirs.json()["log_probs"] == mine.json()["log_probs"]
        assert theirs.json()["cost"]["charged"] == mine.json()["cost"]["charged"]
        assert bob.get(f"/v1/adapters/{reference}").json()["owner"] == "ann"
        # What an owner decides is not for guests, whether or not they may use it.
        for method, path in (
            ("GET", "/settings"),
            ("GET", "/usage"),
            ("GET", "/versions"),
            ("PUT", "/restore"),
            ("PATCH", ""),
            ("DELETE", ""),
        ):
            body = {"json": {}} if method == "PATCH" else {}
            answer = bob.request(method, f"/v1/adapters/{reference}{path}", **body)
            check(answer, 404, "adapter-not-found")
        (used,) = ann.get("/v1/adapters/pets/usage").json()["versions"]
        assert used["calls"] == 2
        assert used["units"] == units(queries=6, predictions=12, images=4, requests=2)
        for client in (ann, bob):
            charged = {
                charge["call"]: charge["adapter"]
                for charge in client.get("/v1/usage").json()["charges"]
            }
            assert charged.pop("adapter-predictions") == "ann/pets@1"
            assert set(charged.values()) <= {None}


def test_a_publisher_who_pays_is_charged_in_the_callers_place(
    server: Any, picture: Picture
) -> None:
    images = images_of(picture)
    with server.client("cleo", queries=5) as cleo, server.client("dan", queries=0) as dan:
        publish(cleo, make(cleo))
        before = usage(cleo)
        settings = cleo.patch("/v1/adapters/pets", json={"public": True, "pays": "publisher"})
        assert settings.json()["pays"] == "publisher"
        headers = {"Idempotency-Key": "once"}
        path = "/v1/adapters/cleo/pets/predictions"
        answer = dan.post(path, json={"images": images}, headers=headers)
        assert answer.status_code == 200, answer.text
        cost = answer.json()["cost"]
        assert cost["charged"] == units()
        assert [(budget["unit"], budget["limit"]) for budget in cost["budgets"]] == [("queries", 0)]
        assert usage(dan) == units()
        assert usage(cleo)["queries"] == before["queries"] + 3
        # The answer again costs nobody, with its bytes and without.
        assert dan.post(path, json={"images": images}, headers=headers).content == answer.content
        for _ in range(2):
            dan.delete("/v1/answers/once")
            anew = dan.post(path, json={"images": images}, headers=headers)
            assert anew.json()["cost"]["charged"] == units()
            assert anew.json()["log_probs"] == answer.json()["log_probs"]
        assert usage(cleo)["queries"] == before["queries"] + 3
        assert cleo.get("/v1/usage").json()["charges"][-1]["adapter"] == "cleo/pets@1"
        (used,) = cleo.get("/v1/adapters/pets/usage").json()["versions"]
        assert used["calls"] == 1
        # Two of five queries are left: too few, and nobody is told how few.
        refused = dan.post(path, json={"images": images})
        check(refused, 402, "budget-exhausted")
        assert "publisher" in refused.json()["detail"]
        assert not any(character.isdigit() for character in refused.json()["detail"])


def test_calls_at_a_time_are_counted_for_who_calls_and_not_for_who_pays(
    serve: Any, picture: Picture, tiny_engine: Any
) -> None:
    inside, may_go_on = threading.Semaphore(0), threading.Event()

    class Gate:
        def __getattr__(self, name: str) -> Any:
            return getattr(tiny_engine, name)

        async def score(self, *arguments: Any, **named: Any) -> Any:
            inside.release()
            assert await asyncio.to_thread(may_go_on.wait, 30)
            return await tiny_engine.score(*arguments, **named)

    images = [base64.b64encode(picture()).decode()]

    with serve(engine=Gate()) as server, ThreadPoolExecutor(2) as threads:

        def keyed(owner: str) -> httpx.Client:
            with server.database.writing() as connection:
                rates = Rates(concurrency=1)
                secret = create_key(connection, owner=owner, rates=rates, at=now_ms())
            headers = {"Authorization": f"Bearer {secret}"}
            return httpx.Client(base_url=server.url, headers=headers, timeout=60)

        with keyed("pia") as publisher, keyed("cal") as caller:
            publish(publisher, make(publisher))
            terms = {"public": True, "pays": "publisher"}
            assert publisher.patch("/v1/adapters/pets", json=terms).is_success

            def call(client: httpx.Client) -> httpx.Response:
                return client.post("/v1/adapters/pia/pets/predictions", json={"images": images})

            try:
                running = [threads.submit(call, caller)]
                assert inside.acquire(timeout=30)
                check(call(caller), 429, "rate-limited")
                # What others call at the publisher's cost does not lock the publisher out.
                running.append(threads.submit(call, publisher))
                assert inside.acquire(timeout=30)
            finally:
                may_go_on.set()
            assert [one.result(30).status_code for one in running] == [200, 200]
            assert usage(caller)["queries"] == 0
            assert usage(publisher)["queries"] == 6


def test_a_key_that_pays_no_more_once_it_is_revoked(server: Any, picture: Picture) -> None:
    with server.client("eve") as eve, server.client() as guest:
        publish(eve, make(eve))
        eve.patch("/v1/adapters/pets", json={"public": True, "pays": "publisher"})
        with server.database.writing() as connection:
            revoke_key(connection, prefix(eve), now_ms())
        check(predict(guest, "eve/pets", images=images_of(picture)), 402, "budget-exhausted")


@pytest.mark.parametrize("top_k", [None, 1])
def test_below_its_threshold_an_adapter_abstains(
    client: httpx.Client, picture: Picture, top_k: int | None
) -> None:
    publish(client, make(client))
    images = images_of(picture, 4)
    whole = predict(client, "pets", images=images).json()
    assert "abstained" not in whole
    best = np.exp(np.array(whole["log_probs"])).max(axis=1)
    threshold = float(np.sort(best)[1:3].mean())
    asked = predict(client, "pets", images=images, top_k=top_k, abstain_below=threshold).json()
    assert asked["abstained"] == (best < threshold).astype(int).tolist()
    client.patch("/v1/adapters/pets", json={"abstain_below": threshold})
    assert client.get("/v1/adapters/pets").json()["abstain_below"] == threshold
    assert predict(client, "pets", images=images).json()["abstained"] == asked["abstained"]
    assert predict(client, "pets", images=images, abstain_below=0).json()["abstained"] == [0] * 4
    client.patch("/v1/adapters/pets", json={"abstain_below": None})
    assert "abstained" not in predict(client, "pets", images=images).json()


def test_an_adapter_with_a_number_past_double_precision_is_refused(client: httpx.Client) -> None:
    body = make(client, provenance={"accuracy_after": 1.25e100}).to_bytes()
    assert publish(client, body).status_code == 201
    check(publish(client, body.replace(b"e+100", b"e+999")), 422, "invalid-request", "adapter")


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"aliases": {"stable": 10**9}}, "aliases"),
        ({"aliases": {"stable": 2**63}}, "aliases"),
        ({"teams": ["a\0b"]}, "teams[0]"),
        ({"teams": ["\x85"]}, "teams[0]"),
    ],
)
def test_a_change_that_no_database_can_hold_is_refused(
    stored: Any, wanted: dict[str, Any], field: str
) -> None:
    with stored.client() as client:
        publish(client, make(client))
        check(client.patch("/v1/adapters/pets", json=wanted), 422, "invalid-request", field)


def test_aliases_move_with_a_publication_and_by_a_change(client: httpx.Client) -> None:
    media = {"Content-Type": codec.MEDIA_TYPE}
    first, second = make(client, 1), make(client, 2)

    def publish_as(adapter: Adapter, *aliases: str) -> httpx.Response:
        params = {"name": "pets", "alias": list(aliases)}
        return client.post("/v1/adapters", params=params, content=adapter.to_bytes(), headers=media)

    assert publish_as(first, "stable").json()["adapter"]["aliases"] == ["latest", "stable"]
    publish_as(second)
    assert client.get("/v1/adapters/pets@stable").json()["version"] == 1
    again = publish_as(second, "stable", "best")
    assert again.status_code == 200
    assert again.json()["adapter"]["aliases"] == ["latest", "best", "stable"]
    moved = client.patch("/v1/adapters/pets", json={"aliases": {"stable": 1, "best": None}})
    assert moved.json()["aliases"] == {"stable": 1}
    refused = client.patch("/v1/adapters/pets", json={"aliases": {"stable": 3}})
    check(refused, 422, "invalid-request", "aliases.stable")
    check(publish_as(second, "latest"), 422, "invalid-request", "alias")
    refused = client.patch("/v1/adapters/pets", json={"aliases": {"latest": 1}})
    check(refused, 422, "invalid-request", "aliases.latest")


def test_what_was_retired_is_restored(client: httpx.Client) -> None:
    publish(client, make(client))
    assert client.delete("/v1/adapters/pets@latest").status_code == 204
    check(client.get("/v1/adapters/pets"), 404, "adapter-not-found")
    (version,) = client.get("/v1/adapters/pets/versions").json()["adapters"]
    assert version["retired_at"]
    assert client.put("/v1/adapters/pets@1/restore").status_code == 204
    assert client.get("/v1/adapters/pets").json()["version"] == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("somebody/pets", "own owner"),
        ("../../etc/passwd", "own owner"),
        ("usage", "something else"),
        ("pets@2", "letters"),
        ("", "letters"),
        ("x" * 65, "letters"),
    ],
)
def test_a_name_that_cannot_be_published_under_is_told(
    client: httpx.Client, name: str, said: str
) -> None:
    refused = publish(client, make(client), name)
    check(refused, 422, "invalid-request", "name")
    assert said in refused.json()["detail"]
    assert usage(client) == units()


def test_an_owner_may_name_itself(server: Any) -> None:
    with server.client("flo") as flo:
        assert publish(flo, make(flo), "flo/pets").json()["adapter"]["name"] == "pets"
        assert flo.get("/v1/adapters/flo/pets@1").json()["version"] == 1
        assert flo.get("/v1/adapters/flo%2Fpets/usage").status_code == 200


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"classes": ["dog", "x\x1b[31mred", "cat"]}, "adapter.classes[1]"),
        ({"classes": ["dog", "=1+1", "cat"]}, "adapter.classes[1]"),
        ({"provenance": {"data": "abc\u202etxt"}}, "adapter.provenance.data"),
        ({"provenance": {"recipe": "@SUM(1)"}}, "adapter.provenance.recipe"),
    ],
)
def test_names_that_mislead_are_not_published(
    client: httpx.Client, config: dict[str, Any], field: str
) -> None:
    check(publish(client, make(client, **config)), 422, "invalid-request", field)


def test_an_adapter_that_was_published_before_names_were_checked_still_predicts(
    client: httpx.Client, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters_api, "_check_names", lambda config: None)
    assert publish(client, make(client, classes=["=1+1", "dog", "cat"])).status_code == 201
    asked = {"images": [base64.b64encode(picture(1)).decode()]}
    answer = client.post("/v1/adapters/pets/predictions", json=asked)
    assert answer.json()["classes"] == ["=1+1", "dog", "cat"]
    assert own_cards(client)[0]["classes"] == ["=1+1", "dog", "cat"]


def test_a_list_can_be_asked_for_in_pages(serve: Any) -> None:
    with serve() as server, server.client("lists/in pages") as client:
        adapter = make(client)
        names = [f"pets-{number}" for number in range(3)]
        for name in names:
            assert publish(client, adapter, name).status_code == 201
        listed, asked = [], {"limit": 2}
        for _ in range(2):
            page = client.get("/v1/adapters", params=asked).json()
            listed.append([card["name"] for card in page["adapters"]])
            asked["after"] = page["next_after"]
        assert listed == [names[:2], names[2:]]
        assert page["next_after"] is None
        whole = client.get("/v1/adapters").json()
        assert [card["name"] for card in whole["adapters"]] == names
        assert whole["next_after"] is None
        rest = client.get("/v1/adapters", params={"after": "lists/in pages/pets-0"}).json()
        assert [card["name"] for card in rest["adapters"]] == names[1:]
        for wrong in ({"after": "pets-0"}, {"after": "a/\0"}, {"limit": 0}, {"limit": 501}):
            refused = client.get("/v1/adapters", params=wrong)
            assert refused.status_code == 422, wrong
            assert refused.json()["errors"][0]["field"].endswith(next(iter(wrong)))
