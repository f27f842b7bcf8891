from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from craft_client.cli import app
from craft_client.runs import Run
from craft_shared.units import UNITS

from .run_folders import ANSWERS, EVALUATION, answer, write_run

Craft = Callable[..., Any]
PNG = b"\x89PNG"
TRAINED = "training pictures (after: held out)"
TESTED = ["50.0 % (23.7 to 76.3)", "80.0 % (49.0 to 94.3)", "test split of animals, 10 pictures"]


@pytest.fixture
def craft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Craft:
    """Runs a command in a folder of its own, without a key or a server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CRAFT_API_KEY", raising=False)
    monkeypatch.setenv("CRAFT_URL", "http://127.0.0.1:1")

    def run(*arguments: object) -> Any:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert "Traceback" not in result.stderr
        return result

    return run


def done(result: Any) -> Any:
    assert result.exit_code == 0, result.stderr
    return result


def refused(result: Any, *words: str) -> None:
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    for word in words:
        assert word in result.stderr


def row(result: Any, first: str) -> list[str]:
    """The cells of the table's row that begins so."""
    (line,) = [line for line in result.stdout.splitlines() if line.startswith(f"{first} ")]
    return re.split(r" {2,}", line)


class Page(HTMLParser):
    """What a page holds: elements with their attributes, and the rows of its tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.marked: list[int] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
            if dict(attrs).get("class") == "marked":
                self.marked.append(len(self.rows) - 1)
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1][-1] += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


# --- craft runs -----------------------------------------------------------------------------------


def test_runs_lists_all_with_state_charges_and_accuracies(craft: Craft) -> None:
    write_run(Path("runs/one"))
    write_run(Path("runs/deep/open"), finished=False, settings={"seed": 7}, data="/data/birds")
    result = done(craft("runs"))
    assert row(result, "runs/one") == [
        "runs/one", "animals", "pocket", "10", "1", "finished", "28", "840", "40.0 %", "72.5 %",
        TRAINED, "0.028000",
    ]  # fmt: skip
    assert row(result, "runs/deep/open") == [
        "runs/deep/open", "birds", "pocket", "10", "7", "unfinished", "28", "840", "not yet",
        "not yet", "not yet", "0.028000",
    ]  # fmt: skip
    facts = json.loads(done(craft("runs", "--json")).stdout)
    assert facts["damaged"] == []
    opened, one = facts["runs"]
    assert (one["run"], one["data"], one["state"], one["cost_micros"]) == (
        "runs/one", "animals", "finished", 28_000,
    )  # fmt: skip
    assert (one["accuracy_before"], one["accuracy_after"]) == (40.0, 72.5)
    assert (one["evaluation"], one["evaluation_fault"]) == (None, None)
    assert [one[unit] for unit in UNITS] == [28, 840, 0, 84, 4]
    assert (opened["state"], opened["accuracy_after"]) == ("unfinished", None)


def test_runs_without_any_cost_have_no_such_column(craft: Craft) -> None:
    write_run(Path("runs/one"), answers=[answer(0, 4, 2.5, 2.0, cost_micros=0)])
    write_run(Path("runs/two"), answers=[answer(0, 4, 2.5, 2.0, cost_micros=None)])
    assert "cost" not in done(craft("runs")).stdout
    write_run(Path("runs/three"))
    assert row(done(craft("runs")), "runs/two")[-1] == "unknown"


def test_what_cannot_be_measured_is_said(craft: Craft) -> None:
    write_run(Path("runs/one"), summary={"accuracy_after": None})
    assert row(done(craft("runs")), "runs/one")[-3] == "not measurable"


def test_a_damaged_run_is_named_beside_the_others(craft: Craft) -> None:
    write_run(Path("runs/one"))
    write_run(Path("runs/two"))
    Path("runs/two/summary.json").write_text("[]")
    result = done(craft("runs"))
    assert row(result, "runs/one")
    assert "runs/two" not in result.stdout
    assert "Damaged: 'runs/two'. 'runs/two/summary.json' is not a JSON object." in result.stderr
    facts = json.loads(done(craft("runs", "--json")).stdout)
    assert [bad["run"] for bad in facts["damaged"]] == ["runs/two"]
    assert "summary.json" in facts["damaged"][0]["reason"]


def test_a_folder_without_runs_and_no_folder_are_told_apart(craft: Craft) -> None:
    refused(craft("runs"), "no folder 'runs'", "Name the folder")
    Path("empty").mkdir()
    result = done(craft("runs", "empty"))
    assert result.stdout == ""
    assert "There are no runs in 'empty' or below." in result.stderr
    assert json.loads(done(craft("runs", "empty", "--json")).stdout)["runs"] == []


# --- craft report ---------------------------------------------------------------------------------


def test_a_report_is_a_picture_and_a_page_in_the_runs_own_folder(craft: Craft) -> None:
    write_run(Path("one"))
    result = done(craft("report", "one"))
    assert Path("one/report.png").read_bytes().startswith(PNG)
    assert "Wrote 'one/report.png' and 'one/report.html'." in result.stderr
    assert not list(Path("one").glob("*.partial"))
    assert Run.load(Path("one")).state == "finished"


def test_out_names_a_folder_that_need_not_exist(craft: Craft) -> None:
    write_run(Path("one"))
    told = json.loads(done(craft("report", "one", "--out", "a/b", "--json")).stdout)
    assert (told["png"], told["html"]) == ("a/b/report.png", "a/b/report.html")
    assert sorted(path.name for path in Path("a/b").iterdir()) == ["report.html", "report.png"]
    assert not Path("one/report.png").exists()


def test_the_page_needs_nothing_but_itself(craft: Craft) -> None:
    write_run(Path("one"))
    done(craft("report", "one"))
    text = Path("one/report.html").read_text()
    page = Page(text)
    (policy,) = [
        meta["content"]
        for meta in page.named("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert not {"script", "link", "iframe", "object"} & {name for name, _ in page.elements}
    addresses = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "srcset", "href")
    ]
    assert len(addresses) == 2
    for address in addresses:
        assert address
        kind, _, data = address.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data, validate=True).startswith(PNG)
    assert "url(" not in text
    assert "@import" not in text
    shown = base64.b64encode(Path("one/report.png").read_bytes()).decode()
    assert page.named("img")[0]["src"] == f"data:image/png;base64,{shown}"
    assert page.named("source")[0]["media"] == "(prefers-color-scheme: dark)"
    assert re.search(r"@media \(prefers-color-scheme: dark\) \{\s*:root", text)


def test_the_page_tells_units_settings_candidates_times_and_model(craft: Craft) -> None:
    write_run(Path("one"), settings={"strategy": "cma-es"})
    done(craft("report", "one"))
    page = Page(Path("one/report.html").read_text())
    head = page.rows.index([*UNITS, "cost"])
    assert page.rows[head + 1] == ["28", "840", "0", "84", "4", "0.028000"]
    for expected in (
        ["state", "finished"],
        ["began", "2026-01-02T03:04:05+00:00"],
        ["ended", "2026-01-02T03:14:15+00:00"],
        ["data", "animals"],
        ["model", "pocket"],
        ["revision", "f00d"],
        ["deployed", "ridge"],
        ["strategy", "cma-es"],
        ["budget", "40"],
        ["plain", "1", "0", "1.5000", "", ""],
        ["ridge", "28", "0", "1.0000", "0.01", "deployed"],
        ["training pictures, before: the plain prompt", "40.0 %"],
        ["training pictures, after: the adapter, held out", "72.5 %"],
    ):
        assert expected in page.rows
    assert [page.rows[index][0] for index in page.marked] == [
        "training pictures, after: the adapter, held out",
        "ridge",
    ]


def test_all_text_of_a_run_is_escaped(craft: Craft) -> None:
    evil = "<script>alert('x')</script><img src=x onerror=alert(1)>"
    write_run(
        Path("one<b>"),
        settings={"template": evil, evil: evil},
        data=f"/data/{evil.replace('/', '')}",
        model=evil,
        revision=evil,
        summary={
            "deployed": evil,
            "stopped_by": evil,
            "candidates": [{"name": evil, "prompts": 1}],
        },
    )
    done(craft("report", "one<b>"))
    text = Path("one<b>/report.html").read_text()
    page = Page(text)
    assert not {"script", "b"} & {name for name, _ in page.elements}
    assert len(page.named("img")) == 1
    assert ["model", evil] in page.rows, "told nevertheless"
    assert [evil, evil] in page.rows


def test_an_unfinished_run_is_reported_from_its_journal_and_says_so(craft: Craft) -> None:
    unusable = answer(4, 8, 0, 0, error="the answer holds NaN")
    del unusable["best_loss"], unusable["mean_loss"]
    write_run(Path("open"), answers=[*ANSWERS, unusable], finished=False)
    result = done(craft("report", "open"))
    assert "The run in 'open' is unfinished" in result.stderr
    text = Path("open/report.html").read_text()
    page = Page(text)
    assert ["state", "unfinished"] in page.rows
    assert ["36", "1,080", "0", "108", "5", "0.036000"] in page.rows
    assert "The run is unfinished: this is what its journal holds." in text
    assert "It broke off: the answer holds NaN." in text
    write_run(Path("one"))
    assert "unfinished" not in craft("report", "one").stderr
    assert "unfinished" not in Path("one/report.html").read_text()


def test_what_cannot_be_reported_is_told_and_nothing_written(craft: Craft) -> None:
    refused(craft("report", "nowhere"), "There is no run here", "Name the directory")
    assert not Path("nowhere").exists()
    write_run(Path("none"), answers=[], finished=False)
    refused(craft("report", "none", "--out", "out"), "no answers yet", "craft tune --resume none")
    assert not Path("out").exists()


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
def test_a_report_is_written_whole_or_not_at_all(
    craft: Craft, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    write_run(Path("one"))
    Path("out").mkdir()
    for name in ("report.png", "report.html"):
        Path("out", name).write_text("old")

    def full(*arguments: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(step, full)
    refused(craft("report", "one", "--out", "out"), "No space left on device", "--out")
    assert {path.name: path.read_text() for path in Path("out").iterdir()} == {
        "report.png": "old",
        "report.html": "old",
    }


# --- craft compare --------------------------------------------------------------------------------


def test_compare_tells_what_was_asked_charged_and_reached(craft: Craft) -> None:
    write_run(Path("one"))
    write_run(Path("open"), finished=False, settings={"recipe": "paper", "shots": 4})
    result = done(craft("compare", "one", "open"))
    assert row(result, "one") == [
        "one", "animals", "craftbox", "10", "1", "ridge", "2", "28", "840", "0", "84", "4",
        "40.0 %", "72.5 %", TRAINED,
    ]  # fmt: skip
    assert row(result, "open") == [
        "open", "animals", "paper", "4", "1", "not yet", "not yet", "28", "840", "0", "84", "4",
        "not yet", "not yet", "not yet",
    ]  # fmt: skip
    assert result.stderr == ""
    facts = json.loads(done(craft("compare", "one", "open", "--json")).stdout)["runs"]
    assert [(run["run"], run["recipe"], run["prompts"]) for run in facts] == [
        ("one", "craftbox", 2),
        ("open", "paper", None),
    ]


def test_a_mode_is_a_column_where_a_run_has_one(craft: Craft) -> None:
    write_run(Path("one"))
    assert "mode" not in done(craft("compare", "one")).stdout
    write_run(Path("two"), settings={"mode": "open-text"})
    result = done(craft("compare", "one", "two"))
    assert (row(result, "one")[3], row(result, "two")[3]) == ("unknown", "open-text")


def test_other_data_or_classes_are_compared_and_told(craft: Craft) -> None:
    write_run(Path("one"))
    write_run(Path("two"), data="/data/birds")
    result = done(craft("compare", "one", "two"))
    assert result.stderr == "The runs differ in their data: /data/animals, /data/birds.\n"
    assert row(result, "two")
    write_run(Path("three"), classes=["cat", "owl", "dog"])
    result = done(craft("compare", "one", "three", "--json"))
    assert result.stderr == "The runs differ in their classes.\n"
    assert len(json.loads(result.stdout)["runs"]) == 2


def test_out_draws_a_picture_or_a_page(craft: Craft) -> None:
    write_run(Path("one"))
    write_run(Path("<two>"))
    result = done(craft("compare", "one", "<two>", "--out", "a/b.png"))
    assert "Wrote 'a/b.png'." in result.stderr
    assert Path("a/b.png").read_bytes().startswith(PNG)
    assert row(result, "one"), "the table is told too"
    done(craft("compare", "one", "<two>", "--out", "b.html"))
    page = Page(Path("b.html").read_text())
    assert [cells[0] for cells in page.rows] == ["run", "one", "<two>"]
    assert page.named("img")[0]["src"] == "data:image/png;base64," + (
        base64.b64encode(Path("a/b.png").read_bytes()).decode()
    )
    assert not list(Path().rglob("*.partial"))


def test_runs_that_are_not_drawn_are_named(craft: Craft) -> None:
    write_run(Path("one"))
    write_run(Path("open"), finished=False)
    write_run(Path("one-shot"), accuracies=[None] * 4, summary={"accuracy_after": None})
    result = done(craft("compare", "one", "open", "one-shot", "--out", "a.png"))
    words = "Without a point, because no held-out training accuracy is known: 'open', 'one-shot'."
    assert words in result.stderr
    result = craft("compare", "open", "--out", "b.png")
    refused(result, "None of these runs has a held-out training accuracy", "--over")
    assert not Path("b.png").exists()


def test_points_are_of_one_kind_of_accuracy_over_the_unit_that_is_chosen(craft: Craft) -> None:
    write_run(Path("tested"), evaluation=EVALUATION)
    write_run(Path("trained"))
    result = done(craft("compare", "tested", "trained", "--over", "cost", "--out", "a.svg"))
    assert "Without a point, because no test accuracy is known: 'trained'." in result.stderr
    picture = Path("a.svg").read_text()
    for label in ("test accuracy (%)", "cost spent by tuning", "accuracy while tuning,"):
        assert f"<!-- {label} -->" in picture
    assert "<!-- held-out training accuracy (%) -->" not in picture


def test_wrong_usage_and_damage_are_told(craft: Craft) -> None:
    write_run(Path("one"))
    assert craft("compare").exit_code == 2
    result = craft("compare", "one", "--out", "a.txt")
    assert result.exit_code == 2
    assert ".html" in result.stderr
    Path("one/run.json").write_text("{")
    refused(craft("compare", "one"), "run.json' is not valid JSON")


# --- evaluations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["runs", "."], ["compare", "one", "two"]])
def test_a_run_that_was_evaluated_leads_with_that_and_says_on_what(
    craft: Craft, command: list[str]
) -> None:
    write_run(Path("one"), evaluation=EVALUATION)
    write_run(Path("two"))
    result = done(craft(*command))
    assert " ".join(TESTED) in " ".join(row(result, "one"))
    assert f"40.0 % 72.5 % {TRAINED}" in " ".join(row(result, "two"))
    assert result.stderr == ""
    one, two = json.loads(done(craft(*command, "--json")).stdout)["runs"]
    assert (one["accuracy_after"], two["evaluation"]) == (72.5, None)
    told = one["evaluation"]
    assert (told["split"], told["n"], told["accuracy"]) == ("test", 10, 80.0)
    assert told["interval"] == pytest.approx([49.02, 94.33], abs=0.01)
    assert (told["before"]["accuracy"], told["charged"]["images"]) == (50.0, 10)
    assert "confusion" not in told


def test_a_report_leads_with_the_evaluation_and_has_every_class(craft: Craft) -> None:
    evil = EVALUATION.model_copy(update={"data": "<b>x</b>"})
    write_run(Path("one"), evaluation=evil)
    done(craft("report", "one"))
    text = Path("one/report.html").read_text()
    page = Page(text)
    assert page.rows[:3] == [
        ["", "accuracy (95 % interval)", "calibration error (15 bins)"],
        ["test split of <b>x</b>, 10 pictures, before: the plain prompt", TESTED[0], "20.0 %"],
        ["test split of <b>x</b>, 10 pictures, after: the adapter", TESTED[1], "6.5 %"],
    ]
    assert "b" not in {name for name, _ in page.elements}
    assert ["training pictures, after: the adapter, held out", "72.5 %", ""] in page.rows
    assert ["dog", "4", "25.0 %", "75.0 %", "+50.0"] in page.rows
    assert "craft evaluate" not in text
    write_run(Path("two"))
    done(craft("report", "two"))
    assert "craft evaluate two --data DIR" in Path("two/report.html").read_text()


def test_an_evaluation_that_is_cut_is_a_sentence_and_the_run_is_shown(craft: Craft) -> None:
    write_run(Path("one"), evaluation=EVALUATION)
    path = Path("one/evaluation.json")
    path.write_bytes(path.read_bytes()[:200])
    for command in (["runs", "."], ["compare", "one"], ["report", "one", "--json"]):
        result = done(craft(*command))
        assert "72.5" in result.stdout
        (line,) = [line for line in result.stderr.splitlines() if "evaluation.json" in line]
        assert line.startswith("Unusable: 'one/evaluation.json' is damaged, or of another version")
        assert line.endswith("Measure anew: craft evaluate one --data DIR")
    assert "The evaluation is left out." in Path("one/report.html").read_text()
    (facts,) = json.loads(done(craft("runs", ".", "--json")).stdout)["runs"]
    assert facts["evaluation"] is None
    assert "is damaged" in facts["evaluation_fault"]


def test_what_is_said_of_a_hostile_evaluation_is_short_and_harmless(craft: Craft) -> None:
    write_run(Path("one"), evaluation=EVALUATION)
    evil = {**EVALUATION.document, "confusion": {"\x1b[31m" + "x" * 10**6: {"x": 1}}}
    Path("one/evaluation.json").write_text(json.dumps(evil))
    for command in (["runs", "."], ["compare", "one"]):
        result = done(craft(*command))
        assert "\x1b[31m" not in result.stderr
        assert len(result.stderr) < 10_000


def test_runs_that_were_measured_on_different_pictures_are_told(craft: Craft) -> None:
    write_run(Path("one"), evaluation=EVALUATION)
    write_run(Path("two"), evaluation=EVALUATION.model_copy(update={"split": "validation"}))
    assert done(craft("compare", "one", "two")).stderr == (
        "The runs were measured on different pictures: test split of animals, 10 pictures; "
        "validation split of animals, 10 pictures.\n"
    )
    done(craft("compare", "one", "two", "--out", "a.html"))
    assert TESTED[1] in Path("a.html").read_text()


# --- what is loaded -------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["--help"], ["runs", "."], ["compare", "one"]])
def test_only_drawing_loads_what_draws(tmp_path: Path, command: list[str]) -> None:
    write_run(tmp_path / "one")
    code = (
        "import sys; from craft_client.cli import app; app(standalone_mode=False);"
        "sys.exit(bool({'matplotlib', 'jinja2'} & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, *command], cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout
