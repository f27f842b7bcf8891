"""What protects pages: headers, tokens of forms, escaping; and that keys stay out of them."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest

from craft_server.console.install import CONTENT_SECURITY_POLICY
from server.console.conftest import Browser, NewBrowser
from server.console.test_pages import published

XSS = "<script>alert(1)</script>'\"&"


@pytest.mark.parametrize(
    ("page", "status"),
    [
        ("/", 200),
        ("/console/sign-in", 303),
        ("/console/runs", 200),
        ("/console/runs/none", 404),
        ("/console/adapters", 200),
        ("/console/adapters/none", 404),
        ("/console/try", 200),
        ("/console/nonesuch", 404),
        ("/console/static/console.css", 200),
        ("/console/static/none.css", 404),
        ("/console", 303),
    ],
)
def test_every_answer_carries_the_policy(browse: NewBrowser, page: str, status: int) -> None:
    answer = browse().get(page)
    assert answer.status_code == status
    policy = answer.headers["content-security-policy"]
    assert policy == CONTENT_SECURITY_POLICY
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    if "/static/console" not in page:
        assert answer.headers["cache-control"] == "no-store"


def test_errors_are_pages_with_words_and_a_way_on(browse: NewBrowser) -> None:
    missing = browse().get("/console/runs/none")
    assert missing.headers["content-type"].startswith("text/html")
    assert "No run of this name" in missing.text
    assert "request <code>" in missing.text
    assert 'href="/"' in missing.text


def test_the_apis_errors_stay_documents(browse: NewBrowser) -> None:
    for address in ("/v1/nonesuch", "/consolex", "/nonesuch"):
        answer = browse().get(address)
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_failure_of_the_server_is_a_page_without_its_cause(
    browse: NewBrowser, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = browse()

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("the secret cause")

    monkeypatch.setattr("craft_server.ledger.sums.charged", fail)
    failed = browser.get("/")
    assert failed.status_code == 500
    assert failed.headers["content-type"].startswith("text/html")
    assert failed.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert "secret cause" not in failed.text


FORMS = [
    "/console/sign-out",
    "/console/runs/some/delete",
    "/console/runs/some/note",
    "/console/adapters/some/share",
    "/console/adapters/some/retire",
    "/console/adapters/some/restore",
    "/console/try",
    "/console/admin/keys",
    "/console/admin/keys/aaaaaaaa/top-up",
    "/console/admin/keys/aaaaaaaa/budgets",
    "/console/admin/keys/aaaaaaaa/revoke",
]


@pytest.mark.parametrize("action", FORMS)
@pytest.mark.parametrize("kind", ["missing", "empty", "wrong", "another session's"])
def test_a_form_without_its_sessions_token_is_refused(
    browse: NewBrowser, action: str, kind: str
) -> None:
    browser = browse(admin=True)
    token = {
        "missing": None,
        "empty": "",
        "wrong": browser.form_token[:-1] + "\u00e9",
        "another session's": browse(admin=True).form_token,
    }[kind]
    fields = {"amount": "1", "limit": "1", "unit": "queries", "owner": "x"}
    refused = browser.post(action, fields if token is None else fields | {"form_token": token})
    assert refused.status_code == 403
    assert "This form cannot be accepted" in refused.text
    assert browser.get("/").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_form_from_another_site_is_refused_even_with_the_token(
    browse: NewBrowser, headers: dict[str, str]
) -> None:
    browser = browse()
    fields = {"form_token": browser.form_token}
    assert browser.post("/console/sign-out", fields, headers=headers).status_code == 403
    signing_in = browse(signed_in=False)
    refused = signing_in.post("/console/sign-in", {"key": signing_in.key}, headers=headers)
    assert refused.status_code == 403
    assert "set-cookie" not in refused.headers


def test_a_form_from_this_site_is_taken(browse: NewBrowser) -> None:
    browser = browse()
    headers = {"Origin": str(browser.http.base_url), "Sec-Fetch-Site": "same-origin"}
    fields = {"form_token": browser.form_token}
    assert browser.post("/console/sign-out", fields, headers=headers).status_code == 303


def test_nothing_is_changed_by_getting_a_page(browse: NewBrowser) -> None:
    browser = browse(admin=True)
    for action in FORMS:
        if action != "/console/try" and action != "/console/admin/keys":
            assert browser.get(action).status_code in (404, 405)


def visit_everything(browser: Browser) -> None:
    for page in ("/", "/console/runs", "/console/adapters", "/console/try", "/console/none"):
        browser.get(page)
    browser.get("/console/admin/keys")
    browser.send("/", "/console/sign-out")
    browser.get("/")


@pytest.mark.parametrize("admin", [False, True])
def test_a_key_is_in_no_address_and_on_no_page(browse: NewBrowser, *, admin: bool) -> None:
    browser = browse(admin=admin)
    visit_everything(browser)
    secret = browser.key.split("_", 2)[2]
    assert len(browser.seen) > 7
    for address, text in browser.seen:
        assert secret not in address
        assert secret not in text


def test_texts_of_clients_are_escaped(browse: NewBrowser, server: Any) -> None:
    owner = f"owner {XSS}"
    browser = browse(owner)
    report = {"title": XSS, "model": XSS, "dataset": XSS, "recipe": XSS, "state": "running"}
    with server.client(owner) as client:
        client.put("/v1/runs/run-1", json=report).raise_for_status()
    for page in ("/", "/console/runs", "/console/runs/run-1", "/console/runs/run-1/curve"):
        text = browser.get(page).text
        assert "<script>alert" not in text
        assert "&lt;script&gt;" in text or page.endswith("curve")
    elsewhere = browser.get(f"/console/try?adapter={XSS}").text
    assert "<script>alert" not in elsewhere
    wanted = browse(signed_in=False).get(f"/console/sign-in?next={XSS}").text
    assert "alert(1)" not in wanted


def test_a_host_that_means_something_to_a_shell_is_in_no_program(
    browse: NewBrowser, server: Any
) -> None:
    published(server, "hosted", "hosted")
    browser = browse("hosted")
    for host in ("a'$(id)", 'a"+b', "a b", "<b>"):
        text = html.unescape(browser.get("/console/adapters/hosted", headers={"Host": host}).text)
        assert host not in text
        for address in re.findall(r"""["'](\S+/v1/adapters/hosted@1/predictions)""", text):
            assert re.fullmatch(r"https?://(SERVER|127\.0\.0\.1:\d+)/v1/[a-z/@1]+", address), host


