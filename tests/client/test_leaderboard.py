"""`craft leaderboard`: a run that adds up is taken; another is refused, with the reason."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from joserfc import jws
from joserfc.jwk import KeySet, OKPKey
from typer.testing import CliRunner

from browsers import chromium, needs_chromium
from craft_client.cli import app
from craft_client.evaluation import Evaluation
from craft_client.leaderboard import (
    Leaderboard,
    RefusedError,
    check_anew,
    check_apart,
    read_tasks,
    verified,
)
from craft_shared.adapter import Adapter
from craft_shared.receipt import JWS_RULES, TYPE, Receipt, ReceiptItem
from craft_shared.text_files import rows_of
from craft_shared.units import Units
from craft_shared.wire import Provenance

from .run_folders import ADAPTER, ANSWERS, EVALUATION, PICTURES, write_run
from .test_cli_runs import Page

SIGNING, OTHER = (OKPKey.generate_key("Ed25519") for _ in range(2))
KEYS = KeySet([SIGNING])
CHARGED = sum((Units(**line["charged"]) for line in ANSWERS), Units())
TEST_IMAGES = "7e" * 32


def tuned_with(**more: Any) -> Adapter:
    made = {"recipe": "craftbox", "shots": 10, "seed": 1, "data": "animals", "units": CHARGED}
    config = ADAPTER.config.model_copy(update={"provenance": Provenance(**{**made, **more})})
    return replace(ADAPTER, config=config)


def receipt_of(run: str | None, lines: Sequence[Mapping[str, Any]] = ANSWERS) -> Receipt:
    items = [
        ReceiptItem(call=call, model="pocket", revision="f00d", calls=1, units=units, cost_micros=c)
        for call, units, c in (
            ("images", Units(images=PICTURES, requests=1), 300),
            (
                "predictions",
                sum((Units(**line["charged"]) for line in lines), Units()),
                sum(line["cost_micros"] for line in lines),
            ),
        )
    ]
    return Receipt(
        issuer="https://clip.example.org",
        issued_at="2026-01-03T00:00:00.000Z",
        key="abcd1234",
        owner="a lab",
        run=run,
        since=None,
        until=None,
        first_at="2026-01-02T03:04:06.000Z",
        last_at="2026-01-02T03:14:00.000Z",
        items=items,
        calls=2,
        total=items[0].units + items[1].units,
        cost_micros=items[0].cost_micros + items[1].cost_micros,
        first_line=1,
        last_line=2,
        # Of other ledger lines another digest.
        lines_sha256=str(run).encode().hex().ljust(64, "0")[:64],
    )


def sign(folder: Path, receipt: Receipt, key: OKPKey = SIGNING) -> None:
    header = {"alg": "EdDSA", "typ": TYPE, "kid": key.thumbprint()}
    text = jws.serialize_compact(header, receipt.model_dump_json(), key, registry=JWS_RULES)
    (folder / "receipt.jws").write_text(f"{text}\n")


def submit(
    folder: Path, *, seed: int = 1, evaluation: Evaluation = EVALUATION, **about: Any
) -> Path:
    """A run that adds up, with its receipt."""
    adapter = tuned_with(seed=seed)
    write_run(
        folder,
        settings={"seed": seed},
        adapter=adapter,
        summary={"adapter": adapter.digest},
        evaluation=evaluation.model_copy(update={"adapter": adapter.digest, "digest": TEST_IMAGES}),
        run=f"run-{folder.name}",
        digests=[f"{seed:02}{number:030}" for number in range(PICTURES)],
        **about,
    )
    sign(folder, receipt_of(f"run-{folder.name}"))
    return folder


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


# --- forgeries ------------------------------------------------------------------------------------


def fewer_units_in_the_receipt(run: Path) -> None:
    head, payload, signature = (run / "receipt.jws").read_text().strip().split(".")
    content = json.loads(base64.urlsafe_b64decode(payload + "=="))
    for part in (content["total"], content["items"][1]["units"]):
        part["predictions"] -= 240
    payload = base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")
    (run / "receipt.jws").write_text(f"{head}.{payload}.{signature}")


def a_receipt_of_ones_own(run: Path) -> None:
    sign(run, receipt_of("run-one"), OTHER)


def a_receipt_of_another_run(run: Path) -> None:
    sign(run, receipt_of("run-cheap"))


def a_receipt_of_a_period(run: Path) -> None:
    sign(run, receipt_of("run-one").model_copy(update={"since": "2026-01-02T03:10:00.000Z"}))


def a_receipt_of_all_calls(run: Path) -> None:
    sign(run, receipt_of(None))


def no_receipt(run: Path) -> None:
    (run / "receipt.jws").unlink()


def a_line_left_out_of_the_journal(run: Path) -> None:
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    (run / "journal.jsonl").write_text("".join(lines[:-1]))


def a_cheaper_line_in_the_journal(run: Path) -> None:
    text = (run / "journal.jsonl").read_text()
    (run / "journal.jsonl").write_text(text.replace('"predictions":240', '"predictions":24', 1))


def a_line_at_a_lower_price(run: Path) -> None:
    text = (run / "journal.jsonl").read_text()
    (run / "journal.jsonl").write_text(text.replace('"cost_micros":8000', '"cost_micros":1', 1))


def another_revision(run: Path) -> None:
    edit(run / "run.json", lambda content: content.update(revision="beef"))


def another_model(run: Path) -> None:
    edit(run / "run.json", lambda content: content.update(model="RN50"))


def the_adapter_of_another_run(run: Path) -> None:
    shutil.rmtree(run / "adapter")
    shutil.copytree(submit(run.parent / "two", seed=2) / "adapter", run / "adapter")


def mixed_from_two_runs(run: Path) -> None:
    """What was asked and charged is of one, what came of it is of the other."""
    better = submit(run.parent / "two", seed=2)
    for name in ("adapter", "summary.json", "evaluation.json"):
        (shutil.rmtree if name == "adapter" else Path.unlink)(run / name)
        (shutil.copytree if name == "adapter" else shutil.copy)(better / name, run / name)


def another_seed(run: Path) -> None:
    edit(run / "run.json", lambda content: content["settings"].update(seed=3))


def another_recipe(run: Path) -> None:
    edit(run / "run.json", lambda content: content["settings"].update(recipe="spsa"))


def fewer_shots(run: Path) -> None:
    edit(run / "run.json", lambda content: content["settings"].update(shots=4))


def another_output_level(run: Path) -> None:
    edit(run / "run.json", lambda content: content.update(output={"level": "label"}))


def a_smaller_budget(run: Path) -> None:
    edit(run / "run.json", lambda content: content["settings"].update(budget=20))


def other_data(run: Path) -> None:
    edit(run / "run.json", lambda content: content.update(data="/data/birds"))


def measured_on_the_validation_split(run: Path) -> None:
    edit(run / "evaluation.json", lambda content: content.update(split="validation"))


def measured_with_another_adapter(run: Path) -> None:
    edit(run / "evaluation.json", lambda content: content.update(adapter="ad" * 32))


def no_word_of_the_test_images(run: Path) -> None:
    edit(run / "evaluation.json", lambda content: content.update(digest=None))


def no_word_of_the_training_images(run: Path) -> None:
    edit(run / "run.json", lambda content: content.pop("digests"))


def images_of_no_class(run: Path) -> None:
    edit(run / "run.json", lambda content: content["labels"].__setitem__(0, 3))


def a_receipt_of_nothing(run: Path) -> None:
    """Neither the run nor the receipt has a name."""
    edit(run / "run.json", lambda content: content.pop("run"))
    sign(run, receipt_of(None))


def not_at_its_end(run: Path) -> None:
    (run / "summary.json").unlink()


FORGERIES: dict[Callable[[Path], None], str] = {
    fewer_units_in_the_receipt: "receipt: it is not valid: its signature is wrong",
    a_receipt_of_ones_own: "receipt: it is not valid: no key of the server has its key id",
    a_receipt_of_another_run: "receipt: it is of the run 'run-cheap'; this one is 'run-one'",
    a_receipt_of_a_period: "receipt: it is of a period",
    a_receipt_of_all_calls: "receipt: it is of the run 'None'",
    no_receipt: "receipt: there is none",
    a_line_left_out_of_the_journal: "units: the receipt has 840 predictions, the journal 600",
    a_cheaper_line_in_the_journal: "units: the receipt has 840 predictions, the journal 624",
    a_line_at_a_lower_price: "cost: the receipt has 28,000 micros, the journal 20,001",
    another_revision: "model: the receipt has revision f00d of 'pocket', the run beef",
    another_model: "model: the receipt has revision f00d of 'pocket', the run f00d of 'RN50'",
    the_adapter_of_another_run: "adapter: it is another than the one that the run ended in",
    mixed_from_two_runs: "seed: the adapter was made with '2', the run with '1'",
    another_seed: "seed: the adapter was made with '1', the run with '3'",
    another_recipe: "recipe: the adapter was made with 'craftbox', the run with 'spsa'",
    fewer_shots: "images: a class has more of them than the 4 shots",
    another_output_level: "adapter: it was fitted on answers of another level",
    a_smaller_budget: "budget: it was 20 queries; the run spent 28",
    other_data: "data: the adapter was made with 'animals', the run with 'birds'",
    measured_on_the_validation_split: "evaluation: it is of the validation split of 'animals'",
    measured_with_another_adapter: "is of another adapter than the run's",
    no_word_of_the_test_images: "evaluation: it does not say of which images",
    no_word_of_the_training_images: "images: the run does not say by which images",
    images_of_no_class: "images: one of them is of no class",
    a_receipt_of_nothing: "receipt: it is of the run 'None'; this one is 'None'",
    not_at_its_end: "summary: the run did not come to its end",
}


def test_a_run_that_adds_up_is_taken(tmp_path: Path) -> None:
    one = verified(submit(tmp_path / "one"), KEYS)
    assert one.task.name == "animals, 10 shots, pocket"
    assert (one.access, one.receipt.owner) == ("strict", "a lab")
    beside = submit(tmp_path / "cell" / "run")
    (beside / "receipt.jws").rename(tmp_path / "cell" / "receipt.jws")
    assert verified(beside, KEYS).task.digest == one.task.digest


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
def test_a_run_that_was_forged_is_refused_with_the_reason(
    forge: Callable[[Path], None], tmp_path: Path
) -> None:
    run = submit(tmp_path / "one")
    forge(run)
    with pytest.raises(RefusedError) as refused:
        verified(run, KEYS)
    assert FORGERIES[forge] in str(refused.value)


# --- tasks ----------------------------------------------------------------------------------------


def reasons(board: Leaderboard, folder: Path) -> str:
    with pytest.raises(RefusedError) as refused:
        board.take(verified(folder, KEYS))
    return str(refused.value)


def test_a_task_is_frozen_by_the_first_run_and_refuses_other_images(tmp_path: Path) -> None:
    board = Leaderboard()
    board.take(verified(submit(tmp_path / "one"), KEYS))
    board.take(verified(submit(tmp_path / "two", seed=2), KEYS))
    (task,) = board.tasks.values()
    assert list(task.draws) == [1, 2]

    other_test = submit(tmp_path / "test", seed=3)
    edit(other_test / "evaluation.json", lambda content: content.update(digest="00" * 32))
    assert f"test: the task was frozen with {TEST_IMAGES[:16]}" in reasons(board, other_test)

    other_draw = submit(tmp_path / "draw")
    edit(other_draw / "run.json", lambda content: content["digests"].reverse())
    assert "images: the task draws others for seed 1" in reasons(board, other_draw)


def test_a_run_counts_once(tmp_path: Path) -> None:
    board = Leaderboard()
    one = submit(tmp_path / "one")
    board.take(verified(one, KEYS))
    copy = tmp_path / "copy"
    shutil.copytree(one, copy)
    assert f"receipt: '{one}' has the same: it is one run" in reasons(board, copy)
    assert f"'{one}' is the same run with this seed" in reasons(board, submit(tmp_path / "again"))


def test_a_run_that_was_tuned_on_test_images_is_refused(tmp_path: Path) -> None:
    run = verified(submit(tmp_path / "run"), KEYS).run
    check_apart(run, ["another"])
    with pytest.raises(RefusedError, match="tuned on 2 of the test images"):
        check_apart(run, [*run.about.digests[:2], "another"])


def test_an_accuracy_that_is_another_when_it_is_measured_anew_is_refused(tmp_path: Path) -> None:
    run = verified(submit(tmp_path / "one"), KEYS).run
    assert run.evaluation
    check_anew(run, run.evaluation)
    right = {**EVALUATION.confusion, "owl": {"owl": 3}}
    better = run.evaluation.model_copy(update={"confusion": right})
    with pytest.raises(RefusedError, match=r"it says 80\.0 % .* it is 90\.0 %"):
        check_anew(run, better)
    with pytest.raises(RefusedError, match="of other images than these"):
        check_anew(run, better.model_copy(update={"digest": "00" * 32}))


# --- the commands ---------------------------------------------------------------------------------


@pytest.fixture
def craft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRAFT_URL", "http://127.0.0.1:1")
    monkeypatch.delenv("CRAFT_API_KEY", raising=False)
    Path("keys.json").write_text(json.dumps(KEYS.as_dict(private=False)))

    def run(*words: object) -> Any:
        given = ["leaderboard", *map(str, words), "--keys", "keys.json"]
        result = CliRunner().invoke(app, given)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return run


def test_a_site_is_a_page_with_the_runs_that_add_up_and_csv_and_json(
    craft: Callable[..., Any],
) -> None:
    for seed in (1, 2):
        submit(Path(f"runs/{seed}"), seed=seed)
    a_smaller_budget(submit(Path("runs/bad"), seed=3))
    done = craft("build", "runs", "--out", "site", "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["taken"], list(told["refused"])) == (2, ["runs/bad"])
    assert "Refused: 'runs/bad'" in done.stderr
    assert "budget: it was 20 queries; the run spent 28" in done.stderr

    page = Page(Path("site/index.html").read_text())
    assert [[*cells[:6], cells[-1]] for cells in page.rows[1:]] == [
        ["craftbox", "40 queries", "50.00", "80.00 ± 0.00", "80.00 to 80.00", "2", "a lab"]
    ]
    assert [link["href"] for link in page.named("a")] == [
        "tasks.json", "results.json", "results.csv"
    ]  # fmt: skip
    results = json.loads(Path("site/results.json").read_text())
    assert [(run["seed"], run["predictions"], run["owner"]) for run in results["runs"]] == [
        (1, 840, "a lab"), (2, 840, "a lab")
    ]  # fmt: skip
    assert len(rows_of(Path("site/results.csv").read_bytes())) == 3
    assert list(read_tasks(Path("site/tasks.json"))["animals, 10 shots, pocket"].draws)

    # The tasks are frozen from now on.
    shutil.rmtree("runs")
    stranger = submit(Path("runs/later"), seed=4)
    edit(stranger / "evaluation.json", lambda content: content.update(digest="00" * 32))
    refused = craft("build", "runs", "--out", "site")
    assert refused.exit_code == 1
    assert "test: the task was frozen with" in refused.stderr
    assert "None of these runs adds up" in refused.stderr


def test_a_contributor_is_told_before(craft: Callable[..., Any]) -> None:
    submit(Path("one"))
    done = craft("check", "one")
    assert done.exit_code == 0, done.stderr
    assert "The run adds up. It is of the task 'animals, 10 shots, pocket'" in done.stderr
    another_seed(Path("one"))
    refused = craft("check", "one")
    assert refused.exit_code == 1
    assert "seed: the adapter was made with '1', the run with '3'" in refused.stderr


def unknown_spending(folder: Path) -> None:
    edit(
        folder / "run.json", lambda run: run["settings"].update(budget=1, budget_unit="cost_micros")
    )
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("cost_micros", None)
    (folder / "journal.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def half_a_character(folder: Path) -> None:
    edit(folder / "run.json", lambda run: run["settings"].update(x="\ud800" + 1000 * "y"))


def deep(folder: Path) -> None:
    (folder / "run.json").write_text(100_000 * '{"a":')


@pytest.mark.parametrize("hostile", [unknown_spending, half_a_character, deep])
def test_a_hostile_run_does_not_end_the_build_for_others(
    craft: Callable[..., Any], hostile: Callable[[Path], None]
) -> None:
    submit(Path("runs/fair"))
    hostile(submit(Path("runs/hostile"), seed=2))
    done = craft("build", "runs", "--out", "site", "--keys", "keys.json", "--json")
    assert done.exit_code in (0, 1), done.output
    assert json.loads(done.stdout)["taken"] >= 1
    assert "foresaw" not in done.output


def test_what_others_wrote_is_harmless_on_the_page(craft: Callable[..., Any]) -> None:
    evil = "<script>alert(1)</script>"
    run = submit(Path("one"))
    sign(run, receipt_of("run-one").model_copy(update={"owner": evil}))
    assert craft("build", "one", "--out", "site").exit_code == 0
    text = Path("site/index.html").read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text


@needs_chromium
def test_axe_finds_nothing_on_the_page_wide_and_narrow_light_and_dark(
    craft: Callable[..., Any],
) -> None:
    for seed in (1, 2):
        submit(Path(f"runs/{seed}"), seed=seed)
    assert craft("build", "runs", "--out", "site").exit_code == 0
    found = []
    with chromium() as browser:
        for width, scheme in product((1280, 360), ("light", "dark")):
            page = browser.new_page(
                viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True
            )
            page.goto(Path("site/index.html").resolve().as_uri())
            found += [one["id"] for one in Axe().run(page).response["violations"]]
            overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert overflow <= 0, (width, scheme)
            page.close()
    assert found == []
