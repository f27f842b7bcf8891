"""Who gets in, how far, and for how long."""

from __future__ import annotations

import importlib
import pkgutil
import re
import secrets
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from craft_server import console
from craft_server.clock import now_ms
from craft_server.console import sessions
from craft_server.console.sessions import CONSOLE_SESSIONS
from craft_server.database import Database
from craft_server.ledger.keys import create_key, revoke_key, rotate_key
from server.console.conftest import NewBrowser

PAGES = ["/", "/console/runs", "/console/adapters", "/console/try"]
ADMIN_PAGES = ["/console/admin/keys", "/console/admin/keys/nonesuch"]


@pytest.mark.parametrize("page", [*PAGES, *ADMIN_PAGES, "/console/runs/a"])
def test_who_is_not_signed_in_is_sent_to_sign_in(browse: NewBrowser, page: str) -> None:
    sent = browse(signed_in=False).get(page)
    assert sent.status_code == 303
    assert sent.headers["location"].startswith("/console/sign-in")


def routes() -> Iterator[tuple[str, str]]:
    """Method and address of each route of the console."""
    for module in pkgutil.iter_modules(console.__path__, "craft_server.console."):
        router = getattr(importlib.import_module(module.name), "router", None)
        for route in router.routes if router else ():
            for method in route.methods:
                yield method, route.path


def test_every_page_but_a_few_needs_a_session(browse: NewBrowser) -> None:
    found = []
    for method, path in routes():
        address = re.sub(r"\{[a-z_:]+\}", "x", path)
        answer = browse(signed_in=False).http.request(method, address)
        if not answer.headers.get("location", "").startswith("/console/sign-in"):
            found.append((method, path))
    assert sorted(found) == [
        ("GET", "/console"),
        ("GET", "/console/sign-in"),
        ("GET", "/console/static/{name}"),
        ("GET", "/docs"),
        ("POST", "/console/sign-in"),
    ]
    assert len(list(routes())) > 15


def test_sign_in_leads_to_the_page_that_was_wanted(browse: NewBrowser) -> None:
    browser = browse(signed_in=False)
    sent = browser.get("/console/runs/some-run")
    form = browser.get(sent.headers["location"]).text
    assert 'name="next" value="/console/runs/some-run"' in form
    fields = {"key": browser.key, "next": "/console/runs/some-run"}
    assert browser.post("/console/sign-in", fields).headers["location"] == "/console/runs/some-run"


@pytest.mark.parametrize(
    "elsewhere",
    ["https://evil.example/", "//evil.example", "/\\evil.example", "/console/../x", "/docs"],
)
def test_sign_in_leads_nowhere_else(browse: NewBrowser, elsewhere: str) -> None:
    browser = browse(signed_in=False)
    signed_in = browser.post("/console/sign-in", {"key": browser.key, "next": elsewhere})
    assert signed_in.headers["location"] == "/"


def test_a_wrong_key_is_refused_in_words(browse: NewBrowser) -> None:
    browser = browse(signed_in=False)
    for wrong in ("", "x", browser.key[:-1], f"craft_aaaaaaaa_{'A' * 43}"):
        refused = browser.post("/console/sign-in", {"key": wrong})
        assert refused.status_code == 401
        assert "unknown, expired or revoked" in refused.text
        assert "set-cookie" not in refused.headers
        assert len(wrong) < 8 or wrong not in refused.text


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(browse: NewBrowser) -> None:
    cookie = browse(signed_in=False).sign_in().headers["set-cookie"]
    name, *flags = cookie.split("; ")
    assert name.startswith("craft_session=")
    assert {"HttpOnly", "Path=/", "SameSite=strict"} <= set(flags)
    assert "Secure" not in flags
    assert not any(flag.startswith("Domain") for flag in flags)


def test_the_cookie_is_bound_to_tls_where_there_is_tls(browse: NewBrowser) -> None:
    browser = browse(signed_in=False)
    # As a proxy on the same machine says it, whom uvicorn believes.
    browser.http.headers["X-Forwarded-Proto"] = "https"
    cookie = browser.sign_in().headers["set-cookie"]
    assert cookie.startswith("__Host-craft_session=")
    assert "Secure" in cookie.split("; ")


def test_sign_out_ends_the_session_itself(browse: NewBrowser) -> None:
    browser = browse()
    token = browser.http.cookies["craft_session"]
    assert browser.send("/", "/console/sign-out").status_code == 303
    assert "craft_session" not in browser.http.cookies
    browser.http.cookies["craft_session"] = token
    assert browser.get("/").status_code == 303


