"""What the pages show, and what their forms do."""

from __future__ import annotations

import base64
import html
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from craft_server.clock import now_ms
from craft_server.console import runs as run_pages
from craft_server.ledger.keys import change_key, find_key, list_keys
from craft_server.ledger.prices import set_prices
from craft_server.ledger.users import set_user_limit
from craft_shared.adapter import Provenance
from craft_shared.amounts import MAX_AMOUNT
from craft_shared.head import log_softmax
from craft_shared.run_reports import RunPoint, RunPoints, RunReport
from craft_shared.units import Units
from server.api.test_adapters_api import make, publish
from server.console.conftest import Browser, NewBrowser

REPORT = {"title": "digits, 16 shots", "dataset": "digits", "recipe": "craftbox", "budget": 72}


def cells(text: str) -> list[str]:
    """The page's words without its tags."""
    return [" ".join(part.split()) for part in re.split(r"<[^>]+>", text) if part.strip()]


def words(text: str) -> str:
    return " ".join(cells(text))


# --- the overview -------------------------------------------------------------------------------


def test_the_overview_shows_budgets_usage_and_charges(browse: NewBrowser, server: Any) -> None:
    browser = browse(queries=8000, images=5)
    with server.client() as other:
        assert other.get("/v1/models").status_code == 200
    headers = {"Authorization": f"Bearer {browser.key}", "Craft-Run": "my-run"}
    (card,) = browser.http.get("/v1/models", headers=headers).json()["models"]
    question = {
        "model": card["name"],
        "classes": ["a", "b"],
        "templates": ["a {}.", "the {}."],
        "images": [base64.b64encode(png()).decode()],
    }
    browser.http.post("/v1/predictions", json=question, headers=headers).raise_for_status()
    text = words(browser.get("/").text)
    assert "7,998 left" in text
    assert "2 of 8,000 spent" in text
    assert "1 of 5 spent" in text
    assert "my-run" in text
    assert "predictions" in text
    svg = re.findall(r'aria-label="([^"]*by day[^"]*)"', browser.get("/").text)
    assert svg[0] == "queries by day: 2 in 30 days, at most 2 on one day"
    assert "cost" not in text, "nothing has a price here"


def test_an_empty_account_says_so(browse: NewBrowser) -> None:
    text = words(browse().get("/").text)
    assert "No budget bounds this key" in text
    assert "Nothing was charged yet" in text


# --- runs ---------------------------------------------------------------------------------------


def report(server: Any, owner: str, run: str = "run-1", points: int = 3, **fields: Any) -> None:
    with server.client(owner) as client:
        client.put(f"/v1/runs/{run}", json={**REPORT, **fields}).raise_for_status()
        told = [
            {
                "sequence": n,
                "generation": n,
                "queries": 32 + 40 * n,
                "loss": 2.0 / (n + 1),
                "best_loss": 1.5 / (n + 1),
                "accuracy": min(100.0, 80.0 + n),
                "units": {"queries": 32 + 40 * n},
            }
            for n in range(points)
        ]
        if told:
            client.put(f"/v1/runs/{run}/points", json={"points": told}).raise_for_status()


def test_a_running_run_is_drawn_and_refreshes_itself(browse: NewBrowser, server: Any) -> None:
    report(server, "runner")
    browser = browse("runner")
    listed = words(browser.get("/console/runs").text)
    assert "digits, 16 shots 82.0 % in training 80.0 % running craftbox digits 112 of 72" in listed
    text = browser.get("/console/runs/run-1").text
    assert 'data-refresh="/console/runs/run-1/curve"' in text
    assert 'http-equiv="refresh"' in text
    assert text.count("<polyline") == 3
    assert text.count('class="level') == 2, "the line before tuning, and its legend"
    fragment = browser.get("/console/runs/run-1/curve").text
    assert "<html" not in fragment
    assert 'data-live="yes"' in fragment
    assert "82.0 %" in words(fragment)


def test_a_run_that_was_evaluated_leads_with_that(browse: NewBrowser, server: Any) -> None:
    report(server, "tester", state="finished")
    found = {
        "subject": "test split of digits, 9 pictures",
        "n": 9, "before": 50, "accuracy": 77.7, "low": 45.3, "high": 93.6,
    }  # fmt: skip
    with server.client("tester") as client:
        client.put("/v1/runs/run-1/evaluation", json=found).raise_for_status()
    browser = browse("tester")
    assert "77.7 % tested 50.0 % finished" in words(browser.get("/console/runs").text)
    shown = words(browser.get("/console/runs/run-1").text)
    assert "Accuracy, tested 77.7 % test split of digits, 9 pictures" in shown
    assert "50.0 % 77.7 % 95 % interval: 45.3 % to 93.6 %" in shown


