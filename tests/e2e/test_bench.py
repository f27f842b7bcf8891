"""`craft bench` against a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from e2e.conftest import Server
from quickstart import NAMES

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_a_benchmark_measures_each_seed_and_pays_for_nothing_twice(
    server: Server, digits: Path, tmp_path: Path
) -> None:
    key = server.key(owner="bench")
    bench = ("bench", "--data", digits.parent, "--dataset", digits.name, "--dataset", "sun397")
    options = ("--shots", "2", "--seed", "1", "--seed", "2")
    first = server.craft_json(key, *bench, *options, "--out", tmp_path / "out")
    assert [result["seed"] for result in first["results"]] == [1, 2]
    assert all(result["accuracy"] > result["zero_shot"] + 20 for result in first["results"])
    assert [reason.partition(":")[0] for reason in first["skipped"]] == ["sun397"]
    assert (tmp_path / "out" / "results.md").read_text().startswith("| data | shots | recipe |")

    usage = server.craft_json(key, "usage")["total"]
    counted = [result[part] for result in first["results"] for part in ("tuning", "evaluation")]
    assert usage == {unit: sum(units[unit] for units in counted) for unit in usage}

    cell = tmp_path / "out" / digits.name / "craftbox" / "2shots-seed2"
    kept = json.loads((cell / "run" / "evaluation.json").read_bytes())
    assert (kept["data"], kept["split"]) == (digits.name, "test")
    assert kept["accuracy"] == first["results"][1]["accuracy"]
    assert kept["before"]["accuracy"] == first["results"][1]["zero_shot"]
    assert kept["charged"] == first["results"][1]["evaluation"]
    expected = json.loads((cell / "result.json").read_bytes())
    (cell / "result.json").unlink()
    (cell / "run" / "summary.json").unlink()
    second = server.craft_json(key, *bench, *options, "--out", tmp_path / "out")
    assert second["results"][1] == expected
    again = json.loads((cell / "run" / "evaluation.json").read_bytes())
    assert {**again, "evaluated_at": None} == {**kept, "evaluated_at": None}
    assert server.craft_json(key, "usage")["total"] == usage


def test_methods_at_equal_budgets_end_in_tables_curves_and_a_leaderboard(
    server: Server, digits: Path, tmp_path: Path
) -> None:
    key, out = server.key(owner="a lab"), tmp_path / "out"
    bench = ("bench", "--data", digits.parent, "--dataset", digits.name, "--shots", "2")
    own = f"{EXAMPLES}/own_tuner.py:tune"
    methods = ("--recipe", own, "--recipe", "craftbox", "--baseline", own)
    budgets = ("--budget", "predictions=1000", "--budget", "predictions=2e3")
    options = ("--seed", "1", "--seed", "2", *methods, *budgets, "--out", out)
    found = server.craft_json(key, *bench, *options)
    assert len(found["results"]) == 8
    asked = [
        (line["recipe"], line["budget"]["amount"], line["budget"]["unit"], line["n"])
        for line in found["summary"]
    ]
    assert asked == [
        ("own_tuner.py:tune", 1000, "predictions", 2),
        ("craftbox", 1000, "predictions", 2),
        ("own_tuner.py:tune", 2000, "predictions", 2),
        ("craftbox", 2000, "predictions", 2),
    ]
    spent = [line["predictions"] for line in found["summary"]]
    assert all(0 < amount <= line[1] for amount, line in zip(spent, asked, strict=True))
    assert {line["images"] for line in found["summary"]} == {0}, "uploads are no spending"
    assert spent[0] < spent[2]
    assert [line["n"] for line in found["differences"]] == [2, 2]
    for name in ("results.csv", "results.tex", "results.md", "results.png", "results.pdf"):
        assert (out / name).stat().st_size > 100

    built = server.craft_json(key, "leaderboard", "build", out, "--out", tmp_path / "site")
    assert built["refused"] == {}
    assert built["taken"] == 8
    run = out / digits.name / "own_tuner.py-tune" / "2shots-predictions=1000-seed1" / "run"
    anew = server.craft_json(key, "leaderboard", "check", run, "--data", digits)
    assert anew["charged"]["queries"] > 0
    lines = (run / "journal.jsonl").read_text()
    (run / "journal.jsonl").write_text(lines[: lines.rstrip().rfind("\n") + 1])
    refused = server.craft(key, "leaderboard", "check", run)
    assert refused.returncode == 1
    assert "units: the receipt has" in refused.stderr


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (("--recipe", "nobodys"), "nobodys"),
        (("--budget", "predictions=5"), "predictions"),
        (("--shots", "999", "--shots-strict"), "fewer training pictures"),
        (("--seed", "3", "--seed", "4", "--seed", "5"), "queries budget has 5"),
        (("--recipe", "zip", "--budget", "50"), "queries budget has 5"),
    ],
    ids=["recipe", "budget", "shots", "all together", "one that looks as it goes"],
)
def test_nothing_is_charged_where_one_of_the_runs_cannot_be_made(
    server: Server, digits: Path, tmp_path: Path, wrong: tuple[str, ...], told: str
) -> None:
    key = server.key("--queries", "5", owner="careful")
    bench = ("bench", "--data", digits.parent, "--dataset", digits.name, "--out", tmp_path / "out")
    first = ("--recipe", "craftbox", "--shots", "2", "--seed", "1")
    done = server.craft(key, *bench, *first, *wrong)
    assert done.returncode != 0
    assert told in done.stderr
    assert sum(server.craft_json(key, "usage")["total"].values()) == 0


def test_results_of_another_model_are_not_mixed_in(
    server: Server, digits: Path, tmp_path: Path
) -> None:
    key = server.key(owner="tidy")
    bench = ("bench", "--data", digits.parent, "--dataset", digits.name, "--shots", "2")
    out = ("--out", tmp_path / "out")
    first = server.craft_json(key, *bench, "--seed", "1", *out)
    cell = tmp_path / "out" / digits.name / "craftbox" / "2shots-seed1"
    (cell / "result.json").write_text(json.dumps({**first["results"][0], "revision": "beef"}))
    before = server.craft_json(key, "usage")["total"]
    done = server.craft(key, *bench, "--seed", "1", "--seed", "2", *out)
    assert done.returncode == 1
    assert "holds results of revision beef of 'pocket'" in done.stderr
    assert server.craft_json(key, "usage")["total"] == before


def link_digits(digits: Path, split: str, folders: dict[str, str]) -> None:
    """Makes each folder a link to the split's pictures of the digit of that name."""
    for folder, name in folders.items():
        Path(folder).parent.mkdir(parents=True, exist_ok=True)
        Path(folder).symlink_to(digits / split / name)


