"""The example of a tuner of one's own, beside craftbox's in the same harness."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from e2e.conftest import Server

EXAMPLES = Path(__file__).parents[2] / "examples"
OWN_TUNER, OPTUNA = EXAMPLES / "own_tuner.py", EXAMPLES / "optuna_method.py"


def test_an_own_tuner_is_measured_in_the_same_harness(
    server: Server, digits: Path, tmp_path: Path
) -> None:
    key, out = server.key(owner="own tuner"), tmp_path / "bench"
    some = tmp_path / "data" / "some"
    for split, count in (("train", 4), ("test", 12)):
        for name in ("one", "two", "three", "four", "five"):
            folder = some / split / name
            folder.mkdir(parents=True)
            for file in sorted((digits / split / name).iterdir())[:count]:
                (folder / file.name).symlink_to(file)
    run = out / some.name / "cross-entropy-method" / "4shots-seed1" / "run"
    options = ("--shots", "4", "--seed", "1", "--budget", "40", "--dim", "64")
    recipe = ("--recipe", f"{OWN_TUNER}:tune")
    server.craft_json(key, "tune", "--data", some, *recipe, *options, "--run", run)
    bench = ("bench", "--data", some.parent, "--dataset", some.name, "--out", out)
    which = ("--recipe", "cross-entropy-method", "--recipe", "craftbox", "--shots", "4")
    measured = server.craft_json(key, *bench, *which, "--seed", "1")
    lines = {line["recipe"]: line for line in measured["summary"]}
    assert lines["cross-entropy-method"]["queries"] == 40
    assert all(line["mean"] > line["zero_shot"] + 20 for line in lines.values())

    picture = tmp_path / "compared.png"
    other = out / some.name / "craftbox" / "4shots-seed1" / "run"
    compared = server.craft_json(key, "compare", run, other, "--out", picture)
    own, craftbox = compared["runs"]
    assert (own["recipe"], craftbox["recipe"]) == ("own_tuner.py:tune", "craftbox")
    assert own["queries"] == 40  # the plain prompt, four generations of eight and one of seven
    assert own["prompts"] == 6
    assert own["accuracy_after"] is None, "its codes were chosen by all labels"
    assert picture.stat().st_size > 1000


@pytest.mark.parametrize("example", [OWN_TUNER, OPTUNA], ids=lambda path: path.stem)
def test_a_method_fits_into_a_page(example: Path) -> None:
    text = example.read_text()
    documented = {
        number
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
        for number in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    lines = enumerate(text.splitlines(), start=1)
    code = [line for number, line in lines if line.strip() and number not in documented]
    assert 20 < len(code) <= 40
