"""How a server is reached: by which address, through which proxy, under which certificates.

It knows addresses, what the environment says of networks, and how long a server may be silent or
slow; it does not know a single call. Addresses are shown without what they hold of credentials.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from craft_client.exceptions import CraftError, MissingPackage

CA_FILE_VARIABLE = "CRAFT_CA_FILE"
# Seconds without a byte after which it is said that the server is waited for.
QUIET_SECONDS = 10.0
# An answer that has begun comes at this pace, in bytes a second, after so many seconds.
SLOW_SECONDS = 30.0
SLOWEST = 16_384

# Servers close idle connections (uvicorn after 5 s). A request on a connection that is being closed
# would have to be sent again, so the client lets go of it earlier.
_LIMITS = httpx.Limits(keepalive_expiry=2.0)
# A name whose parts have at most 63 letters each (RFC 1035, 2.3.4), or an IPv6 address.
_LABEL = r"[\w~-]{1,63}"
_HOST = re.compile(
    rf"(?!.{{254}})({_LABEL}(\.{_LABEL})*\.?)?|[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(%[\w.-]+)?".encode()
)
_SOCKS = ("socks5", "socks5h")

_log = logging.getLogger(__name__)


def address_of(text: str, source: str, example: str) -> str:
    """A server's address: what stands before `/v1` in those of its calls.

    Args:
        text: as somebody has written it.
        source: what names it, for messages.
        example: of an address.

    Raises:
        CraftError: it is none, or holds a user's name, a query or a fragment.
    """
    text = text.strip()
    shown = without_credentials(text)
    url = _parsed(text)
    if url is None or url.scheme not in ("http", "https") or not url.host:
        bare = "://" not in text and _parsed(f"http://{text}")
        remedy = f"Write http:// or https:// before it: {source} is like '{example}'."
        raise CraftError(
            f"'{shown}' is not the address of a server.",
            remedy=remedy if bare else f"{source} is like '{example}'.",
        )
    if url.userinfo or "@" in url.netloc.decode("ascii", "replace"):
        raise CraftError(
            f"The address '{shown}' holds a user name or a password, which would be sent in the "
            "place of the API key.",
            remedy="Leave them out: the API key says who calls (CRAFT_API_KEY). A gateway that "
            "wants credentials of its own has to let the API key through.",
        )
    if url.query or url.fragment or text.endswith(("?", "#")):
        raise CraftError(
            f"The address '{shown}' has something behind its path.",
            remedy=f"Leave out what begins with ? or #: {source} is like '{example}'.",
        )
    return re.sub(r"(/v1)?/*$", "", text, count=1).rstrip("/")


def without_credentials(address: str) -> str:
    """An address, or what was meant for one, without what stands before its last @."""
    return re.sub(r"^(\w+://)?.*@", lambda found: found[1] or "", address, flags=re.DOTALL)


@dataclass(frozen=True)
class Route:
    """How a server is reached. Use `to`.

    Attributes:
        proxy: in between; None where there is none.
        context: which certificates are trusted.
    """

    proxy: httpx.Proxy | None
    context: ssl.SSLContext = field(repr=False)

    @classmethod
    def to(cls, address: str) -> Route:
        """The way that the environment says, as curl and httpx read it, and networks in NO_PROXY.

        Raises:
            CraftError: the proxy or the certificates that it names cannot be used.
            MissingPackage: the proxy speaks SOCKS.
        """
        url = httpx.URL(address)
        proxy = _proxy_to(url)
        encrypted = url.scheme == "https" or (proxy is not None and proxy.scheme == "https")
        # Reading all authorities takes longer than many a call.
        context = _trusted() if encrypted else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if proxy is None:
            return cls(None, context)
        own = context if proxy.scheme == "https" else None
        return cls(httpx.Proxy(proxy, ssl_context=own), context)

    @property
    def proxy_name(self) -> str | None:
        """The proxy's address, for messages."""
        return None if self.proxy is None else without_credentials(str(self.proxy.url))

    def transport(self) -> httpx.HTTPTransport:
        """For a client without an event loop."""
        made = httpx.HTTPTransport(
            verify=self.context, trust_env=False, limits=_LIMITS, proxy=self.proxy
        )
        # httpx does not say how to name what makes its connections.
        pool: Any = made._pool
        pool._network_backend = _Watched(pool._network_backend)
        return made

    def async_transport(self) -> httpx.AsyncHTTPTransport:
        """For a client with one."""
        made = httpx.AsyncHTTPTransport(
            verify=self.context, trust_env=False, limits=_LIMITS, proxy=self.proxy
        )
        pool: Any = made._pool
        pool._network_backend = _AsyncWatched(pool._network_backend)
        return made


def _parsed(text: str) -> httpx.URL | None:
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError):
        return None
    sound = _HOST.fullmatch(url.raw_host) and 0 <= (url.port or 0) < 2**16
    return url if sound else None


def _proxy_to(url: httpx.URL) -> httpx.URL | None:
    named = getproxies()
    text = (named.get(url.scheme) or named.get("all") or "").strip()
    if not text or _without_proxy(url, named.get("no", "")):
        return None
    # Desktops write socks:// where they mean its fifth version.
    text = re.sub("^socks://", "socks5://", text if "://" in text else f"http://{text}")
    proxy, shown = _parsed(text), without_credentials(text)
    variables = f"{url.scheme.upper()}_PROXY or ALL_PROXY"
    if proxy is None or not proxy.host or proxy.scheme not in ("http", "https", *_SOCKS):
        raise CraftError(
            f"'{shown}' is not the address of a proxy that craft can use.",
            remedy=f"{variables} is like 'http://proxy:3128' or 'socks5://proxy:1080'. A server "
            "that NO_PROXY names is reached without one.",
        )
    if proxy.scheme in _SOCKS and find_spec("socksio") is None:
        raise MissingPackage(
            f"The proxy {shown} speaks SOCKS, which needs the package socksio.",
            remedy='Install it: pip install "craftbox[client,socks]". Or, where the server can be '
            f"reached without the proxy: NO_PROXY={url.host}",
        )
    return proxy


