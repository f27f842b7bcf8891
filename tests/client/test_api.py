from __future__ import annotations

import copy
import http.server
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from importlib.metadata import version
from typing import Any

import httpx
import numpy as np
import pytest
import stamina

from craft_client.api import Client
from craft_client.exceptions import (
    AdapterNotFound,
    AnswerLost,
    BudgetExhausted,
    ConnectionFailed,
    CraftError,
    ImageSetNotFound,
    InvalidRequest,
    LimitExceeded,
    MissingKey,
    ModelNotFound,
    Overloaded,
    ProblemError,
    ProtocolError,
    Unauthenticated,
)
from craft_shared import codec
from craft_shared.adapter import Adapter, AdapterConfig
from craft_shared.head import Unrefined
from craft_shared.units import Units
from craft_shared.wire import Context, ImageUploadAnswer, PredictionRequest

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


def test_usage_merges_all_pages(client: Client, connected: WireServer) -> None:
    image_set = client.upload_images(client.create_image_set("fake"), pictures(2))
    for _ in range(7):
        client.predict(plain(image_set.id))
    usage = client.usage()
    assert [charge.id for charge in usage.charges] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert usage.total == connected.charged
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
        (answering(b"<html>", "text/html", 502), "error without a problem document"),
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
        (codec.encode(DOCUMENT, {}), "exactly the tensor"),
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


def test_a_charged_call_whose_answer_is_lost_is_not_sent_again(
    client: Client, connected: WireServer
) -> None:
    image_set = client.upload_images(client.create_image_set("fake"), pictures(1))
    connected.faults.append(Fault(PREDICTIONS, drop="after"))
    with pytest.raises(AnswerLost, match="craft usage"):
        client.predict(plain(image_set.id))
    assert connected.calls.count(PREDICTIONS) == 1
    assert connected.charged.queries == 1


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


def test_without_a_time_to_wait_an_overloaded_server_is_not_asked_again(
    client: Client, connected: WireServer
) -> None:
    connected.faults.append(Fault("GET /v1/models", status=503))
    with pytest.raises(Overloaded):
        client.models()
    assert connected.calls == ["GET /v1/models"]


@pytest.mark.parametrize("as_date", [False, True])
def test_the_wait_is_the_one_the_server_names(connected: WireServer, as_date: bool) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    header = date if as_date else "1"
    connected.faults.append(Fault("GET /v1/models", status=503, headers={"Retry-After": header}))
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


def test_a_wait_beyond_patience_is_an_error_at_once(connected: WireServer) -> None:
    connected.faults.append(Fault("GET /v1/models", status=503, headers={"Retry-After": "3600"}))
    with Client() as client, pytest.raises(Overloaded) as caught:
        client.models()
    assert caught.value.retry_after == 3600


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
    # The client's sum is the ledger's to the last unit, the lost answer's cost included.
    assert sum((answer.cost.charged for answer in answers), Units()) == connected.charged
    assert connected.charged == Units(images=20, requests=3)


def test_an_upload_that_arrives_while_it_is_asked_about_is_found(
    client: Client, connected: WireServer
) -> None:
    """The lost call finishes after the question and before the second try."""
    image_set = client.create_image_set("fake")
    files = pictures(4)

    def finish_late() -> None:
        chunk = {"first_row": 0}
        path = f"/v1/image-sets/{image_set.id}/images"
        connected.handle("POST", path, chunk, codec.pack_files(files), b"")

    connected.faults += [
        Fault(r"POST .*/images", drop="before"),
        Fault(r"POST .*/images", drop="", also=finish_late),
    ]
    final = client.upload_images(image_set, files)
    assert final.count == 4
    assert connected.charged == Units(images=4, requests=1)


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
    assert connected.calls.count("POST /v1/image-sets/set-1/images") == 5
