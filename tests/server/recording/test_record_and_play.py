"""A server that counts, recorded, and the recording played back."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from craft_server.api.middleware import CallMiddleware
from craft_server.recording.player import Player, player_app
from craft_server.recording.recorder import RecorderMiddleware
from craft_server.recording.tape import Tape, TapeError
from craft_server.settings import DEFAULT_LIMITS, Settings
from craft_shared.problems import OVERLOADED

SECRET = "craft_" + "k3v9x2ma" + "_" + "x" * 43
Call = Callable[..., httpx.Response]


class Counting:
    """Answers each call with its number, or as the call's own body or query says."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        request = Request(scope, receive)
        await request.body()
        status = int(request.query_params.get("status", 200))
        headers = {"Retry-After": "1"} if "retry" in request.query_params else {}
        shown = SECRET if "secret" in request.query_params else ""
        await Response(f"{self.calls}{shown}", status, headers, "text/plain")(scope, receive, send)


def calling(app: Any) -> Call:
    def call(method: str, path: str, key: str = "one", **more: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(app)
            headers = {"Authorization": f"Bearer {key}", **more.pop("headers", {})}
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                return await client.request(method, path, headers=headers, **more)

        return asyncio.run(send())

    return call


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "session.craft"


@pytest.fixture
def recording(file: Path) -> Iterator[Call]:
    with closing(Tape.record(file)) as tape:
        yield calling(RecorderMiddleware(Counting(), tape=tape))


SETTINGS = Settings(limits=DEFAULT_LIMITS.model_copy(update={"body_bytes": 1000}))


@pytest.fixture
def played(file: Path) -> Iterator[Callable[[], Call]]:
    tapes: list[Tape] = []

    def play() -> Call:
        tapes.append(Tape.play(file))
        return calling(player_app(Player(tapes[-1]), SETTINGS))

    yield play
    for tape in tapes:
        tape.close()


def test_repeated_reads_are_played_in_order_and_then_the_last_one(
    recording: Call, played: Callable[[], Call]
) -> None:
    for _ in range(3):
        recording("GET", "/v1/budget")
    play = played()
    assert [play("GET", "/v1/budget").text for _ in range(5)] == ["1", "2", "3", "3", "3"]


def test_another_key_hears_it_from_its_beginning(
    recording: Call, played: Callable[[], Call]
) -> None:
    for _ in range(2):
        recording("GET", "/v1/budget")
    play = played()
    heard = [play("GET", "/v1/budget", key).text for key in ("a", "a", "b", "a", "b")]
    assert heard == ["1", "2", "1", "2", "2"]


def test_the_same_call_again_is_the_same_answer_and_not_the_next(
    recording: Call, played: Callable[[], Call]
) -> None:
    for key in ("x", "y"):
        recording("POST", "/v1/predictions", headers={"Idempotency-Key": key})
    play = played()
    texts = [
        play("POST", "/v1/predictions", headers={"Idempotency-Key": key}).text
        for key in ("p", "p", "q", "p")
    ]
    assert texts == ["1", "1", "2", "1"]


def test_a_call_that_is_sent_again_is_recorded_once(
    recording: Call, played: Callable[[], Call]
) -> None:
    for _ in range(2):
        recording("POST", "/v1/predictions", headers={"Idempotency-Key": "x"})
    play = played()
    assert [play("POST", "/v1/predictions").text for _ in range(2)] == ["1", "1"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/usage?status=503"),
        ("GET", "/v1/usage?status=401"),
        ("GET", "/v1/usage?status=429&retry=1"),
        ("GET", "/v1/usage?status=409&retry=1"),
        ("GET", "/v1/usage?secret=1"),
        ("GET", f"/v1/adapters/{SECRET}"),
        ("POST", "/v1/admin/keys"),
        ("GET", "/metrics"),
    ],
)
def test_what_no_other_session_may_have_or_could_use_is_not_recorded(
    recording: Call, played: Callable[[], Call], file: Path, method: str, path: str
) -> None:
    recording("GET", "/v1/models")
    recording(method, path)
    assert played()(method, path).status_code == 404
    assert SECRET.encode() not in file.read_bytes()


def test_refusals_that_are_the_callers_own_are_recorded(
    recording: Call, played: Callable[[], Call]
) -> None:
    recording("GET", "/v1/usage?status=422")
    assert played()("GET", "/v1/usage?status=422").status_code == 422


def test_no_header_of_a_request_is_in_the_file(recording: Call, file: Path) -> None:
    recording(
        "POST",
        "/v1/predictions",
        SECRET,
        headers={"Idempotency-Key": "call-name", "Craft-Run": "run-name"},
        json={"a": 1},
    )
    data = file.read_bytes()
    assert b"/v1/predictions" in data
    for text in (SECRET, "call-name", "run-name", "x" * 43):
        assert text.encode() not in data


def test_acknowledgements_are_welcome_and_health_is_good(
    recording: Call, played: Callable[[], Call]
) -> None:
    recording("GET", "/v1/models")
    play = played()
    assert play("DELETE", "/v1/answers/run-7/000001/0").status_code == 204
    assert play("GET", "/readyz").json() == {"status": "ok"}


def test_off_the_path_the_nearest_call_and_its_differences_are_named(
    recording: Call, played: Callable[[], Call]
) -> None:
    recording("POST", "/v1/predictions", json={"classes": ["cat", "dog"], "top_k": 1})
    recording("POST", "/v1/predictions", json={"classes": ["sea", "sky"], "top_k": 2})
    answer = played()("POST", "/v1/predictions", json={"classes": ["cat", "owl"], "top_k": 1})
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == "urn:craftbox:problem:not-recorded"
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert [(error["field"], error["message"]) for error in problem["errors"]] == [
        ("classes[1]", "'owl' was sent, and 'dog' was recorded")
    ]


def test_a_body_beyond_the_limit_is_refused(recording: Call, played: Callable[[], Call]) -> None:
    recording("GET", "/v1/models")
    answer = played()("POST", "/v1/predictions", content=b"x" * 1001)
    assert answer.status_code == 413


def test_a_recording_is_added_to_when_it_is_opened_again(
    file: Path, played: Callable[[], Call]
) -> None:
    for _ in range(2):
        with closing(Tape.record(file)) as tape:
            calling(RecorderMiddleware(Counting(), tape=tape))("GET", "/v1/models")
    play = played()
    assert play("GET", "/v1/models").status_code == 200
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT count(*) FROM answers").fetchone() == (2,)


def test_other_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    text, other = tmp_path / "text", tmp_path / "other.db"
    text.write_text("something else\n" * 100)
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE t (a)")
    for file in (text, other):
        before, mode = file.read_bytes(), file.stat().st_mode
        for opened in (Tape.record, Tape.play):
            with pytest.raises(TapeError, match=file.name):
                opened(file)
        assert (file.read_bytes(), file.stat().st_mode) == (before, mode)
    with pytest.raises(TapeError, match="cannot be opened"):
        Tape.play(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_recorded_is_not_answered(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk of the recording is full: the call may be sent again, and is then recorded."""

    def fail(*_: object) -> None:
        raise TapeError("the disk is full")

    with closing(Tape.record(file)) as tape:
        call = calling(CallMiddleware(RecorderMiddleware(Counting(), tape=tape)))
        with monkeypatch.context() as full:
            full.setattr(tape, "append", fail)
            refused = call("GET", "/v1/models")
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
        assert refused.json()["type"] == OVERLOADED.uri
        assert call("GET", "/v1/models").text == "2"
