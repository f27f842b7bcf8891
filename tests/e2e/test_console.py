"""The console in a real Chromium: a walk, the same without JavaScript, and an accessibility check.

`CRAFT_SCREENSHOTS=docs` also writes the pictures that the documentation shows.
"""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

import browsers
from craft_client.layouts import load_dataset
from e2e.conftest import BIN, Server
from proxies import proxying

SCREENSHOTS = os.environ.get("CRAFT_SCREENSHOTS")
# A model runs on the same cores.
expect.set_options(timeout=60_000)

pytestmark = browsers.needs_chromium

OpenPage = Callable[..., Page]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browsers.chromium() as browser:
        yield browser


@pytest.fixture
def open_page(chromium: Browser, server: Server) -> Iterator[OpenPage]:
    """Opens pages in browsers of their own, which may complain of nothing and go nowhere else."""
    complaints: list[str] = []
    elsewhere: list[str] = []
    contexts = []

    def listen(message: Any) -> None:
        # A refusal that a test provokes is a page, which Chromium reports as a failed resource.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            complaints.append(message.text)

    def note(request: Any) -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("blob", "data") and not request.url.startswith(server.url):
            elsewhere.append(request.url)

    def start(*, key: str | None = None, width: int = 1280, **options: Any) -> Page:
        options.setdefault("color_scheme", "light")
        context = chromium.new_context(
            base_url=server.url, viewport={"width": width, "height": 900}, **options
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", listen)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", note)
        if key is not None:
            sign_in(page, key)
        return page

    yield start
    for context in contexts:
        context.close()
    assert complaints == []
    assert elsewhere == []


@pytest.fixture(scope="module")
def key(server: Server) -> str:
    return server.key("--queries", "50000", "--images", "20000", owner="botanist")


@pytest.fixture(scope="module")
def admin_key(server: Server) -> str:
    return server.key("--scope", "admin", "--scope", "predict", owner="operator")


@pytest.fixture(scope="module")
def adapter(server: Server, key: str, digits: Path, tmp_path_factory: Any) -> str:
    """The name of a published adapter, whose run has reported itself."""
    folder = tmp_path_factory.mktemp("console") / "digits-8shots"
    options = ("--shots", "8", "--budget", "112", "--run", folder, "--report")
    server.craft_json(key, "tune", "--data", digits, *options)
    assert server.craft(key, "publish", folder, "--name", "digits").returncode == 0
    return "digits"


@pytest.fixture(scope="module")
def picture(digits: Path) -> Path:
    return next(sample.path for sample in load_dataset(digits).test if "seven" in str(sample.path))


def sign_in(page: Page, key: str) -> None:
    page.goto("/")
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()


def test_the_apis_description_is_shown_without_any_other_site(
    open_page: OpenPage, key: str
) -> None:
    page = open_page()
    refused: list[str] = []
    page.expose_function("refuse", lambda what: refused.append(what))
    page.add_init_script(
        "addEventListener('securitypolicyviolation', (event) => "
        "refuse(`${event.violatedDirective} ${event.blockedURI}`))"
    )
    page.goto("/docs")
    operation = page.locator("#operations-models-list_models")
    expect(operation).to_contain_text("/v1/models")
    operation.get_by_role("button").first.click()
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_role("button", name="Execute").click()
    expect(operation.locator(".live-responses-table")).to_contain_text("401")
    page.get_by_role("button", name="Authorize").first.click()
    page.locator(".modal-ux input").fill(key)
    page.locator(".modal-ux").get_by_role("button", name="Apply credentials").click()
    page.locator(".modal-ux").get_by_role("button", name="Close").click()
    operation.get_by_role("button", name="Execute").click()
    expect(operation.locator(".live-responses-table")).to_contain_text("image_size")
    expect(page.locator(".opblock")).not_to_have_count(0)
    assert refused == []


