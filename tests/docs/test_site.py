"""The site that scripts/docs builds, as its readers find it: in a browser, narrow and dark too."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

import browsers
from browsers import needs_chromium
from doc_pages import DOCS, PAGES

NAMES = [str(page.relative_to(DOCS).with_suffix("")) for page in PAGES[1:]]
# The pages of the reference that are generated are long, and alike.
WRITTEN = [name for name in NAMES if not name.startswith("reference/")] + ["search"]

OpenPage = Callable[..., Page]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    sphinx = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "-b", "html"]
    subprocess.run([*sphinx, str(DOCS), str(folder)], check=True, timeout=240)
    return folder


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browsers.chromium() as browser:
        yield browser


@pytest.fixture
def open_page(chromium: Browser, address: str) -> Iterator[OpenPage]:
    """Opens a browser window on the site; it may ask no other host for anything."""
    elsewhere: list[str] = []
    contexts = []

    def note(request: Any) -> None:
        if not request.url.startswith((address, "data:")):
            elsewhere.append(request.url)

    def start(*, width: int = 1280, **options: Any) -> Page:
        context = chromium.new_context(
            base_url=address, viewport={"width": width, "height": 900}, **options
        )
        contexts.append(context)
        page = context.new_page()
        page.on("request", note)
        return page

    yield start
    for context in contexts:
        context.close()
    assert elsewhere == []


# --- what is in the pages' heads, and beside them ---------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_a_description_and_an_icon(site: Path, name: str) -> None:
    head = (site / f"{name}.html").read_text().partition("</head>")[0]
    description = re.search(r'<meta name="description" content="([^"]+)"', head)
    assert description is not None
    assert len(description.group(1)) > 20
    icon = re.search(r'<link rel="icon" href="([^"]+)"', head)
    assert icon is not None
    assert (site / name).parent.joinpath(icon.group(1)).resolve().is_file()


def test_the_sitemap_lists_every_page(site: Path) -> None:
    listed = set(
        re.findall(
            r"<loc>https://craftbox.example/(.*?)\.html</loc>", (site / "sitemap.xml").read_text()
        )
    )
    assert set(NAMES) - listed == set()


# --- in a browser -----------------------------------------------------------------------------


@needs_chromium
@pytest.mark.parametrize("width", [1280, 360])
def test_no_page_is_wider_than_the_screen_and_no_command_is_cut(
    open_page: OpenPage, width: int
) -> None:
    page = open_page(width=width)
    found = []
    for name in [*NAMES, "search"]:
        page.goto(f"{name}.html")
        excess = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        cut = page.evaluate(
            "[...document.querySelectorAll('.bd-article pre')]"
            ".filter(block => block.scrollWidth > block.clientWidth).map(block => block.innerText)"
        )
        if excess > 0 or cut:
            found.append((name, excess, cut))
    assert found == []


@needs_chromium
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_axe_finds_nothing_on_a_written_page(
    open_page: OpenPage, width: int, scheme: Literal["light", "dark"]
) -> None:
    page = open_page(width=width, color_scheme=scheme)
    found = []
    for name in WRITTEN:
        page.goto(f"{name}.html")
        for violation in Axe().run(page).response["violations"]:
            found.append((name, violation["id"], [one["html"][:150] for one in violation["nodes"]]))
    assert found == []


@needs_chromium
@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("monthly budget", "serving"),
        ("rate limit", "serving"),
        ("delete my data", "security"),
        ("confidence", "adapters"),
        ("nginx", "deployment"),
    ],
)
def test_search_finds_the_page(open_page: OpenPage, words: str, name: str) -> None:
    page = open_page()
    page.goto(f"search.html?q={words.replace(' ', '+')}")
    results = page.locator("#search-results ul.search li > a")
    expect(page.locator("#search-results .search-summary")).to_contain_text("found", timeout=30_000)
    found = [result.get_attribute("href") or "" for result in results.all()[:4]]
    assert any(re.match(rf"{name}\.html(?![\w-])", address) for address in found), found


@needs_chromium
def test_the_button_copies_a_command_without_its_note(open_page: OpenPage) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.goto("start.html")
    block = page.locator("div.highlight-sh", has_text="craft zero-shot").first
    block.hover()
    block.locator("button.copybtn").click()
    page.wait_for_function("navigator.clipboard.readText().then(text => text.length > 0)")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert "craft zero-shot" in copied
    assert "#" not in copied
