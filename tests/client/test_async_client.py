"""The asynchronous client against the same server as the other one, and the two compared."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import numpy as np
import pytest
import stamina

import unasync_client
from craft_client import AsyncClient, Client
from craft_client.exceptions import (
    AnswerLost,
    BudgetExhausted,
    ConnectionFailed,
    InvalidImage,
    ProtocolError,
    Unauthenticated,
)
from craft_shared import problems
from craft_shared.units import Units
from craft_shared.wire import PredictionRequest

from .wire_server import Fault, WireServer

PREDICTIONS = "POST /v1/predictions"
T = TypeVar("T")


def plain(image_set: str | None = None, **fields: Any) -> PredictionRequest:
    return PredictionRequest(
        model="fake", classes=["cat", "dog"], templates=["a {}."], image_set=image_set, **fields
    )


def pictures(count: int) -> list[bytes]:
    return [f"{number:06}".encode().ljust(20, b".") for number in range(count)]


def run(work: Callable[[AsyncClient], Awaitable[T]], **options: Any) -> T:
    async def whole() -> T:
        async with AsyncClient(**options) as client:
            return await work(client)

    return asyncio.run(whole())


def public(client: type) -> dict[str, Any]:
    members = vars(client).items()
    return {
        name: value for name, value in members if not name.startswith("_") and name != "base_url"
    }


def test_both_clients_have_the_same_methods_with_the_same_signatures() -> None:
    one, other = public(Client), public(AsyncClient)
    assert one.keys() == other.keys()
    assert len(one) > 20
    for name, method in one.items():
        assert inspect.signature(other[name]) == inspect.signature(method), name
        assert other[name].__doc__ == method.__doc__, name
        assert inspect.iscoroutinefunction(other[name]), name
    made = [inspect.signature(client).parameters for client in (Client, AsyncClient)]
    assert [(p.name, p.kind, p.default) for p in made[0].values()] == [
        (p.name, p.kind, p.default) for p in made[1].values()
    ]


def test_the_synchronous_client_is_what_is_written_from_the_asynchronous_one() -> None:
    for path, text in unasync_client.written().items():
        assert path.read_text() == text, f"{path.name}: python tools/unasync_client.py"


def test_a_bound_method_shows_what_it_is_given() -> None:
    client = Client("http://127.0.0.1:1", "craft_key")
    shown = inspect.signature(client.predict)
    assert list(shown.parameters) == ["request", "codes", "images", "count", "idempotency_key"]
    assert shown.return_annotation == "Prediction"
    assert "Scores prompts" in (inspect.getdoc(client.predict) or "")


def test_both_clients_get_the_same_answers(connected: WireServer) -> None:
    with Client() as client:
        image_set = client.upload_images(client.create_image_set("fake"), pictures(20))
        expected = client.predict(plain(image_set.id))

    async def work(client: AsyncClient) -> None:
        chunks: list[int] = []
        filled = await client.upload_images(
            await client.create_image_set("fake"),
            pictures(20),
            on_chunk=lambda answer: chunks.append(answer.image_set.count),
        )
        assert chunks == [8, 16, 20]
        found = await client.predict(plain(filled.id))
        np.testing.assert_array_equal(found.log_probs, expected.log_probs)
        assert found.cost.charged == expected.cost.charged
        assert (await client.usage()).total == connected.charged
        await client.acknowledge(found.idempotency_key)
        await client.delete_image_set(filled.id)

    run(work)
    assert len(connected.image_sets) == 1


def test_calls_run_at_the_same_time(connected: WireServer) -> None:
    """Each of the two waits, in the server, for the other one to have arrived."""
    both = threading.Barrier(2, timeout=20)
    connected.faults += [
        Fault(
            PREDICTIONS, status=503, headers={"Retry-After": "0"}, also=lambda: both.wait() and None
        )
        for _ in range(2)
    ]

    async def work(client: AsyncClient) -> None:
        await asyncio.gather(
            client.predict(plain(), images=pictures(1)),
            client.predict(plain(), images=pictures(2)),
        )

    run(work)
    assert not both.broken


# --- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("drop", ["before", "during", "after"])
def test_a_cut_connection_is_made_again_under_the_same_key_and_charged_once(
    connected: WireServer, drop: str
) -> None:
    connected.faults.append(Fault(PREDICTIONS, drop=drop))

    async def work(client: AsyncClient) -> str:
        return (await client.predict(plain(), images=pictures(1))).idempotency_key

    key = run(work)
    tries = [seen.headers for seen in connected.seen if seen.call == PREDICTIONS]
    assert len(tries) >= 2
    assert {headers["Idempotency-Key"] for headers in tries} == {key}
    assert len({headers["X-Request-Id"] for headers in tries}) == 1
    assert connected.charged == Units(queries=1, predictions=1, texts=2, images=1, requests=1)


def test_waits_are_those_that_the_server_names(connected: WireServer) -> None:
    connected.faults.append(Fault("GET /v1/models", status=503, headers={"Retry-After": "1"}))
    waits: list[float] = []
    stamina.instrumentation.set_on_retry_hooks([lambda details: waits.append(details.wait_for)])
    try:
        run(lambda client: client.models())
    finally:
        stamina.instrumentation.set_on_retry_hooks(None)
    assert waits == [1.0]


def test_failures_are_the_same_exceptions(connected: WireServer, fast_retries: None) -> None:
    connected.refused_pictures.add(pictures(12)[10])

    async def upload(client: AsyncClient) -> None:
        await client.upload_images(await client.create_image_set("fake"), pictures(12))

    with pytest.raises(InvalidImage, match=r"images\[10\]"):
        run(upload)
    with pytest.raises(Unauthenticated):
        run(lambda client: client.models(), api_key="craft_wrong")
    with pytest.raises(ConnectionFailed, match="Is craft-server running there"):
        run(lambda client: client.models(), base_url="http://127.0.0.1:1")
    connected.faults += [Fault("GET /v1/models", drop="after") for _ in range(3)]
    with pytest.raises(AnswerLost):
        run(lambda client: client.models())
    connected.faults.append(Fault("GET /v1/models", status=200, kind="text/html", body="<html>"))
    with pytest.raises(ProtocolError, match="content type is 'text/html'"):
        run(lambda client: client.models())
    connected.budgets["queries"] = 0
    with pytest.raises(BudgetExhausted):
        run(lambda client: client.predict(plain(), images=pictures(1)))


# --- cancellation -------------------------------------------------------------------------------


@pytest.mark.parametrize("own_key", ["run-7", None])
def test_what_a_cancelled_call_was_charged_is_had_by_making_it_again(
    connected: WireServer, own_key: str | None
) -> None:
    """The server gets the call, is at work when it is cancelled, and charges it afterwards."""
    arrived, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        arrived.set()
        assert go_on.wait(20)

    # A status of 0 and no drop: the work is done after `hold`, and answered to nobody.
    connected.faults.append(Fault(PREDICTIONS, also=hold))

    async def work(client: AsyncClient) -> None:
        call = asyncio.create_task(
            client.predict(plain(), images=pictures(1), idempotency_key=own_key)
        )
        await asyncio.to_thread(arrived.wait, 20)
        call.cancel()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await call
        (note,) = cancelled.value.__notes__
        key = connected.seen[-1].headers["Idempotency-Key"]
        assert own_key in (None, key)
        assert f"idempotency key {key}" in note
        go_on.set()
        answer = await client.predict(plain(), images=pictures(1), idempotency_key=key)
        assert answer.cost.charged.queries == 1

    run(work)
    assert connected.charged.queries == 1


def test_the_waits_of_a_cancelled_call_end_with_it(connected: WireServer) -> None:
    refusal = problems.Problem.of(problems.OVERLOADED, "Not now.").model_dump_json()
    waiting = threading.Event()
    connected.faults.append(
        Fault(
            "GET /v1/models",
            status=503,
            kind=problems.MEDIA_TYPE,
            body=refusal,
            headers={"Retry-After": "30"},
            also=waiting.set,
        )
    )

    async def work(client: AsyncClient) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await client.models()
        assert await client.models(), "the client is as usable as before"

    run(work)
    assert waiting.is_set()
    assert connected.calls == ["GET /v1/models"] * 2
