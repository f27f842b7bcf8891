"""Addresses, proxies, certificates, silence: over real sockets where one is claimed about them."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from craft_client import AsyncClient, Client, network
from craft_client.exceptions import (
    AnswerLost,
    BodyRefused,
    ConnectionFailed,
    CraftError,
    GatewayFailed,
    MissingPackage,
    ProtocolError,
)
from craft_client.network import Route, address_of

from .wire_server import KEY, Fault, WireServer

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
SECRET = "s3cret"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "SSL_CERT_FILE", "SSL_CERT_DIR", "CRAFT_CA_FILE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@contextlib.contextmanager
def listening(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server of one's own words: `talk` gets each connection; gives the port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            talk(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=one, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def request_of(connection: socket.socket) -> bytes:
    found = b""
    while b"\r\n\r\n" not in found:
        more = connection.recv(65536)
        if not more:
            raise OSError
        found += more
    return found


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ending", ["", "/", "/v1", "/v1/", "/craft", "/craft/", "/craft/v1", "/craft/v1/"]
)
def test_an_address_is_what_stands_before_v1(ending: str) -> None:
    path = "/craft" if "craft" in ending else ""
    for host in ("http://127.0.0.1:8000", "https://h", "http://[::1]:80", "https://bücher.example"):
        assert address_of(f" {host}{ending} ", "--url", "http://x") == host + path


@pytest.mark.parametrize("ending", ["", "/v1", "/v1/"])
def test_an_address_with_v1_behind_it_works(
    connected: WireServer, fast_retries: None, ending: str
) -> None:
    with Client(connected.url + ending) as client:
        assert [card.name for card in client.models()] == ["fake"]
        assert client.base_url == connected.url


@pytest.mark.parametrize(
    "url",
    [
        "http://user:s3cret@host", "https://s3cret@host/v1", "http://u:s3cret@[::1]:80",
        "user:s3cret@host", "http://u:s3cret/@host", "http://u:s3cret@", "ftp://u:s3cret@h",
        "http://u:s3cret@host:port",
    ],
)  # fmt: skip
def test_an_address_with_credentials_is_refused_and_they_are_not_shown(url: str) -> None:
    with pytest.raises(CraftError) as caught:
        Client(url, KEY)
    assert SECRET not in str(caught.value)
    assert SECRET not in str(caught.value.__cause__)


def test_credentials_in_an_address_are_told_to_hide_the_key() -> None:
    with pytest.raises(CraftError, match="in the place of the API key"):
        Client("http://u:p@127.0.0.1:1", KEY)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("localhost:8000", "Write http:// or https:// before it"),
        ("craft.example.org/v1", "Write http:// or https:// before it"),
        ("127.0.0.1", "Write http:// or https:// before it"),
        ("http://h/v1?x=1", "Leave out what begins with [?] or #"),
        ("http://h/#x", "Leave out what begins with [?] or #"),
        ("http://h:99999", "is like"),
        ("http://a b", "is like"),
        ("http://h\x1b[31m", "is like"),
        ("http://", "is like"),
        ("http://[::1", "is like"),
        ("http://\u2026", "is like"),
        ("http://h:-1", "is like"),
        ("http://a..b", "is like"),
        (f"http://{'a' * 64}.example", "is like"),
        (f"http://{'a.' * 127}b", "is like"),
    ],
)
def test_an_address_that_is_none_has_a_remedy(url: str, words: str) -> None:
    with pytest.raises(CraftError, match=words):
        Client(url, KEY)


def test_a_server_is_reached_over_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    body = b'{"models":[]}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n"
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                request_of(connection)
                connection.sendall(head + body)

        threading.Thread(target=answer, daemon=True).start()
        with Client(f"http://[::1]:{listener.getsockname()[1]}/v1", KEY) as client:
            assert client.models() == []


# --- proxies --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("no_proxy", "url", "direct"),
    [
        ("*", "http://h", True),
        ("10.0.0.0/8", "http://10.1.2.3:8000", True),
        ("10.0.0.0/8", "http://11.1.2.3", False),
        ("a.org, 10.0.0.0/8", "http://10.1.2.3", True),
        ("fd00::/8", "http://[fd12::1]:8000", True),
        ("[::1]", "http://[::1]:8000", True),
        ("::1", "http://[::1]", True),
        ("[::1]:8000", "http://[::1]:8000", True),
        ("[::1]:8000", "http://[::1]:8001", False),
        ("127.0.0.1", "http://127.0.0.1:9", True),
        ("127.0.0.1:9", "http://127.0.0.1:9", True),
        ("127.0.0.1:8", "http://127.0.0.1:9", False),
        ("127.0.0.0/8", "http://localhost", False),
        ("example.org", "https://craft.example.org", True),
        (".example.org", "https://craft.example.org", True),
        ("*.example.org", "https://craft.example.org", True),
        ("example.org:443", "https://craft.example.org", True),
        ("example.org", "https://badexample.org", False),
        ("EXAMPLE.org", "https://Craft.Example.ORG", True),
        ("bücher.example", "https://bücher.example", True),
        ("xn--bcher-kva.example", "https://bücher.example", True),
        ("", "http://h", False),
        (",", "http://h", False),
        ("10.0.0.0/99", "http://10.0.0.1", False),
    ],
)
def test_no_proxy_names_hosts_domains_ports_and_networks(
    monkeypatch: pytest.MonkeyPatch, no_proxy: str, url: str, direct: bool
) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert (Route.to(url).proxy is None) == direct


@pytest.mark.parametrize(
    ("variable", "url", "used"),
    [
        ("HTTP_PROXY", "http://h", True),
        ("HTTP_PROXY", "https://h", False),
        ("HTTPS_PROXY", "https://h", True),
        ("all_proxy", "http://h", True),
        ("all_proxy", "https://h", True),
    ],
)
def test_the_scheme_says_which_proxy(
    monkeypatch: pytest.MonkeyPatch, variable: str, url: str, used: bool
) -> None:
    monkeypatch.setenv(variable, "user:s3cret@proxy:3128")
    assert Route.to(url).proxy_name == ("http://proxy:3128" if used else None)


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks"])
def test_without_the_package_a_socks_proxy_has_a_remedy(
    connected: WireServer, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setattr(network, "find_spec", lambda name: None)
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://u:s3cret@127.0.0.1:9")
    with pytest.raises(MissingPackage, match=r"\[client,socks\].*NO_PROXY=127.0.0.1") as caught:
        Client()
    assert SECRET not in str(caught.value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.0/8")
    with Client() as client:
        assert len(client.models()) == 1


def test_white_space_around_a_proxy_is_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", " http://proxy:3128\n")
    assert Route.to("http://server").proxy_name == "http://proxy:3128"
    monkeypatch.setenv("HTTP_PROXY", " ")
    assert Route.to("http://server").proxy_name is None


@pytest.mark.parametrize(
    "address", ["socks4://h:1", "ftp://u:s3cret@h", "http://u:s3cret@h:x", "//", "http://a..b:1"]
)
def test_a_proxy_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("ALL_PROXY", address)
    with pytest.raises(CraftError, match="not the address of a proxy") as caught:
        Client("http://server", KEY)
    assert SECRET not in str(caught.value)


def test_a_socks_proxy_is_gone_through(
    connected: WireServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("socksio")
    target = int(connected.url.rsplit(":", 1)[1])
    through = []

    def talk(client: socket.socket) -> None:
        client.recv(262)
        client.sendall(b"\x05\x00")
        through.append(client.recv(262))
        client.sendall(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
        with socket.create_connection(("127.0.0.1", target)) as server:
            back = threading.Thread(target=_copy, args=(server, client), daemon=True)
            back.start()
            _copy(client, server)

    with listening(talk) as port:
        monkeypatch.setenv("ALL_PROXY", f"socks5://127.0.0.1:{port}")
        with Client() as client:
            assert len(client.models()) == 1
    assert through


def _copy(of: socket.socket, to: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := of.recv(65536):
            to.sendall(data)


@pytest.mark.parametrize("url", ["http://server.example", "https://server.example"])
def test_a_dead_proxy_is_named_as_the_proxy(
    monkeypatch: pytest.MonkeyPatch, fast_retries: None, url: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://user:s3cret@127.0.0.1:1")
    with (
        Client(url, KEY) as client,
        pytest.raises(ConnectionFailed, match=r"the proxy at http://127.0.0.1:1, ") as no,
    ):
        client.models()
    assert SECRET not in str(no.value)


def test_a_proxy_that_refuses_is_named_as_the_proxy(
    monkeypatch: pytest.MonkeyPatch, fast_retries: None
) -> None:
    def talk(client: socket.socket) -> None:
        request_of(client)
        client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")

    with listening(talk) as port:
        monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{port}")
        with Client("https://server", KEY) as client, pytest.raises(ConnectionFailed, match="407"):
            client.models()
        with Client("http://server", KEY) as client, pytest.raises(ProtocolError, match="407"):
            client.models()


PAGE = "<html><head><title>413 Request Entity Too Large</title></head></html>"


def test_a_body_that_a_gateway_refuses_names_the_limit_and_the_setting(
    connected: WireServer, fast_retries: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected.faults += [Fault("POST .*images$", status=413, kind="text/html", body=PAGE)]
    pictures = [bytes([number]) * 9_000 for number in range(8)]
    with Client() as client:
        image_set = client.create_image_set("fake")
        words = r"refuses a body of 0.1 MB.*client_max_body_size.*CRAFT_BODY_BYTES"
        with pytest.raises(BodyRefused, match="(?s)" + words):
            client.upload_images(image_set, pictures)
        monkeypatch.setenv("CRAFT_BODY_BYTES", "20000")
        image_set = client.upload_images(image_set, pictures)
        assert image_set.count == 8
        lengths = [
            int(seen.headers["Content-Length"])
            for seen in connected.seen
            if seen.call.endswith("/images")
        ]
        assert max(lengths[1:]) <= 20_000
        assert len(lengths) == 5


@pytest.mark.parametrize("value", ["9999", "x", "-1", "1e9", "²"])
def test_a_size_of_bodies_that_is_none_is_told(
    connected: WireServer, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("CRAFT_BODY_BYTES", value)
    with Client() as client, pytest.raises(CraftError, match="CRAFT_BODY_BYTES is"):
        client.models()


@pytest.mark.parametrize("status", [502, 503, 504, 522])
def test_a_gateways_own_page_is_no_answer_of_the_server(
    connected: WireServer, fast_retries: None, status: int
) -> None:
    page = "<html><h1>Bad Gateway</h1></html>"
    connected.faults += [
        Fault("GET /v1/models", status=status, kind="text/html", body=page) for _ in range(3)
    ]
    with Client() as client, pytest.raises(GatewayFailed, match="as a gateway does"):
        client.models()


@pytest.mark.parametrize("status", [200, 401, 403, 511])
def test_a_page_in_place_of_an_answer_may_be_a_sign_in(
    connected: WireServer, fast_retries: None, status: int
) -> None:
    page = "<html><body>Welcome to the hotel</body></html>"
    connected.faults += [Fault("GET /v1/models", status=status, kind="text/html", body=page)]
    with Client() as client, pytest.raises(ProtocolError, match="may want a sign-in first"):
        client.models()


def test_a_redirection_is_not_followed_and_names_the_address(
    connected: WireServer, fast_retries: None
) -> None:
    secure = connected.url.replace("http://", "https://")
    goals = {
        f"{secure}/v1/models": f"Name that address with --url or CRAFT_URL: {secure}\\b",
        "http://user:s3cret@elsewhere.example/v1/models": "not sent to the other one",
        "//elsewhere.example": "not sent",
        "http://[": "not sent",
        "": "not sent",
    }
    for goal, words in goals.items():
        for status in (301, 302, 307, 308):
            fault = Fault("GET /v1/models", status=status, headers={"Location": goal})
            connected.faults.append(fault)
            with Client() as client, pytest.raises(ProtocolError, match=words) as caught:
                client.models()
            assert SECRET not in str(caught.value)
    assert len(connected.calls) == 4 * len(goals)


# --- certificates ---------------------------------------------------------------------------------


def certificate(folder: Path, host: str = "127.0.0.1") -> tuple[Path, Path]:
    """A certificate that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), False
        )
        .sign(key, hashes.SHA256())
    )
    pem, secret = folder / "authority.pem", folder / "key.pem"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return pem, secret


