"""Receipts over the API, on both stores: what was really charged, and nobody else's."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from joserfc.jwk import OKPKey

from craft_server.app import create_app
from craft_server.clock import now_ms
from craft_server.ledger import charges
from craft_server.ledger.charges import Work
from craft_server.ledger.keys import authenticate
from craft_server.receipts import FILE_NAME, ReceiptKeyError
from craft_server.settings import Settings
from craft_shared.receipt import Receipt, ReceiptError, ledger_line, read_keys, verify
from craft_shared.units import Units
from craft_shared.wire import Usage

Picture = Callable[..., bytes]


def predict(
    client: httpx.Client, picture: bytes, run: str | None = None, key: str | None = None
) -> httpx.Response:
    (card,) = client.get("/v1/models").json()["models"]
    named = {"Craft-Run": run, "Idempotency-Key": key}
    answer = client.post(
        "/v1/predictions",
        headers={name: value for name, value in named.items() if value is not None},
        json={
            "model": card["name"],
            "classes": ["cat", "dog"],
            "templates": ["a photo of a {}.", "a {}."],
            "images": [base64.b64encode(picture).decode()],
        },
    )
    assert answer.status_code == 200, answer.text
    return answer


def receipt(client: httpx.Client, **query: str) -> Receipt:
    answer = client.get("/v1/receipts", params=query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "application/jose"
    return verify(answer.text, published(client))


def published(client: httpx.Client) -> Any:
    """The keys, as a third party without an API key fetches them."""
    answer = httpx.get(client.base_url.join("/v1/receipts/keys"), trust_env=False)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/jwk-set+json"
    return read_keys(answer.content)


def test_a_runs_receipt_is_what_the_run_was_charged(
    serve: Any, store_url: str, picture: Picture
) -> None:
    with (
        serve(database_url=store_url, receipt_issuer="https://clip.example.org") as server,
        server.client("a lab") as client,
        server.client("a lab") as colleague,
    ):
        for seed in range(3):
            predict(client, picture(seed), "mine", key=f"call-{seed}")
        again = predict(client, picture(2), "mine", key="call-2")
        assert again.headers["Idempotency-Replayed"] == "true"
        predict(client, picture(0), "another")
        predict(client, picture(0))
        predict(colleague, picture(0), "mine")
        usage = Usage.model_validate(client.get("/v1/usage").json())
        mine = [line for line in usage.charges if line.run == "mine"]

        content = receipt(client, run="mine")
        assert content.total == sum((line.units for line in mine), Units())
        assert (content.calls, content.total.queries) == (3, 6)
        assert [(item.model, item.revision) for item in content.items] == [
            (mine[0].model, mine[0].revision)
        ]
        assert (content.first_at, content.last_at) == (mine[0].at, mine[-1].at)
        assert (content.first_line, content.last_line) == (mine[0].id, mine[-1].id)
        lines = hashlib.sha256(b"".join(ledger_line(line) for line in mine))
        assert content.lines_sha256 == lines.hexdigest()
        assert (content.issuer, content.owner) == ("https://clip.example.org", "a lab")
        secret = client.headers["authorization"]
        assert content.key == secret.split("_")[1]
        assert secret.split("_", 2)[2] not in content.model_dump_json()

        assert receipt(client).total == usage.total
        until = receipt(client, since=mine[1].at, until=mine[2].at)
        assert (until.first_line, until.last_line) == (mine[1].id, mine[1].id)
        assert receipt(client, run="mine").model_copy(update={"issued_at": ""}) == (
            content.model_copy(update={"issued_at": ""})
        ), "a receipt was charged, or changes"


def test_there_is_no_receipt_while_a_call_runs(
    serve: Any, store_url: str, picture: Picture
) -> None:
    with serve(database_url=store_url) as server, server.client() as client:
        predict(client, picture(), "mine")
        secret = client.headers["authorization"].removeprefix("Bearer ")
        holder = server.app.state.services.lease.holder
        with server.database.writing() as connection:
            caller = authenticate(connection, secret, now_ms())
            assert caller
            work = Work("predictions", "m", "r", Units(queries=1), "mine")
            running = charges.reserve(connection, caller, work, holder=holder, at=now_ms())
        refused = client.get("/v1/receipts", params={"run": "mine"})
        assert refused.status_code == 409
        assert refused.json()["type"] == "urn:craftbox:problem:run-in-progress"
        assert "1 calls" in refused.json()["detail"]
        assert int(refused.headers["Retry-After"]) > 0
        with server.database.writing() as connection:
            charges.settle(connection, running, now_ms())
        assert receipt(client, run="mine").calls == 2


def test_a_receipt_of_another_server_or_another_text_is_refused(
    server: Any, client: httpx.Client, serve: Any, picture: Picture
) -> None:
    predict(client, picture())
    text = client.get("/v1/receipts").text
    assert verify(text, published(client)).calls == 1
    middle = len(text) // 2
    other = "A" if text[middle] != "A" else "B"
    with pytest.raises(ReceiptError, match="signature"):
        verify(text[:middle] + other + text[middle + 1 :], published(client))
    with (
        serve() as elsewhere,
        elsewhere.client() as stranger,
        pytest.raises(ReceiptError, match="no key of the server"),
    ):
        verify(text, published(stranger))


def test_only_the_keys_holder_may_have_its_receipt(
    server: Any, client: httpx.Client, picture: Picture
) -> None:
    predict(client, picture(), "mine")
    assert httpx.get(f"{server.url}/v1/receipts", trust_env=False).status_code == 401
    with server.client() as stranger:
        refused = stranger.get("/v1/receipts", params={"run": "mine"})
        assert refused.status_code == 404
        assert refused.json()["type"] == "urn:craftbox:problem:not-found"
        assert "charged nothing in the run 'mine'" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"run": ""}, "run"),
        ({"run": "é"}, "run"),
        ({"run": "a\n"}, "run"),
        ({"run": "a" * 256}, "run"),
        ({"since": "yesterday"}, "since"),
        ({"since": "2026-01-01T00:00:00"}, "since"),
        ({"since": "1969-12-31T23:59:59Z"}, "since"),
        ({"since": "0001-01-01T00:00:00+14:00"}, "since"),
        ({"until": "9999-12-31T23:59:59.999999Z"}, "until"),
        ({"until": "9999-12-31T23:59:59-14:00"}, "until"),
        ({"since": "2026-01-02T00:00:00Z", "until": "2026-01-02T00:00:00Z"}, "until"),
        ({"since": "2026-01-02T00:00:00Z", "until": "2026-01-02T00:30:00+01:00"}, "until"),
    ],
)
def test_a_selection_that_makes_no_sense_names_its_field(
    client: httpx.Client, query: dict[str, str], field: str
) -> None:
    refused = client.get("/v1/receipts", params=query)
    assert refused.status_code == 422, refused.text
    assert [error["field"] for error in refused.json()["errors"]] == [field]


def test_servers_with_one_key_file_verify_each_others_receipts(
    serve: Any, new_postgresql: Callable[[], str], picture: Picture, tmp_path: Path
) -> None:
    shared = tmp_path / "shared.pem"
    shared.write_bytes(OKPKey.generate_key("Ed25519").as_pem(private=True))
    url = new_postgresql()
    with (
        serve(database_url=url, receipt_key_file=shared) as one,
        serve(database_url=url, receipt_key_file=shared) as two,
        one.client() as client,
        httpx.Client(base_url=two.url, headers=client.headers, trust_env=False) as other,
    ):
        predict(client, picture(), "mine")
        text = other.get("/v1/receipts").text
        assert verify(text, published(client)).total.queries == 2
    assert not (tmp_path / FILE_NAME).exists()


def test_a_server_does_not_start_with_a_key_file_that_cannot_be_used(
    tmp_path: Path, tiny_engine: Any
) -> None:
    settings = Settings(data_dir=tmp_path, receipt_key_file=tmp_path / "missing.pem")
    with pytest.raises(ReceiptKeyError, match=r"missing\.pem"):
        create_app(settings, tiny_engine)


def test_the_description_names_what_is_answered(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    answers = paths["/v1/receipts"]["get"]["responses"]
    assert set(answers) == {"200", "401", "404", "409", "422", "429", "500", "503"}
    assert set(answers["200"]["content"]) == {"application/jose"}
    keys = paths["/v1/receipts/keys"]["get"]
    assert set(keys["responses"]["200"]["content"]) == {"application/jwk-set+json"}
    assert "security" not in keys, "whoever verifies has no key"
