from __future__ import annotations

import copy
import http.server
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import stamina

from craft_client import Client, exchange
from craft_client.calls import GATEWAY_STATUSES, Call, read_json
from craft_client.exceptions import (
    AdapterNotFound,
    AnswerLost,
    BudgetExhausted,
    CallInProgress,
    ConnectionFailed,
    CraftError,
    GatewayFailed,
    IdempotencyKeyReused,
    ImageSetNotFound,
    InternalError,
    InvalidRequest,
    LimitExceeded,
    MissingKey,
    ModelNotFound,
    Overloaded,
    ProblemError,
    ProtocolError,
    RateLimited,
    Unauthenticated,
)
from craft_client.predictions import AdapterPrediction, Prediction
from craft_shared import codec, problems
from craft_shared.adapter import Adapter, AdapterConfig
from craft_shared.head import Unrefined
from craft_shared.problems import Problem, ProblemType
from craft_shared.units import Units
from craft_shared.wire import BudgetList, Context, ImageUploadAnswer, PredictionRequest

from .wire_server import Fault, WireServer

CLASSES = ["cat", "dog", "owl"]
PREDICTIONS = "POST /v1/predictions"


@pytest.fixture
def client(connected: WireServer, fast_retries: None) -> Iterator[Client]:
    with Client() as client:
        yield client


def pictures(count: int, size: int = 20, first: int = 0) -> list[bytes]:
    return [f"{number:06}".encode().ljust(size, b".") for number in range(first, first + count)]


def adapter(scale: float = 1.0) -> Adapter:
    context = Context(dim=4, scale=scale)
    config = AdapterConfig(
        model="fake",
        revision="0123456789abcdef",
        classes=CLASSES,
        templates=["a photo of a {}."],
        context=context,
        codes=2,
        head="none",
    )
    return Adapter(config, np.ones((2, 4), np.float32), Unrefined())


def plain(image_set: str | None = None, **fields: Any) -> PredictionRequest:
    return PredictionRequest(
        model="fake", classes=CLASSES, templates=["a {}."], image_set=image_set, **fields
    )


# --- who calls, and where -----------------------------------------------------------------------


def test_requests_name_the_key_the_client_and_themselves(
    client: Client, connected: WireServer
) -> None:
    client.models()
    client.models()
    first, second = (seen.headers for seen in connected.seen)
    assert first["Authorization"] == "Bearer craft_test_key"
    assert first["User-Agent"] == f"craftbox/{version('craftbox')}"
    assert len(first["X-Request-Id"]) == 32
    assert first["X-Request-Id"] != second["X-Request-Id"]


def test_without_a_key_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRAFT_API_KEY", raising=False)
    with pytest.raises(MissingKey, match=r"CRAFT_API_KEY.*--key"):
        Client("http://127.0.0.1:1")


def test_the_key_may_be_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("craft_of_the_file\n")
    monkeypatch.delenv("CRAFT_API_KEY", raising=False)
    monkeypatch.setenv("CRAFT_API_KEY_FILE", str(file))
    sent: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers["Authorization"])
        return httpx.Response(200, json={"budgets": []})

    with Client(transport=httpx.MockTransport(answer)) as client:
        client.budgets()
    assert sent == ["Bearer craft_of_the_file"]


def test_a_key_file_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CRAFT_API_KEY", raising=False)
    monkeypatch.setenv("CRAFT_API_KEY_FILE", str(tmp_path / "none"))
    with pytest.raises(MissingKey, match=r"(?s)none.*CRAFT_API_KEY_FILE"):
        Client()


@pytest.mark.parametrize("key", ["craft_schlüssel", "craft_a\ncraft_b", "craft_a b"])
def test_a_key_that_cannot_be_one_is_told_without_repeating_it(key: str) -> None:
    with pytest.raises(MissingKey) as caught:
        Client("http://127.0.0.1:1", key)
    assert key not in str(caught.value)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "http://h:port", "x y"])
def test_an_address_that_is_none_is_told(url: str) -> None:
    with pytest.raises(CraftError, match="is not the address of a server"):
        Client(url, "craft_key")


def test_the_key_is_in_no_representation() -> None:
    client = Client("http://127.0.0.1:1", "craft_secret")
    assert "secret" not in repr(client) + str(vars(client))


