"""Idempotency keys over a socket: the same answer again, charged once, for every kind of call."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
import sqlalchemy as sa

from craft_server.clock import now_ms
from craft_server.engine import Overloaded
from craft_server.ledger import calls, keys
from craft_server.ledger.tables import CHARGES
from craft_shared import codec
from craft_shared.adapter import Adapter, AdapterConfig
from craft_shared.head import LinearHead
from craft_shared.wire import Context

Picture = Callable[..., bytes]
CLASSES = ["cat", "dog", "owl"]
KEY = "0190b2f4-call-1"
JSON = "application/json"


@dataclass
class Call:
    """A call that is sent as often as wanted, under one idempotency key.

    Attributes:
        count: how often what it makes has been made.
    """

    client: httpx.Client
    path: str
    content: bytes
    headers: dict[str, str]
    count: Callable[[], int]

    def __call__(self, key: str = KEY, content: bytes | None = None) -> httpx.Response:
        return self.client.post(
            self.path,
            content=self.content if content is None else content,
            headers={**self.headers, "Idempotency-Key": key},
        )

    def other(self) -> bytes:
        """Another body, which need not even be valid."""
        return self.content + b" "


def hosted(client: httpx.Client) -> dict[str, Any]:
    (card,) = client.get("/v1/models").json()["models"]
    return dict(card)


def adapter_bytes(client: httpx.Client, seed: int = 1) -> bytes:
    rng, card = np.random.default_rng(seed), hosted(client)
    config = AdapterConfig(
        model=card["name"],
        revision=card["revision"],
        classes=CLASSES,
        templates=["a photo of a {}."],
        context=Context(dim=4, seed=5),
        codes=2,
        head="ridge",
    )
    head = LinearHead(
        rng.normal(size=(9, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32), 1.0, 0.5
    )
    return Adapter(config, rng.normal(size=(2, 4)).astype(np.float32), head).to_bytes()


def publish(client: httpx.Client) -> None:
    answer = client.post(
        "/v1/adapters",
        params={"name": "pets"},
        content=adapter_bytes(client),
        headers={"Content-Type": codec.MEDIA_TYPE},
    )
    assert answer.status_code == 201, answer.text


def json_prediction(client: httpx.Client, picture: Picture) -> Call:
    request = {
        "model": hosted(client)["name"],
        "classes": CLASSES,
        "templates": ["a photo of a {}."],
        "images": [base64.b64encode(picture()).decode()],
    }
    content = httpx.Request("POST", "http://x", json=request).content
    headers = {"Content-Type": JSON, "Accept": JSON}
    return Call(client, "/v1/predictions", content, headers, lambda: lines(client, "predictions"))


def tensor_prediction(client: httpx.Client, picture: Picture) -> Call:
    request = {"model": hosted(client)["name"], "classes": CLASSES, "templates": ["{}"]}
    content = codec.encode(request, codec.pack_files([picture()]))
    headers = {"Content-Type": codec.MEDIA_TYPE, "Accept": codec.MEDIA_TYPE}
    return Call(client, "/v1/predictions", content, headers, lambda: lines(client, "predictions"))


def adapter_prediction(client: httpx.Client, picture: Picture) -> Call:
    publish(client)
    content = codec.encode({}, codec.pack_files([picture()]))
    headers = {"Content-Type": codec.MEDIA_TYPE, "Accept": codec.MEDIA_TYPE}
    path = "/v1/adapters/pets/predictions"
    return Call(client, path, content, headers, lambda: lines(client, "adapter-predictions"))


def image_set(client: httpx.Client, _picture: Picture) -> Call:
    content = httpx.Request("POST", "http://x", json={"model": hosted(client)["name"]}).content
    made: set[str] = set()

    def note(response: httpx.Response) -> None:
        if response.request.url.path == "/v1/image-sets" and response.status_code == 201:
            made.add(response.read().decode())

    client.event_hooks["response"].append(note)
    return Call(client, "/v1/image-sets", content, {"Content-Type": JSON}, lambda: len(made))


def upload(client: httpx.Client, picture: Picture) -> Call:
    made = client.post("/v1/image-sets", json={"model": hosted(client)["name"]}).json()["id"]
    images = [base64.b64encode(picture()).decode()]
    request = {"first_row": 0, "images": images}
    content = httpx.Request("POST", "http://x", json=request).content
    path = f"/v1/image-sets/{made}"
    return Call(
        client,
        f"{path}/images",
        content,
        {"Content-Type": JSON},
        lambda: int(client.get(path).json()["count"]),
    )


def publication(client: httpx.Client, _picture: Picture) -> Call:
    return Call(
        client,
        "/v1/adapters?name=pets",
        adapter_bytes(client),
        {"Content-Type": codec.MEDIA_TYPE},
        lambda: len(client.get("/v1/adapters/pets/versions").json().get("adapters", [])),
    )


PREDICTIONS = [json_prediction, tensor_prediction, adapter_prediction]
CALLS = [*PREDICTIONS, image_set, upload, publication]
CHARGED = [*PREDICTIONS, upload, publication]
MakeCall = Callable[[httpx.Client, Picture], Call]


def usage(client: httpx.Client) -> dict[str, Any]:
    answer: dict[str, Any] = client.get("/v1/usage?limit=1000").json()
    return answer


def lines(client: httpx.Client, kind: str) -> int:
    return sum(line["call"] == kind for line in usage(client)["charges"])


def check(answer: httpx.Response, status: int, slug: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.json()["type"] == f"urn:craftbox:problem:{slug}"


class Gate:
    """An engine that waits in its text or image encoder until it is let through.

    Attributes:
        entered: set once a call is inside.
        error: raised by the next call that is let through, once.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._open = threading.Event()
        self.entered = threading.Event()
        self.error: Exception | None = None

    def let_through(self) -> None:
        self._open.set()

    def close(self) -> None:
        self.entered.clear()
        self._open.clear()

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._engine, name)
        if name not in ("encode_images", "encode_prompts"):
            return real

        async def wait(*arguments: Any, **named: Any) -> Any:
            self.entered.set()
            assert await asyncio.to_thread(self._open.wait, 30)
            if self.error is not None:
                error, self.error = self.error, None
                raise error
            return await real(*arguments, **named)

        return wait


