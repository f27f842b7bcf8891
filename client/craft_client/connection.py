"""Where a server is and who calls it: addresses, keys and what the environment says of them.

It knows settings and checks them before anything is sent; it does not know a single call.
"""

from __future__ import annotations

import os
import re
from importlib.metadata import version
from pathlib import Path
from typing import TypedDict

import httpx

from craft_client.calls import RUN_HEADER, checked_run
from craft_client.exceptions import CraftError, MissingKey
from craft_client.network import address_of
from craft_client.reading import accepted_codings
from craft_shared.text_files import NotTextError, read_text

DEFAULT_URL = "http://127.0.0.1:8000"
URL_VARIABLE = "CRAFT_URL"
KEY_VARIABLE = "CRAFT_API_KEY"
KEY_FILE_VARIABLE = "CRAFT_API_KEY_FILE"
COMPRESS_VARIABLE = "CRAFT_COMPRESS"
BODY_BYTES_VARIABLE = "CRAFT_BODY_BYTES"
LEAST_BODY_BYTES = 10_000


class HttpOptions(TypedDict):
    """What `httpx.Client` and `httpx.AsyncClient` are given alike."""

    base_url: str
    headers: dict[str, str]
    timeout: httpx.Timeout
    trust_env: bool


def http_options(
    base_url: str | None,
    api_key: str | None,
    *,
    run: str | None,
    compress: bool | None,
    timeout: float,
) -> HttpOptions:
    """The options of a connection, as `craft_client.api.Client` describes the arguments.

    Raises:
        MissingKey: there is no key, or its file cannot be read.
        MissingPackage: answers are to be compressed, and the extra `zstd` is not installed.
        CraftError: the address is not an HTTP URL, the run's name cannot be sent, or CRAFT_COMPRESS
            is neither yes nor no.
    """
    headers = {
        "Authorization": f"Bearer {_checked_key(api_key)}",
        "User-Agent": f"craftbox/{version('craftbox')}",
        "Accept-Encoding": accepted_codings(
            compress=_compress_of_environment() if compress is None else compress
        ),
    }
    if run is not None:
        headers[RUN_HEADER] = checked_run(run)
    url = base_url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
    return HttpOptions(
        base_url=address_of(url, f"--url or {URL_VARIABLE}", DEFAULT_URL),
        headers=headers,
        timeout=httpx.Timeout(timeout, connect=10.0),
        trust_env=False,  # craft_client.network does
    )


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


def _checked_key(api_key: str | None) -> str:
    key = (api_key or os.environ.get(KEY_VARIABLE) or _key_of_file()).strip()
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


def _key_of_file() -> str:
    file = os.environ.get(KEY_FILE_VARIABLE)
    if not file:
        return ""
    try:
        return read_text(Path(file))
    except (OSError, NotTextError) as error:
        raise MissingKey(
            f"The API key cannot be read from '{file}'.",
            remedy=f"{KEY_FILE_VARIABLE} names a file that holds nothing but the key.",
        ) from error


def _compress_of_environment() -> bool:
    value = os.environ.get(COMPRESS_VARIABLE, "").strip().lower()
    if value in ("1", "true", "yes", "on"):
        return True
    if value in ("", "0", "false", "no", "off"):
        return False
    raise CraftError(
        f"{COMPRESS_VARIABLE} is '{value}'.", remedy="Set it to 1 or 0, or leave it out."
    )
