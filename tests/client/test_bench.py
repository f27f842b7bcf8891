from pathlib import Path

from PIL import Image

from craft_client.bench import PAPER_SETS, Cell, cells, find_datasets, markdown, rows, summarise
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
    found, missing = find_datasets(tmp_path, PAPER_SETS)
    assert [dataset.name for dataset in found] == ["dtd"]
    assert len(missing) == 10
    assert any(line.startswith("sun397: ") and "does not exist" in line for line in missing)


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