def test_a_deep_copy_is_the_client_itself() -> None:
    client = Client("http://127.0.0.1:1", "craft_key")
    assert copy.deepcopy({"client": client})["client"] is client


# --- typed answers ------------------------------------------------------------------------------


def test_a_model_is_found_by_name_or_is_the_first(client: Client) -> None:
    assert client.model().name == "fake"
    assert client.model("fake") == client.model()
    with pytest.raises(ModelNotFound, match=r"no model 'RN50'; the server hosts 'fake'"):
        client.model("RN50")


def test_a_prediction_arrives_as_float32_with_its_cost(
    client: Client, connected: WireServer
) -> None:
    image_set = client.upload_images(client.create_image_set("fake"), pictures(5))
    context = Context(dim=4)
    request = plain(image_set.id, context=context, rows=[4, 0], dtype="float16")
    codes = np.arange(8, dtype=np.float32).reshape(2, 4)
    answer = client.predict(request, codes=codes)
    assert answer.log_probs.shape == (3, 2, 3)
    assert answer.log_probs.dtype == np.float32
    np.testing.assert_allclose(np.exp(answer.log_probs).sum(-1), 1, atol=2e-3)
    assert answer.cost.charged == Units(queries=3, predictions=6, texts=9, requests=1)
    whole = client.predict(plain(image_set.id, context=context), codes=codes).log_probs
    np.testing.assert_allclose(answer.log_probs, whole[:, [4, 0]], atol=4e-3)


def test_pictures_sent_along_are_scored_as_those_of_an_image_set(client: Client) -> None:
    image_set = client.upload_images(client.create_image_set("fake"), pictures(3))
    stored = client.predict(plain(image_set.id))
    inline = client.predict(plain(), images=pictures(3))
    np.testing.assert_array_equal(stored.log_probs, inline.log_probs)
    assert inline.cost.charged.images == 3


def test_with_top_k_the_most_probable_classes_arrive_with_their_indices(client: Client) -> None:
    image_set = client.upload_images(client.create_image_set("fake"), pictures(5))
    whole = client.predict(plain(image_set.id))
    assert whole.top_classes is None
    best = client.predict(plain(image_set.id, top_k=2))
    assert best.top_classes is not None
    assert best.top_classes.shape == best.log_probs.shape == (1, 5, 2)
    found = np.take_along_axis(whole.log_probs, best.top_classes, -1)
    np.testing.assert_array_equal(best.log_probs, found)
    np.testing.assert_array_equal(best.log_probs[..., 0], whole.log_probs.max(-1))

    client.publish("pets", adapter())
    refined = client.adapter_predict("pets", image_set=image_set.id)
    assert refined.top_classes is None
    top = client.adapter_predict("pets", image_set=image_set.id, top_k=1)
    np.testing.assert_array_equal(top.top_classes, refined.log_probs.argmax(-1)[:, None])
    np.testing.assert_array_equal(top.log_probs, refined.log_probs.max(-1, keepdims=True))


def test_usage_merges_all_pages(client: Client, connected: WireServer) -> None:
    connected.prices = {"queries": 20}
    image_set = client.upload_images(client.create_image_set("fake"), pictures(2))
    for _ in range(7):
        client.predict(plain(image_set.id))
    usage = client.usage()
    assert [charge.id for charge in usage.charges] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert usage.total == connected.charged
    assert usage.cost_micros == connected.charged_micros == 7 * 20
    assert usage.next_after is None


def test_an_adapters_whole_life(client: Client) -> None:
    published = client.publish("pets", adapter())
    assert published.adapter.version == 1
    assert published.cost.charged == Units(texts=9, requests=1)
    assert client.publish("pets", adapter()).cost.charged == Units()
    assert client.publish("pets", adapter(scale=2.0)).adapter.version == 2
    assert [card.version for card in client.adapters()] == [1, 2]
    assert client.adapter("pets@1").digest == adapter().digest
    answer = client.adapter_predict("pets@1", images=pictures(4))
    assert (answer.adapter, answer.version, answer.classes) == ("pets", 1, CLASSES)
    assert answer.log_probs.shape == (4, 3)
    assert answer.cost.charged == Units(queries=3, predictions=12, images=4, requests=1)
    client.retire("pets@2")
    client.retire("pets")
    with pytest.raises(AdapterNotFound):
        client.retire("pets")


