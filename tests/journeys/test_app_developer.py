"""Two developers build on a tuned adapter, one in Python and one in JavaScript, as docs/ says."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from journeys.conftest import Terminal
from journeys.words import block, line

README, NOTEBOOKS, JAVASCRIPT = "README.md", "docs/notebooks.md", "docs/javascript.md"
NODE = shutil.which("node")


@pytest.mark.timeout(900)
def test_in_python_a_classifier_is_kept_and_used_elsewhere_under_another_key(
    newcomer: Callable[[str], Terminal], pictures: Path
) -> None:
    me, friend = newcomer("app-developer"), newcomer("friend")
    assert me.env["CRAFT_API_KEY"] != friend.env["CRAFT_API_KEY"]
    tests = sorted((pictures / "test").glob("*/*.png"))
    before = (
        "from pathlib import Path\n"
        f"pictures = sorted(Path({str(pictures)!r}, 'train').glob('*/*.png'))\n"
        "labels = [picture.parent.name for picture in pictures]\n"
        f"new_pictures = [Path(name) for name in {[str(file) for file in tests]!r}]\n"
    )
    program = block(NOTEBOOKS, "    classifier = CraFTClassifier(client).fit(pictures, labels)")
    imports = program.partition("\n")[0]
    first, second = re.split(r"\n(?=with Client\(\) as client:  # later)", program)
    (me.folder / "tune.py").write_text(f"{before}{first}\nprint(card)\n")
    assert "digits@1" in me.type("python tune.py")
    kept = [file.read_bytes() for file in (me.folder / "digits").iterdir()]
    assert kept
    assert not any(me.env["CRAFT_API_KEY"].encode() in content for content in kept)

    second = second.replace("    classifier.predict", "    found = classifier.predict")
    truth = [file.parent.name for file in tests]
    report = f"print('right:', sum(found == {truth!r}), len(found))\n"
    (friend.folder / "use.py").write_text(f"{before}{imports}\n{second}{report}")
    right, count = map(int, friend.type("python use.py").rpartition("right: ")[2].split())
    assert count == len(tests)
    assert right / count > 0.7
    assert "queries" in friend.type("craft usage")

    listed = me.type("craft adapters digits")
    charged = re.search(r"(\d+) (?:query|queries), \1 predictions?, 1 image, 1 request", listed)
    assert charged is not None, listed
    (card,) = json.loads(me.type("craft adapters digits --json 2>/dev/null"))["adapters"]
    assert card["image_units"]["queries"] == int(charged[1])
    predicted = json.loads(me.type(f"craft predict {tests[0]} --adapter digits --json 2>/dev/null"))
    assert predicted["charged"] == card["image_units"], "the card says what a picture costs"


@pytest.mark.skipif(NODE is None, reason="no node is installed: apt-get install nodejs")
@pytest.mark.timeout(900)
def test_in_javascript_an_adapter_and_labels_alone_name_a_picture(
    newcomer: Callable[[str], Terminal], pictures: Path
) -> None:
    me = newcomer("web-developer")
    me.type(line(README, "craft tune --data DIR --shots 16 --seed 1", DIR=pictures))
    (run,) = (me.folder / "runs").iterdir()
    me.type(line(README, "craft publish", RUN=f"runs/{run.name}"))
    zero = sorted((pictures / "test/zero").glob("*.png"))[0]
    shutil.copy(zero, me.folder / "picture.png")
    beginnings = (
        *("const url", "async function call", "class Problem", "async function classify"),
        *("const card", "const found", "try {"),
    )
    program = "\n".join(block(JAVASCRIPT, beginning) for beginning in beginnings)
    (me.folder / "program.mjs").write_text(program)
    said = me.type("node program.mjs").splitlines()
    assert said[0].startswith("zero 0.")
    queries = int(said[2].removesuffix(" queries"))
    (mine,) = json.loads(me.type("craft adapters my-adapter --json 2>/dev/null"))["adapters"]
    assert mine["image_units"]["queries"] == queries
    assert {"zero", "one", "two"} & set(said), "the labels' best"
    assert any("no-such-adapter" in each or "no adapter" in each for each in said[3:])
