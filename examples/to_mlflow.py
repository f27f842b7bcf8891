"""Sends runs to MLflow: settings, what was charged, accuracies, the curve by queries, the adapter.

    python examples/to_mlflow.py runs

The argument is a folder that holds run directories. MLFLOW_TRACKING_URI says where they go. Nothing
is asked of craft-server: all of it is in the run directories.
"""

import sys
from pathlib import Path

import mlflow

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


def numbers(row: dict[str, object]) -> dict[str, float]:
    """What of a row MLflow draws; settings are parameters."""
    return {
        name: float(value)
        for name, value in row.items()
        if isinstance(value, int | float) and name not in SETTINGS
    }


def main(folder: Path) -> None:
    """Sends every finished run below `folder`."""
    mlflow.set_experiment("craftbox")
    for run in runs_below(folder)[0]:
        if run.summary is None:
            continue
        (outcome,) = rows(outcomes([run]))
        with mlflow.start_run(run_name=run.name):
            mlflow.log_params({name: outcome[name] for name in SETTINGS if name in outcome})
            mlflow.log_metrics(numbers(outcome))
            for point in rows(history([run])):
                curve = {f"curve/{name}": value for name, value in numbers(point).items()}
                mlflow.log_metrics(curve, step=int(str(point["queries"])))
            mlflow.log_artifacts(str(run.folder / "adapter"), "adapter")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
