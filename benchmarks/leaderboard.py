"""The first leaderboard: every method on the same images, at equal budgets, and its page.

One craft-server process; `craft bench` and `craft leaderboard build` alone drive it. What is in the
folder of runs is kept, so that it can be interrupted and made larger. Descriptions are a file of
sentences about each class (docs/methods.md); without one that method is left out. Means go into a
page, between the lines BEGIN and END.

    OMP_NUM_THREADS=1 python benchmarks/leaderboard.py --data DIR --descriptions FILE.json \\
        --runs runs --out docs/leaderboard --page docs/evidence/leaderboard.md
"""

from __future__ import annotations

import argparse
import csv
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from serving import BIN, serving

DATASETS = ("caltech-101", "clothing", "oxford_flowers")
METHODS = (
    *("craftbox", "sim", "zip", "words", "bpt-text", "descriptions", "spsa"),
    *("random", "bbt", "paper"),
)
# Their first generation is 42 queries, which the smallest budget covers of few images alone.
POPULATIONS = ("random", "bbt", "paper")
BUDGETS = ("predictions=1e4", "predictions=1e5", "predictions=1e6")
MANY_IMAGES, FEW_IMAGES = ("caltech-101", "oxford_flowers"), "clothing"
# It makes its images: a prediction costs the server a whole image, not a part of a prompt.
MAKES_IMAGES = "blackvip"
BEGIN, END = "<!-- benchmarks/leaderboard.py -->", "<!-- end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="holds the data sets' folders")
    parser.add_argument("--descriptions", type=Path, help="of all classes")
    parser.add_argument("--runs", type=Path, required=True, help="what is there is kept")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, required=True, help="the leaderboard")
    parser.add_argument("--page", type=Path, help="into which means are written")
    options = parser.parse_args()
    own = ("--set", f"descriptions.file={options.descriptions}")
    (options.runs / "server").mkdir(parents=True, exist_ok=True)
    with serving(options.model, options.runs / "server") as env:

        def craft(*words: object) -> None:
            subprocess.run([BIN / "craft", *map(str, words)], env=env, check=True)

        def bench(data: str, budget: str, recipes: Sequence[str]) -> None:
            some = [one for one in recipes if one != "descriptions" or options.descriptions]
            craft(
                *("bench", "--data", options.data, "--dataset", data, "--budget", budget),
                *(word for one in options.seeds for word in ("--seed", one)),
                *(word for one in some for word in ("--recipe", one)),
                *(own if "descriptions" in some else ()),
                *("--out", options.runs / data / budget),
            )

        for budget in BUDGETS:  # the cheap ones first
            for data in DATASETS:
                short = budget == BUDGETS[0] and data in MANY_IMAGES
                bench(data, budget, [one for one in METHODS if not (short and one in POPULATIONS)])
        bench(FEW_IMAGES, BUDGETS[0], [MAKES_IMAGES])
        craft("leaderboard", "build", options.runs, "--out", options.out)
    if options.page:
        write_means(options.out / "results.csv", options.page)


def write_means(results: Path, page: Path) -> None:
    """Writes a table into a page: a row a method and budget, a column a data set."""
    accuracies: dict[tuple[int, str], dict[str, list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    with results.open(newline="") as file:
        for row in csv.DictReader(file):
            accuracies[int(row["budget"]), row["recipe"]][row["data"]].append(
                float(row["accuracy"])
            )
    lines = [
        f"| predictions | method | {' | '.join(DATASETS)} |",
        f"|---|---|{'---|' * len(DATASETS)}",
    ]
    for (budget, method), found in sorted(accuracies.items()):
        cells = [f"{mean(found[one]):.1f}" if found[one] else "" for one in DATASETS]
        lines.append(f"| {budget:,} | `{method}` | {' | '.join(cells)} |")
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text("\n".join([f"{before}{BEGIN}", "", *lines, "", f"{END}{after}"]))


if __name__ == "__main__":
    main()