@pytest.fixture
def gate(tiny_engine: Any) -> Gate:
    made = Gate(tiny_engine)
    made.let_through()
    return made


@pytest.mark.parametrize("make_call", CALLS)
def test_the_same_call_again_is_the_first_answer_byte_for_byte(
    client: httpx.Client, picture: Picture, make_call: MakeCall
) -> None:
    call = make_call(client, picture)
    first = call()
    assert first.is_success, first.text
    assert "idempotency-replayed" not in first.headers
    charged, made = usage(client), call.count()
    assert made == 1
    for _ in range(2):
        again = call()
        assert again.content == first.content
        assert again.status_code == first.status_code
        assert again.headers["content-type"] == first.headers["content-type"]
        assert again.headers["idempotency-replayed"] == "true"
        assert "idempotency-recomputed" not in again.headers
    assert usage(client) == charged
    assert call.count() == made


@pytest.mark.parametrize("make_call", CALLS)
def test_another_body_under_the_key_is_refused(
    client: httpx.Client, picture: Picture, make_call: MakeCall
) -> None:
    call = make_call(client, picture)
    assert call().is_success
    charged, made = usage(client), call.count()
    check(call(content=call.other()), 422, "idempotency-key-reused")
    assert usage(client) == charged
    assert call.count() == made
    assert call().headers["idempotency-replayed"] == "true"


def test_what_is_wanted_back_is_part_of_the_call(client: httpx.Client, picture: Picture) -> None:
    call = json_prediction(client, picture)
    assert call().is_success
    call.headers["Accept"] = codec.MEDIA_TYPE
    check(call(), 422, "idempotency-key-reused")