def test_a_name_cannot_be_read_as_another_address(client: Client, connected: WireServer) -> None:
    with pytest.raises(ProblemError):
        client.retire("a/../../image-sets/b?c#d")
    assert connected.calls == ["DELETE /v1/adapters/a%2F..%2F..%2Fimage-sets%2Fb%3Fc%23d"]


# --- typed errors -------------------------------------------------------------------------------


def test_a_wrong_key_is_unauthenticated(connected: WireServer) -> None:
    with Client(connected.url, "craft_wrong") as client, pytest.raises(Unauthenticated):
        client.models()


def test_an_unknown_image_set_is_told(client: Client) -> None:
    with pytest.raises(ImageSetNotFound, match="no image set 'set-9'"):
        client.image_set("set-9")


def test_an_exhausted_budget_is_asked_only_once(client: Client, connected: WireServer) -> None:
    image_set = client.upload_images(client.create_image_set("fake"), pictures(1))
    connected.budgets["queries"] = 0
    with pytest.raises(BudgetExhausted, match="needs 1, 0 are left"):
        client.predict(plain(image_set.id))
    assert connected.calls.count(PREDICTIONS) == 1


def answering(body: bytes, content_type: str, status: int = 200, **headers: str) -> Client:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(
            status, content=body, headers={"Content-Type": content_type, **headers}
        )

    return Client("http://server", "craft_key", transport=httpx.MockTransport(answer))


@pytest.mark.parametrize(
    ("client", "words"),
    [
        (answering(b"<html>", "text/html"), "content type is 'text/html'"),
        (answering(b"<html>", "text/html", 501), "error without a problem document"),
        (answering(b"{}", "application/json"), "models: Field required"),
        (answering(b"{", "application/json"), "Invalid JSON"),
        (answering(b"{}", "application/problem+json", 400), "type: Field required"),
        (answering(b"", "text/html", 301, Location="http://b"), "redirected to http://b"),
    ],
)
def test_an_answer_that_no_craftbox_gives_is_a_protocol_error(client: Client, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        client.models()


DOCUMENT = {
    "model": "fake",
    "revision": "0",
    "cost": {"charged": Units().model_dump(), "budgets": []},
}


def log_probs(shape: tuple[int, ...], value: float = -1.0, dtype: str = "float32") -> bytes:
    return codec.encode(DOCUMENT, {"log_probs": np.full(shape, value, dtype)})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"not safetensors", "header claims"),
        (codec.encode(DOCUMENT, {}), r"tensors \[\]; \['log_probs'\] were asked for"),
        (codec.encode({}, {"log_probs": np.zeros(1, np.float32)}), "model: Field required"),
        (log_probs((2, 4, 3)), r"shape \(2, 4, 3\).*\(1, any, 3\)"),
        (log_probs((1, 4, 3), dtype="int64"), "type int64"),
        (log_probs((1, 4, 3), np.nan), "not finite"),
        (log_probs((1, 4, 3), -np.inf), "not finite"),
    ],
)
def test_log_probabilities_that_were_not_asked_for_are_a_protocol_error(
    body: bytes, words: str
) -> None:
    client = answering(body, codec.MEDIA_TYPE)
    with pytest.raises(ProtocolError, match=words):
        client.predict(plain("set-1"))


def top(classes: Any, count: int = 2) -> bytes:
    scores = np.full((1, 4, count), -1, np.float32)
    return codec.encode(DOCUMENT, {"log_probs": scores, "top_classes": np.array(classes)})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (log_probs((1, 4, 2)), r"\['log_probs'\]; \['log_probs', 'top_classes'\] were asked"),
        (top(np.zeros((1, 4, 3), np.int32), count=3), r"shape \(1, 4, 3\).*\(1, any, 2\)"),
        (top(np.zeros((1, 4, 1), np.int32)), r"top classes of shape \(1, 4, 1\)"),
        (top(np.zeros((1, 4, 2), np.int64)), "type int64"),
        (top(np.full((1, 4, 2), 3, np.int32)), "none of the 3"),
        (top(np.full((1, 4, 2), -1, np.int32)), "none of the 3"),
    ],
)
def test_top_classes_that_were_not_asked_for_are_a_protocol_error(body: bytes, words: str) -> None:
    client = answering(body, codec.MEDIA_TYPE)
    with pytest.raises(ProtocolError, match=words):
        client.predict(plain("set-1", top_k=2))


