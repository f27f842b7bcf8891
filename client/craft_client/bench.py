"""The paper's benchmark: which data sets, what was measured on them, and the table of it.

Sources of the figures: CraFT (Wang et al., ICML 2024), table 2, and the papers named there, for
CLIP with RN50 at 16 shots, mean over the eleven data sets.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from craft_client.data import Dataset, Split
from craft_client.exceptions import DataError
from craft_client.layouts import load_dataset
from craft_shared.names import same_text
from craft_shared.units import UNITS

# Folders as CoOp's instructions name them.
PAPER_SETS = (
    "imagenet",
    "caltech-101",
    "oxford_pets",
    "stanford_cars",
    "oxford_flowers",
    "food-101",
    "fgvc_aircraft",
    "sun397",
    "dtd",
    "eurosat",
    "ucf101",
)

# Folders of other images of ImageNet's classes, as CoOp's instructions name them: what is tuned
# on it is measured on them too.
SHIFTED = "imagenet"
SHIFTS = ("imagenetv2", "imagenet-sketch", "imagenet-adversarial", "imagenet-rendition")

PAPER_MEANS = {
    "zero-shot": 58.77,
    "BBT": 65.40,
    "CraFT": 71.22,
    "CoOp (white box)": 73.42,
    "Tip-Adapter-F (white box)": 75.83,
    "GDA (white box)": 76.05,
}


PAPER_NOTE = "The paper's means over its eleven data sets (RN50, 16 shots): {}.".format(
    ", ".join(f"{name} {mean}" for name, mean in PAPER_MEANS.items())
)


@dataclass(frozen=True)
class Cell:
    """One run of the benchmark."""

    data: str
    recipe: str
    shots: int
    seed: int

    def folder(self, out: Path) -> Path:
        """Where its run directory lies."""
        return out / self.data / self.recipe / f"{self.shots}shots-seed{self.seed}"


def find_datasets(
    root: Path, names: Sequence[str], splits: Sequence[Split] = ("train", "test")
) -> tuple[list[Dataset], list[str]]:
    """The data sets in folders below a folder, and of each that cannot be used why."""
    found, missing = [], []
    for name in names:
        try:
            dataset = load_dataset(root / name)
            for split in splits:
                dataset.split(split)
        except DataError as error:
            missing.append(f"{name}: {error.message}")
        else:
            found.append(dataset)
    return found, missing


def find_shifts(root: Path, tuned: Dataset) -> tuple[list[str], list[str]]:
    """The shifts of ImageNet below a folder, and of each that cannot be used why."""
    if tuned.name != SHIFTED:
        return [], []
    datasets, missing = find_datasets(root, SHIFTS, ["test"])
    known = {same_text(name) for name in tuned.classes}
    found = []
    for dataset in datasets:
        unknown = [name for name in dataset.classes if same_text(name) not in known]
        if unknown:
            missing.append(f"{dataset.name}: '{unknown[0]}' is no class of '{tuned.name}'.")
        else:
            found.append(dataset.name)
    return found, missing


def cells(
    datasets: Iterable[str], recipes: Sequence[str], shots: Sequence[int], seeds: Sequence[int]
) -> list[Cell]:
    """All runs of the benchmark, seed by seed, so that a table can be drawn early."""
    return [
        Cell(data, recipe, count, seed)
        for data in datasets
        for count in shots
        for recipe in recipes
        for seed in seeds
    ]


def summarise(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds, a line for each data set, shots and recipe.

    Args:
        results: a document for each run: `data`, `recipe`, `shots`, `seed`, `zero_shot`, `accuracy`
            (percent on the test split), `tuning` and `evaluation` (units); where there are shifts,
            `shifts` has `zero_shot`, `accuracy` and `evaluation` for each by name.

    Returns:
        Documents with `data`, `shift` (None: the data set's own test split), `recipe`, `shots`,
        `seeds`, `zero_shot`, `mean`, `spread` (None for one seed) and the mean of each unit of
        tuning, which are none for a shift: what was tuned was tuned on the data set.
    """
    groups: dict[tuple[str, str | None, int, str], list[dict[str, Any]]] = {}
    for result in results:
        measured = {None: result} | {
            shift: {**one, "seed": result["seed"], "tuning": dict.fromkeys(UNITS, 0)}
            for shift, one in result.get("shifts", {}).items()
        }
        for shift, one in measured.items():
            key = result["data"], shift, result["shots"], result["recipe"]
            groups.setdefault(key, []).append(one)
    lines = []
    for (data, shift, shots, recipe), runs in groups.items():
        accuracies = [run["accuracy"] for run in runs]
        lines.append(
            {
                "data": data,
                "shift": shift,
                "shots": shots,
                "recipe": recipe,
                "seeds": [run["seed"] for run in runs],
                "zero_shot": statistics.mean(run["zero_shot"] for run in runs),
                "mean": statistics.mean(accuracies),
                "spread": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
                **_mean_units([run["tuning"] for run in runs]),
            }
        )
    return lines


def _mean_units(units: Sequence[dict[str, int]]) -> dict[str, float]:
    return {unit: statistics.mean(one[unit] for one in units) for unit in UNITS}


def rows(lines: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The lines as cells of a table, a mean over data sets for each recipe and shots last.

    Shifts are no data sets of their own: they are in no mean.
    """
    shown = [_row(_name(line), line) for line in lines]
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for line in lines:
        if line["shift"] is None:
            groups.setdefault((line["shots"], line["recipe"]), []).append(line)
    for members in groups.values():
        if len(members) > 1:
            fields = ("zero_shot", "mean", *UNITS)
            means: dict[str, float] = {
                field: statistics.mean(line[field] for line in members) for field in fields
            }
            name = f"mean of {len(members)}"
            shown.append(_row(name, {**members[0], **means, "spread": None}))
    return shown


COLUMNS = ("data", "shots", "recipe", "zero-shot", "tuned", *UNITS)


def markdown(lines: Sequence[dict[str, Any]]) -> str:
    """The table as Markdown, with the paper's means below it."""
    head = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    body = [f"| {' | '.join(row)} |" for row in rows(lines)]
    return "\n".join([*head, *body, "", PAPER_NOTE, ""])


def _name(line: dict[str, Any]) -> str:
    return line["data"] if line["shift"] is None else f"{line['data']} -> {line['shift']}"


def _row(name: str, line: dict[str, Any]) -> list[str]:
    spread = "" if line["spread"] is None else f" ± {line['spread']:.2f}"
    return [
        name,
        str(line["shots"]),
        line["recipe"],
        f"{line['zero_shot']:.2f}",
        f"{line['mean']:.2f}{spread}",
        *(f"{line[unit]:,.0f}" for unit in UNITS),
    ]