def _without_proxy(url: httpx.URL, no_proxy: str) -> bool:
    """Whether NO_PROXY names the server: by itself, its domain, its network or `*`."""
    port = url.port or {"http": 80, "https": 443}[url.scheme]
    hosts = {url.host.lower(), url.raw_host.decode().lower()}
    for entry in re.split(r"[\s,]+", no_proxy.strip().lower()):
        if _within(url.host, entry.strip("[]")):
            return True
        found = re.fullmatch(r"\[?(.+?)\]?(?::(\d+))?", entry)
        if found is None or (found[2] and found[2] != str(port)):
            continue
        name = found[1].lstrip("*").lstrip(".")
        if found[1] == "*" or any(host == name or host.endswith(f".{name}") for host in hosts):
            return True
        if _within(url.host, found[1]):
            return True
    # What macOS and Windows say in their own settings.
    return bool(proxy_bypass(url.host))


def _within(host: str, network: str) -> bool:
    """Whether both are addresses, or a network, of numbers, and one is in the other."""
    try:
        address, there = ip_address(host), ip_network(network, strict=False)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address) in there or address in there


def _trusted() -> ssl.SSLContext:
    """The usual authorities, or those of SSL_CERT_FILE or SSL_CERT_DIR; and CRAFT_CA_FILE's."""
    extra = os.environ.get(CA_FILE_VARIABLE)
    usual = next((name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)), "")
    try:
        context = httpx.create_ssl_context()
    except (OSError, ssl.SSLError) as error:
        raise _unusable(usual, os.environ.get(usual, ""), error) from error
    if extra:
        try:
            folder = Path(extra).is_dir()
            context.load_verify_locations(**{"capath" if folder else "cafile": extra})
        except (OSError, ssl.SSLError, ValueError) as error:
            raise _unusable(CA_FILE_VARIABLE, extra, error) from error
    return context


def _unusable(variable: str, file: str, error: Exception) -> CraftError:
    why = getattr(error, "strerror", None) or "it holds no certificate"
    return CraftError(
        f"The certificates in '{file}' cannot be used: {why}.",
        remedy=f"{variable} names a file of certificates in PEM form.",
    )


class _TooSlow(httpcore.ReadTimeout):
    """An answer has begun, and does not come at the least pace."""


class _Pace:
    """How the answers on one connection come: not at all, well, or too slowly to be waited for."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._began: float | None = None
        self._received = 0

    def asked(self) -> None:
        """Something was sent: what comes next is an answer to it."""
        self._began, self._received = None, 0

    def waits(self, timeout: float | None) -> Iterator[tuple[float | None, bool]]:
        """How long to wait for a byte, each time; and whether that is the last time."""
        if timeout is not None and timeout <= QUIET_SECONDS:
            yield timeout, True
            return
        yield QUIET_SECONDS, False
        rest = None if timeout is None else timeout - QUIET_SECONDS
        limit = "" if timeout is None else f", {timeout:.0f} s at most"
        _log.warning("%s has said nothing for %.0f s. Waiting%s.", self._name, QUIET_SECONDS, limit)
        yield rest, True

    def got(self, data: bytes) -> bytes:
        """What has come.

        Raises:
            httpcore.ReadTimeout: it comes too slowly.
        """
        now = time.monotonic()
        if self._began is None:
            self._began = now
        self._received += len(data)
        taken = now - self._began
        if data and taken > SLOW_SECONDS + self._received / SLOWEST:
            raise _TooSlow(
                f"its answer comes too slowly, {self._received:,} bytes in {taken:.0f} s"
            )
        return data


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, name: str) -> None:
        self._stream, self._name, self._pace = stream, name, _Pace(name)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        for wait, last in self._pace.waits(timeout):
            try:
                return self._pace.got(self._stream.read(max_bytes, wait))
            except httpcore.ReadTimeout as error:
                if last or isinstance(error, _TooSlow):
                    raise
        raise AssertionError  # the last wait returns or raises

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._pace.asked()
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        inner = self._stream.start_tls(ssl_context, server_hostname, timeout)
        return _Stream(inner, self._name)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Watched(httpcore.NetworkBackend):
    def __init__(self, backend: httpcore.NetworkBackend) -> None:
        self._backend = backend

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        made = self._backend.connect_tcp(host, port, timeout, local_address, socket_options)
        return _Stream(made, f"{host}:{port}")

    def sleep(self, seconds: float) -> None:
        self._backend.sleep(seconds)


class _AsyncStream(httpcore.AsyncNetworkStream):
    def __init__(self, stream: httpcore.AsyncNetworkStream, name: str) -> None:
        self._stream, self._name, self._pace = stream, name, _Pace(name)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        for wait, last in self._pace.waits(timeout):
            try:
                return self._pace.got(await self._stream.read(max_bytes, wait))
            except httpcore.ReadTimeout as error:
                if last or isinstance(error, _TooSlow):
                    raise
        raise AssertionError  # the last wait returns or raises

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._pace.asked()
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        inner = await self._stream.start_tls(ssl_context, server_hostname, timeout)
        return _AsyncStream(inner, self._name)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _AsyncWatched(httpcore.AsyncNetworkBackend):
    def __init__(self, backend: httpcore.AsyncNetworkBackend) -> None:
        self._backend = backend

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        made = await self._backend.connect_tcp(host, port, timeout, local_address, socket_options)
        return _AsyncStream(made, f"{host}:{port}")

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)