def test_the_number_of_images_is_checked_where_it_is_known() -> None:
    client = answering(log_probs((1, 4, 3)), codec.MEDIA_TYPE)
    assert client.predict(plain("set-1")).log_probs.shape == (1, 4, 3)
    with pytest.raises(ProtocolError):
        client.predict(plain("set-1", rows=[1, 2, 3]))
    with pytest.raises(ProtocolError):
        client.predict(plain(), images=pictures(5))


# --- retries ------------------------------------------------------------------------------------


def test_no_server_is_told_with_its_address_and_a_remedy(fast_retries: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with Client(url, "craft_key") as client, pytest.raises(ConnectionFailed) as caught:
        client.models()
    assert not isinstance(caught.value, AnswerLost)
    assert url in str(caught.value)
    assert "Is craft-server running there?" in str(caught.value)


def test_even_a_charged_call_waits_for_a_server_that_is_not_up_yet() -> None:
    """The first connection is refused for certain, so that the call may be sent again."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    posts: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posts.append(self.path)
            self.rfile.read(int(self.headers["Content-Length"]))
            body = log_probs((1, 1, 3))
            self.send_response(200)
            self.send_header("Content-Type", codec.MEDIA_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    started: list[http.server.HTTPServer] = []

    def start(details: stamina.instrumentation.RetryDetails) -> None:
        if not started:
            started.append(http.server.HTTPServer(("127.0.0.1", port), Handler))
            threading.Thread(target=started[0].serve_forever, args=(0.01,), daemon=True).start()

    stamina.instrumentation.set_on_retry_hooks([start])
    try:
        with Client(f"http://127.0.0.1:{port}", "craft_key") as client:
            client.predict(plain("set-1"))
    finally:
        stamina.instrumentation.set_on_retry_hooks(None)
        for server in started:
            server.shutdown()
            server.server_close()
    assert started
    assert posts == ["/v1/predictions"]


def sent(server: WireServer, call: str) -> list[dict[str, str]]:
    return [seen.headers for seen in server.seen if seen.call == call]


def keys(server: WireServer) -> list[str]:
    return [seen.headers["Idempotency-Key"] for seen in server.seen if "POST" in seen.call]


@pytest.mark.parametrize("drop", ["before", "after"])
def test_a_lost_answer_is_fetched_under_the_same_key_and_charged_once(
    client: Client, connected: WireServer, drop: str
) -> None:
    image_set = client.upload_images(client.create_image_set("fake"), pictures(1))
    connected.faults += [Fault(PREDICTIONS, drop=drop) for _ in range(2)]
    answer = client.predict(plain(image_set.id))
    tries = sent(connected, PREDICTIONS)
    assert len(tries) == 3
    assert {headers["Idempotency-Key"] for headers in tries} == {answer.idempotency_key}
    assert len({headers["X-Request-Id"] for headers in tries}) == 1
    assert connected.charged.queries == answer.cost.charged.queries == 1
    again = client.predict(plain(image_set.id), idempotency_key=answer.idempotency_key)
    np.testing.assert_array_equal(again.log_probs, answer.log_probs)
    assert again.cost == answer.cost
    assert connected.charged.queries == 1


def test_a_call_that_is_still_running_is_waited_for(connected: WireServer) -> None:
    """The first connection breaks; the work begins when the call comes again, and then ends."""
    with Client() as client:
        image_set = client.upload_images(client.create_image_set("fake"), pictures(1))
        connected.faults.append(Fault(PREDICTIONS, drop="during"))
        answer = client.predict(plain(image_set.id))
    assert len(sent(connected, PREDICTIONS)) >= 3, "lost, told that it is running, answered"
    assert connected.made[answer.idempotency_key].sent_again.is_set()
    assert connected.charged.queries == 1


def test_every_post_has_a_key_of_its_own_and_nothing_else_has_one(
    client: Client, connected: WireServer
) -> None:
    image_set = client.upload_images(client.create_image_set("fake"), pictures(20))
    for _ in range(2):
        client.predict(plain(image_set.id))
    client.publish("pets", adapter())
    client.adapter_predict("pets", image_set=image_set.id)
    assert len(set(keys(connected))) == len(keys(connected)) == 1 + 3 + 2 + 1 + 1
    assert all(re.fullmatch("[0-9a-f]{32}", key) for key in keys(connected))
    others = [seen for seen in connected.seen if "POST" not in seen.call]
    assert others
    assert not any("Idempotency-Key" in seen.headers for seen in others)


def test_a_key_of_the_callers_fetches_the_first_answer_again(
    client: Client, connected: WireServer
) -> None:
    """As a run that was killed does, from another process."""
    image_set = client.create_image_set("fake")
    client.publish("pets", adapter())

    def run(client: Client) -> tuple[ImageUploadAnswer, Prediction, AdapterPrediction]:
        uploads: list[ImageUploadAnswer] = []
        client.upload_images(
            image_set, pictures(10), on_chunk=uploads.append, idempotency_key="run-upload"
        )
        return (
            uploads[-1],
            client.predict(plain(image_set.id), idempotency_key="run-0"),
            client.adapter_predict("pets", image_set=image_set.id, idempotency_key="run-1"),
        )

    first, charged = run(client), connected.charged
    with Client() as other:
        second = run(other)
    assert connected.charged == charged
    assert connected.image_set(image_set.id).count == 10
    assert [answer.cost for answer in first] == [answer.cost for answer in second]
    assert second[1].idempotency_key == "run-0"
    assert set(keys(connected)) >= {"run-upload-0", "run-upload-8", "run-0", "run-1"}


def test_another_call_under_a_used_key_is_refused(client: Client, connected: WireServer) -> None:
    image_set = client.upload_images(client.create_image_set("fake"), pictures(2))
    client.predict(plain(image_set.id), idempotency_key="run-0")
    with pytest.raises(IdempotencyKeyReused):
        client.predict(plain(image_set.id, rows=[1]), idempotency_key="run-0")
    assert connected.charged.queries == 1


def test_an_acknowledged_answer_is_given_up_by_the_server_and_stays_paid(
    client: Client, connected: WireServer
) -> None:
    image_set = client.upload_images(client.create_image_set("fake"), pictures(1))
    answer = client.predict(plain(image_set.id), idempotency_key="a/b?c")
    client.acknowledge(answer.idempotency_key)
    assert connected.calls[-1] == "DELETE /v1/answers/a%2Fb%3Fc"
    assert connected.acknowledged == ["a/b?c"]
    assert connected.made["a/b?c"].answer is None
    client.predict(plain(image_set.id), idempotency_key="a/b?c")
    assert connected.charged.queries == 1


@pytest.mark.parametrize("name", ["", "schlüssel", "a\nb", "k" * 256])
def test_names_that_cannot_travel_are_told_before_anything_is_sent(
    client: Client, connected: WireServer, name: str
) -> None:
    with pytest.raises(CraftError, match="idempotency_key: "):
        client.predict(plain("set-1"), idempotency_key=name)
    with pytest.raises(CraftError, match="run: "):
        Client(run=name)
    assert connected.calls == []


def test_a_client_names_its_run_with_every_call(connected: WireServer) -> None:
    with Client(run="flowers seed 1") as client:
        client.upload_images(client.create_image_set("fake"), pictures(1))
    assert {seen.headers["Craft-Run"] for seen in connected.seen} == {"flowers seed 1"}
    with Client() as client:
        client.models()
    assert "Craft-Run" not in connected.seen[-1].headers


def test_a_client_names_its_user_with_every_call(
    connected: WireServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CraftError, match="user: "):
        Client(user="two words")
    with Client(user="ann") as client:
        client.upload_images(client.create_image_set("fake"), pictures(1))
        client.budgets()
    assert {seen.headers["Craft-User"] for seen in connected.seen} == {"ann"}
    monkeypatch.setenv("CRAFT_USER", "bob")
    with Client() as client:
        client.usage(user="eve")
    assert connected.seen[-1].headers["Craft-User"] == "bob"


def test_an_answer_lost_for_good_is_told_with_the_key_that_fetches_it(
    client: Client, connected: WireServer
) -> None:
    image_set = client.upload_images(client.create_image_set("fake"), pictures(1))
    connected.faults += [Fault(PREDICTIONS, drop="after") for _ in range(3)]
    with pytest.raises(AnswerLost, match=r"(?s)craft usage.*idempotency key run-0"):
        client.predict(plain(image_set.id), idempotency_key="run-0")
    client.predict(plain(image_set.id), idempotency_key="run-0")
    assert connected.charged.queries == 1


def test_a_server_that_dies_with_an_answer_leaves_it_lost_not_unasked(fast_retries: None) -> None:
    """No further connection can be made, but the first one may have been charged."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"

        def die() -> None:
            connection, _ = listening.accept()
            listening.close()
            connection.recv(1)
            connection.close()

        thread = threading.Thread(target=die)
        thread.start()
        with Client(url, "craft_key") as client, pytest.raises(AnswerLost):
            client.predict(plain("set-1"))
        thread.join()


def test_reading_is_repeated_when_the_connection_breaks(
    client: Client, connected: WireServer
) -> None:
    connected.faults += [Fault("GET /v1/models", drop="after") for _ in range(2)]
    assert client.models()
    assert connected.calls == ["GET /v1/models"] * 3
    assert len({seen.headers["X-Request-Id"] for seen in connected.seen}) == 1


def test_deleting_twice_because_an_answer_was_lost_is_deleting_once(
    client: Client, connected: WireServer
) -> None:
    image_set = client.create_image_set("fake")
    connected.faults.append(Fault("DELETE .*", drop="after"))
    client.delete_image_set(image_set.id)
    assert connected.image_sets == {}
    with pytest.raises(ImageSetNotFound):
        client.delete_image_set(image_set.id)


def test_an_overloaded_server_is_asked_again_after_its_time(
    client: Client, connected: WireServer
) -> None:
    image_set = client.upload_images(client.create_image_set("fake"), pictures(1))
    connected.faults.append(Fault(PREDICTIONS, status=503, headers={"Retry-After": "1"}))
    client.predict(plain(image_set.id))
    assert connected.calls.count(PREDICTIONS) == 2


def refusing(pattern: str, kind: ProblemType, **headers: str) -> Fault:
    """A refusal in the server's own words."""
    body = Problem.of(kind, "Not now.").model_dump_json()
    return Fault(pattern, status=kind.status, kind=problems.MEDIA_TYPE, body=body, headers=headers)


@pytest.mark.parametrize("kind", [RateLimited, Overloaded])
def test_without_a_time_to_wait_no_call_is_sent_again(
    client: Client, connected: WireServer, kind: type[ProblemError]
) -> None:
    """A call that is larger than the whole rate limit never fits, however long one waits."""
    assert kind.kind is not None
    connected.faults.append(refusing("GET /v1/models", kind.kind))
    with pytest.raises(kind):
        client.models()
    assert connected.calls == ["GET /v1/models"]


PAGE = {"kind": "text/html", "body": "<html><h1>No</h1></html>"}


@pytest.mark.parametrize("status", sorted(GATEWAY_STATUSES))
@pytest.mark.parametrize("headers", [{}, {"Retry-After": "0"}], ids=["no time", "a time"])
def test_what_a_gateway_answers_is_no_end(
    client: Client, connected: WireServer, status: int, headers: dict[str, str]
) -> None:
    image_set = client.upload_images(client.create_image_set("fake"), pictures(1))
    connected.faults.append(Fault(PREDICTIONS, status=status, headers=headers, **PAGE))
    client.predict(plain(image_set.id))
    first, second = sent(connected, PREDICTIONS)
    assert first["Idempotency-Key"] == second["Idempotency-Key"]


def test_a_gateway_that_goes_on_refusing_is_named_with_its_status(
    client: Client, connected: WireServer
) -> None:
    connected.faults += [Fault("GET /v1/models", status=502, **PAGE) for _ in range(3)]
    with pytest.raises(GatewayFailed, match="answers 502") as caught:
        client.models()
    assert caught.value.status == 502


def test_a_deletion_that_a_gateway_hid_counts_as_done(
    client: Client, connected: WireServer
) -> None:
    image_set = client.create_image_set("fake")
    hidden = Fault(
        "DELETE .*",
        status=502,
        also=lambda: connected.image_sets.pop(image_set.id),
        **PAGE,
    )
    connected.faults.append(hidden)
    client.delete_image_set(image_set.id)
    assert hidden not in connected.faults


def test_a_server_that_failed_is_asked_again_for_a_short_while(
    connected: WireServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "SHORT_PATIENCE", 0.5)
    with Client() as client:
        connected.faults.append(refusing("GET /v1/models", problems.INTERNAL_ERROR))
        client.models()
        connected.faults += [refusing("GET /v1/models", problems.INTERNAL_ERROR) for _ in range(50)]
        with pytest.raises(InternalError):
            client.models()


def test_a_rate_limit_in_the_servers_words_is_a_typed_error(
    client: Client, connected: WireServer
) -> None:
    problem = Problem.of(problems.RATE_LIMITED, "this call needs 9 predictions and 4 are left")
    connected.faults.append(
        Fault(PREDICTIONS, status=429, kind=problems.MEDIA_TYPE, body=problem.model_dump_json())
    )
    with pytest.raises(RateLimited, match="needs 9 predictions") as caught:
        client.predict(plain("set-1"))
    assert caught.value.retry_after is None


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("as_date", [False, True])
def test_the_wait_is_the_one_the_server_names(
    connected: WireServer, as_date: bool, status: int
) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    header = date if as_date else "1"
    connected.faults.append(Fault("GET /v1/models", status=status, headers={"Retry-After": header}))
    waits: list[float] = []

    def note(details: stamina.instrumentation.RetryDetails) -> None:
        waits.append(details.wait_for)

    stamina.instrumentation.set_on_retry_hooks([note])
    try:
        with Client() as client:
            client.models()
    finally:
        stamina.instrumentation.set_on_retry_hooks(None)
    assert len(waits) == 1
    assert 0.5 < waits[0] <= 2


@pytest.mark.parametrize("kind", [RateLimited, Overloaded])
def test_a_wait_beyond_patience_is_an_error_at_once(
    connected: WireServer, kind: type[ProblemError]
) -> None:
    assert kind.kind is not None
    connected.faults.append(refusing("GET /v1/models", kind.kind, **{"Retry-After": "3600"}))
    with Client() as client, pytest.raises(kind) as caught:
        client.models()
    assert caught.value.retry_after == 3600
    assert connected.calls == ["GET /v1/models"]


RUNNING = {
    "kind": problems.MEDIA_TYPE,
    "body": Problem.of(problems.CALL_IN_PROGRESS, "It is running.").model_dump_json(),
}


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(PREDICTIONS, drop="after"), AnswerLost),
        (refusing(PREDICTIONS, problems.RATE_LIMITED, **{"Retry-After": "0"}), RateLimited),
        (refusing(PREDICTIONS, problems.OVERLOADED, **{"Retry-After": "0"}), Overloaded),
        (Fault(PREDICTIONS, status=529, **PAGE), GatewayFailed),
        (Fault(PREDICTIONS, status=409, **RUNNING, headers={"Retry-After": "0"}), CallInProgress),
    ],
    ids=["lost", "rate limited", "overloaded", "a gateway's", "running"],
)
def test_patience_counts_from_the_first_failure_and_ends(
    connected: WireServer, monkeypatch: pytest.MonkeyPatch, fault: Fault, kind: type[CraftError]
) -> None:
    monkeypatch.setattr(exchange, "PATIENCE", 1.0)
    monkeypatch.setattr(exchange, "LONG_PATIENCE", 1.0)
    with Client() as client:
        image_set = client.upload_images(client.create_image_set("fake"), pictures(1))
        # The first answer takes longer than the patience, and its loss is not the end.
        connected.faults.append(replace(fault, also=lambda: time.sleep(1.2)))
        connected.faults += [replace(fault) for _ in range(50)]
        with pytest.raises(kind):
            client.predict(plain(image_set.id))
    assert 3 <= len(sent(connected, PREDICTIONS)) < 10, "more than once, and not hammered"