def test_pages_hold_no_inline_script_or_style(browse: NewBrowser) -> None:
    browser = browse(admin=True)
    visit_everything(browser)
    for _, text in browser.seen:
        assert "<style" not in text
        assert " style=" not in text
        assert " onclick=" not in text
        assert text.count("<script") == text.count("<script src=")


@pytest.mark.parametrize("name", ["..%2Fsecurity.py", "%2e%2e/security.py", "console.css/x", ""])
def test_no_part_of_an_address_is_a_path(browse: NewBrowser, name: str) -> None:
    assert browse().get(f"/console/static/{name}").status_code == 404


def test_a_form_that_is_too_large_is_refused_before_it_is_read(
    serve: Any, browse: NewBrowser
) -> None:
    with serve(limits={"body_bytes": 10_000}) as running:
        browser = browse(at=running)
        files = {"picture": ("p.png", b"x" * 20_000, "image/png")}
        refused = browser.post("/console/try", {"form_token": browser.form_token}, files=files)
        assert refused.status_code == 413
        assert "Choose a smaller file" in refused.text


def test_the_apis_description_loads_nothing_from_elsewhere(browse: NewBrowser) -> None:
    answer = browse(signed_in=False).get("/docs")
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert "//" not in answer.text.replace("<!doctype", "")
    for address in re.findall(r'(?:src|href)="(/console/static/[^"]+)"', answer.text):
        assert browse(signed_in=False).get(address).status_code == 200
    assert "<script>" not in answer.text