@contextlib.contextmanager
def encrypted(pem: Path, secret: Path) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, secret)

    def talk(plain: socket.socket) -> None:
        with context.wrap_socket(plain, server_side=True) as client:
            request_of(client)  # type: ignore[arg-type] # it needs recv alone
            client.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n"
                b'{"models":[]}'
            )

    with listening(talk) as port:
        yield f"https://127.0.0.1:{port}"


@pytest.mark.parametrize("variable", ["CRAFT_CA_FILE", "SSL_CERT_FILE"])
def test_an_authority_of_ones_own_is_named_by_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast_retries: None, variable: str
) -> None:
    pem, secret = certificate(tmp_path)
    with encrypted(pem, secret) as url:
        with Client(url, KEY) as client, pytest.raises(ConnectionFailed, match="CRAFT_CA_FILE"):
            client.models()
        monkeypatch.setenv(variable, str(pem))
        with Client(url, KEY) as client:
            assert client.models() == []

        async def work() -> None:
            async with AsyncClient(url, KEY) as client:
                assert await client.models() == []

        asyncio.run(work())


def test_another_hosts_certificate_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast_retries: None
) -> None:
    pem, secret = certificate(tmp_path, "10.9.8.7")
    monkeypatch.setenv("CRAFT_CA_FILE", str(pem))
    with (
        encrypted(pem, secret) as url,
        Client(url, KEY) as client,
        pytest.raises(ConnectionFailed, match="IP address mismatch"),
    ):
        client.models()


