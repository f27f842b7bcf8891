"""`craft bench` against a real server."""

from __future__ import annotations

import json
from pathlib import Path

from e2e.conftest import Server


def test_a_benchmark_measures_each_seed_and_pays_for_nothing_twice(
    server: Server, digits: Path, tmp_path: Path
) -> None:
    key = server.key(owner="bench")
    bench = ("bench", "--data", digits.parent, "--dataset", digits.name, "--dataset", "sun397")
    options = ("--shots", "2", "--seed", "1", "--seed", "2", "--budget", "72")
    first = server.craft_json(key, *bench, *options, "--out", tmp_path / "out")
    assert [result["seed"] for result in first["results"]] == [1, 2]
    assert all(result["accuracy"] > result["zero_shot"] + 20 for result in first["results"])
    assert [reason.partition(":")[0] for reason in first["skipped"]] == ["sun397"]
    assert (tmp_path / "out" / "results.md").read_text().startswith("| data | shots | recipe |")

    usage = server.craft_json(key, "usage")["total"]
    counted = [result[part] for result in first["results"] for part in ("tuning", "evaluation")]
    assert usage == {unit: sum(units[unit] for units in counted) for unit in usage}

    cell = tmp_path / "out" / digits.name / "craftbox" / "2shots-seed2"
    expected = json.loads((cell / "result.json").read_bytes())
    (cell / "result.json").unlink()
    (cell / "run" / "summary.json").unlink()
    second = server.craft_json(key, *bench, *options, "--out", tmp_path / "out")
    assert second["results"][1] | {"evaluation": None} == expected | {"evaluation": None}
    again = server.craft_json(key, "usage")["total"]
    evaluated = second["results"][1]["evaluation"]
    assert again == {unit: usage[unit] + evaluated[unit] for unit in usage}