def test_two_api_keys_may_use_one_idempotency_key(server: Any, picture: Picture) -> None:
    with server.client("one owner") as first, server.client("one owner") as second:
        assert json_prediction(first, picture)().is_success
        answer = json_prediction(second, picture)()
        assert "idempotency-replayed" not in answer.headers
        assert lines(second, "predictions") == 1


@pytest.mark.parametrize("make_call", CHARGED)
def test_a_call_that_still_runs_is_in_progress(
    serve: Any, gate: Gate, picture: Picture, make_call: MakeCall
) -> None:
    with serve(engine=gate) as server, server.client() as client, ThreadPoolExecutor(1) as thread:
        call = make_call(client, picture)
        gate.close()
        try:
            running = thread.submit(call)
            assert gate.entered.wait(30)
            for _ in range(2):
                answer = call()
                check(answer, 409, "call-in-progress")
                assert int(answer.headers["retry-after"]) > 0
        finally:
            gate.let_through()
        assert running.result(30).is_success
        assert call().content == running.result().content
        assert call.count() == 1


def test_a_call_that_took_the_last_of_the_budget_is_in_progress_and_not_refused(
    serve: Any,
    new_postgresql: Callable[[], str],
    picture: Picture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Both attempts look their key up before either has reserved; SQLite has one thread for both.
    both = threading.Barrier(2, timeout=30)

    def admit_together(connection: Any, secret: str, key: str | None, at: int) -> Any:
        found = keys.admit(connection, secret, key, at)
        if key is not None:
            both.wait()
        return found

    monkeypatch.setattr("craft_server.api.auth.admit", admit_together)
    url = new_postgresql()
    with serve(database_url=url) as server, server.client(queries=1) as client:
        call = json_prediction(client, picture)
        with ThreadPoolExecutor(2) as threads:
            statuses = [answer.status_code for answer in threads.map(lambda _: call(), range(2))]
        assert sorted(statuses) in ([200, 200], [200, 409])  # 200 twice: the second is a replay
        assert usage(client)["total"]["queries"] == 1


@pytest.mark.parametrize("make_call", CHARGED)
@pytest.mark.parametrize(("error", "status"), [(Overloaded("full"), 503), (RuntimeError(), 500)])
def test_a_failed_call_may_be_made_again_under_its_key(
    serve: Any, gate: Gate, picture: Picture, make_call: MakeCall, error: Exception, status: int
) -> None:
    with serve(engine=gate) as server, server.client() as client:
        call = make_call(client, picture)
        before = usage(client)
        gate.error = error
        assert call().status_code == status
        assert usage(client) == before
        again = call()
        assert again.is_success, again.text
        assert "idempotency-replayed" not in again.headers
        assert call().content == again.content
        assert call.count() == 1


def test_a_refused_call_may_be_corrected_under_its_key(server: Any, picture: Picture) -> None:
    with server.client(queries=1) as client:
        call = json_prediction(client, picture)
        wrong = call.content.replace(b'"cat"', b'""')
        check(call(content=wrong), 422, "invalid-request")
        assert call().status_code == 200


@pytest.mark.parametrize("make_call", PREDICTIONS)
def test_an_acknowledged_prediction_is_computed_anew_free_of_charge(
    client: httpx.Client, picture: Picture, make_call: MakeCall
) -> None:
    call = make_call(client, picture)
    first = call()
    for _ in range(2):
        assert client.delete(f"/v1/answers/{KEY}").status_code == 204
    charged = usage(client)
    again = call()
    assert again.status_code == 200
    assert again.headers["idempotency-recomputed"] == "true"
    assert "idempotency-replayed" not in again.headers
    assert document(again)["cost"]["charged"] == document(first)["cost"]["charged"]
    np.testing.assert_allclose(log_probs(again), log_probs(first), atol=1e-5)
    assert usage(client) == charged
    check(call(content=call.other()), 422, "idempotency-key-reused")


@pytest.mark.parametrize("make_call", [image_set, upload, publication])
def test_what_a_call_has_made_is_still_told_after_it_is_acknowledged(
    client: httpx.Client, picture: Picture, make_call: MakeCall
) -> None:
    call = make_call(client, picture)
    first = call()
    assert client.delete(f"/v1/answers/{KEY}").status_code == 204
    again = call()
    assert again.content == first.content
    assert again.headers["idempotency-replayed"] == "true"
    assert call.count() == 1


def test_a_recomputed_answer_needs_no_budget(server: Any, picture: Picture) -> None:
    with server.client(queries=1, cost_micros=0) as client:
        call = json_prediction(client, picture)
        assert call().status_code == 200
        assert call(key="another").status_code == 402
        client.delete(f"/v1/answers/{KEY}")
        again = call()
        assert again.status_code == 200
        (_, budget) = sorted(document(again)["cost"]["budgets"], key=lambda b: b["unit"])
        assert (budget["spent"], budget["remaining"]) == (1, 0)


def set_prediction(client: httpx.Client, picture: Picture) -> tuple[Call, str]:
    """A prediction on all rows of an image set, and the set's id."""
    made = client.post("/v1/image-sets", json={"model": hosted(client)["name"]}).json()["id"]
    grow(client, made, picture(1))
    request = {
        "model": hosted(client)["name"],
        "classes": CLASSES,
        "templates": ["{}"],
        "image_set": made,
    }
    content = httpx.Request("POST", "http://x", json=request).content
    headers = {"Content-Type": JSON, "Accept": JSON}
    return Call(client, "/v1/predictions", content, headers, lambda: 0), made


def grow(client: httpx.Client, image_set: str, *pictures: bytes) -> None:
    path = f"/v1/image-sets/{image_set}"
    body = {
        "first_row": client.get(path).json()["count"],
        "images": [base64.b64encode(picture).decode() for picture in pictures],
    }
    assert client.post(f"{path}/images", json=body).is_success


def forget(client: httpx.Client, key: str = KEY) -> None:
    assert client.delete(f"/v1/answers/{key}").status_code == 204


def test_a_call_on_a_set_that_has_grown_is_computed_anew_on_the_rows_it_was_charged_for(
    client: httpx.Client, picture: Picture
) -> None:
    call, image_set = set_prediction(client, picture)
    first = call()
    forget(client)
    grow(client, image_set, picture(2), picture(3))
    again = call()
    assert again.headers["idempotency-recomputed"] == "true"
    assert log_probs(again).shape == log_probs(first).shape == (1, 1, 3)


def test_an_adapters_name_means_the_version_that_a_call_was_charged_for(
    client: httpx.Client, picture: Picture
) -> None:
    call = adapter_prediction(client, picture)
    first = call()
    forget(client)
    body, headers = adapter_bytes(client, seed=2), {"Content-Type": codec.MEDIA_TYPE}
    published = client.post("/v1/adapters?name=pets", content=body, headers=headers)
    assert published.json()["adapter"]["version"] == 2
    again = call()
    assert document(again)["version"] == document(first)["version"] == 1
    assert client.delete("/v1/adapters/pets@1").status_code == 204
    forget(client)
    check(call(), 404, "adapter-not-found")


def test_one_call_is_computed_anew_a_bounded_number_of_times(
    client: httpx.Client, picture: Picture
) -> None:
    call = json_prediction(client, picture)
    call()
    for _ in range(calls.MAX_RECOMPUTATIONS):
        forget(client)
        assert call().headers["idempotency-recomputed"] == "true"
        # It is kept as any answer is.
        assert call().headers["idempotency-replayed"] == "true"
    forget(client)
    answer = call()
    check(answer, 410, "answer-gone")
    assert "8 times" in answer.json()["detail"]
    assert call("another").is_success


def test_a_recomputation_that_the_server_fails_may_be_had_again(
    serve: Any, gate: Gate, picture: Picture
) -> None:
    with serve(engine=gate) as server, server.client() as client:
        call = json_prediction(client, picture)
        call()
        forget(client)
        for _ in range(calls.MAX_RECOMPUTATIONS + 1):
            gate.error = Overloaded("full")
            check(call(), 503, "overloaded")
        assert call().headers["idempotency-recomputed"] == "true"


def test_a_recomputation_that_its_client_gives_up_is_one(
    serve: Any, gate: Gate, picture: Picture
) -> None:
    with serve(engine=gate) as server, server.client() as client:
        call = json_prediction(client, picture)
        call()
        forget(client)
        with server.database.writing() as connection:
            (record,) = connection.execute(sa.select(calls.CALLS)).all()
            for _ in range(calls.MAX_RECOMPUTATIONS - 1):
                calls.begin_anew(connection, record.id)
        gate.close()
        client.timeout = httpx.Timeout(0.5)
        with pytest.raises(httpx.ReadTimeout):
            call()
        client.timeout = httpx.Timeout(30)
        gate.let_through()
        wait_for(lambda: running(server) == 0)
        check(call(), 410, "answer-gone")


def test_a_recomputation_is_a_call_that_runs(serve: Any, gate: Gate, picture: Picture) -> None:
    with serve(engine=gate) as server, ThreadPoolExecutor(1) as thread:
        with server.database.writing() as connection:
            rates = keys.Rates(concurrency=1, predictions_per_minute=4)
            secret = keys.create_key(connection, owner="one", rates=rates, at=now_ms())
        headers = {"Authorization": f"Bearer {secret}"}
        with httpx.Client(base_url=server.url, headers=headers, timeout=30) as client:
            call = json_prediction(client, picture)
            call()
            forget(client)
            gate.close()
            try:
                again = thread.submit(call)
                assert gate.entered.wait(30)
                for key in ("another", KEY):
                    check(call(key), 429, "rate-limited")
            finally:
                gate.let_through()
            assert again.result(30).headers["idempotency-recomputed"] == "true"
            # Four predictions a minute are used up by now, by one call that was charged.
            check(call("third"), 429, "rate-limited")
            assert usage(client)["total"]["predictions"] == 1


def running(server: Any) -> int:
    with server.database.reading() as connection:
        reserved = sa.select(sa.func.count()).where(CHARGES.c.state == "reserved")
        return int(connection.execute(reserved).scalar_one())


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_was_answered_before_its_resolution_was_kept_is_replayed_and_not_computed_anew(
    server: Any, picture: Picture
) -> None:
    with server.client() as client:
        call = json_prediction(client, picture)
        first = call()
        with server.database.writing() as connection:
            connection.execute(sa.update(calls.CALLS).values(resolution=None))
        assert call().content == first.content
        forget(client)
        check(call(), 410, "answer-gone")


def test_only_the_owner_of_an_answer_acknowledges_it(server: Any, picture: Picture) -> None:
    with server.client("one owner") as mine, server.client("one owner") as other:
        call = json_prediction(mine, picture)
        call()
        assert other.delete(f"/v1/answers/{KEY}").status_code == 204
        assert call().headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize("key", ["unknown", "a/b?c=d#e%2F", "!", "~" * 255])
def test_any_idempotency_key_can_be_acknowledged(
    client: httpx.Client, picture: Picture, key: str
) -> None:
    path = httpx.URL("http://x").copy_with(path="/v1/answers/").raw_path.decode()
    quoted = "".join(f"%{ord(character):02X}" for character in key)
    assert client.delete(path + quoted).status_code == 204
    call = json_prediction(client, picture)
    assert call(key).is_success
    assert client.delete(path + quoted).status_code == 204
    assert call(key).headers["idempotency-recomputed"] == "true"


@pytest.mark.parametrize("quoted", ["%00", "a%00b", "%20", "x" * 256])
def test_acknowledging_what_is_no_idempotency_key_changes_nothing(stored: Any, quoted: str) -> None:
    with stored.client() as client:
        assert client.delete(f"/v1/answers/{quoted}").status_code == 204


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "\xe9"])
def test_a_key_that_cannot_be_one_is_refused(
    client: httpx.Client, picture: Picture, key: str
) -> None:
    call = json_prediction(client, picture)
    answer = client.post(
        call.path,
        content=call.content,
        headers={**call.headers, "Idempotency-Key": key.encode("latin-1")},  # type: ignore[dict-item] # bytes, which httpx takes
    )
    check(answer, 422, "invalid-request")
    assert [error["field"] for error in answer.json()["errors"]] == ["Idempotency-Key"]
    assert lines(client, "predictions") == 0