def test_below_a_path_and_behind_tls_everything_is_below_that_path(
    chromium: Browser, server: Server, key: str, tmp_path: Path
) -> None:
    with proxying("nginx", server.url, tmp_path) as proxy:
        # The authority is no browser's.
        context = chromium.new_context(ignore_https_errors=True)
        page = context.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{proxy.url}/console/runs")
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Sign in").click()
        expect(page).to_have_url(f"{proxy.url}/console/runs")
        (cookie,) = context.cookies()
        assert (cookie["secure"], cookie["path"]) == (True, "/craft")
        page.get_by_role("link", name="Overview").click()
        expect(page).to_have_url(f"{proxy.url}/")
        page.goto(f"{proxy.url}/docs")
        operation = page.locator("#operations-models-list_models")
        operation.get_by_role("button").first.click()
        operation.get_by_role("button", name="Try it out").click()
        operation.get_by_role("button", name="Execute").click()
        expect(operation.locator(".live-responses-table")).to_contain_text("401")
        context.close()
    assert f"{proxy.url}/v1/models" in asked
    assert [url for url in asked if not url.startswith((f"{proxy.url}/", "data:"))] == []


def test_sign_in_with_the_keyboard_alone(open_page: OpenPage, key: str) -> None:
    page = open_page()
    page.goto("/console/runs")
    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.type("craft_wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("unknown, expired or revoked")
    page.keyboard.type(key)
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"/console/runs$"))
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the content")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Sign out":
            break
    page.keyboard.press("Enter")
    expect(page.get_by_label("API key")).to_be_visible()
    page.goto("/")
    expect(page).to_have_url(re.compile("/console/sign-in"))


def test_the_key_is_kept_nowhere_in_the_browser(open_page: OpenPage, key: str) -> None:
    page = open_page(key=key)
    (cookie,) = page.context.cookies()
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"
    secret = key.split("_", 2)[2]
    assert secret not in str(page.context.storage_state())
    assert secret not in page.content()
    assert page.evaluate("document.cookie") == ""


