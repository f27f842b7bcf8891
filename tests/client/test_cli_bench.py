from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import Image

from craft_client.cli.bench import (
    Cell,
    cells,
    find_datasets,
    find_shifts,
    folders_of,
    markdown,
    rows,
    summarise,
)
from craft_client.data import Dataset
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
    plan = cells(["a", "b"], ["craftbox", "paper"], [1, 16], [1, 2, 3])
    assert len(plan) == 24 == len({cell.folder(Path("out")) for cell in plan})
    assert plan[0] == Cell("a", "craftbox", 1, 1)


def test_accuracies_are_means_over_seeds_with_their_standard_deviation() -> None:
    (line,) = summarise([result("a", 1, 50.0), result("a", 2, 60.0), result("a", 3, 70.0)])
    assert (line["mean"], line["spread"], line["queries"]) == (60.0, 10.0, 20)
    (alone,) = summarise([result("a", 1, 50.0)])
    assert alone["spread"] is None


def test_the_last_row_is_the_mean_over_data_sets_of_each_recipe() -> None:
    lines = summarise(
        [
            result("a", 1, 50.0),
            result("b", 1, 60.0),
            result("a", 1, 40.0, recipe="paper"),
            result("b", 1, 20.0, recipe="paper"),
        ]
    )
    *_, ours, paper = rows(lines)
    assert ours[:5] == ["mean of 2", "16", "craftbox", "20.00", "55.00"]
    assert paper[:5] == ["mean of 2", "16", "paper", "20.00", "30.00"]
    assert "CraFT 71.22" in markdown(lines)


def test_shifts_have_rows_of_their_own_and_are_in_no_mean() -> None:
    def shifts(accuracy: float) -> dict[str, object]:
        return {"imagenetv2": {"zero_shot": 30.0, "accuracy": accuracy, "evaluation": ONES}}

    lines = summarise(
        [
            result("imagenet", 1, 60.0, shifts=shifts(40.0)),
            result("imagenet", 2, 60.0, shifts=shifts(44.0)),
            result("imagenet", 3, 60.0),
            result("dtd", 1, 50.0),
        ]
    )
    assert [(line["data"], line["shift"], line["seeds"]) for line in lines] == [
        ("imagenet", None, [1, 2, 3]),
        ("imagenet", "imagenetv2", [1, 2]),
        ("dtd", None, [1]),
    ]
    _, shift, _, mean = rows(lines)
    nothing = ["0"] * len(UNITS)
    assert shift == ["imagenet -> imagenetv2", "16", "craftbox", "30.00", "42.00 ± 2.83", *nothing]
    assert mean[:5] == ["mean of 2", "16", "craftbox", "20.00", "55.00"]
    assert "| imagenet -> imagenetv2 | 16 |" in markdown(lines)
