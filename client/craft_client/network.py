"""How a server is reached: address, key, proxy and certificates, and how slow it may be.

Addresses are shown without the credentials in them.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from craft_client.exceptions import CraftError, MissingKey, MissingPackage
from craft_shared.text_files import NotTextError, read_text

DEFAULT_URL = "http://127.0.0.1:8000"
URL_VARIABLE = "CRAFT_URL"
KEY_VARIABLE = "CRAFT_API_KEY"
KEY_FILE_VARIABLE = "CRAFT_API_KEY_FILE"
USER_VARIABLE = "CRAFT_USER"
USER_HEADER = "Craft-User"
BODY_BYTES_VARIABLE = "CRAFT_BODY_BYTES"
CA_FILE_VARIABLE = "CRAFT_CA_FILE"
LEAST_BODY_BYTES = 10_000
# Seconds without a byte after which it is said that the server is waited for.
QUIET_SECONDS = 10.0
# An answer that has begun comes at this pace, in bytes a second, after so many seconds.
SLOW_SECONDS = 30.0
SLOWEST = 16_384

# What httpx decodes without a package of its own; gateways may compress so.
ACCEPTED_CODINGS = ("gzip", "deflate")
# A name whose parts have at most 63 letters each (RFC 1035, 2.3.4), or an IPv6 address.
_LABEL = r"[\w~-]{1,63}"
_HOST = re.compile(
    rf"(?!.{{254}})({_LABEL}(\.{_LABEL})*\.?)?|[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(%[\w.-]+)?".encode()
)
_RUN = re.compile(r"[A-Za-z0-9_.][\x20-\x7e]{0,254}")
_USER = re.compile(r"[A-Za-z0-9_.][\x21-\x7e]{0,127}")
_SOCKS = ("socks5", "socks5h")

_log = logging.getLogger(__name__)


def http_options(
    base_url: str | None,
    api_key: str | None,
    *,
    run: str | None,
    user: str | None,
    timeout: float,
) -> dict[str, Any]:
    """What httpx's clients are given; `craft_client.api.Client` describes the arguments.

    Raises:
        MissingKey: there is no key, or its file cannot be read.
        CraftError: the address is not an HTTP URL, or the run's or the user's name cannot be sent.
    """
    headers = {
        "Authorization": f"Bearer {_checked_key(api_key)}",
        "User-Agent": f"craftbox/{version('craftbox')}",
        "Accept-Encoding": ", ".join(ACCEPTED_CODINGS),
    }
    if run is not None:
        headers["Craft-Run"] = checked_header("run", run, _RUN)
    if user:
        headers[USER_HEADER] = checked_header("user", user, _USER)
    elif user := os.environ.get(USER_VARIABLE):
        headers[USER_HEADER] = checked_header(USER_VARIABLE, user, _USER)
    url = base_url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
    return {
        "base_url": address_of(url, f"--url or {URL_VARIABLE}", DEFAULT_URL),
        "headers": headers,
        "timeout": httpx.Timeout(timeout, connect=10.0),
        "trust_env": False,  # `Route` does
    }


def most_body_bytes() -> int | None:
    """How large a body may be by CRAFT_BODY_BYTES, where a gateway lets less through than servers.

    Raises:
        CraftError: it is no such number.
    """
    text = os.environ.get(BODY_BYTES_VARIABLE, "").strip()
    if not text:
        return None
    number = int(text) if re.fullmatch(r"[0-9]{1,15}", text) else 0
    if number < LEAST_BODY_BYTES:
        raise CraftError(
            f"{BODY_BYTES_VARIABLE} is '{text}'.",
            remedy=f"Set it to a number of bytes, {LEAST_BODY_BYTES} or more, or leave it out.",
        )
    return number


def address_of(text: str, source: str, example: str) -> str:
    """A server's address: what stands before `/v1` in those of its calls.

    `source` is what names it and `example` an address, for messages.

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
    """How a server is reached."""

    proxy: httpx.Proxy | None  # in between; None where there is none
    context: ssl.SSLContext = field(repr=False)  # which certificates are trusted

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


def checked_header(name: str, value: str, form: re.Pattern[str]) -> str:
    """A header's value that somebody has named.

    Raises:
        CraftError: it cannot be sent.
    """
    if form.fullmatch(value) is None:
        raise CraftError(
            f"{name}: {value!r} cannot be sent to a server.",
            remedy="Give a short name of ASCII characters that begins with a letter or digit.",
        )
    return value


def _checked_key(api_key: str | None) -> str:
    file = os.environ.get(KEY_FILE_VARIABLE)
    given = api_key or os.environ.get(KEY_VARIABLE)
    key = (given or (key_in(file, KEY_FILE_VARIABLE) if file else "")).strip()
    if not key:
        raise MissingKey(
            "There is no API key.",
            remedy=f"Set {KEY_VARIABLE} or {KEY_FILE_VARIABLE}, or pass --key. The server's "
            "operator makes one with 'craft-server keys create --owner NAME'.",
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise MissingKey(
            "The API key holds characters that no key has.",
            remedy=f"Copy {KEY_VARIABLE} again; a key looks like 'craft_...'.",
        )
    return key


def key_in(file: str, source: str) -> str:
    """The API key in a file that `source` names; raises MissingKey where it cannot be read."""
    try:
        return read_text(Path(file))
    except (OSError, NotTextError) as error:
        raise MissingKey(
            f"The API key cannot be read from '{file}'.",
            remedy=f"{source} names a file that holds nothing but the key.",
        ) from error


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


# Called with how many bytes of a call were sent just now, as often as some were.
on_sent: ContextVar[Callable[[int], None] | None] = ContextVar("on_sent", default=None)
SENT_AT_ONCE = 65_536  # bytes


class Pace:
    """How the answers on one connection come: not at all, well, or too slowly to be waited for."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._began: float | None = None
        self._received = 0

    def asked(self) -> None:
        """Something was sent: what comes next is an answer to it."""
        self._began, self._received = None, 0

    def sent(self, data: bytes) -> None:
        """Some of what is asked was sent."""
        if tell := on_sent.get():
            tell(len(data))

    def first_wait(self, timeout: float | None) -> float:
        """How long to wait for a byte, in seconds, before it is said that the server is silent."""
        return QUIET_SECONDS if timeout is None else min(QUIET_SECONDS, timeout)

    def further_wait(self, timeout: float | None) -> float | None:
        """Says that the server is silent; what is left of the timeout."""
        limit = "" if timeout is None else f", {timeout:.0f} s at most"
        _log.warning("%s has said nothing for %.0f s. Waiting%s.", self._name, QUIET_SECONDS, limit)
        return None if timeout is None else timeout - QUIET_SECONDS

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
            raise httpcore.ReadTimeout(
                f"its answer comes too slowly, {self._received:,} bytes in {taken:.0f} s"
            )
        return data
