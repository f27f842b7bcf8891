"""The proxies of deploy/ before a server: calls, the console, large bodies, streamed answers."""

from __future__ import annotations

import asyncio
import html
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from craft_client.api import Client
from craft_client.async_api import AsyncClient
from craft_server.settings import DEFAULT_LIMITS
from craft_shared import codec
from craft_shared.adapter import Adapter
from craft_shared.problems import MEDIA_TYPE
from craft_shared.run_reports import RunPoint, RunReport
from craft_shared.units import Units
from craft_shared.wire import AdapterChange, PredictionRequest
from e2e.conftest import Server
from proxies import KINDS, Proxy, proxying
from server.api.test_http import GUARDED, OPEN

CA_FILE = "CRAFT_CA_FILE"


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def proxy(kind: str, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy before the pocket model's server, whose own settings know of no path."""
    with proxying(kind, server.url, tmp_path_factory.mktemp(kind)) as running:
        yield running


def test_every_call_arrives(proxy: Proxy) -> None:
    with proxy.client() as http:
        for method, path in GUARDED:
            answer = http.request(method, path)
            assert answer.status_code == 401, (method, path)
            assert answer.headers["content-type"] == MEDIA_TYPE
        for method, path in OPEN:
            assert http.request(method, path).status_code == 200, (method, path)
        assert http.get("/openapi.json").json()["servers"] == [{"url": "/craft"}]


def test_craft_tunes_publishes_predicts_and_proves(
    proxy: Proxy,
    server: Server,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(CA_FILE, str(proxy.authority))
    there = Server(proxy.url, server.folder, server.env, server.process)
    key, run = server.key(), tmp_path / "digits"
    words = ["tune", "--data", digits, "--shots", "2", "--run", run, "--report"]
    tuned = there.craft(key, *words)
    assert tuned.returncode == 0, tuned.stderr
    (page,) = re.findall(r"Watch it: (\S+)", tuned.stdout + tuned.stderr)
    assert page.startswith(f"{proxy.url}/console/runs/")
    with proxy.client() as http:
        sent = http.get(page)
        assert sent.headers["location"].startswith("/craft/console/sign-in?next=")
    name = f"digits-{tmp_path.name}"
    there.craft_json(key, "publish", run, "--name", name)
    picture = next((digits / "test/three").glob("*.png"))
    assert there.craft_json(key, "predict", picture, "--adapter", name)
    assert there.craft_json(key, "usage")["total"]["queries"] > 0
    there.craft_json(key, "receipt", "--out", tmp_path / "receipt.jws")
    proved = there.craft(key, "verify-receipt", tmp_path / "receipt.jws")
    assert proved.returncode == 0, proved.stderr

    adapter = Adapter.load(run / "adapter")
    with Client(proxy.url, key) as client:
        picture_set = client.upload_images(client.create_image_set("pocket"), [picture, picture])
        assert client.image_set(picture_set.id).count == 2
        question = PredictionRequest(
            model="pocket", classes=["a", "b"], templates=["a {}"], image_set=picture_set.id
        )
        found = client.predict(question, idempotency_key="through-a-proxy")
        again = client.predict(question, idempotency_key="through-a-proxy")
        assert (found.log_probs == again.log_probs).all()
        client.acknowledge("through-a-proxy")
        client.delete_image_set(picture_set.id)
        client.report_run("by-hand", RunReport(title="by hand"))
        point = RunPoint(
            sequence=0, generation=0, queries=1, loss=1, best_loss=1, accuracy=50, units=Units()
        )
        client.report_points("by-hand", [point])
        version = client.publish("other", adapter, aliases=["best"])
        assert client.adapter("other@best").version == version.adapter.version
        assert client.change_adapter("other", AdapterChange(public=True)).public
        client.retire("other")
        client.restore("other")
        assert {card.name for card in client.adapters()} >= {name, "other"}
        assert b"Ed25519" in client.receipt_keys()
        assert client.receipt().count(".") == 2

    async def ask() -> int:
        async with AsyncClient(proxy.url, key) as client:
            answer = await client.adapter_predict(f"tester/{name}", images=[picture])
            return len(answer.log_probs)

    assert asyncio.run(ask()) == 1


def test_a_person_signs_in_and_sends_forms(proxy: Proxy, server: Server) -> None:
    key = server.key("--scope", "admin", "--scope", "predict")
    host = proxy.url.removesuffix("/craft")
    with proxy.client() as http:
        # As browsers do with forms.
        http.headers.update({"Origin": host, "Sec-Fetch-Site": "same-origin"})
        assert http.get(host + "/craft").headers["location"].endswith("/craft/")
        assert http.get("/").headers["location"] == "/craft/console/sign-in"
        entered = http.post("/console/sign-in", data={"key": key, "next": "/console/admin/keys"})
        assert entered.headers["location"] == "/craft/console/admin/keys"
        cookie = entered.headers["set-cookie"]
        assert cookie.startswith("__Secure-craft_session=")
        assert "Path=/craft;" in cookie
        page = http.get("/console/admin/keys").text
        for address in re.findall(r'(?:href|src)="(/[^"]*(?:\.css|\.js|\.svg)[^"]*)"', page):
            assert http.get(host + html.unescape(address)).status_code == 200
        token = dict(re.findall(r'name="(form_token|once)" value="([^"]+)"', page))
        made = http.post("/console/admin/keys", data={**token, "owner": "ann"})
        assert made.status_code == 201
        assert re.search(r"craft_[a-z0-9]{8}_", made.text)
        # A page of another site cannot.
        foreign = {"Origin": "https://evil.example"}
        assert http.post("/console/admin/keys", data=token, headers=foreign).status_code == 403


def test_a_body_may_be_as_large_as_the_servers_bound_and_no_larger(
    proxy: Proxy, server: Server
) -> None:
    key, most = server.key(), DEFAULT_LIMITS.body_bytes
    with proxy.client() as http:

        def send(size: int, secret: str) -> int:
            headers = {"Content-Type": codec.MEDIA_TYPE, "Authorization": f"Bearer {secret}"}
            answer = http.post("/v1/predictions", content=bytes(size), headers=headers)
            if answer.headers["content-type"] != MEDIA_TYPE:
                return -answer.status_code  # the proxy's own
            return answer.status_code

        assert send(most, key) in (400, 422)  # the server has read it
        assert send(most, "craft_aaaaaaaa_wrong") == 401
        assert send(most + 1, key) in (413, -413)


def test_addresses_that_are_not_below_the_path_do_not_reach_the_server(proxy: Proxy) -> None:
    host = proxy.url.removesuffix("/craft")
    with proxy.client() as http:
        for path in ("/livez", "/v1/models", "/crafty/livez", "/"):
            answer = http.get(host + path)
            assert "x-request-id" not in answer.headers, path
            assert "ok" not in answer.text


# --- what a proxy passes on -----------------------------------------------------------------------


@dataclass
class Upstream:
    """A server that keeps heads, and whose answer stops half way until it is told to go on."""

    url: str
    heads: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    go_on: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            told.heads.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
            self.send_response(200)
            self.send_header("Content-Type", "text/csv")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"6\r\nfirst\n\r\n")
            if self.path.endswith("/usage"):
                told.go_on.wait(30)
            self.wfile.write(b"5\r\nlast\n\r\n0\r\n\r\n")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        told = Upstream(f"http://127.0.0.1:{listening.server_port}")
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield told
        told.go_on.set()
        listening.shutdown()


@pytest.fixture
def before_it(kind: str, upstream: Upstream, tmp_path: Path) -> Iterator[Proxy]:
    with proxying(kind, upstream.url, tmp_path) as running:
        upstream.heads.clear()
        yield running


def test_a_streamed_answer_is_passed_on_as_it_comes(before_it: Proxy, upstream: Upstream) -> None:
    with before_it.client() as http, http.stream("GET", "/v1/admin/usage") as answer:
        pieces = answer.iter_bytes()
        assert next(pieces) == b"first\n"  # the server has not sent the rest yet
        upstream.go_on.set()
        assert b"".join(pieces) == b"last\n"


def test_the_server_hears_the_proxys_word_not_the_clients(
    before_it: Proxy, upstream: Upstream
) -> None:
    forged = {
        "X-Forwarded-Prefix": "/evil",
        "X-Forwarded-For": "192.0.2.1",
        "X-Forwarded-Proto": "http",
    }
    path = "/v1/adapters/ann%2Fdigits%20%25@1?after=a%2Bb"
    with before_it.client(headers=forged) as http:
        assert http.get(path).text == "first\nlast\n"
    ((asked, headers),) = upstream.heads
    assert asked == f"/craft{path}"  # byte for byte
    assert headers["x-forwarded-prefix"] == "/craft"
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert headers["x-forwarded-proto"] == "https"
    assert headers["host"] == before_it.url.removeprefix("https://").removesuffix("/craft")


def test_clients_that_do_not_know_the_authority_are_told_what_to_name(
    proxy: Proxy, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CA_FILE, raising=False)
    there = Server(proxy.url, server.folder, server.env, server.process)
    refused: subprocess.CompletedProcess[str] = there.craft(server.key(), "models")
    assert refused.returncode != 0
    assert CA_FILE in refused.stderr
    monkeypatch.setenv(CA_FILE, str(proxy.authority))
    done = there.craft(server.key(), "models", "--json")
    assert "pocket" in json.dumps(json.loads(done.stdout))
