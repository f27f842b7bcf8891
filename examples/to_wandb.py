"""Sends runs to Weights & Biases: settings, charges, accuracies, the curve, the adapter.

    python examples/to_wandb.py runs

The argument is a folder that holds run directories. Runs are written to `wandb/` here, offline,
unless WANDB_MODE says otherwise; `wandb sync` sends them. Nothing is asked of craft-server.
"""

import os
import sys
from pathlib import Path

import wandb

from craft_client.export import Table, history, outcomes
from craft_client.runs import runs_below

SETTINGS = ("model", "data", "recipe", "shots", "seed", "budget_queries")


def rows(table: Table) -> list[dict[str, object]]:
    """A table's rows, without what is not known."""
    names = [column.name for column in table.columns]
    values = zip(*(column.values for column in table.columns), strict=True)
    return [
        {name: value for name, value in zip(names, row, strict=True) if value is not None}
        for row in values
    ]


def main(folder: Path) -> None:
    """Sends every finished run below `folder`."""
    os.environ.setdefault("WANDB_MODE", "offline")
    for run in runs_below(folder)[0]:
        if run.summary is None:
            continue
        (outcome,) = rows(outcomes([run]))
        config = {name: outcome.pop(name) for name in SETTINGS if name in outcome}
        with wandb.init(project="craftbox", name=run.name, config=config) as tracked:
            for point in rows(history([run])):
                tracked.log(point)
            tracked.summary.update(
                {name: value for name, value in outcome.items() if isinstance(value, int | float)}
            )
            adapter = wandb.Artifact("adapter", type="adapter")
            adapter.add_dir(str(run.folder / "adapter"))
            tracked.log_artifact(adapter)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