# --- uploads ------------------------------------------------------------------------------------


def test_uploads_are_cut_by_the_number_of_pictures_and_by_bytes(
    client: Client, connected: WireServer
) -> None:
    connected.limits = connected.limits.model_copy(update={"body_bytes": 60_000})
    small, large = pictures(10), pictures(5, size=25_000, first=10)
    answers: list[ImageUploadAnswer] = []
    image_set = client.upload_images(
        client.create_image_set("fake"), iter(small + large), on_chunk=answers.append
    )
    counts = [answer.image_set.count for answer in answers]
    # 8 fill a call; 2 small and 2 large ones are 50 KB, a third large one does not fit.
    assert counts == [8, 12, 14, 15]
    assert image_set.count == 15
    assert max(int(seen.headers.get("Content-Length", 0)) for seen in connected.seen) <= 60_000
    assert sum((answer.cost.charged for answer in answers), Units()) == connected.charged


def test_uploading_goes_on_after_what_is_there(client: Client, connected: WireServer) -> None:
    image_set = client.upload_images(client.create_image_set("fake"), pictures(3))
    image_set = client.upload_images(image_set, pictures(3, first=3))
    assert image_set.count == 6
    again = client.upload_images(client.create_image_set("fake"), pictures(6))
    assert connected.image_sets[again.id] == connected.image_sets[image_set.id]
    assert connected.charged.images == 6


