"""A person with a key does all of it in a browser, but for the tuning: it is watched there."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from browsers import chromium, needs_chromium
from journeys.conftest import Terminal
from journeys.words import line

README, CONSOLE = "README.md", "docs/console.md"


@pytest.fixture
def page() -> Iterator[Page]:
    """A window of a browser that may read what was copied."""
    with chromium() as browser:
        context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.set_default_timeout(60_000)
        yield page


@needs_chromium
@pytest.mark.timeout(900)
def test_a_person_watches_a_run_tries_a_picture_and_sees_what_it_cost(
    newcomer: Callable[[str], Terminal], pictures: Path, page: Page
) -> None:
    expect.set_options(timeout=60_000)
    me = newcomer("viewer")
    page.goto(me.env["CRAFT_URL"])
    page.get_by_label("API key").fill(me.env["CRAFT_API_KEY"])
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()

    watched = line(CONSOLE, "craft tune --data DIR --report", DIR=pictures)
    with subprocess.Popen(
        ["bash", "-c", f"exec {watched} --recipe paper --budget 1000 --run runs/watched"],
        cwd=me.folder,
        env=me.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as tuning:
        assert tuning.stderr is not None
        address = next(words for words in tuning.stderr if words.startswith("Watch it: "))
        run = address.strip().rpartition("/")[2]
        _see_run(page, run)
        queries = page.locator(".card", has_text="Queries").locator(".figure")
        expect(queries).not_to_have_text("0")
        expect(queries).not_to_have_text(queries.inner_text())
        expect(page.locator(".plot .line").first).to_be_attached()
        expect(page.get_by_role("status")).to_contain_text("finished")
        tuning.stderr.read()
    assert tuning.returncode == 0

    me.type(line(README, "craft tune --data DIR --shots 16 --seed 1", DIR=pictures))
    (tuned,) = (path for path in (me.folder / "runs").iterdir() if path.name != "watched")
    me.type(line(README, "craft publish", RUN=f"runs/{tuned.name}"))
    zero = sorted((pictures / "test/zero").glob("*.png"))[0]
    page.get_by_role("link", name="Adapters").click()
    page.get_by_role("link", name="my-adapter", exact=True).click()
    page.get_by_text("Python", exact=True).click()
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    (me.folder / "program.py").write_text(page.evaluate("navigator.clipboard.readText()"))
    shutil.copy(zero, me.folder / "picture.jpg")
    assert me.type("python program.py").startswith("zero ")

    page.get_by_role("link", name="Try it with a picture").click()
    page.get_by_label("Picture").set_input_files(zero)
    page.get_by_role("button", name="Classify").click()
    expect(page.get_by_role("heading", name=re.compile("zero"))).to_be_visible()
    expect(page.get_by_text("Charged 1 query, 1 prediction, 1 image, 1 request")).to_be_visible()

    page.get_by_role("link", name="Overview").click()
    rows = page.get_by_role("row").filter(has_text="adapter-predictions")
    expect(rows).to_have_count(2)  # the program's and the page's


def _see_run(page: Page, run: str) -> None:
    """Opens the run's page from the list, where it is soon."""
    link = page.locator(f"a[href$='/console/runs/{run}']")
    deadline = time.monotonic() + 60
    while not link.count():
        assert time.monotonic() < deadline, "the run did not report itself"
        page.get_by_role("link", name="Runs").click()
    link.click()
