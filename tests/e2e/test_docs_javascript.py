"""The page on JavaScript: its program in Node, its parts in a browser, its types' names."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page

from browsers import chromium, needs_chromium
from doc_pages import DOCS, blocks
from e2e.conftest import Server, StartServer

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="no node is installed: apt-get install nodejs")
SENT = ("Authorization", "Content-Type", "Idempotency-Key")


def parts(language: str = "js") -> list[str]:
    """The page's blocks, in their order."""
    return [one.text for one in blocks(language) if one.page == DOCS / "javascript.md"]


def part(beginning: str) -> str:
    """The one block that has these words."""
    (found,) = (text for text in parts() if beginning in text)
    return found


@pytest.fixture(scope="module")
def picture(digits: Path) -> Path:
    return sorted((digits / "test" / "zero").glob("*.png"))[0]


def node(program: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    (folder / "program.mjs").write_text(program)
    return subprocess.run(
        [str(NODE), "program.mjs"],
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )


@needs_node
def test_the_pages_program_runs_in_node(
    server: Server, digits_adapter: str, picture: Path, tmp_path: Path
) -> None:
    shutil.copy(picture, tmp_path / "picture.png")
    program = "".join(parts()).replace("my-adapter", digits_adapter)
    done = node(program, tmp_path, CRAFT_URL=server.url, CRAFT_API_KEY=server.key())
    assert done.returncode == 0, done.stderr
    first, second, queries, *others = done.stdout.splitlines()
    assert re.fullmatch(r"zero 0\.\d+", first)
    assert float(second.split()[1]) <= float(first.split()[1])
    prompts = int(queries.removesuffix(" queries"))
    assert f"queries: {prompts}," in "".join(others)
    assert "adapter" in others[-2]


class Flaky(http.server.BaseHTTPRequestHandler):
    """Loses the first answer, is overloaded once, and then passes answers on."""

    target: str
    seen: list[str]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append(self.headers["Idempotency-Key"])
        headers = {name: self.headers[name] for name in SENT}
        passed = httpx.post(self.target + self.path, content=body, headers=headers, timeout=60)
        if len(self.seen) == 1:
            self.close_connection = True
            return
        status, more, content = 503, {"Retry-After": "0"}, b""
        if len(self.seen) > 2:
            status, content = passed.status_code, passed.content
            more = {"Content-Type": passed.headers["content-type"]}
        self.send_response(status)
        for name, value in {**more, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_arguments: Any) -> None:
        """Says nothing."""


@needs_node
def test_a_call_that_is_sent_again_is_charged_once(
    server: Server, picture: Path, tmp_path: Path
) -> None:
    shutil.copy(picture, tmp_path / "picture.png")
    names = ("const url", "async function call", "class Problem", "const found")
    program = 'import { readFile } from "node:fs/promises";\n' + "".join(map(part, names))
    key = server.key(owner="again")
    handler = type("Handler", (Flaky,), {"target": server.url, "seen": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as proxy:
        threading.Thread(target=proxy.serve_forever).start()
        try:
            url = f"http://127.0.0.1:{proxy.server_address[1]}"
            done = node(program, tmp_path, CRAFT_URL=url, CRAFT_API_KEY=key)
        finally:
            proxy.shutdown()
    assert done.returncode == 0, done.stderr
    assert len(handler.seen) == 3  # type: ignore[attr-defined] # of the class made above
    assert len(set(handler.seen)) == 1  # type: ignore[attr-defined] # of the class made above
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}) as client:
        assert client.get("/v1/usage").json()["total"]["requests"] == 1


def test_the_types_that_the_page_names_are_in_the_description(server: Server) -> None:
    schemas = httpx.get(f"{server.url}/openapi.json").json()["components"]["schemas"]
    named = re.findall(r'\["schemas"\]\["(\w+)"\]', "".join(parts("ts")))
    assert len(named) == 2
    assert set(named) <= schemas.keys()
    assert "labels" in schemas["AdapterPredictionAnswer"]["properties"]


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """The origin of somebody's pages."""
    (tmp_path / "index.html").write_text("<!doctype html><title>a site</title><input type=file>")
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler = partial(quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as pages:
        threading.Thread(target=pages.serve_forever).start()
        yield f"http://127.0.0.1:{pages.server_address[1]}"
        pages.shutdown()


@pytest.fixture
def page() -> Iterator[Page]:
    with chromium() as browser:
        yield browser.new_page()


@needs_chromium
def test_a_page_of_a_named_origin_classifies_a_picture_and_another_may_not(
    start_server: StartServer, site: str, page: Page, picture: Path
) -> None:
    server = start_server("--model", "pocket", CRAFT_CORS_ORIGINS=f"{site},http://other.example")
    names = ("async function call", "class Problem", "function base64Of")
    program = f"""async () => {{
        const url = {json.dumps(server.url)}, key = {json.dumps(server.key())};
        {"".join(map(part, names))}
        const inputs = await base64Of(document.querySelector("input").files[0]);
        const parameters = {{ candidate_labels: ["zero", "one"] }};
        const path = "/v1/zero-shot-image-classification";
        const found = await call(path, {{ inputs, parameters }}, {{ attempts: 1 }});
        const refused = await call(path, {{}}, {{ attempts: 1 }}).catch((error) => error.type);
        return [found, refused];
    }}"""
    page.goto(site)
    page.set_input_files("input", picture)
    found, refused = page.evaluate(program)
    assert {one["label"] for one in found} == {"zero", "one"}
    assert refused == "invalid-request"
    page.goto(site.replace("127.0.0.1", "localhost"))  # another origin
    page.set_input_files("input", picture)
    failed = page.evaluate(f"() => ({program})().catch((error) => error.message)")
    assert failed == "Failed to fetch"