def test_a_run_is_watched_live(
    open_page: OpenPage, server: Server, key: str, digits: Path, tmp_path: Path
) -> None:
    page = open_page(key=key)
    command = [BIN / "craft", "tune", "--data", digits, "--shots", "8", "--recipe", "paper"]
    tuning = subprocess.Popen(
        [*command, "--seed", "2", "--run", tmp_path / "digits-8shots-seed2", "--report"],
        env={**os.environ, "CRAFT_URL": server.url, "CRAFT_API_KEY": key, "COLUMNS": "200"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert tuning.stderr is not None
    address = next(line for line in tuning.stderr if line.startswith("Watch it: ")).split()[-1]
    _until_shown(page, address)
    page.evaluate("window.notReloaded = true")
    curve = page.locator("#curve")
    expect(curve.get_by_role("status")).to_contain_text("running")
    expect(curve.locator(".line-1").first).to_be_attached()
    queries = curve.locator(".card", has_text="Queries").locator(".figure")
    expect(queries).not_to_have_text(queries.inner_text())
    if SCREENSHOTS:
        expect(queries).to_have_text(re.compile("[12],[0-9]{3}"))
        shoot(page, "run")
    tuning.send_signal(signal.SIGINT)
    expect(curve.get_by_role("status")).to_contain_text("stopped")
    assert page.evaluate("window.notReloaded"), "the page was drawn anew, not loaded anew"
    assert tuning.wait(60) == 130
    tuning.stderr.close()


def _until_shown(page: Page, address: str) -> None:
    """The run is introduced from a thread of its own, soon."""
    deadline = time.monotonic() + 60
    while page.goto(address).status == 404:  # type: ignore[union-attr] # None only for about:blank
        assert time.monotonic() < deadline, "the run did not report itself"


def test_a_run_that_came_to_its_end_says_so(open_page: OpenPage, key: str, adapter: str) -> None:
    page = open_page(key=key)
    page.get_by_role("link", name="Runs").click()
    row = page.get_by_role("row").filter(has_text="of 112")
    expect(row).to_contain_text("finished")
    expect(row).to_contain_text("1 of 112")


def test_an_adapter_is_tried_with_a_picture(
    open_page: OpenPage, key: str, adapter: str, picture: Path
) -> None:
    page = open_page(key=key)
    page.get_by_role("link", name="Adapters").click()
    page.get_by_role("link", name=adapter, exact=True).click()
    expect(page.get_by_text("8 pictures a class")).to_be_visible()
    page.get_by_role("link", name="Try it with a picture").click()
    page.get_by_label("Picture").set_input_files(picture)
    expect(page.get_by_alt_text(f"Preview of {picture.name}")).to_be_visible()
    page.get_by_role("button", name="Classify").click()
    result = page.get_by_role("region", name="Probabilities")
    expect(result.get_by_role("row")).to_have_count(11)
    expect(page.get_by_alt_text("The picture that was classified")).to_be_visible()
    expect(page.get_by_role("heading", name=re.compile("seven"))).to_be_focused()
    expect(page.get_by_text("queries are left")).to_be_visible()
    if SCREENSHOTS:
        shoot(page, "try")


def test_a_file_that_is_no_picture_is_told_on_the_form(
    open_page: OpenPage, key: str, adapter: str, picture: Path, tmp_path: Path
) -> None:
    page = open_page(key=key)
    page.goto(f"/console/try?adapter={adapter}")
    wrong, large = tmp_path / "wrong.png", tmp_path / "large.png"
    wrong.write_text("no picture")
    large.write_bytes(bytes(40 * 2**20))
    for file, told in ((wrong, "The picture cannot be used"), (large, "Choose a smaller file")):
        page.get_by_label("Picture").set_input_files(file)
        page.get_by_role("button", name="Classify").click()
        expect(page.get_by_role("alert")).to_contain_text(told)
    page.get_by_label("Picture").set_input_files(picture)
    page.get_by_role("button", name="Classify").click()
    expect(page.get_by_role("heading", name=re.compile("seven"))).to_be_visible()


def test_a_snippet_is_copied(open_page: OpenPage, key: str, adapter: str) -> None:
    page = open_page(key=key)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"/console/adapters/{adapter}")
    page.get_by_text("Python", exact=True).click()
    shown = page.get_by_label("Python").inner_text()
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == shown.strip()
    assert f'Client("{page.url.partition("/console")[0]}")' in copied
    assert f"{adapter}@1" in copied


def test_what_cannot_be_copied_is_selected(open_page: OpenPage, key: str, adapter: str) -> None:
    page = open_page(key=key)
    # As where the server is reached without TLS.
    page.add_init_script("delete Navigator.prototype.clipboard; document.execCommand = () => false")
    page.goto(f"/console/adapters/{adapter}")
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Selected")).to_be_visible()
    selected = page.evaluate("window.getSelection().toString()")
    assert selected.strip() == page.get_by_label("curl").inner_text().strip()


def test_runs_are_drawn_in_one_plot_and_noted(
    open_page: OpenPage, server: Server, digits: Path, tmp_path: Path
) -> None:
    key = server.key(owner="comparer")
    for seed in ("1", "2"):
        options = ("--shots", "2", "--seed", seed, "--run", tmp_path / f"seed-{seed}", "--report")
        server.craft_json(key, "tune", "--data", digits, *options)
    page = open_page(key=key, java_script_enabled=False)
    page.goto("/console/runs")
    page.get_by_label("Draw seed-1").check()
    page.get_by_label("Draw seed-2").check()
    page.get_by_role("button", name="Draw the chosen").click()
    expect(page.locator(".plot .line")).to_have_count(2)
    expect(page.locator(".plot .level")).to_have_count(2)
    page.get_by_role("link", name="seed-1").click()
    expect(page.get_by_role("region", name="Accuracy before and after tuning")).to_be_visible()
    expect(page.get_by_role("row").filter(has_text="deployed")).to_be_visible()
    page.get_by_text("Write a note").click()
    page.get_by_label("Note").fill("the first of two")
    page.get_by_role("button", name="Write the note").click()
    expect(page.get_by_text("the first of two")).to_be_visible()


def test_a_picture_is_dropped(open_page: OpenPage, key: str, adapter: str, picture: Path) -> None:
    page = open_page(key=key)
    page.goto(f"/console/try?adapter={adapter}")
    dropped = page.evaluate_handle(
        """(bytes) => {
            const transfer = new DataTransfer();
            const options = {type: "image/png"};
            transfer.items.add(new File([new Uint8Array(bytes)], "dropped.png", options));
            return transfer;
        }""",
        list(picture.read_bytes()),
    )
    page.dispatch_event("[data-drop]", "drop", {"dataTransfer": dropped})
    expect(page.get_by_alt_text("Preview of dropped.png")).to_be_visible()
    page.get_by_role("button", name="Classify").click()
    expect(page.get_by_role("heading", name=re.compile("seven"))).to_be_visible()


def test_all_of_it_works_without_javascript(
    open_page: OpenPage, key: str, adapter: str, picture: Path
) -> None:
    page = open_page(key=key, java_script_enabled=False)
    page.goto("/console/try")
    page.get_by_label("Picture").set_input_files(picture)
    page.get_by_role("button", name="Classify").click()
    expect(page.get_by_role("heading", name=re.compile("seven"))).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("API key")).to_be_visible()