def test_what_is_tuned_on_imagenet_is_measured_on_the_shifts_once_each(
    server: Server, digits: Path, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    v2 = root / "imagenetv2/imagenetv2-matched-frequency-format-val"
    few = root / "imagenet-adversarial/imagenet-a"
    numbers = {f"n{number:08}": name for number, name in enumerate(NAMES)}
    for split, below in (("train", "train"), ("test", "val")):
        images = root / "imagenet/images" / below
        link_digits(digits, split, {f"{images}/{one}": name for one, name in numbers.items()})
    link_digits(digits, "test", {f"{v2}/{count}": name for count, name in enumerate(NAMES)})
    link_digits(digits, "test", {f"{few}/{one}": numbers[one] for one in list(numbers)[-3:]})
    for folder in ("imagenet", "imagenetv2", "imagenet-adversarial"):
        lines = "".join(f"{number} {name}\n" for number, name in numbers.items())
        (root / folder / "classnames.txt").write_text(lines)

    key = server.key(owner="shifts")
    bench = ("bench", "--data", root, "--out", tmp_path / "out")
    options = ("--shots", "2", "--seed", "1")
    first = server.craft_json(key, *bench, *options)
    (result,) = first["results"]
    shifts = result["shifts"]
    assert list(shifts) == ["imagenetv2", "imagenet-adversarial"]
    assert [reason.partition(":")[0] for reason in first["skipped"]] == [
        "imagenet-sketch",
        "imagenet-rendition",
    ]
    # The same pictures, called otherwise.
    assert shifts["imagenetv2"]["accuracy"] == result["accuracy"]
    assert shifts["imagenetv2"]["zero_shot"] == result["zero_shot"]
    cell = tmp_path / "out/imagenet/craftbox/2shots-seed1"
    kept = json.loads((cell / "run" / "evaluation.json").read_bytes())
    assert (kept["data"], kept["accuracy"]) == ("imagenet", result["accuracy"])
    among_all = server.craft_json(
        key, "evaluate", cell / "run", "--data", root / "imagenet-adversarial"
    )
    assert shifts["imagenet-adversarial"]["zero_shot"] > among_all["accuracy_before"]
    assert shifts["imagenet-adversarial"]["accuracy"] > among_all["accuracy_after"]
    assert "| imagenet -> imagenet-adversarial | 2 |" in (tmp_path / "out/results.md").read_text()

    usage = server.craft_json(key, "usage")["total"]
    cut_short = {**result, "shifts": {"imagenetv2": shifts["imagenetv2"]}}
    (cell / "result.json").write_text(json.dumps(cut_short))
    second = server.craft_json(key, *bench, *options)
    (again,) = second["results"]
    assert again["shifts"]["imagenetv2"] == shifts["imagenetv2"]
    assert json.loads((cell / "result.json").read_bytes()) == again
    assert server.craft_json(key, "usage")["total"] == usage