def test_who_is_signed_in_need_not_sign_in(browse: NewBrowser) -> None:
    assert browse().get("/console/sign-in").headers["location"] == "/"


def test_a_session_opens_no_call_of_the_api_nor_a_key_a_page(browse: NewBrowser) -> None:
    browser = browse()
    assert browser.get("/v1/usage").status_code == 401
    shown = httpx.get(
        f"{browser.http.base_url}/", headers={"Authorization": f"Bearer {browser.key}"}
    )
    assert shown.status_code == 303


def test_a_session_ends_with_its_key(browse: NewBrowser, server: Any) -> None:
    browser = browse()
    assert browser.get("/").status_code == 200
    with server.database.writing() as connection:
        revoke_key(connection, browser.key.split("_")[1], now_ms())
    assert browser.get("/").status_code == 303


@pytest.mark.parametrize("page", ADMIN_PAGES)
def test_admin_pages_do_not_exist_for_others(browse: NewBrowser, page: str) -> None:
    browser = browse()
    assert browser.get(page).status_code == 404
    assert "/console/admin" not in browser.get("/").text


@pytest.mark.parametrize(
    "action", ["", "/{prefix}/top-up", "/{prefix}/budgets", "/{prefix}/revoke"]
)
def test_admin_actions_do_not_exist_for_others(browse: NewBrowser, action: str) -> None:
    browser = browse()
    address = "/console/admin/keys" + action.format(prefix=browser.key.split("_")[1])
    fields = {"form_token": browser.form_token, "owner": "x", "amount": "1", "limit": "1"}
    assert browser.post(address, fields).status_code == 404
    assert browser.get("/").status_code == 200


def test_a_key_without_the_scope_sees_its_account_alone(browse: NewBrowser, server: Any) -> None:
    with server.database.writing() as connection:
        key = create_key(connection, owner="publisher", scopes=["publish"], at=now_ms())
    browser = browse(signed_in=False)
    browser.key = key
    browser.sign_in()
    assert browser.get("/").status_code == 200
    assert browser.get("/console/runs").status_code == 403
    assert "/console/runs" not in browser.get("/").text


def test_too_many_sign_ins_from_one_address_must_wait(serve: Any, browse: NewBrowser) -> None:
    with serve(sign_ins_per_minute=2) as running:
        browser = browse(at=running, signed_in=False)
        statuses = [browser.sign_in().status_code for _ in range(4)]
    assert statuses[:2] == [303, 303]
    assert statuses[-1] == 429


def sign_in(store: Database, secret: str, at: int, until: int) -> str | None:
    with store.writing() as connection:
        return sessions.sign_in(connection, secret, at=at, until=until)


def find(store: Database, token: str, at: int) -> sessions.Session | None:
    with store.reading() as connection:
        return sessions.find(connection, token, at)


@pytest.fixture
def secret(store: Database) -> str:
    with store.writing() as connection:
        return create_key(connection, owner="owner", expires_at=1000, at=0)


def test_sessions_are_over_after_their_time(store: Database, secret: str) -> None:
    token = sign_in(store, secret, 10, 20)
    assert token is not None
    found = find(store, token, 19)
    assert found is not None
    assert found.caller.owner == "owner"
    assert find(store, token, 20) is None
    assert find(store, secrets.token_urlsafe(32), 15) is None


def test_sessions_end_when_the_key_expires(store: Database, secret: str) -> None:
    token = sign_in(store, secret, 10, 5000)
    assert token is not None
    assert find(store, token, 999) is not None
    assert find(store, token, 1000) is None


def test_sessions_end_with_the_secret_that_was_shown(store: Database, secret: str) -> None:
    old = sign_in(store, secret, 10, 5000)
    with store.writing() as connection:
        rotated = rotate_key(connection, secret.split("_")[1], overlap_ms=50, at=100)
    new = sign_in(store, rotated, 110, 5000)
    assert old is not None
    assert new is not None
    assert find(store, old, 149) is not None
    assert find(store, old, 150) is None
    assert find(store, new, 151) is not None


def test_sessions_that_are_over_are_swept_at_the_next_sign_in(store: Database, secret: str) -> None:
    for start in (10, 20, 30):
        sign_in(store, secret, start, start + 5)
    with store.reading() as connection:
        rows = connection.execute(sa.select(CONSOLE_SESSIONS.c.created_at)).scalars().all()
    assert rows == [30]


def test_the_database_does_not_hold_what_opens_a_session(store: Database, secret: str) -> None:
    token = sign_in(store, secret, 10, 20)
    with store.reading() as connection:
        row = connection.execute(sa.select(CONSOLE_SESSIONS)).one()
    assert token not in tuple(row)
    assert secret not in tuple(row)