def test_an_admin_tops_a_budget_up(open_page: OpenPage, server: Server, admin_key: str) -> None:
    poor = server.key("--queries", "100", owner="poor")
    prefix = poor.split("_")[1]
    theirs, page = open_page(key=poor), open_page(key=admin_key)
    expect(theirs.get_by_text("100 left")).to_be_visible()
    page.get_by_role("link", name="Keys").click()
    page.get_by_role("link", name=prefix).click()
    page.get_by_label("Add queries").fill("2500")
    page.get_by_role("button", name="Top up").click()
    expect(page.get_by_role("status")).to_have_text("Added 2,500 queries to the budget.")
    theirs.reload()
    expect(theirs.get_by_text("2,600 left")).to_be_visible()


def test_an_admin_makes_a_key_and_revokes_it(open_page: OpenPage, admin_key: str) -> None:
    page = open_page(key=admin_key)
    page.goto("/console/admin/keys")
    page.get_by_label("Owner").fill("newcomer")
    page.get_by_label("Queries").fill("10")
    page.get_by_role("button", name="Make the key").click()
    made = page.get_by_label("API key").input_value()
    newcomer = open_page(key=made)
    expect(newcomer.get_by_text("10 left")).to_be_visible()
    page.get_by_role("link", name=made.split("_")[1]).click()
    page.get_by_text("Revoke this key").click()
    page.get_by_role("button", name=f"Revoke {made.split('_')[1]}").click()
    expect(page.get_by_role("status")).to_contain_text("is revoked")
    newcomer.reload()
    expect(newcomer).to_have_url(re.compile("/console/sign-in"))


def addresses(page: Page, adapter: str, picture: Path) -> Iterator[str]:
    """Shows each kind of page, one after the other; gives its name."""
    for address in (
        *("/", "/console/usage", "/console/usage/charges", "/console/usage/statement"),
        *("/console/runs", "/console/adapters", "/console/admin/keys"),
    ):
        page.goto(address)
        yield address
    page.get_by_role("row").nth(1).get_by_role("link").click()
    yield "a key"
    page.goto("/console/runs")
    for box in page.get_by_role("checkbox").all():
        box.check()
    page.get_by_role("button", name="Draw the chosen").click()
    expect(page.locator(".plot")).to_be_visible()
    yield "runs in one plot"
    for row in range(1, page.get_by_role("row").count()):
        page.goto("/console/runs?sort=name")
        page.get_by_role("row").nth(row).get_by_role("link").click()
        for summary in page.locator("summary").all():
            summary.click()
        yield f"run {row}"
    page.goto(f"/console/adapters/{adapter}")
    for summary in page.locator("summary").all()[1:]:
        summary.click()
        yield f"an adapter, {summary.inner_text()}"
    page.goto("/console/try")
    yield "trying"
    page.get_by_label("Picture").set_input_files(picture)
    page.get_by_role("button", name="Classify").click()
    expect(page.get_by_role("region", name="Probabilities")).to_be_visible()
    yield "tried"
    page.get_by_label("Picture").set_input_files(__file__)
    page.get_by_role("button", name="Classify").click()
    expect(page.get_by_role("alert")).to_be_visible()
    yield "no picture"
    page.goto("/")
    yield "the overview, with charges"
    page.goto("/console/nonesuch")
    yield "a problem"
    page.get_by_role("button", name="Sign out").click()
    yield "sign in"
    page.get_by_label("API key").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    yield "refused"