@pytest.mark.parametrize("variable", ["CRAFT_CA_FILE", "SSL_CERT_FILE"])
@pytest.mark.parametrize("content", [None, "no certificate"])
def test_certificates_that_cannot_be_used_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, content: str | None
) -> None:
    file = tmp_path / "authority.pem"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv(variable, str(file))
    with pytest.raises(CraftError, match=f"(?s){file}.*cannot be used.*{variable} names"):
        Client("https://server", KEY)
    Client("http://server", KEY).close()


def test_a_server_that_speaks_plain_http_is_told(connected: WireServer, fast_retries: None) -> None:
    secure = connected.url.replace("http://", "https://")
    with Client(secure, KEY) as client, pytest.raises(ConnectionFailed, match="begins with http:"):
        client.models()


# --- silence and slowness -------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n"
ANSWER = HEAD + b'{"models":[]}'


def test_a_silent_server_is_told_while_it_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(network, "QUIET_SECONDS", 0.2)
    told = threading.Event()
    monkeypatch.setattr(network._log, "warning", lambda *words: told.set())

    def talk(client: socket.socket) -> None:
        request_of(client)
        assert told.wait(30), "the answer waits for the warning"
        client.sendall(ANSWER)

    with listening(talk) as port, Client(f"http://127.0.0.1:{port}", KEY) as client:
        assert client.models() == []
        told.clear()

        async def work() -> None:
            async with AsyncClient(f"http://127.0.0.1:{port}", KEY) as client:
                assert await client.models() == []

        asyncio.run(work())


