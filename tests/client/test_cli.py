from __future__ import annotations

import csv
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import stamina
from typer.testing import CliRunner

from craft_client.cli import app
from craft_client.cli import tune as tune_command
from craft_client.cli.show import size
from craft_client.settings import TuneSettings
from craft_shared import problems
from craft_shared.problems import Problem
from craft_shared.units import Units
from terminals import at_terminal

from .fake_clip import budget
from .pictures import write_picture
from .wire_server import KEY, Fault, WireServer

# One query of 998 texts; or one and four generations of eight; or doublings up to eight prompts.
TUNE = ("--shots", "4")
SEARCH = ("--shots", "4", "--recipe", "random", "--budget", "36", "--population", "8", "--dim", "6")
STRICT = ("--shots", "4", "--strict", "--random-codes", "7", "--dim", "6")
NOUNS = 998

Craft = Callable[..., Any]


@pytest.fixture
def craft(
    connected: WireServer, fast_retries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Craft:
    """Runs a command in an empty folder; gives its exit code, stdout and stderr."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*arguments: object) -> Any:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return run


def answer(result: Any) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def cost(document: dict[str, Any]) -> Units:
    return Units(**document["charged"])


# --- the main path ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "queries", "requests"),
    [(TUNE, 1, 1), (STRICT, 8, 2), (SEARCH, 33, 5)],
    ids=["open text", "strict", "search"],
)
def test_tune_evaluate_publish_and_predict(
    craft: Craft,
    connected: WireServer,
    picture_folder: Path,
    options: tuple[str, ...],
    queries: int,
    requests: int,
) -> None:
    """The whole path; what the commands say they were charged is the server's ledger."""
    tuned = answer(craft("tune", "--data", picture_folder, *options, "--json"))
    assert tuned["run"] == "runs/animals-4shots-seed1"
    assert tuned["charged"]["queries"] == queries
    assert cost(tuned) == connected.charged
    assert tuned["stopped_by"] is None
    assert connected.calls.count("GET /v1/models") == 1
    assert connected.calls.count("GET /v1/budget") == 2, "before the upload, and after it"
    about = json.loads(Path(tuned["run"], "run.json").read_text())
    assert re.fullmatch(r"animals-4shots-seed1-[0-9a-f]{32}", about["run"])
    assert {seen.headers["Craft-Run"] for seen in connected.seen} == {about["run"]}
    # Every prediction that was charged is in the journal, and was acknowledged.
    paid = [made for made in connected.made.values() if "predictions" in str(made.fingerprint[1])]
    assert [made.done and made.answer is None for made in paid] == [True] * requests
    assert about["image_set"] == tuned["image_set"]
    assert about["classes"] == ["big cat", "dog", "owl"]
    assert len(about["pictures"]) == 12
    assert about["pictures"][0].startswith("train/big_cat/")

    before = connected.charged
    evaluated = answer(craft("evaluate", tuned["run"], "--data", picture_folder, "--json"))
    assert evaluated["pictures"] == 12
    assert before + cost(evaluated) == connected.charged

    published = answer(craft("publish", tuned["run"], "--name", "animals", "--json"))
    assert published["adapter"]["version"] == 1

    before = connected.charged
    kept = Path(tuned["run"], "evaluation.json").read_bytes()
    served = answer(craft("evaluate", "--adapter", "animals", "--data", picture_folder, "--json"))
    assert Path(tuned["run"], "evaluation.json").read_bytes() == kept
    assert not list(Path().glob("**/evaluation.json.*"))
    # The head here and the one on the server are the same function.
    assert served["accuracy_after"] == evaluated["accuracy_after"]
    assert cost(served).images == 0, "the pictures were known"
    assert before + cost(served) == connected.charged

    before = connected.charged
    files = sorted((picture_folder / "test").rglob("*.png"))[:2]
    predicted = answer(craft("predict", *files, "--adapter", "animals", "--top", 2, "--json"))
    assert [entry["image"] for entry in predicted["images"]] == [str(file) for file in files]
    for entry in predicted["images"]:
        first, second = (best["probability"] for best in entry["classes"])
        assert 1 >= first >= second > 0
    assert cost(predicted).images == 2
    assert before + cost(predicted) == connected.charged


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        # Prompts x (classes and texts) of each question; 12 pictures, two bytes a number.
        (TUNE, 3 + NOUNS),
        (STRICT, 8 * 3),
        (("--shots", 4, "--recipe", "paper", "--budget", 19, "--population", 8), 19 * 3),
        (("--shots", 4, "--keep-texts", 5), None),
    ],
    ids=["open text", "strict", "paper", "fewer are kept"],
)
def test_what_a_run_will_move_is_told_before_it_starts(
    craft: Craft,
    connected: WireServer,
    picture_folder: Path,
    options: tuple[object, ...],
    numbers: int | None,
) -> None:
    connected.limits = connected.limits.model_copy(update={"classes": 2000})
    received: list[int] = []
    score = connected._score

    def counting(*arguments: Any) -> Any:
        log_probs = score(*arguments)
        received.append(log_probs.size)
        return log_probs

    connected._score = counting  # type: ignore[method-assign] # counts and passes on
    result = craft("tune", "--data", picture_folder, *options, "--json")
    tuned = answer(result)
    assert tuned["answer_bytes"] == 2 * sum(received)
    if numbers is not None:
        assert tuned["answer_bytes"] == 2 * 12 * numbers
    pictures = json.loads(Path(tuned["run"], "run.json").read_text())["pictures"]
    sizes = [(picture_folder / picture).stat().st_size for picture in pictures]
    assert tuned["picture_bytes"] == sum(sizes)
    told, _, rest = result.stderr.partition("Image set ")
    assert rest, "told before the upload"
    assert "This run takes at most" in told
    assert f"receives at most {size(tuned['answer_bytes'])} of answers" in told


