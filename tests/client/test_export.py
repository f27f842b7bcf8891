from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from craft_client import export
from craft_client.evaluation import keep_evaluation
from craft_client.exceptions import MissingPackage
from craft_client.runs import Run
from craft_shared.units import Units
from craft_shared.wire import Charge, Usage

from .run_folders import EVALUATION, write_run


def usage() -> Usage:
    charges = [
        Charge(
            id=number,
            at=f"2026-01-0{number}T00:00:00.000001Z",
            call="predict",
            run=run,
            model="pocket",
            state="settled",
            units=Units(queries=number, requests=1),
            cost_micros=2**40,
        )
        for number, run in ((1, "flowers"), (2, None))
    ]
    return Usage(total=Units(), charges=charges, next_after=None)


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    finished = write_run(tmp_path / "finished")
    unfinished = write_run(tmp_path / "unfinished", finished=False, settings={"shots": None})
    return [Run.load(finished), Run.load(unfinished)]


def types(frame: Any) -> dict[str, str]:
    return {name: str(dtype) for name, dtype in frame.dtypes.items()}


def test_charges_become_a_typed_data_frame() -> None:
    frame = export.charges(usage()).to_pandas()
    found = types(frame)
    assert found["at"] == "datetime64[us, UTC]"
    assert found["queries"] == found["cost_micros"] == "Int64"
    assert found["run"] == found["call"] == "string"
    assert frame["queries"].tolist() == [1, 2]
    assert frame["at"][1].microsecond == 1
    assert frame["run"].isna().tolist() == [False, True]
    assert frame["cost_micros"].sum() == 2**41


def test_charges_become_a_typed_arrow_table() -> None:
    pa = pytest.importorskip("pyarrow")
    table = export.charges(usage()).to_arrow()
    assert table.schema.field("at").type == pa.timestamp("us", "UTC")
    assert table.schema.field("queries").type == pa.int64()
    assert table.column("run").to_pylist() == ["flowers", None]
    assert table.column("cost_micros").to_pylist() == [2**40] * 2


def test_no_charges_have_the_same_types() -> None:
    none = Usage(total=Units(), charges=[], next_after=None)
    some, empty = export.charges(usage()), export.charges(none)
    assert types(empty.to_pandas()) == types(some.to_pandas())
    assert empty.to_arrow().schema == some.to_arrow().schema


def test_a_runs_history_has_units_in_its_names(runs: list[Run]) -> None:
    frame = export.history(runs).to_pandas()
    assert frame["run"].tolist() == ["finished"] * 4 + ["unfinished"] * 4
    assert frame["queries"].tolist() == [4, 12, 20, 28] * 2
    assert frame["loss_nats"].tolist() == [2.5, 2.25, 2.0, 1.75] * 2
    assert frame["accuracy_percent"][:4].tolist() == [50.0, 60.0, 62.5, 70.0]
    assert frame["accuracy_percent"][4:].isna().all(), "an unfinished run has none"
    assert export.history(runs).to_arrow().column("accuracy_percent").null_count == 4


def test_outcomes_have_a_row_a_run(runs: list[Run]) -> None:
    frame = export.outcomes(runs).to_pandas()
    assert frame["state"].tolist() == ["finished", "unfinished"]
    assert frame["shots"].isna().tolist() == [False, True]
    assert frame["queries"].tolist() == [28, 28]
    assert types(frame)["accuracy_after_percent"] == "float64"
    assert types(frame)["started_at"] == "datetime64[us, UTC]"


def test_outcomes_have_the_evaluation_and_what_it_is_of(runs: list[Run]) -> None:
    assert keep_evaluation(runs[0].folder, EVALUATION) is None
    frame = export.outcomes(map(Run.load, [run.folder for run in runs])).to_pandas()
    assert frame["evaluated_on"][0] == "test split of animals, 10 pictures"
    assert frame["evaluation_percent"][0] == 80.0
    assert frame["evaluation_before_percent"][0] == 50.0
    assert frame["evaluation_low_percent"][0] == pytest.approx(49.02, abs=0.01)
    assert frame["evaluation_high_percent"][0] == pytest.approx(94.33, abs=0.01)
    assert frame["evaluation_percent"].isna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("package", "extra", "method"),
    [("pandas", "pandas", "to_pandas"), ("pyarrow", "arrow", "to_arrow")],
)
def test_a_package_that_is_missing_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, package: str, extra: str, method: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackage, match=rf"{package}.*\n.*craftbox\[client,{extra}\]"):
        getattr(export.charges(usage()), method)()


def test_neither_package_is_imported_before_it_is_needed() -> None:
    code = "import sys, craft_client.export; assert not {'pandas', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
