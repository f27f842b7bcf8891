"""No type error is silenced without its code and a reason."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("server", "client", "shared", "tests", "tools", "benchmarks", "examples")
SILENCED = re.compile(r"#\s*type:\s*ignore")
WITH_REASON = re.compile(r"# type: ignore\[[a-z-]+(, [a-z-]+)*\] # \w+")


def test_each_has_its_code_and_a_reason() -> None:
    bare = [
        f"{path.relative_to(ROOT)}:{number}"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if SILENCED.search(line) and not WITH_REASON.search(line)
    ]
    assert bare == []