RIDGE = {"name": "ridge", "prompts": 1, "texts": 256, "loss": 1.131}
PLAIN = {"name": "plain", "prompts": 1, "loss": 1.8261}
OUTCOME = {"before": 37.5, "after": 62.5, "deployed": "ridge", "candidates": [PLAIN, RIDGE]}


def one_request(server: Any, owner: str, **outcome: Any) -> None:
    """Reports as the default recipe does: one point before tuning, one at the end."""
    with server.client(owner) as client:
        client.put("/v1/runs/one", json=REPORT).raise_for_status()
        found = {**OUTCOME, **outcome}
        told = [
            {"sequence": n, "generation": 0, "queries": 1, "loss": 1.8, "accuracy": accuracy}
            for n, accuracy in enumerate((37.5, found["after"]))
        ]
        client.put("/v1/runs/one/points", json={"points": told}).raise_for_status()
        finished = {**REPORT, "state": "finished", "outcome": found}
        client.put("/v1/runs/one", json=finished).raise_for_status()


def test_a_run_of_one_request_shows_before_after_and_candidates_and_no_course(
    browse: NewBrowser, server: Any
) -> None:
    one_request(server, "single")
    browser = browse("single")
    text = browser.get("/console/runs/one").text
    shown = words(text)
    assert "Accuracy, held out 62.5 % training pictures" in shown
    assert "training, each held out 37.5 % 62.5 %" in shown
    assert "plain 1.8261 1 0 ridge deployed 1.1310 1 256" in shown
    assert "<polyline" not in text
    assert "Generations" not in shown
    assert "62.5 % held out 37.5 % finished" in words(browser.get("/console/runs").text)


def test_a_finished_run_that_held_nothing_out_says_so_and_how_to_measure_it(
    browse: NewBrowser, server: Any
) -> None:
    one_request(server, "unmeasured", after=None)
    browser = browse("unmeasured")
    shown = words(browser.get("/console/runs/one").text)
    assert "Accuracy, before 37.5 %" in shown
    assert "not measured" in shown
    assert "craft evaluate RUN --data DIR" in shown
    assert "37.5 % before 37.5 % finished" in words(browser.get("/console/runs").text)


def names(text: str) -> list[str]:
    """Of the runs in the list, in their order."""
    return re.findall(r'href="/console/runs/([^"]+)"', text)


def test_runs_are_searched_and_sorted(browse: NewBrowser, server: Any) -> None:
    report(server, "searcher", "b", points=1, title="b", recipe="bbt", state="failed")
    report(server, "searcher", "c", points=3, title="c", recipe="paper", dataset="pets")
    report(server, "searcher", "a", points=2, title="a", recipe="paper")
    browser = browse("searcher")
    for query, found in (
        ("", ["a", "c", "b"]),
        ("sort=name", ["a", "b", "c"]),
        ("sort=accuracy", ["c", "a", "b"]),
        ("sort=queries", ["b", "a", "c"]),
        ("recipe=paper&sort=name", ["a", "c"]),
        ("dataset=pets", ["c"]),
        ("state=failed", ["b"]),
        ("recipe=nonesuch&sort=nonesuch", []),
    ):
        assert names(browser.get(f"/console/runs?{query}").text) == found, query
    chosen = browser.get("/console/runs?recipe=paper&sort=queries").text
    assert "<option selected>paper</option>" in chosen
    assert "<option selected>queries</option>" in chosen


def test_several_runs_are_drawn_in_one_plot_and_no_other_owners(
    browse: NewBrowser, server: Any
) -> None:
    report(server, "drawer", "a", title="run a")
    report(server, "drawer", "b", title="run b")
    report(server, "other drawer", "c", title="run c")
    browser = browse("drawer")
    assert "<polyline" not in browser.get("/console/runs").text
    text = browser.get("/console/runs?draw=a&draw=b&draw=c&draw=gone").text
    assert text.count("<polyline") == 2
    assert "Accuracy over queries of run a, run b;" in text
    assert len(re.findall(r'name="draw" value="[ab]" checked', text)) == 2
    assert "run c" not in text