def test_too_large_a_picture_is_told_before_any_upload(
    client: Client, connected: WireServer
) -> None:
    image_set = client.create_image_set("fake")
    with pytest.raises(LimitExceeded, match=r"images\[20\].*70000 bytes.*65536"):
        client.upload_images(image_set, [*pictures(20), b"." * 70_000])
    assert connected.image_sets[image_set.id] == []


def test_too_many_pictures_are_told_before_any_upload(
    client: Client, connected: WireServer
) -> None:
    image_set = client.create_image_set("fake")
    with pytest.raises(LimitExceeded, match="1001 pictures"):
        client.upload_images(image_set, pictures(1001))
    assert connected.image_sets[image_set.id] == []


@pytest.mark.parametrize("drop", ["before", "after"])
def test_a_lost_upload_is_neither_done_nor_paid_twice(
    client: Client, connected: WireServer, drop: str
) -> None:
    """The connection closes before or after the second of three chunks was added."""
    image_set = client.create_image_set("fake")
    answers: list[ImageUploadAnswer] = []

    def note(answer: ImageUploadAnswer) -> None:
        answers.append(answer)
        if len(answers) == 1:
            connected.faults.append(Fault(r"POST .*/images", drop=drop))

    final = client.upload_images(image_set, pictures(20), on_chunk=note)
    assert final.count == 20
    assert len(set(connected.image_sets[image_set.id])) == 20
    assert [answer.image_set.count for answer in answers] == [8, 16, 20]
    assert len(set(keys(connected))) == 4, "one to make the set, one a chunk"
    # The client's sum is the ledger's to the last unit, the lost answer's cost included.
    assert sum((answer.cost.charged for answer in answers), Units()) == connected.charged
    assert connected.charged == Units(images=20, requests=3)