@pytest.mark.parametrize("header", ["Idempotency-Key", "Craft-Run"])
def test_a_header_may_be_as_long_as_it_is_described_and_no_longer(
    client: httpx.Client, picture: Picture, header: str
) -> None:
    call = json_prediction(client, picture)
    described = client.get("/openapi.json").json()["paths"][call.path]["post"]["parameters"]
    (schema,) = [one["schema"] for one in described if one["name"] == header]
    (bounds,) = (
        [one for one in schema["anyOf"] if "maxLength" in one] if "anyOf" in schema else [schema]
    )

    def status(length: int) -> int:
        headers = {**call.headers, header: "x" * length}
        return client.post(call.path, content=call.content, headers=headers).status_code

    lengths = (bounds["minLength"], bounds["maxLength"])
    assert [status(length) for length in lengths] == [200, 200]
    assert [status(lengths[0] - 1), status(lengths[1] + 1)] == [422, 422]


def test_the_oldest_answers_go_first_past_the_bound(serve: Any, picture: Picture) -> None:
    with (
        serve(answers_bytes=1000, lease_seconds=0.2) as server,
        server.client() as client,
    ):
        call = json_prediction(client, picture)
        size = len(call("key-0").content)
        fitting = 1000 // size
        names = [f"key-{number}" for number in range(1, fitting + 3)]
        for name in names:
            assert call(name).is_success
        deadline = time.monotonic() + 30
        while stored(server) > 1000:
            assert time.monotonic() < deadline, "nothing was evicted"
            time.sleep(0.02)
        charged = usage(client)
        assert call("key-0").headers["idempotency-recomputed"] == "true"
        assert call(names[-1]).headers["idempotency-replayed"] == "true"
        assert usage(client) == charged


