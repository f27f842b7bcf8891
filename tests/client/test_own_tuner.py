"""The examples of a tuner of one's own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from .recipes.field import tuned

EXAMPLES = Path(__file__).parents[2] / "examples"
OWN_TUNER, OPTUNA = EXAMPLES / "own_tuner.py", EXAMPLES / "optuna_method.py"


def test_an_own_tuner_spends_its_budget_to_the_last_query(tmp_path: Path) -> None:
    result, journal = tuned(tmp_path / "run", f"{OWN_TUNER}:tune", budget=40)
    assert result.units.queries == 40
    assert [line["prompts"] for line in journal.lines()] == [1, 8, 8, 8, 8, 7]
    assert result.adapter.config.prompts == 6
    assert result.accuracy_after is None, "its codes were chosen by all labels"
    assert result.history[-1]["best_loss"] < result.history[0]["best_loss"] - 0.1


@pytest.mark.parametrize("example", [OWN_TUNER, OPTUNA], ids=lambda path: path.stem)
def test_a_method_fits_into_a_page(example: Path) -> None:
    text = example.read_text()
    documented = {
        number
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
        for number in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    lines = enumerate(text.splitlines(), start=1)
    code = [line for number, line in lines if line.strip() and number not in documented]
    assert 20 < len(code) <= 40