def test_an_image_set_that_somebody_else_fills_is_told(client: Client) -> None:
    stale = client.create_image_set("fake")
    client.upload_images(stale, pictures(2))
    with pytest.raises(InvalidRequest, match="first_row"):
        client.upload_images(stale, pictures(2, first=2))


def test_a_server_that_loses_every_upload_is_given_up(
    client: Client, connected: WireServer
) -> None:
    connected.faults += [Fault(r"POST .*/images", drop="before") for _ in range(20)]
    with pytest.raises(AnswerLost):
        client.upload_images(client.create_image_set("fake"), pictures(1))
    assert connected.calls.count("POST /v1/image-sets/set-1/images") == 3
    assert connected.charged == Units()


@pytest.mark.parametrize(
    "answered",
    [
        httpx.Response(502, text="bad gateway"),
        httpx.Response(418, text="a teapot"),
        httpx.Response(200, text="not an answer"),
    ],
)
def test_each_failure_names_the_request_as_the_log_does(answered: httpx.Response) -> None:
    sent_ids: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent_ids.append(request.headers["X-Request-Id"])
        return answered

    with (
        Client("http://x", "key", transport=httpx.MockTransport(answer)) as asking,
        pytest.raises(CraftError) as failed,
    ):
        read_json(BudgetList, asking._send(Call("GET", "/v1/budget", again=False)))
    assert f"(request {sent_ids[-1]})" in str(failed.value)