def test_tables_say_what_json_says(craft: Craft, picture_folder: Path) -> None:
    result = craft("tune", "--data", picture_folder, *SEARCH)
    assert result.exit_code == 0, result.stderr
    assert re.search(r"total +33 +396 +12 +99 +7\n", result.stdout)
    assert "Next: craft publish runs/animals-4shots-seed1 --name NAME" in result.stderr
    assert "generation 4 of 4" in result.stderr, "progress in lines where there is no terminal"

    result = craft("evaluate", "runs/animals-4shots-seed1", "--data", picture_folder)
    assert re.search(r"before \(plain prompt\) +\d+\.\d %", result.stdout)
    assert re.search(r"after \(adapter\) +\d+\.\d %", result.stdout)

    craft("publish", "runs/animals-4shots-seed1", "--name", "animals")
    file = picture_folder / "test/owl/0.png"
    result = craft("predict", file, "--adapter", "animals", "--top", 2)
    assert result.stdout.count(" %") == 2
    assert str(file) in result.stdout


def test_each_piped_line_of_a_picture_names_it(craft: Craft, picture_folder: Path) -> None:
    craft("tune", "--data", picture_folder, *TUNE)
    craft("publish", "runs/animals-4shots-seed1", "--name", "animals")
    files = [picture_folder / f"test/owl/{number}.png" for number in range(2)]
    _, *lines = craft("predict", *files, "--adapter", "animals").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [str(file) for file in files for _ in range(3)]
    command = ["predict", *map(str, files), "--adapter", "animals"]
    shown = at_terminal(300, lambda: app(command))
    assert [shown.count(str(file)) for file in files] == [1, 1]
    wide = at_terminal(300, lambda: app(["--wide", *command]))
    assert [wide.count(str(file)) for file in files] == [3, 3]


def test_what_an_adapters_picture_costs_is_left_out_before_its_model(
    craft: Craft, picture_folder: Path
) -> None:
    craft("tune", "--data", picture_folder, *TUNE)
    craft("publish", "runs/animals-4shots-seed1", "--name", "animals", "--alias", "stable")
    assert "one picture" in craft("adapters").stdout
    shown = at_terminal(80, lambda: app(["adapters"]))
    assert "Left out: one picture. --wide shows all." in shown
    assert "fake" in shown, "the model"


def test_evaluate_keeps_in_the_run_what_it_tells(
    craft: Craft, connected: WireServer, picture_folder: Path
) -> None:
    run = answer(craft("tune", "--data", picture_folder, *TUNE, "--json"))["run"]
    assert not Path(run, "evaluation.json").exists()
    told = answer(craft("evaluate", run, "--data", picture_folder, "--json"))
    kept = json.loads(Path(run, "evaluation.json").read_bytes())
    assert (kept["data"], kept["split"], kept["n"]) == ("animals", "test", 12)
    assert (kept["model"], kept["revision"]) == (told["model"], told["revision"])
    assert kept["accuracy"] == told["accuracy_after"]
    assert kept["before"]["accuracy"] == told["accuracy_before"]
    assert kept["interval"] == told["intervals"]["accuracy_after"]
    assert kept["charged"] == told["charged"]
    assert kept["adapter"] == json.loads(Path(run, "summary.json").read_bytes())["adapter"]
    assert [one["name"] for one in kept["per_class"]] == ["big cat", "dog", "owl"]
    assert [one["n"] for one in kept["per_class"]] == [4, 4, 4]
    (listed,) = answer(craft("runs", "--json"))["runs"]
    assert listed["evaluation"]["accuracy"] == told["accuracy_after"]

    Path(run, "evaluation.json").write_bytes(b'{"schema_version": 1, "da')
    result = craft("runs")
    assert result.stderr.startswith(f"Unusable: '{run}/evaluation.json' is damaged")
    answer(craft("evaluate", run, "--data", picture_folder, "--json"))
    again = json.loads(Path(run, "evaluation.json").read_bytes())
    assert again["confusion"] == kept["confusion"]


def test_what_cannot_be_kept_is_told_all_the_same(
    craft: Craft, connected: WireServer, picture_folder: Path
) -> None:
    run = answer(craft("tune", "--data", picture_folder, *TUNE, "--json"))["run"]
    result = craft("evaluate", run, "--data", picture_folder, "--split", "train", "--json")
    assert answer(result)["pictures"] == 18
    assert f"Not kept in '{run}': tuning has seen pictures of the train split." in result.stderr
    assert not Path(run, "evaluation.json").exists()
    Path(run, "evaluation.json").mkdir()
    result = craft("evaluate", run, "--data", picture_folder, "--json")
    assert answer(result)["pictures"] == 12
    assert f"Not kept in '{run}': cannot write '{run}/evaluation.json': " in result.stderr
    assert "Unusable: " in craft("runs").stderr


def test_zero_shot_measures_the_plain_prompt(
    craft: Craft, connected: WireServer, picture_folder: Path
) -> None:
    found = answer(craft("zero-shot", "--data", picture_folder, "--json"))
    assert found["templates"] == ["a photo of a {}."]
    assert cost(found) == Units(queries=1, predictions=12, images=12, texts=3, requests=3)
    assert cost(found) == connected.charged
    again = answer(craft("zero-shot", "--data", picture_folder, "--json"))
    assert again["accuracy"] == found["accuracy"]
    assert cost(again).images == 0
    train = answer(craft("zero-shot", "--data", picture_folder, "--split", "train", "--json"))
    assert train["pictures"] == 18


