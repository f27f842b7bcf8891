"""`craft receipt` and `craft verify-receipt`: only a valid receipt is written or believed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from joserfc import jws
from joserfc.errors import SecurityWarning
from joserfc.jwk import KeySet, OctKey, OKPKey
from typer.testing import CliRunner

from craft_client.cli import app
from craft_shared.problems import MEDIA_TYPE as PROBLEM_TYPE
from craft_shared.problems import NOT_FOUND, RUN_IN_PROGRESS, Problem
from craft_shared.receipt import JWS_RULES, TYPE, Receipt, ReceiptItem
from craft_shared.units import Units

from .wire_server import KEY, Fault, WireServer

SIGNING = OKPKey.generate_key("Ed25519")
OTHER = OKPKey.generate_key("Ed25519")
RECEIPT = Receipt(
    issuer="https://clip.example.org",
    issued_at="2026-01-02T00:00:00.000Z",
    key="abcd1234",
    owner="a lab",
    run="animals",
    since=None,
    until="2026-01-02T00:00:00.000Z",
    first_at="2026-01-01T00:00:00.000Z",
    last_at="2026-01-01T01:00:00.000Z",
    items=[
        ReceiptItem(
            call="predictions",
            model="pocket",
            revision="0123456789abcdef",
            calls=200,
            units=Units(queries=8000, requests=200),
            cost_micros=80,
        )
    ],
    calls=200,
    total=Units(queries=8000, requests=200),
    cost_micros=80,
    first_line=1,
    last_line=200,
    lines_sha256="0" * 64,
)

Craft = Callable[..., Any]


def signed(key: OKPKey = SIGNING) -> str:
    header = {"alg": "EdDSA", "typ": TYPE, "kid": key.thumbprint()}
    return jws.serialize_compact(header, RECEIPT.model_dump_json(), key, registry=JWS_RULES)


def hmac_with_the_public_key() -> str:
    secret = OctKey.import_key(str(SIGNING.as_dict(private=False)["x"]))
    header = {"alg": "HS256", "typ": TYPE, "kid": SIGNING.thumbprint()}
    return jws.serialize_compact(header, RECEIPT.model_dump_json(), secret, ["HS256"])


def unsigned() -> str:
    header = {"alg": "none", "typ": TYPE, "kid": SIGNING.thumbprint()}
    with pytest.warns(SecurityWarning):
        return jws.serialize_compact(header, RECEIPT.model_dump_json(), None, ["none"])


def changed(text: str) -> str:
    middle = len(text) // 2
    return text[:middle] + ("A" if text[middle] != "A" else "B") + text[middle + 1 :]


FORGERIES = {
    "changed": (changed(signed()), "signature"),
    "unsigned": (unsigned(), "algorithm is 'none'"),
    "hmac": (hmac_with_the_public_key(), "algorithm is 'HS256'"),
    "another key": (signed(OTHER), "no key of the server"),
    "another file": ("hello", "not a receipt"),
    "bytes": ("\udcff\udcfe", "not a receipt"),
}
forgeries = pytest.mark.parametrize(("text", "told"), FORGERIES.values(), ids=FORGERIES)


@pytest.fixture
def craft(
    connected: WireServer, fast_retries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Craft:
    """Runs a command in an empty folder; gives its exit code, stdout and stderr."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*arguments: object) -> Any:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return run


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(KeySet([SIGNING]).as_dict(private=False)))
    return path


def give(server: WireServer, call: str, content_type: str, body: str, status: int = 200) -> None:
    """The server's next answer to the call."""
    server.faults.append(Fault(call, status=status, kind=content_type, body=body))


def give_keys(server: WireServer, *keys: OKPKey) -> None:
    body = json.dumps(KeySet(list(keys)).as_dict(private=False))
    give(server, "GET /v1/receipts/keys", "application/jwk-set+json", body)


def give_receipt(server: WireServer, text: str) -> None:
    give(server, "GET /v1/receipts", "application/jose", text)


def one_line(result: Any) -> str:
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return str(line)


# --- craft receipt ------------------------------------------------------------------------------


def test_a_receipt_is_verified_written_and_shown(craft: Craft, connected: WireServer) -> None:
    give_receipt(connected, signed())
    give_keys(connected, OTHER, SIGNING)
    result = craft("receipt", "animals", "--out", "receipt.jws")
    assert result.exit_code == 0, result.stderr
    assert Path("receipt.jws").read_text() == f"{signed()}\n"
    for shown in ("8,000", "abcd1234", "animals", "0123456789abcdef", "until 2026-01-02"):
        assert shown in result.stdout
    assert connected.seen[0].headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("text", [text for text, _ in FORGERIES.values()][:4])
def test_a_receipt_that_is_not_valid_is_not_written(
    craft: Craft, connected: WireServer, text: str
) -> None:
    give_receipt(connected, text)
    give_keys(connected, SIGNING)
    assert connected.url in one_line(craft("receipt", "animals", "--out", "receipt.jws"))
    assert not Path("receipt.jws").exists()


def test_a_run_is_named_by_its_directory_or_its_name(
    craft: Craft, connected: WireServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("runs/one").mkdir(parents=True)
    Path("runs/one/run.json").write_text(json.dumps({"run": "animals-7f3a"}))
    asked: list[str] = []
    targets(connected, asked, monkeypatch)
    for named in ("runs/one", "animals-7f3a", None):
        give_receipt(connected, signed())
        give_keys(connected, SIGNING)
        bounds = ["--since", "2026-01-01T00:00:00+01:00", "--out", "receipt.jws"]
        assert craft("receipt", *([named] if named else []), *bounds).exit_code == 0
    since = "since=2026-01-01T00%3A00%3A00%2B01%3A00"
    of_run = f"/v1/receipts?run=animals-7f3a&{since}"
    assert asked == [of_run, of_run, f"/v1/receipts?{since}"]


def test_a_run_that_the_server_knows_no_name_of_is_told(craft: Craft) -> None:
    Path("old").mkdir()
    Path("old/run.json").write_text("{}")
    result = craft("receipt", "old", "--out", "receipt.jws")
    assert result.exit_code == 1
    assert "without a name" in result.stderr
    assert "--since" in result.stderr


@pytest.mark.parametrize("kind", [RUN_IN_PROGRESS, NOT_FOUND])
def test_a_refusal_is_told(craft: Craft, connected: WireServer, kind: Any) -> None:
    problem = Problem.of(kind, "the words for it").model_dump_json()
    give(connected, "GET /v1/receipts", PROBLEM_TYPE, problem, status=kind.status)
    result = craft("receipt", "animals", "--out", "receipt.jws")
    assert result.exit_code == 1
    assert kind.title in result.stderr
    assert not Path("receipt.jws").exists()


# --- craft verify-receipt -----------------------------------------------------------------------


def test_a_receipt_is_verified_without_a_server(
    craft: Craft, connected: WireServer, keys_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CRAFT_API_KEY")
    Path("receipt.jws").write_text(f"{signed()}\n")
    result = craft("verify-receipt", "receipt.jws", "--keys", keys_file, "--json")
    assert result.exit_code == 0, result.stderr
    assert Receipt.model_validate(json.loads(result.stdout)["receipt"]) == RECEIPT
    shown = craft("verify-receipt", "receipt.jws", "--keys", keys_file)
    assert "8,000" in shown.stdout
    assert connected.calls == []


def test_the_servers_keys_are_asked_for_without_showing_the_api_key(
    craft: Craft, connected: WireServer
) -> None:
    Path("receipt.jws").write_text(signed())
    give_keys(connected, SIGNING)
    assert craft("verify-receipt", "receipt.jws", "--url", connected.url).exit_code == 0
    assert connected.calls == ["GET /v1/receipts/keys"]
    assert KEY not in str(connected.seen[0].headers)


@forgeries
def test_what_is_no_valid_receipt_is_refused_in_one_line(
    craft: Craft, keys_file: Path, text: str, told: str
) -> None:
    Path("receipt.jws").write_text(text, errors="surrogateescape")
    line = one_line(craft("verify-receipt", "receipt.jws", "--keys", keys_file))
    assert "'receipt.jws' is not valid" in line
    assert told in line


@pytest.mark.parametrize("content", ["", "{}", '{"keys": []}', signed()])
def test_what_is_no_key_set_is_refused_in_one_line(craft: Craft, content: str) -> None:
    Path("receipt.jws").write_text(signed())
    Path("keys.json").write_text(content)
    line = one_line(craft("verify-receipt", "receipt.jws", "--keys", "keys.json"))
    assert "'keys.json' is not valid" in line


def test_a_missing_file_is_told_in_one_line(craft: Craft, keys_file: Path) -> None:
    assert "missing.jws" in one_line(craft("verify-receipt", "missing.jws", "--keys", keys_file))
    Path("receipt.jws").write_text(signed())
    assert "none.json" in one_line(craft("verify-receipt", "receipt.jws", "--keys", "none.json"))


def targets(server: WireServer, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes the address of each receipt that is asked for, with its query."""
    import httpx

    send = httpx.Client.send

    def noting(client: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        if request.url.path == "/v1/receipts":
            asked.append(request.url.raw_path.decode())
        return send(client, request, **options)

    monkeypatch.setattr(httpx.Client, "send", noting)
