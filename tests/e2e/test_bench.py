"""`craft bench` against a real server."""

from __future__ import annotations

import json
from pathlib import Path

from e2e.conftest import Server
from quickstart import NAMES


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