def test_an_ensemble_is_a_query_for_each_template(
    craft: Craft, connected: WireServer, picture_folder: Path
) -> None:
    found = answer(craft("zero-shot", "--data", picture_folder, "--ensemble", "--json"))
    assert len(found["templates"]) == 7
    assert cost(found) == Units(queries=7, predictions=84, images=12, texts=21, requests=3)


def test_the_account_is_shown_free_of_charge(
    craft: Craft, connected: WireServer, picture_folder: Path
) -> None:
    connected.budgets = {"queries": 10}
    image_set = answer(craft("zero-shot", "--data", picture_folder, "--json"))["image_set"]
    charged = connected.charged
    assert answer(craft("usage", "--json"))["total"] == charged.model_dump()
    assert answer(craft("budget", "--json"))["budgets"][0]["remaining"] == 9
    assert answer(craft("models", "--json"))["models"][0]["name"] == "fake"
    assert answer(craft("adapters", "--json"))["adapters"] == []
    assert answer(craft("image-sets", "show", image_set, "--json"))["image_set"]["count"] == 12
    for command in ("usage", "budget", "models", "adapters"):
        assert craft(command).exit_code == 0
    assert re.search(r"predict +1 ", craft("usage").stdout)
    assert re.search(r" +10 +1 +0 +9 ", craft("budget").stdout)
    assert "Not bounded: predictions, images, texts, requests." in craft("budget").stderr
    craft("image-sets", "delete", image_set)
    assert connected.image_sets == {}
    assert connected.charged == charged


def test_budgets_tell_whose_they_are_and_when_they_begin_anew(
    craft: Craft, connected: WireServer, picture_folder: Path
) -> None:
    connected.prices = {"queries": 1500, "images": 20}
    connected.budgets = {"queries": 1000, "cost_micros": 2_500_000}
    resets_at = "2026-01-02T00:00:00.000Z"
    connected.more_budgets = [
        budget("queries", 50, spent=4, of="team", window="day", resets_at=resets_at)
    ]
    craft("zero-shot", "--data", picture_folder)
    shown = craft("budget").stdout
    columns = r"unit +window +whose +limit +spent +reserved +remaining +resets at"
    assert re.search(columns, shown)
    assert re.search(r"queries +lifetime +key +1,000 +1 +0 +999 +never", shown)
    assert re.search(rf"queries +day +team +50 +5 +0 +45 +{resets_at}", shown)
    # One query and twelve images: 1,740 micros.
    cost = r"cost +lifetime +key +2\.500000 +0\.001740 +0\.000000 +2\.498260 +never"
    assert re.search(cost, shown)
    assert answer(craft("budget", "--json"))["budgets"][1]["spent"] == 1740


def test_usage_tells_costs_where_there_are_any(
    craft: Craft, connected: WireServer, picture_folder: Path
) -> None:
    craft("zero-shot", "--data", picture_folder)
    assert "cost" not in craft("usage").stdout
    connected.prices = {"queries": 1_000_000}
    craft("zero-shot", "--data", picture_folder)
    shown = craft("usage").stdout
    assert re.search(r"requests +cost\n", shown)
    assert re.search(r"predict +2 .* +1\.000000\n", shown)
    assert re.search(r"total +2 .* +1\.000000\n", shown)
    assert answer(craft("usage", "--json"))["cost_micros"] == 1_000_000


def test_a_run_that_a_budget_stops_says_which_and_is_whole(
    craft: Craft, connected: WireServer, picture_folder: Path
) -> None:
    """Nobody can tell the price before the first generation; then two more are affordable."""
    connected.prices = {"queries": 1000}
    connected.budgets = {"cost_micros": 25_500}
    result = craft("tune", "--data", picture_folder, *SEARCH)
    assert result.exit_code == 0, result.stderr
    words = "the key's cost budget has 0.000500 left where 0.008000 are needed for a generation"
    assert f"Stopped before the run's own budget was used up: {words}." in result.stderr
    assert connected.charged.queries == 1 + 3 * 8
    summary = json.loads(Path("runs/animals-4shots-seed1/summary.json").read_text())
    assert summary["stopped_by"] == words
    assert connected.calls.count("POST /v1/predictions") == 1 + 1 + 3, "no refused call"
    assert craft("publish", "runs/animals-4shots-seed1", "--name", "animals").exit_code == 0


def test_a_run_directory_makes_nobody_run_a_file_of_its_own(
    craft: Craft, connected: WireServer, picture_folder: Path, tmp_path: Path
) -> None:
    """A directory from elsewhere may name any file, and the digest of what is in it."""
    method, ran = tmp_path / "method.py", tmp_path / "ran"
    method.write_text(
        "from pathlib import Path\n"
        f"Path({str(ran)!r}).touch()\n"
        "from craft_client.arena import Outcome\n"
        "def tune(run):\n"
        "    run.plain()\n"
        "    if not Path('mended').exists():\n"
        "        raise RuntimeError('broken')\n"
        "    return Outcome('plain', templates=['a photo of a {}.'])\n"
    )
    recipe = f"{method}:tune"
    words = ("tune", "--data", picture_folder, "--shots", 2, "--run", "run", "--recipe", recipe)
    result = craft(*words, "--budget", "queries=5")
    assert f"Continue it: craft tune --resume run --recipe {recipe}" in result.stderr, result.stderr
    ran.unlink()
    Path("mended").touch()
    spent = connected.charged
    refused = craft("tune", "--resume", "run")
    assert refused.exit_code == 1
    assert f"was begun by '{recipe}', which is run only where you name it" in refused.stderr
    assert f"If that file is yours: craft tune --resume run --recipe {recipe}" in refused.stderr
    other = craft("tune", "--resume", "run", "--recipe", "paper")
    assert "was begun by" in other.stderr, other.stderr
    run_file = Path("run/run.json")
    kept = run_file.read_text()
    document = json.loads(kept)
    document["settings"]["options"] = {"width": 1}
    run_file.write_text(json.dumps(document))
    assert craft("tune", "--resume", "run").exit_code == 1
    run_file.write_text(kept)
    assert not ran.exists()
    assert connected.charged == spent
    resumed = craft("tune", "--resume", "run", "--recipe", recipe)
    assert resumed.exit_code == 0, resumed.stderr
    assert ran.exists()


@pytest.fixture
def cut_off(craft: Craft, connected: WireServer, picture_folder: Path) -> Path:
    """The document of a run that ended before its upload."""
    connected.faults = [Fault("POST .*/images", status=418)]
    assert craft("tune", "--data", picture_folder, *TUNE, "--run", "run").exit_code == 1
    assert connected.charged == Units()
    return Path("run/run.json")


def changed(file: Path, **changes: Any) -> None:
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, **changes}))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"width": 3}, "width: Unexpected"),
        ({"budget": "many"}, "budget: Input should be a valid integer"),
        ({"texts": 7}, "texts: Input should be"),
        ({"recipe": None}, "does not say all that a run of 'craft tune' does"),
    ],
)
def test_a_setting_of_a_run_directory_that_cannot_be_used_is_named(
    craft: Craft, cut_off: Path, setting: dict[str, Any], words: str
) -> None:
    changed(cut_off, settings=json.loads(cut_off.read_text())["settings"] | setting)
    result = craft("tune", "--resume", "run")
    assert result.exit_code == 1
    assert "run/run.json" in result.stderr
    assert words in result.stderr
    assert "or tune anew" in result.stderr


@pytest.mark.parametrize("changes", [{"pictures": 3}, {"labels": []}, {"run": None}, {"data": []}])
def test_a_run_directory_that_says_too_little_is_not_resumed(
    craft: Craft, cut_off: Path, changes: dict[str, Any]
) -> None:
    changed(cut_off, **changes)
    result = craft("tune", "--resume", "run")
    assert result.exit_code == 1
    assert "run/run.json" in result.stderr


@pytest.mark.parametrize("absolute", [False, True])
def test_a_run_directory_makes_nobody_send_a_file_that_it_does_not_know(
    craft: Craft, connected: WireServer, cut_off: Path, tmp_path: Path, absolute: bool
) -> None:
    document = json.loads(cut_off.read_text())
    private = tmp_path / "private.png"
    write_picture(private, 999)
    path = private if absolute else os.path.relpath(private, document["data"])
    changed(cut_off, pictures=[str(path), *document["pictures"][1:]])
    sent = connected.calls.count("POST /v1/image-sets/set-1/images")
    result = craft("tune", "--resume", "run")
    assert result.exit_code == 1
    assert "1 of 12 pictures are not those that the run began with" in result.stderr
    assert "private.png" in result.stderr
    assert connected.calls.count("POST /v1/image-sets/set-1/images") == sent
    text = tmp_path / "private.txt"
    text.write_text("a secret")
    changed(cut_off, pictures=[str(text), *document["pictures"][1:]])
    assert "is not a picture" in craft("tune", "--resume", "run").stderr
    os.mkfifo(tmp_path / "pipe")
    changed(cut_off, pictures=[str(tmp_path / "pipe"), *document["pictures"][1:]])
    assert "is not a file" in craft("tune", "--resume", "run").stderr
    assert connected.calls.count("POST /v1/image-sets/set-1/images") == sent
    changed(cut_off, pictures=document["pictures"])
    assert craft("tune", "--resume", "run").exit_code == 0


def test_pictures_that_were_sent_may_be_gone_when_a_run_is_resumed(
    craft: Craft, connected: WireServer, picture_folder: Path
) -> None:
    stop = Fault("POST /v1/predictions", status=418)
    connected.faults = [
        Fault("POST .*/images", drop="after", also=lambda: connected.faults.append(stop))
    ]
    assert craft("tune", "--data", picture_folder, *TUNE, "--run", "run").exit_code == 1
    assert connected.charged.images == 12
    shutil.rmtree(picture_folder)
    result = craft("tune", "--resume", "run")
    assert result.exit_code == 0, result.stderr


def test_publishing_says_what_one_picture_costs(
    craft: Craft, connected: WireServer, picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    craft("tune", "--data", picture_folder, *TUNE)
    said = craft("publish", "runs/animals-4shots-seed1", "--name", "free").stderr
    assert connected.adapters[-1][0].prompts == 1
    charged = "1 query, 1 prediction, 1 image, 1 request"
    assert f"One picture costs {charged}." in said
    card, adapter = connected.adapters[-1]
    connected.adapters[-1] = card.model_copy(update={"image_cost_micros": 16500}), adapter
    assert (
        f"One picture costs {charged}; price 0.016500."
        in craft("publish", "runs/animals-4shots-seed1", "--name", "free").stderr
    )


def test_a_retired_adapter_is_gone(
    craft: Craft, connected: WireServer, picture_folder: Path
) -> None:
    craft("tune", "--data", picture_folder, *TUNE)
    craft("publish", "runs/animals-4shots-seed1", "--name", "animals")
    assert craft("retire", "animals").exit_code == 0
    result = craft("predict", picture_folder / "test/owl/0.png", "--adapter", "animals")
    assert result.exit_code == 1
    assert "There is no adapter 'animals'" in result.stderr


def test_parts_that_are_switched_off_are_not_paid(
    craft: Craft, connected: WireServer, picture_folder: Path
) -> None:
    paper = ("--shots", "4", "--recipe", "paper", "--no-search")
    tuned = answer(craft("tune", "--data", picture_folder, *paper, "--json"))
    assert tuned["charged"]["queries"] == 1
    settings = json.loads(Path(tuned["run"], "run.json").read_text())["settings"]
    parts = (settings["search"], settings["refinement"], settings["consistency"])
    assert parts == (False, True, True)


@pytest.mark.parametrize(
    "option", ["--no-search", "--no-refinement", "--no-consistency", "--strategy=random"]
)
def test_parts_that_craftbox_has_not_are_refused(
    craft: Craft, connected: WireServer, picture_folder: Path, option: str
) -> None:
    result = craft("tune", "--data", picture_folder, *TUNE, option)
    refused(result, "is a setting of 'paper'; 'craftbox' has no such part")
    free(connected)


def test_strict_access_has_no_vocabulary(
    craft: Craft, connected: WireServer, picture_folder: Path, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("wheel\nleaf\nowl\n")
    result = craft("tune", "--data", picture_folder, *STRICT, "--texts", texts)
    assert result.exit_code == 2
    assert "strict access has no vocabulary" in result.stderr
    free(connected)
    tuned = answer(craft("tune", "--data", picture_folder, *TUNE, "--texts", texts, "--json"))
    assert tuned["charged"]["texts"] == 3 + 2, "a class name is no further text"
    assert tuned["texts"] in ([], ["wheel", "leaf"])


def test_the_commands_defaults_are_the_settings_own() -> None:
    options = inspect.signature(tune_command.tune, eval_str=True).parameters
    for field in fields(TuneSettings):
        if field.name in options and field.name not in ("shots", "budget", "texts", "keep_texts"):
            shown = options[field.name].default
            if shown is None:
                (option,) = options[field.name].annotation.__metadata__
                shown = option.show_default.partition(";")[0]
            assert str(shown) == str(field.default), field.name


# --- errors, before anything is charged -----------------------------------------------------------


def refused(result: Any, *words: str, code: int = 1) -> None:
    """One message on stderr, the exit code, nothing on stdout, no traceback."""
    assert result.exit_code == code, result.stdout
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def free(server: WireServer) -> None:
    assert server.charged == Units()
    assert not any("images" in call for call in server.calls), "no picture was sent"


def test_the_teams_budget_is_checked_as_the_keys_is(
    craft: Craft, connected: WireServer, picture_folder: Path
) -> None:
    connected.budgets = {"queries": 1000}
    connected.more_budgets = [budget("queries", 42, spent=10, of="team", window="month")]
    result = craft("tune", "--data", picture_folder, *SEARCH)
    refused(result, "needs 33 queries; the team's queries budget of this month has 32 left", code=3)
    free(connected)


def test_a_budget_that_does_not_cover_the_run_is_told(
    craft: Craft, connected: WireServer, picture_folder: Path
) -> None:
    connected.budgets = {"queries": 32}
    result = craft("tune", "--data", picture_folder, *SEARCH)
    refused(result, "needs 33 queries", "32 left", "Nothing was charged", "--budget", code=3)
    free(connected)
    assert not Path("runs/animals-4shots-seed1").exists()
    connected.budgets = {"queries": 33}
    assert craft("tune", "--data", picture_folder, *SEARCH).exit_code == 0


@pytest.mark.parametrize(
    ("unit", "needed"), [("predictions", 33 * 12), ("texts", 33 * 3), ("requests", 2 + 5)]
)
def test_every_units_budget_is_checked(
    craft: Craft, connected: WireServer, picture_folder: Path, unit: Any, needed: int
) -> None:
    connected.budgets = {unit: needed - 1}
    result = craft("tune", "--data", picture_folder, *SEARCH)
    refused(result, f"needs {needed} {unit}", f"{needed - 1} left", code=3)
    connected.budgets = {unit: 1}
    result = craft("tune", "--data", picture_folder, *SEARCH)
    refused(result, f"the key's {unit} budget: is 1", "one generation takes", code=3)
    free(connected)


def test_a_budget_that_does_not_cover_the_vocabulary_says_what_to_do(
    craft: Craft, connected: WireServer, picture_folder: Path
) -> None:
    connected.budgets = {"texts": 3 + 91 - 1}  # every eleventh noun fits a call
    result = craft("tune", "--data", picture_folder, *TUNE)
    refused(result, f"Raise it to at least {3 + 91}", "strict access", code=3)
    free(connected)
    connected.budgets = {"texts": 3 + NOUNS}
    assert craft("tune", "--data", picture_folder, *TUNE).exit_code == 0


@pytest.mark.parametrize("command", ["zero-shot", "evaluate", "predict"])
def test_use_is_checked_against_the_budget_too(
    craft: Craft, connected: WireServer, picture_folder: Path, command: str
) -> None:
    craft("tune", "--data", picture_folder, *TUNE)
    craft("publish", "runs/animals-4shots-seed1", "--name", "animals")
    charged, sent = connected.charged, connected.calls.count("POST /v1/image-sets/set-1/images")
    connected.budgets = {"queries": charged.queries}
    arguments = {
        "zero-shot": ["--data", picture_folder],
        "evaluate": ["runs/animals-4shots-seed1", "--data", picture_folder],
        "predict": [picture_folder / "test/owl/0.png", "--adapter", "animals"],
    }
    refused(craft(command, *arguments[command]), "queries", "0 left", code=3)
    assert connected.charged == charged
    assert connected.calls.count("POST /v1/image-sets/set-1/images") == sent


def test_a_class_name_too_long_for_the_model_is_told_before_the_upload(
    craft: Craft, connected: WireServer, picture_folder: Path
) -> None:
    (picture_folder / "train/owl").rename(picture_folder / "train" / ("o" * 70))
    (picture_folder / "test/owl").rename(picture_folder / "test" / ("o" * 70))
    for command in ("tune", "zero-shot"):
        extra = TUNE if command == "tune" else ()
        result = craft(command, "--data", picture_folder, *extra)
        refused(result, "--data (class number 3): is too long. Shorten it.")
        assert "image_set" not in result.stderr
    free(connected)


def test_a_run_directory_of_any_name_names_the_run(
    craft: Craft, connected: WireServer, picture_folder: Path
) -> None:
    """Header fields are ASCII; directories are not."""
    tuned = answer(craft("tune", "--data", picture_folder, *TUNE, "--run", "Lauf (ä) 1", "--json"))
    name = json.loads(Path(tuned["run"], "run.json").read_text())["run"]
    assert re.fullmatch(r"Lauf_1-[0-9a-f]{32}", name)
    assert connected.seen[-1].headers["Craft-Run"] == name


def test_a_run_is_never_overwritten(
    craft: Craft, connected: WireServer, picture_folder: Path
) -> None:
    craft("tune", "--data", picture_folder, *TUNE, "--run", "mine")
    files = sorted(path for path in Path("mine").rglob("*") if path.is_file())
    before = {path: path.read_bytes() for path in files}
    calls = len(connected.calls)
    result = craft("tune", "--data", picture_folder, *TUNE, "--run", "mine")
    refused(result, "'mine' already holds", "--run")
    assert {path: path.read_bytes() for path in files} == before
    assert len(connected.calls) == calls


def test_data_that_cannot_be_used_is_told_without_any_call(
    craft: Craft, connected: WireServer, picture_folder: Path
) -> None:
    refused(craft("tune", "--data", "nowhere"), "'nowhere' does not exist")
    strict = craft("tune", "--data", picture_folder, "--shots-strict")
    refused(strict, "16 shots", "--shots 6", "'owl': has 6")
    refused(craft("tune", "--data", picture_folder, *SEARCH, "--budget", "5"), "budget", "9")
    assert connected.calls == []


def test_bad_pictures_are_told_before_anything_is_sent(
    craft: Craft, connected: WireServer, picture_folder: Path
) -> None:
    (picture_folder / "test/owl/0.png").write_text("no picture")
    whole = (picture_folder / "test/owl/1.png").read_bytes()
    (picture_folder / "test/owl/1.png").write_bytes(whole[:-40])
    refused(
        craft("zero-shot", "--data", picture_folder),
        "2 of 12 pictures",
        "owl/0.png': is not a picture that a server reads",
        "owl/1.png': cannot be read",
    )
    free(connected)


def test_a_picture_that_only_the_server_refuses_is_told_by_its_file(
    craft: Craft, connected: WireServer, picture_folder: Path
) -> None:
    """The second chunk holds the eleventh of twelve pictures: owl/2.png."""
    connected.refused_pictures = {(picture_folder / "test/owl/2.png").read_bytes()}
    result = craft("zero-shot", "--data", picture_folder)
    refused(result, "owl/2.png': cannot be used. Replace it.")
    craft("tune", "--data", picture_folder, *TUNE)
    craft("publish", "runs/animals-4shots-seed1", "--name", "animals")
    files = [picture_folder / "test/owl" / f"{number}.png" for number in range(4)]
    refused(craft("predict", *files, "--adapter", "animals"), "owl/2.png': cannot be used.")


def test_an_adapter_for_other_classes_or_another_revision_is_told(
    craft: Craft, connected: WireServer, picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    craft("tune", "--data", picture_folder, *TUNE)
    charged = connected.charged
    other = picture_folder.parent / "others"
    write_picture(other / "test/rhino/1.png", 1)
    result = craft("evaluate", "runs/animals-4shots-seed1", "--data", other)
    refused(result, "'rhino'")
    monkeypatch.setattr("tests.client.wire_server.REVISION", "f" * 16, raising=False)
    monkeypatch.setattr(sys.modules[WireServer.__module__], "REVISION", "f" * 16)
    result = craft("evaluate", "runs/animals-4shots-seed1", "--data", picture_folder)
    refused(result, "ffffffffffffffff", "Tune again")
    assert connected.charged == charged


def test_a_run_that_is_none_is_told(craft: Craft, connected: WireServer) -> None:
    refused(craft("publish", "nowhere", "--name", "a"), "nowhere")
    assert connected.calls == []


def test_wrong_usage_is_exit_code_2(craft: Craft, picture_folder: Path) -> None:
    assert craft("tune").exit_code == 2
    assert craft("evaluate", "--data", picture_folder).exit_code == 2
    assert craft("evaluate", "a", "--adapter", "b", "--data", picture_folder).exit_code == 2
    assert craft("zero-shot", "--data", picture_folder, "--template", "a photo").exit_code == 2
    assert craft("zero-shot", "--data", picture_folder, "--split", "all").exit_code == 2
    tree = craft("tune", "--data", picture_folder, *TUNE, "--recipe", "tree")
    assert tree.exit_code == 1, "it may be a plug-in's that is not installed here"
    assert "craftbox, descriptions, paper" in tree.stderr
    assert craft("tune", "--data", picture_folder, "--scale", "much").exit_code == 2


def test_the_key_is_asked_for_and_never_shown(
    craft: Craft, picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    help_text = craft("tune", "--help-all").stdout
    assert "CRAFT_API_KEY" in help_text
    assert KEY not in help_text
    monkeypatch.setenv("CRAFT_API_KEY", "craft_wrong")
    result = craft("models")
    refused(result, "The API key is missing or not valid")
    assert "craft_wrong" not in result.stderr
    monkeypatch.delenv("CRAFT_API_KEY")
    refused(craft("models"), "CRAFT_API_KEY", "--key")


def test_a_server_that_is_not_there_is_told(craft: Craft) -> None:
    refused(craft("models", "--url", "http://127.0.0.1:1"), "Is craft-server running there?")


def overloaded(**headers: str) -> Fault:
    problem = Problem.of(problems.OVERLOADED, "The queue is full.")
    return Fault(
        "GET /v1/models",
        status=503,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        kind=problems.MEDIA_TYPE,
        body=problem.model_dump_json(),
    )


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (overloaded(Retry_After="1"), "the server is overloaded"),
        (
            Fault("GET /v1/models", status=503, headers={"Retry-After": "1"}),
            "a gateway answered 503",
        ),
    ],
    ids=["server", "gateway"],
)
def test_a_long_wait_for_the_server_is_one_short_line(
    connected: WireServer, craft: Craft, fault: Fault, reason: str
) -> None:
    connected.faults.append(fault)
    with stamina.set_testing(False):
        result = craft("models", "--json")
    assert answer(result)["models"]
    assert result.stderr == f"Retrying in 1 s: {reason}.\n"


# --- as a process -------------------------------------------------------------------------------


def test_ctrl_c_says_where_the_run_is(
    connected: WireServer, picture_folder: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "from craft_client.cli import app; app()", "tune", "--data",
         str(picture_folder), "--shots", "4", "--recipe", "random", "--budget", "1000000",
         "--population", "4", "--dim", "6", "--run", str(tmp_path / "run")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while connected.charged.queries < 40:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stdout == ""
    assert f"craft tune --resume {tmp_path / 'run'}" in stderr
    assert "Interrupted." in stderr
    assert "Traceback" not in stderr
    assert (tmp_path / "run/journal.jsonl").read_text().count("\n") >= 2


def test_an_error_ends_the_process_with_one_message(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from craft_client.cli import app; app()", "models"],
        capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "CRAFT_API_KEY": "craft_key", "CRAFT_URL": "http://127.0.0.1:1"},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "Error: Cannot connect to the craftbox server at http://127.0.0.1:1" in done.stderr


# --- adapters that others use ---------------------------------------------------------------------


def test_predict_into_a_file_goes_on_with_the_version_that_it_began_with(
    craft: Craft, connected: WireServer, picture_folder: Path
) -> None:
    craft("tune", "--data", picture_folder, *TUNE)
    craft("publish", "runs/animals-4shots-seed1", "--name", "animals")
    command = ("predict", picture_folder / "test", "--adapter", "animals", "--out", "out.csv")
    done = answer(craft(*command, "--json"))
    assert (done["classified"], done["failed"], done["before"]) == (12, 0, 0)
    lines = Path("out.csv").read_text().splitlines()
    assert len(lines) == 13
    Path("out.csv").write_text("\n".join(lines[:9]) + "\n")
    card, adapter = connected.adapters[-1]
    connected.adapters.append((card.model_copy(update={"version": 2, "digest": "x"}), adapter))
    again = answer(craft(*command, "--json"))
    assert (again["version"], again["classified"], again["before"]) == (1, 4, 8)
    assert sorted(Path("out.csv").read_text().splitlines()) == sorted(lines)


def test_predict_does_not_mix_adapters_in_a_file(
    craft: Craft, connected: WireServer, picture_folder: Path
) -> None:
    craft("tune", "--data", picture_folder, *TUNE)
    for name in ("animals", "beasts"):
        craft("publish", "runs/animals-4shots-seed1", "--name", name)
    craft("predict", picture_folder / "test", "--adapter", "animals", "--out", "out.csv")
    before = Path("out.csv").read_bytes()
    result = craft("predict", picture_folder, "--adapter", "beasts", "--out", "out.csv")
    assert result.exit_code != 0
    assert "holds predictions of animals@1" in result.stderr
    assert Path("out.csv").read_bytes() == before


def test_an_adapters_folder_has_a_card(craft: Craft, picture_folder: Path) -> None:
    craft("tune", "--data", picture_folder, *TUNE)
    card = Path("runs/animals-4shots-seed1/adapter/README.md").read_text()
    assert "| tuned on | animals |" in card
    assert '"big cat", "dog", "owl"' in card
    assert "| queries | 1 |" in card


@pytest.fixture
def animals(craft: Craft, picture_folder: Path) -> str:
    """A published adapter."""
    craft("tune", "--data", picture_folder, *TUNE)
    craft("publish", "runs/animals-4shots-seed1", "--name", "animals")
    return "animals"


def test_predict_passes_over_what_programs_leave_behind(
    craft: Craft, connected: WireServer, picture_folder: Path, animals: str
) -> None:
    folder = picture_folder / "test/owl"
    for junk in ("._0.png", "__MACOSX/._0.png", ".thumbnails/0.png", "Thumbs.db"):
        (folder / junk).parent.mkdir(exist_ok=True)
        (folder / junk).write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X")
    found = answer(craft("predict", folder, "--adapter", animals, "--json"))
    images = [str(folder / f"{number}.png") for number in range(4)]
    assert [entry["image"] for entry in found["images"]] == images
    assert found["left_out"] == []
    assert craft("predict", folder, "--adapter", animals, "--out", "out.csv").exit_code == 0
    lines = Path("out.csv").read_text().split("\n")
    assert [line.partition(",")[0] for line in lines[1:-1]] == images


def test_predict_says_what_it_left_out_and_gives_it_a_row(
    craft: Craft, connected: WireServer, picture_folder: Path, animals: str, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "owl").symlink_to(picture_folder / "test/owl")
    (folder / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (folder / "noext").write_bytes((picture_folder / "test/owl/0.png").read_bytes())
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    (folder / "a.xmp").touch()
    said = (
        "Left out: HEIC (1), link that leads nowhere (1), no suffix (1), lists and other files "
        "(1). Convert pictures to JPEG or PNG"
    )
    shown = craft("predict", folder, "--adapter", animals, "--json")
    assert said in " ".join(shown.stderr.split())
    found = answer(shown)
    assert len(found["images"]) == 4, "links to folders are followed"
    reasons = [(Path(one["image"]).name, one["reason"]) for one in found["left_out"]]
    assert reasons == [
        ("IMG_1.HEIC", "HEIC"),
        ("gone.jpg", "link that leads nowhere"),
        ("noext", "no suffix"),
    ]
    charged = connected.charged
    for _ in range(2):  # a second time, nothing is left to do
        done = answer(craft("predict", folder, "--adapter", animals, "--out", "out.csv", "--json"))
        assert (done["failed"], done["left_out"]) == (0, 3)
        with Path("out.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        errors = {Path(row["image"]).name: row["error"] for row in rows if row["error"]}
        assert errors == {name: f"left out: {reason}" for name, reason in reasons}
        assert len(rows) == 3 + 4
    assert connected.charged.images == charged.images + 4


def test_every_command_says_how_a_folder_was_read(
    craft: Craft, connected: WireServer, picture_folder: Path
) -> None:
    for split in ("train", "test"):
        (picture_folder / split / "owl/2021").mkdir()
        for number in (1, 2):
            older = picture_folder / split / f"owl/{number}.png"
            older.rename(picture_folder / split / f"owl/2021/{number}.png")
        (picture_folder / split / "owl/a.heic").touch()
    said = ("4 pictures lie in folders below their class's", "Left out: HEIC (2). Convert")
    bench = ("--data", picture_folder.parent, "--dataset", "animals", "--shots", 2, "--seed", 1)
    for result in (
        craft("tune", "--data", picture_folder, *TUNE),
        craft("zero-shot", "--data", picture_folder),
        craft("evaluate", "runs/animals-4shots-seed1", "--data", picture_folder),
        craft("bench", *bench, "--budget", 40),
    ):
        for words in said:
            assert " ".join(result.stderr.split()).count(words) == 1, result.stderr


def test_fewer_pictures_than_shots_are_all_taken_and_said(
    craft: Craft, connected: WireServer, picture_folder: Path
) -> None:
    for number in range(2, 6):
        (picture_folder / f"train/owl/{number}.png").unlink()
    result = craft("tune", "--data", picture_folder, *TUNE, "--json")
    said = (
        "1 of 3 classes have fewer pictures than the 4 shots; all that there are, are taken: "
        "'owl' 2."
    )
    assert said in " ".join(result.stderr.split())
    assert answer(result)["pictures"] == 4 + 4 + 2
    bench = ("--data", picture_folder.parent, "--dataset", "animals", "--shots", 4, "--seed", 1)
    result = craft("bench", *bench, "--budget", 40, "--shots-strict")
    assert result.exit_code == 1
    assert "1 of 3 classes have fewer training pictures than the 4 shots" in result.stderr


def test_copies_are_said_and_a_run_remembers_its_files(
    craft: Craft, connected: WireServer, picture_folder: Path
) -> None:
    train, test = picture_folder / "train", picture_folder / "test"
    shutil.copy(train / "owl/0.png", train / "owl/0 again.png")
    shutil.copy(train / "owl/0.png", train / "dog/owl.png")
    shutil.copy(train / "owl/0.png", test / "owl/seen.png")
    tuning = ("--data", picture_folder, *TUNE, "--shots", 8)
    said = " ".join(craft("tune", *tuning).stderr.split())
    for words in (
        f"Copies of one picture in one class, which are held out together (1): '{train}/owl/0 ",
        f"Copies of one picture in two classes (1): '{train}/dog/owl.png' and '{train}/owl/0",
        "Copies of one picture in the test split too (1): ",
    ):
        assert words in said
    run = "runs/animals-8shots-seed1"
    assert len(json.loads(Path(run, "run.json").read_text())["digests"]) == 20
    said = " ".join(craft("evaluate", run, "--data", picture_folder).stderr.split())
    assert "Copies of one picture that were tuned on too (1): 'train/owl/0" in said
    assert f"and '{test}/owl/seen.png'" in said


def test_noise_with_each_picture_twice_is_reported_near_chance(
    craft: Craft, connected: WireServer, tmp_path: Path
) -> None:
    noise = tmp_path / "noise"
    for label, name in enumerate(("alpha", "beta", "gamma")):
        for number in range(8):
            image = write_picture(noise / f"train/{name}/{number}.png", 8 * label + number)
            shutil.copy(image, noise / f"train/{name}/{number} again.png")
    tuned = answer(craft("tune", "--data", noise, "--shots", 16, "--json"))
    assert tuned["pictures"] == 48
    assert tuned["accuracy_after"] < 70, "four standard errors of 24 pictures above chance"


def test_a_run_on_a_file_whose_name_is_not_utf_8_is_tuned_and_measured(
    craft: Craft, connected: WireServer, picture_folder: Path
) -> None:
    for split in ("train", "test"):
        (picture_folder / split / "owl/1.png").rename(picture_folder / split / "owl/a\udce9.png")
    run = answer(craft("tune", "--data", picture_folder, *TUNE, "--shots", 6, "--json"))["run"]
    assert "train/owl/a\udce9.png" in json.loads(Path(run, "run.json").read_text())["pictures"]
    assert craft("evaluate", run, "--data", picture_folder).exit_code == 0