def test_no_more_runs_are_drawn_than_there_are_colours(browse: NewBrowser, server: Any) -> None:
    for number in range(9):
        report(server, "painter", f"r{number}", points=1)
    query = "&".join(f"draw=r{number}" for number in range(9))
    text = browse("painter").get(f"/console/runs?{query}").text
    assert text.count("<polyline") == 8


def test_a_note_is_written_changed_and_removed(browse: NewBrowser, server: Any) -> None:
    report(server, "writer")
    page, browser = "/console/runs/run-1", browse("writer")
    sent = browser.send(page, f"{page}/note", note=" - the <b>best</b> so far ")
    assert sent.headers["location"] == page
    text = browser.get(page).text
    assert "The note was written" in text
    assert "- the &lt;b&gt;best&lt;/b&gt; so far" in text
    assert "- the &lt;b&gt;best&lt;/b&gt; so far" in browser.get("/console/runs").text
    assert browser.send(page, f"{page}/note", note="x" * 201).status_code == 422
    assert "&lt;b&gt;" in browser.get(page).text
    assert browser.send(page, f"{page}/note", note="").status_code == 303
    assert "&lt;b&gt;" not in browser.get(page).text
    other = browse("another writer")
    fields = {"form_token": other.form_token, "note": "mine"}
    assert other.post(f"{page}/note", fields).status_code == 404


def test_a_finished_run_rests(browse: NewBrowser, server: Any) -> None:
    report(server, "finisher", state="finished")
    text = browse("finisher").get("/console/runs/run-1").text
    assert 'http-equiv="refresh"' not in text
    assert 'data-live="no"' in text