def test_what_is_waited_for_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(network, "QUIET_SECONDS", 0.1)
    with (
        listening(lambda client: time.sleep(30)) as port,
        Client(f"http://127.0.0.1:{port}", KEY, timeout=0.3) as client,
        caplog.at_level(logging.WARNING, "craft_client"),
        pytest.raises(AnswerLost),
    ):
        client.acknowledge("x")
    assert f"127.0.0.1:{port} has said nothing for 0 s. Waiting, 0 s at most." in caplog.text


@pytest.mark.parametrize("drip", ["headers", "body", "chunks", "informational"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_answer_that_only_drips_is_let_go_of(
    monkeypatch: pytest.MonkeyPatch, drip: str, asynchronous: bool
) -> None:
    monkeypatch.setattr(network, "SLOW_SECONDS", 0.5)
    monkeypatch.setattr(network, "SLOWEST", 10_000)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

    def talk(client: socket.socket) -> None:
        request_of(client)
        start, piece = {
            "headers": (head, b"A: b\r\n"),
            "body": (head + b"Content-Length: 1000000\r\n\r\n", b" "),
            "chunks": (head + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
            "informational": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
        }[drip]
        client.sendall(start)
        while True:
            client.sendall(piece)
            time.sleep(0.05)

    async def work(url: str) -> None:
        async with AsyncClient(url, KEY) as client:
            await client.acknowledge("x")

    with listening(talk) as port:
        url = f"http://127.0.0.1:{port}"
        if asynchronous:
            with pytest.raises(AnswerLost, match="comes too slowly"):
                asyncio.run(work(url))
        else:
            with Client(url, KEY) as client, pytest.raises(AnswerLost, match="too slowly"):
                client.acknowledge("x")


@pytest.mark.parametrize(
    "answer",
    [
        HEAD.replace(b"13", b"1000") + b"{}",
        HEAD.replace(b"13", b"-5") + b"{}",
        HEAD.replace(b"13", b"9" * 5000) + b"{}",
        HEAD.replace(b"Content-Length: 13", b"Transfer-Encoding: chunked") + b"zz\r\n{}\r\n",
        b"\x1b[2J\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: " + b"b" * 2**20 + b"\r\n\r\n",
    ],
)
def test_an_answer_that_is_no_http_is_lost(fast_retries: None, answer: bytes) -> None:
    def talk(client: socket.socket) -> None:
        request_of(client)
        client.sendall(answer)

    with (
        listening(talk) as port,
        Client(f"http://127.0.0.1:{port}", KEY) as client,
        pytest.raises(AnswerLost),
    ):
        client.models()
