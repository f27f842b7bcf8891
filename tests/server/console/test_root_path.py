"""Pages below the path at which a proxy offers the server: no address on them leads out of it."""

from __future__ import annotations

import html
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import craft_server.console
from craft_server.settings import Settings
from server.console.conftest import Browser, NewBrowser
from server.console.test_pages import png, published, report

TEMPLATES = sorted(Path(craft_server.console.__file__).parent.glob("templates/*.jinja"))
# Attributes whose values a browser, or a script of ours, takes for addresses.
ADDRESS = re.compile(r'\b(?:href|action|src|formaction|data-refresh|data-address)="([^"]*)"')
# Addresses of forms, where there is no page.
FORMS_ALONE = re.compile(
    "/(sign-out|delete|note|share|retire|restore|top-up|budgets|revoke)$", re.ASCII
)
ROOT = "/craft"


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.name)
def test_each_address_in_a_template_begins_with_the_root_path(file: Path) -> None:
    text = re.sub(r"\{#.*?#\}", "", file.read_text(), flags=re.DOTALL)
    # Quotes in an expression do not end an attribute.
    found = ADDRESS.findall(re.sub(r"(\{\{[^}]*)\}\}", lambda e: e[0].replace('"', "'"), text))
    others = ("#", "{{ trial.image }}", "{{ address }}")  # of the page, data:, or with its root
    assert [each for each in found if not each.startswith(("{{ root }}", *others))] == []
    # Nor one that is handed to a macro for its `address`.
    assert re.findall(r"\{\{ *\w+\(\"/", text) == []


@pytest.fixture(scope="module")
def below(
    tmp_path_factory: pytest.TempPathFactory, tiny_engine: Any, serving_with: Any
) -> Iterator[Any]:
    """A server whose settings name its root path."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("below"), root_path=ROOT)
    with serving_with(settings, tiny_engine) as running:
        yield running


@pytest.fixture
def browser(browse: NewBrowser, below: Any) -> Browser:
    """An admin's, signed in; the owner has a run and an adapter."""
    owner = secrets.token_hex(4)
    report(below, owner)
    published(below, owner)
    return browse(owner, at=below, admin=True)


def test_every_page_and_file_that_a_page_leads_to_is_there(browser: Browser) -> None:
    wanted, seen = [f"{ROOT}/"], set[str]()
    while wanted:
        address = wanted.pop()
        seen.add(address)
        answer = browser.get(address)
        assert answer.status_code == 200, address
        if not answer.headers["content-type"].startswith("text/html"):
            continue
        for found in map(html.unescape, ADDRESS.findall(answer.text)):
            assert found.startswith((f"{ROOT}/", "#", "data:image/")), (address, found)
            path = found.partition("#")[0]
            if path and not FORMS_ALONE.search(path):
                wanted += {path} - seen - {*wanted}
    assert {
        f"{ROOT}/console/try",
        f"{ROOT}/console/runs/run-1",
        f"{ROOT}/console/admin/keys",
    } <= seen
    assert any(address.startswith(f"{ROOT}/console/adapters/pets") for address in seen)
    assert any(address.startswith(f"{ROOT}/console/static/console.js") for address in seen)


def test_programs_to_copy_call_the_address_below_the_path(browser: Browser) -> None:
    text = html.unescape(browser.get(f"{ROOT}/console/adapters/pets").text)
    server = f"{str(browser.http.base_url).rstrip('/')}{ROOT}"
    assert f"'{server}/v1/adapters/pets@1/predictions'" in text
    assert f'Client("{server}")' in text


def test_forms_lead_to_where_the_next_page_is(browser: Browser) -> None:
    made = browser.send(f"{ROOT}/console/admin/keys", f"{ROOT}/console/admin/keys", owner="ann")
    assert made.status_code == 201
    (key,) = re.findall(r"href=\"(/craft/console/admin/keys/\w+)\"", made.text)
    topped = browser.send(key, f"{key}/budgets", unit="queries", window="lifetime", limit="5")
    assert (topped.status_code, topped.headers["location"]) == (303, key)
    tried = browser.send(
        f"{ROOT}/console/try",
        f"{ROOT}/console/try",
        adapter="pets",
        files={"picture": ("a.png", png())},
    )
    assert tried.status_code == 200
    gone = browser.send(f"{ROOT}/console/runs/run-1", f"{ROOT}/console/runs/run-1/delete")
    assert gone.headers["location"] == f"{ROOT}/console/runs"
    refused = browser.send(key, f"{key}/top-up", budget="queries lifetime", amount="many")
    assert refused.status_code == 422
    assert f'href="{key}"' in refused.text
    left = browser.send(f"{ROOT}/", f"{ROOT}/console/sign-out")
    assert left.headers["location"] == f"{ROOT}/console/sign-in"


def test_who_signs_in_gets_the_page_that_was_wanted(browse: NewBrowser, below: Any) -> None:
    browser = browse(at=below, signed_in=False)
    sent = browser.get(f"{ROOT}/console/runs")
    assert sent.headers["location"] == f"{ROOT}/console/sign-in?next=%2Fconsole%2Fruns"
    wanted = {"key": browser.key, "next": "/console/runs"}
    answer = browser.post(f"{ROOT}/console/sign-in", wanted)
    assert answer.headers["location"] == f"{ROOT}/console/runs"


def test_the_cookie_is_not_sent_to_what_else_the_host_offers(
    browse: NewBrowser, below: Any
) -> None:
    browser = browse(at=below, signed_in=False)
    browser.http.headers["X-Forwarded-Proto"] = "https"
    name, *flags = browser.sign_in().headers["set-cookie"].split("; ")
    # `__Host-` demands that it is sent everywhere.
    assert name.startswith("__Secure-craft_session=")
    assert {"HttpOnly", f"Path={ROOT}", "SameSite=strict", "Secure"} <= set(flags)
