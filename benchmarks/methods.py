"""Accuracy against queries: every recipe and baseline on the same pictures, over HTTP.

One craft-server process; the craft command alone drives it. Each method is tuned on the few shots
of each seed and then measured on the whole test split, with everything that it was charged. What
the JSON file holds already is not measured again, so that a run can be interrupted, and further
data sets, seeds or methods added; what it holds of other methods is left out. At the end it draws
docs/methods.png and writes the table into a page, between the lines BEGIN and END.

    python benchmarks/methods.py --data DIR [DIR ...] --json benchmarks/results/methods.json \
        --page docs/evidence/results.md
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from options import parser_for, present, save
from serving import UNITS, command, serving


@dataclass(frozen=True)
class Method:
    """A line of the table.

    Attributes:
        family: methods of a family are one curve.
        options: of `craft tune`, or of `craft zero-shot` where the family is that.
    """

    family: str
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """For people and for the JSON file."""
        return f"{self.family} ({' '.join(self.options)})" if self.options else self.family


BEGIN, END = "<!-- benchmarks/methods.py -->", "<!-- end -->"
ZERO_SHOT = "zero-shot"
ONE_QUERY = "craftbox, one query"
STRICT = "craftbox, strict"
# Generations of 40 codes, and one query of each for its mean.
BUDGETS = tuple(str(1 + generations * 41) for generations in (5, 25, 200))

METHODS = [
    Method(ZERO_SHOT),
    Method(ZERO_SHOT, ("--ensemble",)),
    Method(ONE_QUERY),
    *(
        Method(ONE_QUERY, ("--keep-texts", kept))
        for kept in ("16", "32", "64", "128", "256", "512")
    ),
    Method(STRICT, ("--strict",)),
    *(Method(STRICT, ("--strict", "--random-codes", codes)) for codes in ("0", "3", "15", "31")),
    Method("refinement alone", ("--recipe", "paper", "--no-search")),
    *(
        Method("prompt alone, CMA-ES (BBT)", _prompt_alone)
        for _prompt_alone in (
            ("--recipe", "paper", "--no-refinement", "--budget", budget) for budget in BUDGETS[:2]
        )
    ),
    *(
        Method(
            f"prompt alone, {strategy}",
            ("--recipe", "paper", "--no-refinement", "--strategy", strategy, "--budget", budget),
        )
        for strategy in ("random", "spsa")
        for budget in BUDGETS[:2]
    ),
    *(Method("CraFT", ("--recipe", "paper", "--budget", budget)) for budget in BUDGETS),
]


def measure(env: dict[str, str], data: Path, method: Method, shots: int, seed: int) -> Any:
    """Tunes, and measures on the test split; zero-shot is only measured."""
    if method.family == ZERO_SHOT:
        found = command(env, "craft", "zero-shot", "--data", data, *method.options)
        return {"accuracy": found["accuracy"], "tuning": None, "evaluation": found["charged"]}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        few = ("--shots", shots, "--seed", seed)
        tuned = command(env, "craft", "tune", "--data", data, *few, *method.options, "--run", run)
        evaluated = command(env, "craft", "evaluate", run, "--data", data)
    return {
        "accuracy": evaluated["accuracy_after"],
        "tuning": tuned["charged"],
        "evaluation": evaluated["charged"],
        "prompts": tuned["prompts"],
        "texts": len(tuned["texts"]),
        "seconds": tuned["seconds"],
    }


def plan(
    data: list[Path], methods: list[Method], seeds: list[int]
) -> Iterator[tuple[Path, Method, int]]:
    """What is to be measured, all of a seed before the next one."""
    for seed in seeds:
        for folder in data:
            for method in methods:
                if method.family != ZERO_SHOT or seed == seeds[0]:
                    yield folder, method, seed


def summaries(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each data set and method: accuracy's mean and spread, and mean units."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["data"], result["method"]), []).append(result)
    lines = []
    for (data, method), runs in groups.items():
        accuracies = [run["accuracy"] for run in runs]
        units = [run["tuning"] or dict.fromkeys(UNITS, 0) for run in runs]
        lines.append(
            {
                "data": data,
                "method": method,
                "family": runs[0]["family"],
                "accuracies": accuracies,
                "mean": statistics.mean(accuracies),
                "spread": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
                **{unit: statistics.mean(one[unit] for one in units) for unit in UNITS},
            }
        )
    return lines


def markdown(lines: list[dict[str, Any]]) -> str:
    """A table with a line for each method: its queries, and its accuracy on each data set."""
    sets = list(dict.fromkeys(line["data"] for line in lines))
    methods: dict[str, dict[str, dict[str, Any]]] = {}
    for line in lines:
        methods.setdefault(line["method"], {})[line["data"]] = line
    header = ("method", "queries", *sets)
    rows = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for method, found in methods.items():
        queries = dict.fromkeys(f"{line['queries']:,.0f}" for line in found.values())
        cells = [_accuracy(found[data]) if data in found else "" for data in sets]
        rows.append(f"| {method} | {', '.join(queries)} | {' | '.join(cells)} |")
    return "\n".join([*rows, ""])


def _accuracy(line: dict[str, Any]) -> str:
    spread = "" if line["spread"] is None else f" ± {line['spread']:.2f}"
    return f"{line['mean']:.2f}{spread}"


def with_tables(page: str, tables: str) -> str:
    """The page with these tables between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables}\n{END}{after}"


