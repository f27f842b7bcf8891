from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from craft_client.cli import app
from craft_client.cli.bench import (
    PAPER_SETS,
    Cell,
    cells,
    check_runs,
    find_datasets,
    find_shifts,
    folders_of,
    options_by_recipe,
    paper_note,
    rows_of,
    write_tables,
)
from craft_client.comparison import Asked
from craft_client.data import Dataset
from craft_client.journal import Journal, JournalError
from craft_shared.text_files import rows_of as rows_of_csv
from craft_shared.units import UNITS

ONES = dict.fromkeys(UNITS, 1)


def result(data: str, seed: int, accuracy: float, **more: object) -> dict[str, object]:
    return {
        "data": data,
        "recipe": "craftbox",
        "shots": 16,
        "seed": seed,
        "zero_shot": 20.0,
        "accuracy": accuracy,
        "tuning": {**ONES, "queries": 10 * seed},
        "evaluation": ONES,
        "model": "pocket",
        "revision": "f00d",
        **more,
    }


def test_data_sets_that_are_not_there_are_told_with_the_reason(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "dtd" / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(folder / "a.png")
    (tmp_path / "eurosat" / "train" / "sea").mkdir(parents=True)
    found, missing = find_datasets(tmp_path, ["dtd", "eurosat", "sun397"])
    assert [dataset.name for dataset in found] == ["dtd"]
    assert len(missing) == 2
    assert any(line.startswith("sun397: ") and "does not exist" in line for line in missing)


def test_all_folders_are_data_sets_but_for_shifts(tmp_path: Path) -> None:
    for name in ("pets", "imagenet", "imagenetv2", ".cache"):
        (tmp_path / name).mkdir()
    (tmp_path / "readme.md").touch()
    assert folders_of(tmp_path) == ["imagenet", "pets"]


def test_shifts_are_imagenets_and_those_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    def shift(folder: str, pictures: str, classes: str) -> None:
        (tmp_path / folder / pictures).mkdir(parents=True)
        (tmp_path / folder / pictures / "1.jpg").touch()
        (tmp_path / folder / "classnames.txt").write_text(classes)

    shift("imagenet-adversarial", "imagenet-a/n00000001", "n00000001 cat\nn00000002 dog\n")
    shift("imagenet-rendition", "imagenet-r/n00000001", "n00000001 owl\n")
    shift("imagenet-sketch", "images/train/n00000001", "n00000001 cat\n")
    tuned = Dataset("imagenet", ("cat", "dog", "pig"), (), (), ())
    found, missing = find_shifts(tmp_path, tuned)
    assert found == ["imagenet-adversarial"]
    assert [reason.replace(f"{tmp_path}/", "") for reason in missing] == [
        "imagenetv2: 'imagenetv2' does not exist.",
        "imagenet-sketch: The data 'imagenet-sketch' has no test split.",
        "imagenet-rendition: 'owl' is no class of 'imagenet'.",
    ]
    assert find_shifts(tmp_path, replace(tuned, name="dtd")) == ([], [])


def test_every_combination_is_a_run_in_a_folder_of_its_own() -> None:
    budgets = [Asked(10_000, "predictions"), Asked(10, "queries"), None]
    plan = cells(["a", "b"], ["craftbox", "paper"], [1, 16], [1, 2, 3], budgets)
    assert len(plan) == 72 == len({cell.folder(Path("out")) for cell in plan})
    assert plan[0] == Cell("a", "craftbox", 1, 1, budgets[0])
    assert cells(["a", "a"], ["paper"], [1, 1], [1]) == [Cell("a", "paper", 1, 1)]
    asked, own = (
        cell.folder(Path("out")) for cell in cells(["a"], ["paper"], [1], [2], budgets[::2])
    )
    assert asked == Path("out/a/paper/1shots-predictions=10000-seed2")
    assert own == Path("out/a/paper/1shots-seed2")


def test_a_method_is_called_by_its_name_in_a_file_and_by_its_access() -> None:
    (own,) = cells(["a"], ["methods/mine.py:Mine"], [1], [1], strict=True)
    assert (own.method, own.folder(Path("out")).parent.name) == ("mine.py:Mine", "mine.py-Mine")
    (ours,) = cells(["a"], ["craftbox"], [1], [1], strict=True)
    assert ours.method == "craftbox-strict"


def test_settings_of_a_recipes_own_go_to_its_runs_alone() -> None:
    options = options_by_recipe(["zip.batch=64", "zip.step=0.5"], ["zip", "sim"])
    assert options == {"zip": {"batch": 64, "step": 0.5}}
    zipped, sim = cells(["a"], ["zip", "sim"], [1], [1], options=options)
    assert (dict(zipped.options), sim.options) == ({"batch": 64, "step": 0.5}, ())
    assert (zipped.title, sim.title) == ("zip (batch=64, step=0.5)", "sim")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("batch=64", "'batch=64' is not RECIPE.NAME=VALUE, of zip"),
        ("sim.texts=10", "'sim.texts=10' is not RECIPE.NAME=VALUE, of zip"),
        ("zip.batch", "'batch' is not NAME=VALUE"),
        ("zip.batches=64", "'zip' has no setting 'batches'"),
        ("zip.batch=many", "'batch' is 'many', not an integer"),
    ],
)
def test_a_setting_that_no_recipe_has_is_refused(text: str, told: str) -> None:
    with pytest.raises(typer.BadParameter, match=re.escape(told)):
        options_by_recipe([text], ["zip"])