def test_axe_finds_nothing_on_any_page(
    open_page: OpenPage, server: Server, adapter: str, picture: Path
) -> None:
    scopes = ("--scope", "admin", "--scope", "predict", "--scope", "publish")
    key = server.key(*scopes, "--queries", "1000", "--texts", "100", owner="botanist")
    page = open_page(key=key, reduced_motion="reduce")
    axe, violations = Axe(), {"resultTypes": ["violations"]}
    looks = {
        # Of what one taps, too, which axe looks at only when asked to.
        "light": {**violations, "rules": {"target-size": {"enabled": True}}},
        # A scheme changes nothing but colours.
        "dark": {**violations, "runOnly": ["color-contrast", "link-in-text-block"]},
    }
    found = []
    for name in addresses(page, adapter, picture):
        page.evaluate(axe.axe_script)
        for width in (360, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            for scheme, options in looks.items():
                page.emulate_media(color_scheme=scheme)
                for violation in page.evaluate("axe.run", options)["violations"]:
                    nodes = [node["html"][:150] for node in violation["nodes"]]
                    found.append((name, width, scheme, violation["id"], nodes))
            overflow = page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            if overflow > 0:
                found.append((name, width, f"wider than the screen by {overflow} px"))
    assert found == []


# --- pictures for the documentation -------------------------------------------------------------


def shoot(page: Page, name: str) -> None:
    """Writes `docs/console-NAME.png`, as small as a few colours make it."""
    from PIL import Image

    assert SCREENSHOTS
    path = Path(SCREENSHOTS) / f"console-{name}.png"
    size = page.viewport_size
    assert size is not None
    page.set_viewport_size({**size, "height": 500})
    page.screenshot(path=path, full_page=True, animations="disabled")
    page.set_viewport_size(size)
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        path, optimize=True
    )


@pytest.mark.skipif(not SCREENSHOTS, reason="CRAFT_SCREENSHOTS names no folder")
def test_pictures_for_the_documentation(
    open_page: OpenPage, server: Server, key: str, admin_key: str, adapter: str
) -> None:
    _spread_over_a_month(server.folder / "data" / "craftbox.db", key.split("_")[1])
    page = open_page(key=key, width=1100)
    shoot(page, "overview")
    page.emulate_media(color_scheme="dark")
    page.goto("/console/runs")
    page.get_by_role("link", name="digits-8shots", exact=True).click()
    expect(page.get_by_role("heading", name="Candidates")).to_be_visible()
    shoot(page, "run-dark")
    page.emulate_media(color_scheme="light")
    page.goto("/console/runs")
    for box in page.get_by_role("checkbox").all():
        box.check()
    page.get_by_role("button", name="Draw the chosen").click()
    expect(page.locator(".plot .line")).to_have_count(2)
    shoot(page, "runs")
    narrow = open_page(key=key, width=390)
    narrow.goto(f"/console/adapters/{adapter}")
    shoot(narrow, "adapter-narrow")
    admin = open_page(key=admin_key, width=1100)
    admin.goto(f"/console/admin/keys/{key.split('_')[1]}")
    shoot(admin, "key")


def _spread_over_a_month(database: Path, prefix: str) -> None:
    """Gives the key charges on earlier days, so that its charts have something to show."""
    units = ("queries", "predictions", "images", "texts", "requests")
    with sqlite3.connect(database, timeout=30) as connection:
        (key_id,) = connection.execute(
            "SELECT key_id FROM key_secrets WHERE prefix = ?", (prefix,)
        ).fetchone()
        columns = [row[1] for row in connection.execute("PRAGMA table_info(charges)")]
        number = 0
        rows = connection.execute(
            f"SELECT {', '.join(columns)} FROM charges WHERE key_id = ? AND state = 'settled'",
            (key_id,),
        ).fetchall()
        marks = ", ".join("?" for _ in columns)
        amounts = Random(4)
        for days in range(1, 30):
            for row in amounts.sample(rows, amounts.randint(0, len(rows) * 2 // 3)):
                values = dict(zip(columns, row, strict=True))
                number -= 1  # before all others, which are the newest
                values["id"] = values["line"] = number
                values["at"] -= days * 86_400_000
                connection.execute(
                    f"INSERT INTO charges ({', '.join(columns)}) VALUES ({marks})",
                    tuple(values.values()),
                )
        for unit in units:
            connection.execute(
                f"UPDATE totals SET {unit} = (SELECT SUM({unit}) FROM charges WHERE "
                "key_id = totals.key_id AND state = 'settled') WHERE key_id = ?",
                (key_id,),
            )
            connection.execute(
                f"UPDATE budgets SET spent = (SELECT {unit} FROM totals WHERE "
                "key_id = budgets.key_id) WHERE key_id = ? AND unit = ?",
                (key_id, unit),
            )