def test_a_run_that_says_nothing_any_more_is_not_said_to_run(
    browse: NewBrowser, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    report(server, "silent")
    monkeypatch.setattr(run_pages, "now_ms", lambda: now_ms() + 600_000)
    text = words(browse("silent").get("/console/runs/run-1").text)
    assert "silent" in text
    assert "Nothing was heard of this run since" in text


def test_a_run_without_points_has_a_page(browse: NewBrowser, server: Any) -> None:
    report(server, "beginner", points=0)
    browser = browse("beginner")
    assert "No accuracy was reported yet" in browser.get("/console/runs/run-1").text
    assert browser.get("/console/runs").status_code == 200


def test_a_long_curve_is_thinned_in_its_table(browse: NewBrowser, server: Any) -> None:
    report(server, "long", points=450)
    text = words(browse("long").get("/console/runs/run-1").text)
    assert "points in between are left out" in text


def test_another_owners_run_is_not_there(browse: NewBrowser, server: Any) -> None:
    report(server, "one owner", run="private")
    browser = browse("another owner")
    assert browser.get("/console/runs/private").status_code == 404
    assert browser.get("/console/runs/private/curve").status_code == 404
    fields = {"form_token": browser.form_token}
    assert browser.post("/console/runs/private/delete", fields).status_code == 404
    assert "private" not in browser.get("/console/runs").text


def test_a_report_is_deleted_and_that_is_told_once(browse: NewBrowser, server: Any) -> None:
    report(server, "deleter")
    browser = browse("deleter")
    sent = browser.send("/console/runs/run-1", "/console/runs/run-1/delete")
    assert sent.headers["location"] == "/console/runs"
    assert "The report of run-1 was deleted" in browser.get("/console/runs").text
    assert "was deleted" not in browser.get("/console/runs").text


# --- adapters -----------------------------------------------------------------------------------


def png(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def published(server: Any, owner: str, name: str = "pets") -> None:
    with server.client(owner) as client:
        card = make(
            client,
            provenance=Provenance(
                shots=16,
                seed=3,
                accuracy_before=41.25,
                accuracy_after=87.5,
                units=Units(queries=72),
            ),
        )
        assert publish(client, card, name).status_code == 201


def test_an_adapters_card_tells_where_it_came_from(browse: NewBrowser, server: Any) -> None:
    published(server, "breeder")
    browser = browse("breeder")
    assert "pets" in browser.get("/console/adapters").text
    text = words(browser.get("/console/adapters/pets").text)
    for fact in (
        "41.2 %",
        "87.5 %",
        "16 pictures a class",
        "seed 3",
        "72 queries",
        "owl",
        "strict",
    ):
        assert fact in text, fact
    assert browser.get("/console/adapters/pets@1").status_code == 200
    assert browser.get("/console/adapters/pets@2").status_code == 404


def test_what_one_image_costs_is_on_the_card(browse: NewBrowser, serve: Any) -> None:
    with serve() as priced:
        published(priced, "seller")
        browser = browse("seller", at=priced)
        page = "/console/adapters/pets"
        assert "One image costs 3 queries 3 queries, 3 predictions, 1 image, 1 request" in words(
            browser.get(page).text
        )
        with priced.database.writing() as connection:
            set_prices(connection, "craft-tiny", {"queries": 100, "images": 250})
        assert "One image costs 0.00055 3 queries" in words(browser.get(page).text)


def test_an_adapter_is_shared_and_its_use_is_counted(browse: NewBrowser, server: Any) -> None:
    published(server, "sharer", "shared")
    owner, guest = browse("sharer"), browse("guest")
    prefix, page = guest.key.split("_")[1], "/console/adapters/shared"
    sent = owner.send(page, f"{page}/share", keys=prefix, teams="a team, b", pays="publisher")
    assert sent.headers["location"] == page
    text = owner.get(page).text
    assert f'value="{prefix}"' in text
    assert 'value="a team, b"' in text
    assert "the publisher, as now" in text
    theirs = guest.get("/console/adapters/sharer/shared")
    assert "the publisher pays" in words(theirs.text)
    assert "Who may use it" not in theirs.text
    assert ">Usage, by everybody</h2>" not in theirs.text
    assert ">Usage, by everybody</h2>" in text
    assert try_it(guest, "sharer/shared").status_code == 200
    assert "1 1 1 3 3" in words(owner.get(page).text)
    assert owner.send(page, f"{page}/share", keys="", pays="publisher").status_code == 303
    assert guest.get("/console/adapters/sharer/shared").status_code == 404


def test_what_is_no_key_is_shared_with_nobody(browse: NewBrowser, server: Any) -> None:
    published(server, "slip", "slips")
    browser, page = browse("slip"), "/console/adapters/slips"
    refused = browser.send(page, f"{page}/share", keys="not-a-prefix", public="yes", pays="caller")
    assert refused.status_code == 422
    assert f'href="{page}"' in refused.text
    assert "checked" not in browser.get(page).text


def test_who_pays_stays_who_paid_where_only_the_rest_is_changed(
    browse: NewBrowser, server: Any
) -> None:
    published(server, "two keys", "paid")
    page, first = "/console/adapters/paid", browse("two keys", queries=10)
    assert first.send(page, f"{page}/share", public="yes", pays="publisher").status_code == 303
    second = browse("two keys", queries=10)
    assert second.send(page, f"{page}/share", public="yes", pays="publisher").status_code == 303
    assert try_it(browse("stranger"), "two keys/paid").status_code == 200
    assert second.send(page, f"{page}/share", pays="publisher").status_code == 303
    assert "7 left" in words(first.get("/").text)
    assert "10 left" in words(second.get("/").text)


def test_a_version_is_retired_and_restored(browse: NewBrowser, server: Any) -> None:
    published(server, "retirer", "old")
    with server.client("retirer") as client:
        assert (
            publish(client, make(client, provenance=Provenance(seed=9)), "old").status_code == 201
        )
    browser, page = browse("retirer"), "/console/adapters/old"
    assert "Retire version 1" in browser.get(f"{page}@1").text
    assert browser.send(f"{page}@1", f"{page}/retire").headers["location"] == "/console/adapters"
    assert "craft restore old@1" in browser.get("/console/adapters").text
    assert browser.get(f"{page}@1").status_code == 404
    assert browser.send(page, f"{page}/restore").headers["location"] == f"{page}@1"
    assert browser.get(f"{page}@1").status_code == 200


def test_a_key_that_may_not_publish_changes_no_adapter(browse: NewBrowser, server: Any) -> None:
    published(server, "operator of few", "mine")
    browser = browse("operator of few", admin=True)
    page = "/console/adapters/mine"
    assert "/share" not in browser.get(page).text
    for action in ("share", "retire", "restore"):
        fields = {"form_token": browser.form_token, "version": "1", "pays": "caller"}
        assert browser.post(f"{page}/{action}", fields).status_code == 403
    assert browser.get(page).status_code == 200


def snippet(browser: Browser, page: str, language: str) -> str:
    """The text of a snippet as somebody copies it."""
    text = browser.get(page).text
    (found,) = re.findall(rf'aria-label="{language}"><code>(.*?)</code>', text, re.DOTALL)
    assert browser.key.split("_", 2)[2] not in text
    return html.unescape(found)


@pytest.mark.parametrize(
    ("language", "program"),
    [
        ("curl", ["bash", "-c"]),
        ("Python", [sys.executable, "-c"]),
        ("JavaScript", ["node", "--input-type=module", "-e"]),
    ],
)
def test_a_copied_snippet_classifies_a_picture(
    browse: NewBrowser, server: Any, tmp_path: Path, language: str, program: list[str]
) -> None:
    if shutil.which(program[0]) is None:
        pytest.skip(f"there is no {program[0]}")
    owner = 'o\'wner of "$(quotes)" \u00e9'
    published(server, owner, language)
    browser, guest = browse(owner), browse("copier")
    page, prefix = f"/console/adapters/{language}", guest.key.split("_")[1]
    assert browser.send(page, f"{page}/share", keys=prefix, pays="caller").status_code == 303
    (tmp_path / "picture.jpg").write_bytes(png())
    copied = snippet(guest, f"/console/adapters/{quote(owner)}/{language}", language)
    done = subprocess.run(
        [*program, copied.replace("export CRAFT_API_KEY=craft_...\n", "")],
        cwd=tmp_path,
        env={**os.environ, "CRAFT_API_KEY": guest.key},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "owl" in done.stdout


def test_another_owners_adapter_is_not_there(browse: NewBrowser, server: Any) -> None:
    published(server, "keeper", "secret-pets")
    browser = browse("visitor")
    assert browser.get("/console/adapters/secret-pets").status_code == 404
    assert "secret-pets" not in browser.get("/console/adapters").text
    tried = try_it(browser, "secret-pets")
    assert tried.status_code == 404


def try_it(browser: Browser, adapter: str, picture: bytes | None = None) -> Any:
    files = {"picture": ("cat.png", png() if picture is None else picture, "image/png")}
    data = {"form_token": browser.form_token, "adapter": adapter}
    return browser.post("/console/try", data, files=files)


def test_a_picture_is_classified_beside_the_untuned_model_as_the_api_does(
    browse: NewBrowser, server: Any
) -> None:
    published(server, "trier")
    browser = browse("trier", queries=10)
    answer = try_it(browser, "pets")
    assert answer.status_code == 200, answer.text
    shown = {
        row[0]: (float(row[1]), float(row[2]))
        for row in re.findall(
            r'class="name">(\w+)</th>\s*<td class="share"><span>([\d.]+) %.*?'
            r'<td class="share"><span>([\d.]+) %',
            answer.text,
            re.DOTALL,
        )
    }
    with server.client("trier") as client:
        image = base64.b64encode(png()).decode()
        tuned = client.post("/v1/adapters/pets/predictions", json={"images": [image]}).json()
        (card,) = client.get("/v1/models").json()["models"]
        question = {
            "model": card["name"],
            "classes": tuned["classes"],
            "templates": ["a photo of a {}."],
            "images": [image],
        }
        plain = client.post("/v1/predictions", json=question).json()
    for index, name in enumerate(tuned["classes"]):
        refined = log_softmax(np.array(tuned["log_probs"][0], np.float64))
        assert shown[name][0] == pytest.approx(100 * np.exp(refined[index]), abs=0.06)
        assert shown[name][1] == pytest.approx(
            100 * np.exp(plain["log_probs"][0][0][index]), abs=0.06
        )
    assert "data:image/jpeg;base64," in answer.text


def test_a_trial_is_charged_as_the_api_charges_it(browse: NewBrowser, server: Any) -> None:
    published(server, "payer")
    browser = browse("payer", queries=10)
    assert "7 queries are left" in words(try_it(browser, "pets").text)
    headers = {"Authorization": f"Bearer {browser.key}"}
    usage = browser.http.get("/v1/usage", headers=headers).json()
    assert usage["total"] == {
        "queries": 3,
        "predictions": 3,
        "images": 1,
        "texts": 0,
        "requests": 1,
    }
    assert usage["charges"][0]["call"] == "adapter-predictions"


def test_a_trial_is_refused_where_the_api_refuses_it(
    browse: NewBrowser, serve: Any, tmp_path: Path
) -> None:
    profile = tmp_path / "changing.toml"
    change = "[revision_change]\nafter_calls = 1\n"
    profile.write_text(f'name = "own"\nversion = 1\ndescription = "A test."\n{change}')
    with serve(profile=str(profile)) as changing:
        published(changing, "trier", "before")
        published(changing, "trier", "after")
        browser = browse("trier", at=changing)
        tried = [try_it(browser, name).status_code for name in ("before", "after")]
        body = {"images": [base64.b64encode(png()).decode()]}
        with changing.client("trier") as client:
            asked = [
                client.post(f"/v1/adapters/{name}/predictions", json=body).status_code
                for name in ("before", "after")
            ]
        listed = browser.get("/console/try").text
    assert tried == asked == [409, 200]
    assert re.findall(r'<option value="(\w+)"[^>]*disabled', listed) == ["before"]


@pytest.mark.parametrize(
    ("picture", "told"),
    [
        (b"", "No picture was chosen. Choose one."),
        (b"not a picture", "The picture cannot be used: "),
        (png()[:200], "Nothing was charged. Choose another picture."),
    ],
)
def test_what_is_no_picture_is_told_on_the_form_and_not_charged(
    browse: NewBrowser, server: Any, picture: bytes, told: str
) -> None:
    published(server, "clumsy", f"pets-{len(picture)}")
    browser = browse("clumsy", queries=10)
    refused = try_it(browser, f"pets-{len(picture)}", picture)
    assert refused.status_code == 422
    (why,) = re.findall(r'role="alert">([^<]+)<', refused.text)
    assert told in html.unescape(why)
    assert f'<option value="pets-{len(picture)}" selected' in refused.text
    assert "10 left" in words(browser.get("/").text)


def test_an_exhausted_budget_explains_itself(browse: NewBrowser, server: Any) -> None:
    published(server, "poor")
    browser = browse("poor", queries=2)
    refused = try_it(browser, "pets")
    assert refused.status_code == 402
    text = words(refused.text)
    assert "This call needs 3 queries and 2 are left" in text
    assert "Ask your provider for a top-up" in text
    assert "2 left" in words(browser.get("/").text)


def test_many_adapters_are_shown_some_at_a_time(
    browse: NewBrowser, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("craft_server.console.adapters._SHOWN_ADAPTERS", 2)
    names = ["pets-1", "pets-2", "pets-3"]
    for name in names:
        published(server, "many & more", name)
    browser = browse("many & more")
    first = browser.get("/console/adapters").text
    assert re.findall(r'href="/console/adapters/([^"]+)"', first) == names[:2]
    more = html.unescape(re.findall(r'href="(/console/adapters\?[^"]+)"', first)[0])
    second = browser.get(more).text
    assert re.findall(r'href="/console/adapters/([^"]+)"', second) == names[2:]
    assert "More adapters" not in second
    assert 'href="/console/adapters">First adapters' in second
    listed = browser.get("/console/try?adapter=pets-3").text
    assert re.findall(r'<option value="([^"]+)"', listed) == ["pets-3", *names[:2]]
    assert more in html.unescape(listed)


# --- administration -----------------------------------------------------------------------------


def test_an_admin_tops_a_budget_up_once_however_often_the_form_is_sent(
    browse: NewBrowser, stored: Any
) -> None:
    admin, other = browse(at=stored, admin=True), browse(at=stored, queries=100)
    prefix = other.key.split("_")[1]
    page = f"/console/admin/keys/{prefix}"
    hidden = dict(re.findall(r'type="hidden" name="([^"]+)" value="([^"]*)"', admin.get(page).text))
    data = {**hidden, "budget": "queries lifetime", "amount": "50"}
    first = admin.post(f"{page}/top-up", data)
    assert (first.status_code, first.headers["location"]) == (303, page)
    assert "Added 50 queries to the budget" in admin.get(page).text
    assert "Added 50 queries" not in admin.get(page).text
    assert admin.post(f"{page}/top-up", data).status_code == 303
    assert "done already" in admin.get(page).text
    assert "150 left" in words(other.get("/").text)


def test_an_admin_sees_what_each_end_user_of_a_key_may_use(browse: NewBrowser, server: Any) -> None:
    admin, other = browse(admin=True), browse()
    prefix = other.key.split("_")[1]
    page = f"/console/admin/keys/{prefix}"
    shown = words(admin.get(page).text)
    assert "a call may name one" in shown
    assert "Budgets of each end user" not in shown
    with server.database.writing() as connection:
        key_id = find_key(connection, prefix).key_id
        set_user_limit(connection, key_id, unit="queries", window="day", limit=1234)
        change_key(connection, key_id, require_user=True, at=now_ms())
    shown = words(admin.get(page).text)
    assert "each call has to name one" in shown
    assert "Budgets of each end user Queries each day 1,234" in shown


def test_an_admin_sets_a_budget(browse: NewBrowser) -> None:
    admin, other = browse(admin=True), browse()
    page = f"/console/admin/keys/{other.key.split('_')[1]}"
    sent = admin.send(page, f"{page}/budgets", unit="images", window="day", limit="1,200")
    assert sent.status_code == 303
    assert "The budget is 1,200 images (day) now" in admin.get(page).text
    # Of what the pages show themselves, the browser takes everything.
    for pattern in re.findall(r'pattern="([^"]+)"', admin.get(page).text):
        assert re.fullmatch(pattern, "1,000,000")
    assert "1,200 left" in words(other.get("/").text)


@pytest.mark.parametrize(
    ("action", "fields", "told"),
    [
        ("top-up", {"budget": "texts lifetime", "amount": "5"}, "There is no budget on texts"),
        ("top-up", {"budget": "queries lifetime", "amount": "x"}, "not a whole number"),
        ("top-up", {"budget": "queries lifetime", "amount": "1,5"}, "not a whole number"),
        ("top-up", {"budget": "joy lifetime", "amount": "1"}, "not valid"),
        ("budgets", {"unit": "queries", "window": "eon", "limit": "1"}, "not valid"),
    ],
)
def test_what_cannot_be_done_is_told(
    browse: NewBrowser, action: str, fields: dict[str, str], told: str
) -> None:
    admin, other = browse(admin=True), browse(queries=1)
    page = f"/console/admin/keys/{other.key.split('_')[1]}"
    refused = admin.post(
        f"{page}/{action}", {**fields, "form_token": admin.form_token, "once": "a" + action}
    )
    assert refused.status_code == 422
    assert told.lower() in words(refused.text).lower()
    assert f'href="{page}"' in refused.text
    assert "1 left" in words(other.get("/").text)


def test_a_new_keys_secret_is_shown_once_and_works(browse: NewBrowser) -> None:
    admin = browse(admin=True)
    page = "/console/admin/keys"
    fields = {"owner": "newcomer", "scopes": ["predict"], "budget_queries": "7"}
    made = admin.send(page, page, **fields)
    assert made.status_code == 201
    secret = re.search(r'value="(craft_[^"]+)"', made.text)
    assert secret
    assert secret[1] not in admin.get(page).text
    newcomer = browse(signed_in=False)
    newcomer.key = secret[1]
    assert newcomer.sign_in().status_code == 303
    assert "7 left" in words(newcomer.get("/").text)
    assert newcomer.get("/console/admin/keys").status_code == 404


def test_a_key_is_not_made_for_a_name_that_misleads(browse: NewBrowser) -> None:
    admin = browse(admin=True)
    page = "/console/admin/keys"
    for owner, told in (("=1+1", "begins with"), ("a\u202eb", "U+202E")):
        refused = admin.send(page, page, owner=owner, scopes=["predict"])
        assert refused.status_code == 422
        assert told in refused.text


def test_a_name_that_was_made_before_names_were_checked_is_shown_by_its_codes(
    browse: NewBrowser,
) -> None:
    admin, _ = browse(admin=True), browse("owner\u202e\x1b[31m")
    text = admin.get("/console/admin/keys").text
    assert "owner\\u202e\\x1b[31m" in text
    assert "\u202e" not in text


@pytest.fixture
def browser(browse: NewBrowser, client: httpx.Client) -> Browser:
    """Of who has the key of `client`."""
    opened = browse(signed_in=False)
    opened.key = client.headers["authorization"].removeprefix("Bearer ")
    assert opened.sign_in().status_code == 303
    return opened


_NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
_AMOUNTS = st.integers(0, MAX_AMOUNT)
_REPORTS = st.builds(
    RunReport,
    title=st.just("t"),
    budget=st.none() | _AMOUNTS,
    state=st.sampled_from(["running", "finished", "stopped", "failed"]),
)
_REPORTED = st.lists(
    st.builds(
        RunPoint,
        sequence=_AMOUNTS,
        generation=_AMOUNTS,
        queries=_AMOUNTS,
        loss=st.none() | _NUMBERS,
        best_loss=st.none() | _NUMBERS,
        accuracy=st.none() | st.floats(0, 100),
        units=st.builds(Units, queries=_AMOUNTS),
    ),
    max_size=5,
)
_MADE = st.builds(
    Provenance,
    shots=st.none() | st.integers(-(10**30), 10**30),
    seed=st.none() | st.integers(0, 10**30),
    accuracy_before=st.none() | _NUMBERS,
    accuracy_after=st.none() | _NUMBERS,
)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(_REPORTS, _REPORTED, _MADE)
@example(
    RunReport(title="far", state="running"),
    [
        RunPoint(sequence=0, generation=0, queries=5, accuracy=50, loss=1e308, best_loss=-1e308),
        RunPoint(sequence=1, generation=1, queries=10**15, loss=-1e308, best_loss=1e308),
    ],
    Provenance(accuracy_before=-1.7e308, accuracy_after=1.7e308, shots=10**30),
)
def test_whatever_is_stored_is_shown(
    browser: Browser, client: httpx.Client, report: RunReport, points: list[RunPoint], made: Any
) -> None:
    client.delete("/v1/runs/far")
    client.put("/v1/runs/far", json=report.model_dump()).raise_for_status()
    if points:
        body = RunPoints(points=points).model_dump()
        client.put("/v1/runs/far/points", json=body).raise_for_status()
    publish(client, make(client, provenance=made)).raise_for_status()
    pages = ("/", "/console/runs", "/console/runs/far", "/console/runs/far/curve")
    for page in (*pages, "/console/adapters", "/console/adapters/pets", "/console/try"):
        answer = browser.get(page)
        assert answer.status_code == 200, page
        assert "Infinity" not in answer.text
        assert ">nan" not in answer.text


def test_the_same_form_makes_no_second_key(browse: NewBrowser) -> None:
    admin = browse(admin=True)
    data = {"form_token": admin.form_token, "once": "same", "owner": "twin", "scopes": "predict"}
    assert admin.post("/console/admin/keys", data).status_code == 201
    again = admin.post("/console/admin/keys", data)
    assert again.status_code == 303
    assert admin.get("/console/admin/keys").text.count(">twin<") == 1


def test_what_no_database_stores_is_refused_as_a_page(stored: Any, browse: NewBrowser) -> None:
    admin = browse(at=stored, admin=True)
    assert admin.get("/console/runs/a%00b").status_code == 422
    assert admin.get("/console/runs/a%00b/curve").status_code == 422
    assert admin.get("/console/runs?draw=a%00b&recipe=%00&sort=%00").status_code == 422
    form = {"form_token": admin.form_token, "once": "a\0b", "owner": "o", "scopes": "predict"}
    assert admin.post("/console/runs/a%00b/delete", form).status_code == 422
    assert admin.post("/console/admin/keys", form).status_code == 403
    tuner = browse(at=stored)
    token = {"form_token": tuner.form_token}
    for action in ("share", "retire", "restore"):
        data = {**token, "version": "1", "pays": "caller"}
        assert tuner.post(f"/console/adapters/a%00b/{action}", data).status_code == 404
    assert tuner.post("/console/runs/a/note", {**token, "note": "a\0b"}).status_code == 422


def test_a_revoked_key_ends_its_sessions(browse: NewBrowser) -> None:
    admin, other = browse(admin=True), browse()
    page = f"/console/admin/keys/{other.key.split('_')[1]}"
    assert admin.send(page, f"{page}/revoke").status_code == 303
    assert "revoked" in words(admin.get(page).text)
    assert other.get("/").status_code == 303


def test_a_key_that_is_not_there_is_told(browse: NewBrowser) -> None:
    admin = browse(admin=True)
    assert admin.get("/console/admin/keys/aaaaaaaa").status_code == 404


def test_many_keys_are_shown_some_at_a_time(
    browse: NewBrowser, stored: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("craft_server.console.administration._SHOWN", 2)
    admin = browse(at=stored, admin=True)
    for number in range(3):
        stored.key(f"owner {number}")
    with stored.database.reading() as connection:
        prefixes = [entry.prefixes[0] for entry in list_keys(connection)]
    shown, address = [], "/console/admin/keys"
    for _ in range(len(prefixes) // 2 + 1):
        text = admin.get(address).text
        shown += re.findall(
            r'<th scope="row"><a class="target" href="/console/admin/keys/(\w+)"', text
        )
        following = re.findall(r'href="([^"]+)" rel="next"', text)
        if not following:
            break
        address = html.unescape(following[0])
    assert shown == prefixes[::-1]