def draw(lines: list[dict[str, Any]], ridge: dict[str, float], file: Path) -> None:
    """A panel for each data set: accuracy against queries.

    `ridge` is the white box's accuracy by data set.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    sets = list(dict.fromkeys(line["data"] for line in lines))
    figure, panels = plt.subplots(1, len(sets), figsize=(5 * len(sets), 5), squeeze=False)
    families = list(dict.fromkeys(line["family"] for line in lines))
    colours = dict(zip(families, plt.get_cmap("tab10").colors, strict=False))
    for panel, data in zip(panels[0], sets, strict=True):
        if data in ridge:
            panel.axhline(ridge[data], color="black", ls="--", label="ridge on hidden features")
        panel.grid(alpha=0.3)
        for family in families:
            points = [line for line in lines if (line["data"], line["family"]) == (data, family)]
            if family == ONE_QUERY:  # that of the default alone
                points = [line for line in points if line["method"] == family]
            points.sort(key=lambda line: line["queries"])
            if not points:
                continue
            if family == ZERO_SHOT:
                panel.axhline(points[0]["mean"], color=colours[family], ls=":", label=family)
                continue
            panel.errorbar(
                [line["queries"] for line in points],
                [line["mean"] for line in points],
                [line["spread"] or 0 for line in points],
                color=colours[family],
                marker="o",
                capsize=2,
                label=family,
            )
        panel.set(xscale="log", xlabel="queries of tuning", ylabel="test accuracy, %", title=data)
    drawn = [panel.get_legend_handles_labels() for panel in panels.flat]
    by_label = {label: handle for found in drawn for handle, label in zip(*found, strict=True)}
    figure.legend(by_label.values(), by_label.keys(), fontsize=9, loc="lower center", ncols=5)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(file, dpi=110)


def white_box_ridge(file: Path) -> dict[str, float]:
    """The accuracy of the ridge on hidden features by data set, as `white_box.py` wrote it."""
    fits = json.loads(file.read_text())["fits"] if file.exists() else []
    accuracies: dict[str, list[float]] = {}
    for fit in fits:
        if fit["method"] == "ridge":
            accuracies.setdefault(fit["data"], []).append(fit["accuracy"])
    return {data: statistics.mean(found) for data, found in accuracies.items()}


def main() -> None:
    """Runs the measurement."""
    parser = parser_for(__doc__)
    parser.add_argument("--families", nargs="+", choices={method.family for method in METHODS})
    parser.add_argument("--page", type=Path)
    parser.add_argument("--white-box", type=Path, default=Path("benchmarks/results/white_box.json"))
    args = parser.parse_args()
    if args.json is None:
        parser.error("--json is required, for it is what an interrupted run goes on from")

    data = present(args.data)
    methods = [one for one in METHODS if args.families is None or one.family in args.families]
    order = {method.name: number for number, method in enumerate(METHODS)}
    held = json.loads(args.json.read_text()) if args.json.exists() else []
    results = [result for result in held if result["method"] in order]
    known = {(result["data"], result["method"], result["seed"]) for result in results}
    with tempfile.TemporaryDirectory() as folder, serving(args.model, Path(folder)) as env:
        for folder_of_data, method, seed in plan(data, methods, args.seeds):
            name = {"data": folder_of_data.name, "method": method.name, "seed": seed}
            if tuple(name.values()) in known:
                continue
            result = measure(env, folder_of_data, method, args.shots, seed)
            results.append({**name, "family": method.family, "shots": args.shots, **result})
            save(results, args.json)
            print(f"{name}: {result['accuracy']:.2f} %", file=sys.stderr, flush=True)
    lines = sorted(summaries(results), key=lambda line: (line["data"], order[line["method"]]))
    draw(lines, white_box_ridge(args.white_box), Path("docs/methods.png"))
    if args.page:
        args.page.write_text(with_tables(args.page.read_text(), markdown(lines)))
    print(markdown(lines))


if __name__ == "__main__":
    main()
