"""The example of a tuner of one's own, beside craftbox's in the same harness."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

from e2e.conftest import Server

OWN_TUNER = Path(__file__).parents[2] / "examples/own_tuner.py"


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
    options = ("--data", some, "--shots", "4", "--seed", "1", "--budget", "40")
    done = subprocess.run(
        [sys.executable, OWN_TUNER, *map(str, options), "--run", run],
        env={**os.environ, "CRAFT_URL": server.url, "CRAFT_API_KEY": key},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    bench = ("bench", "--data", some.parent, "--dataset", some.name, "--out", out)
    which = ("--recipe", "cross-entropy-method", "--recipe", "craftbox", "--shots", "4")
    measured = server.craft_json(key, *bench, *which, "--seed", "1")
    lines = {line["recipe"]: line for line in measured["summary"]}
    assert lines["cross-entropy-method"]["queries"] == 33
    assert all(line["mean"] > line["zero_shot"] + 20 for line in lines.values())

    picture = tmp_path / "compared.png"
    other = out / some.name / "craftbox" / "4shots-seed1" / "run"
    compared = server.craft_json(key, "compare", run, other, "--out", picture)
    own, craftbox = compared["runs"]
    assert (own["recipe"], craftbox["recipe"]) == ("cross-entropy-method", "craftbox")
    assert own["queries"] == 33 <= 40  # the plain prompt, and four generations of eight
    assert own["prompts"] == 5
    assert own["accuracy_after"] is None, "its codes were chosen by all labels"
    assert picture.stat().st_size > 1000


def test_what_the_method_decides_is_thirty_lines() -> None:
    text = OWN_TUNER.read_text()
    tree = ast.parse(text)
    parts = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
        and node.name in ("CrossEntropyMethod", "tune")
    ]
    documented = [
        number
        for part in parts
        for node in ast.walk(part)
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
        for number in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    ]
    lines = text.splitlines()
    code = [
        number
        for part in parts
        for number in range(part.lineno, (part.end_lineno or 0) + 1)
        if lines[number - 1].strip() and number not in documented
    ]
    assert len(parts) == 2
    assert len(code) <= 30