def test_a_key_is_remembered_for_the_hours_of_the_settings(server: Any, picture: Picture) -> None:
    with server.client() as client:
        call = json_prediction(client, picture)
        call()
        day_ms = 24 * 3600 * 1000
        for before, header in ((now_ms() - day_ms, True), (now_ms() + 1, False)):
            with server.database.writing() as connection:
                calls.evict(connection, most_bytes=10**9, before=before)
            assert ("idempotency-replayed" in call().headers) is header


def test_a_call_sent_many_times_at_once_is_charged_once(
    serve: Any, store_url: str, picture: Picture
) -> None:
    with serve(database_url=store_url) as server, server.client(queries=1) as client:
        call = json_prediction(client, picture)
        with ThreadPoolExecutor(16) as threads:
            answers = list(threads.map(lambda _: call(), range(32)))
        assert {answer.status_code for answer in answers} <= {200, 409}
        assert len({answer.content for answer in answers if answer.status_code == 200}) == 1
        assert usage(client)["total"]["queries"] == 1


def stored(server: Any) -> int:
    with server.database.reading() as connection:
        rows = connection.execute(calls.CALLS.select())
        return sum(row.body_bytes for row in rows)


def document(answer: httpx.Response) -> dict[str, Any]:
    if answer.headers["content-type"] == codec.MEDIA_TYPE:
        return dict(codec.decode(answer.content)[0])
    return dict(answer.json())


def log_probs(answer: httpx.Response) -> Any:
    if answer.headers["content-type"] == codec.MEDIA_TYPE:
        return codec.decode(answer.content)[1]["log_probs"]
    return np.array(answer.json()["log_probs"])