def bench_digits(root: Path, *recipes: str) -> str:
    """What is said where there is no server: what is refused before is refused for free."""
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = root / "data/digits" / split / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(folder / "a.png")
    words = ["bench", "--data", str(root / "data"), "--out", str(root / "out"), "--seed", "1"]
    chosen = [word for recipe in recipes for word in ("--recipe", recipe)]
    env = {"CRAFT_URL": "http://127.0.0.1:9", "CRAFT_API_KEY": "none", "COLUMNS": "300"}
    done = CliRunner().invoke(app, [*words, "--shots", "1", *chosen], env=env)
    assert done.exit_code != 0
    return f"{done.output} {done.exception}"


def test_two_files_of_one_name_are_no_two_methods_of_a_benchmark(
    tmp_path: Path, fast_retries: None
) -> None:
    files = [tmp_path / name / "m.py" for name in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        file.write_text("def tune(run): ...")
    said = bench_digits(tmp_path, *(f"{file}:tune" for file in files))
    assert "would both be called 'm.py:tune'" in said
    # Once after the other: the cell keeps the run of the first.
    run = tmp_path / "out/digits/m.py-tune/1shots-seed1/run"
    began = f"{files[0]}:tune"
    Journal.create(run, {"settings": {"recipe": began}, "plugin": f"recipe ({began}, digest)"})
    files[1].write_text("def tune(run): pass")
    assert f"was begun by '{began}', not by '{files[1]}:tune'" in bench_digits(
        tmp_path, f"{files[1]}:tune"
    )
    assert "was begun by" not in bench_digits(tmp_path, began)


def test_a_run_is_not_continued_with_other_settings_of_its_recipe(tmp_path: Path) -> None:
    plan = cells(["a"], ["zip"], [1], [1], options={"zip": {"batch": 64}})
    settings = {"recipe": "zip", "options": {"batch": 64}}
    Journal.create(plan[0].folder(tmp_path) / "run", {"settings": settings})
    check_runs(plan, tmp_path)
    with pytest.raises(JournalError, match="begun with other settings"):
        check_runs(cells(["a"], ["zip"], [1], [1]), tmp_path)


def test_results_of_earlier_versions_are_runs_without_a_budget() -> None:
    (row,) = rows_of([result("a", 1, 50.0)])
    assert (row.asked, row.images, row.spent) == (None, None, {**ONES, "queries": 10})


def test_shifts_have_rows_of_their_own_on_which_nothing_is_spent(tmp_path: Path) -> None:
    v2 = {"imagenetv2": {"zero_shot": 30.0, "accuracy": 40.0, "evaluation": ONES}}
    write_tables(tmp_path, [result("imagenet", 1, 60.0, shifts=v2), result("dtd", 1, 50.0)], None)
    table = (tmp_path / "results.md").read_text()
    nothing = " | 0" * len(UNITS)
    shift = f"| imagenet -> imagenetv2 | 16 | craftbox |  | 30.00 | 40.00 |  | 1{nothing} |"
    assert shift in table
    assert "| mean of 2 | 16 | craftbox |  | 20.00 | 55.00 |" in table


def test_a_baseline_adds_the_differences_to_every_table(tmp_path: Path) -> None:
    runs = [result("a", seed, 50.0 + seed) for seed in (1, 2)]
    runs += [result("a", seed, 40.0, recipe="paper") for seed in (1, 2)]
    write_tables(tmp_path, runs, "paper")
    text = (tmp_path / "results.md").read_text()
    assert "| a | 16 | craftbox |  | paper | +11.50 | +5.15 to +17.85 | 2 | 2 | 0 | 0 |" in text
    assert r"craftbox & 16 &  & paper & +11.50" not in (tmp_path / "results.csv").read_text()
    assert "+11.50" in (tmp_path / "results.tex").read_text()
    assert json.loads((tmp_path / "results.json").read_text()) == runs
    assert len(rows_of_csv((tmp_path / "results.csv").read_bytes())) == 1 + len(runs)


def test_the_csv_has_the_settings_that_a_recipe_was_given(tmp_path: Path) -> None:
    given = result("a", 1, 50.0, recipe="zip (batch=64)", settings={"batch": 64, "step": 0.5})
    write_tables(tmp_path, [given, result("a", 2, 50.0)], None)
    head, *lines = rows_of_csv((tmp_path / "results.csv").read_bytes())
    settings = [dict(zip(head, line, strict=True))["settings"] for line in lines]
    assert settings == ['{"batch":64,"step":0.5}', ""]


def test_the_papers_means_stand_beside_its_model_and_data_sets_alone() -> None:
    theirs = [result(name, 1, 50.0, model="RN50") for name in PAPER_SETS]
    assert "CraFT 71.22" in str(paper_note(rows_of(theirs)))
    assert paper_note(rows_of(theirs[:-1])) is None
    assert paper_note(rows_of([result(name, 1, 50.0) for name in PAPER_SETS])) is None
    few = [result(name, 1, 50.0, model="RN50", shots=4) for name in PAPER_SETS]
    assert paper_note(rows_of(few)) is None
