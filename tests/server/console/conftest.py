"""Browsers without a screen: clients that keep cookies and send forms as pages hold them."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from craft_server.clock import now_ms
from craft_server.ledger.keys import create_key
from craft_server.settings import Settings
from server.conftest import Server, serving


@dataclass
class Browser:
    """Somebody's browser at the console; `seen` holds the addresses and the texts of all pages."""

    http: httpx.Client
    key: str
    seen: list[tuple[str, str]] = field(default_factory=list)

    def get(self, address: str, **options: Any) -> httpx.Response:
        return self._noted(self.http.get(address, **options))

    def post(self, address: str, data: dict[str, Any] | None = None, **options: Any) -> Any:
        return self._noted(self.http.post(address, data=data or {}, **options))

    def send(self, page: str, action: str, **fields: Any) -> httpx.Response:
        """Sends the page's form for this action with all that it hides, and with these fields."""
        text = self.get(page).text
        form = next(
            form
            for form in re.findall(r"<form.*?</form>", text, re.DOTALL)
            if f'action="{action}"' in form
        )
        hidden = dict(re.findall(r'type="hidden" name="([^"]+)" value="([^"]*)"', form))
        files = fields.pop("files", None)
        data = {name: html.unescape(value) for name, value in hidden.items()} | fields
        return self._noted(self.http.post(action, data=data, files=files))

    def sign_in(self) -> httpx.Response:
        return self.post("/console/sign-in", {"key": self.key, "next": ""})

    @property
    def form_token(self) -> str:
        found = re.search(r'name="form_token" value="([^"]+)"', self.get("/").text)
        assert found
        return found[1]

    def _noted(self, response: httpx.Response) -> httpx.Response:
        self.seen.append((str(response.url), response.text))
        return response


NewBrowser = Callable[..., Browser]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_engine: Any) -> Iterator[Server]:
    """A server that takes many sign-ins from one address."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("console"), sign_ins_per_minute=100_000)
    with serving(settings, tiny_engine) as running:
        yield running


@pytest.fixture
def browse(request: pytest.FixtureRequest) -> Iterator[NewBrowser]:
    """Opens browsers; each has signed in, unless told otherwise, with a key of its own."""
    opened: list[httpx.Client] = []

    def start(
        owner: str | None = None,
        *,
        at: Server | None = None,
        admin: bool = False,
        signed_in: bool = True,
        **limits: int,
    ) -> Browser:
        running = at or request.getfixturevalue("server")
        if admin:
            with running.database.writing() as connection:
                key = create_key(
                    connection,
                    owner=owner or "operator",
                    scopes=["admin", "predict"],
                    at=now_ms(),
                )
        else:
            key = running.key(owner, **limits)
        http = httpx.Client(base_url=running.url, timeout=60, trust_env=False)
        opened.append(http)
        browser = Browser(http, key)
        if signed_in:
            assert browser.sign_in().status_code == 303
        return browser

    yield start
    for http in opened:
        http.close()
