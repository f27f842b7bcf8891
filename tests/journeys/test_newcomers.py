"""Three newcomers type what README.md and docs/ say, word by word, and get what they came for."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from PIL import Image

from journeys.conftest import Terminal
from journeys.words import block, line

README, ANSWERS, BENCHMARKS, OWN_TUNER, RECEIPTS, PLANNING = (
    "README.md",
    "docs/answers.md",
    "docs/benchmarks.md",
    "docs/own-tuner.md",
    "docs/receipts.md",
    "docs/maintaining/planning.md",
)


def only_run(terminal: Terminal) -> str:
    """The one run directory that there is."""
    (run,) = (terminal.folder / "runs").iterdir()
    return f"runs/{run.name}"


@pytest.mark.timeout(900)
def test_a_researcher_compares_two_ways_of_tuning(
    newcomer: Callable[[str], Terminal], pictures: Path
) -> None:
    me = newcomer("researcher")
    assert "accuracy" in me.type(line(README, "craft zero-shot", DIR=pictures)).lower()
    me.type(line(README, "craft tune --data DIR --shots 16 --seed 1", DIR=pictures))
    first_run = only_run(me)
    words = line(README, "craft tune --data DIR --strict", DIR=pictures).partition("#")[0]
    me.type(f"{words.rstrip()} --shots 16 --seed 2")
    first, second = sorted(f"runs/{path.name}" for path in (me.folder / "runs").iterdir())
    listed = me.type(line(README, "craft runs"))
    assert Path(first).name in listed
    assert Path(second).name in listed
    me.type(
        line(README, "craft compare", **{"FILE.png": "both.png"}).replace(
            "RUN RUN", f"{first} {second}"
        )
    )
    assert Image.open(me.folder / "both.png").width > 100
    me.type(line(README, "craft report", RUN=first_run))
    assert list((me.folder / first_run).glob("*.html"))
    assert list((me.folder / first_run).glob("*.png"))
    measured = me.type(
        line(README, "craft evaluate", RUN=first_run, DIR=pictures).partition("#")[0] + " --json"
    )
    assert json.loads(measured[measured.index("{") :])
    assert "queries" in me.type(line(README, "craft usage"))


@pytest.mark.timeout(900)
def test_a_method_of_ones_own_ends_in_a_papers_tables(
    newcomer: Callable[[str], Terminal], pictures: Path
) -> None:
    me = newcomer("laboratory")
    sets = {
        "caltech-101": ("zero", "one"),
        "dtd": ("two", "three", "four"),
        "pets": ("six", "nine"),
    }
    for name, classes in sets.items():
        for split in ("train", "test"):
            for one in classes:
                shutil.copytree(pictures / split / one, me.folder / "ROOT" / name / split / one)
    assert "queries" in me.type(line(BENCHMARKS, "craft budget"))
    assert "2 classes" in me.type(line(BENCHMARKS, "craft data check"))
    (me.folder / "my_method.py").write_text(block(OWN_TUNER, "def tune(run"))
    # One seed and a smaller budget: the rest is more of the same.
    words = line(BENCHMARKS, "craft bench --data ROOT --recipe my_method.py:tune")
    me.type(words.replace("1e5", "1e3") + " --seed 1")
    bench = me.folder / "bench"
    assert len((bench / "results.csv").read_text().splitlines()) == 1 + 3 * 3
    assert "\\toprule" in (bench / "results.tex").read_text()
    assert (bench / "results.pdf").read_bytes().startswith(b"%PDF")
    me.type(line(BENCHMARKS, "craft leaderboard build bench --out site"))
    page = (me.folder / "site/index.html").read_text()
    assert "my_method.py:tune" in page
    assert "dtd" in page


@pytest.mark.timeout(900)
def test_an_engineer_offers_a_model_within_budgets(
    operator: Terminal, newcomer: Callable[[str], Terminal], pictures: Path
) -> None:
    url = operator.env["CRAFT_URL"]
    tenant = newcomer("tenant")
    tenant.type(line(README, "craft tune --data DIR --shots 16 --seed 1", DIR=pictures))
    prefix = tenant.env["CRAFT_API_KEY"].split("_")[1]
    listed = operator.type("craft-server keys list")
    assert prefix in listed
    assert "queries" in tenant.type("craft usage")
    admin = operator.type("craft-server keys create --owner me --scope admin --json")
    headers = {"Authorization": f"Bearer {json.loads(admin)['key']}"}
    assert "craft_problems_total" in httpx.get(f"{url}/metrics", headers=headers).text
    assert "craftbox" in httpx.get(url, follow_redirects=True).text
    # The receipt proves to others what the run was charged.
    tenant.type(line(RECEIPTS, "curl --fail"))
    written = {"runs/flowers-16shots-seed1": only_run(tenant), "flowers.jws": "flowers.jws"}
    tenant.type(line(RECEIPTS, "craft receipt", **written))
    shown = tenant.type(line(RECEIPTS, "craft verify-receipt"))
    assert re.search(r"1 +160 +160 +1,010\b", shown), shown
    words = line(PLANNING, "craft-server plan --classes 102").replace("--constants here.json ", "")
    assert json.loads(operator.type(words))


@pytest.mark.timeout(900)
def test_a_developer_puts_a_tuned_adapter_to_use(
    newcomer: Callable[[str], Terminal], clone: Path, pictures: Path
) -> None:
    me = newcomer("developer")
    me.type(line(README, "craft tune --data DIR --shots 16 --seed 1", DIR=pictures))
    me.type(line(README, "craft publish", RUN=only_run(me)))
    zero = sorted((pictures / "test/zero").glob("*.png"))[0]
    shutil.copy(zero, me.folder / "picture.jpg")
    words = line(README, "craft predict IMAGE...", OWNER="developer").replace("IMAGE...", str(zero))
    assert "zero" in me.type(words)
    # The same with no craftbox at all, from a folder that has the examples.
    (me.folder / "examples").symlink_to(clone / "examples")
    assert "zero" in me.type(line(ANSWERS, "python examples/stdlib_client.py"))
    answer = json.loads(me.type(line(ANSWERS, "examples/predict.sh")))
    assert answer["classes"][answer["top_classes"][0][0]] == "zero"
    # And in Python, as README has it.
    program = block(README, "from craft_client import Client, CraFTClassifier")
    program = program.replace("http://127.0.0.1:8000", me.env["CRAFT_URL"])
    program = program.replace("craft_...", me.env["CRAFT_API_KEY"])
    before = (
        "from pathlib import Path\n"
        f"files = sorted(Path({str(pictures)!r}, 'train').glob('*/*.png'))\n"
        "pictures, labels = files, [file.parent.name for file in files]\n"
        f"new_pictures = [Path({str(zero)!r})]\n"
    )
    after = program.replace("    classifier.predict", "    found = classifier.predict")
    (me.folder / "program.py").write_text(f"{before}{after}print(found)\n")
    assert "zero" in me.type("python program.py")
