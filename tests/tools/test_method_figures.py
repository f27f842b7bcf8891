"""The figures of docs/method.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import method_figures

DOCS = Path(__file__).parents[2] / "docs"


def words(figure: Path) -> list[str]:
    """What a figure says: unlike lines, it does not depend on matplotlib's version."""
    return re.findall(r"<text[^>]*>([^<]*)", figure.read_text())


def test_the_pages_figures_are_those_that_the_script_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(method_figures, "FOLDER", tmp_path)
    method_figures.main()
    drawn = sorted(tmp_path.iterdir())
    assert [figure.name for figure in drawn] == ["method-loop.svg", "method-recipe.svg"]
    for figure in drawn:
        assert words(figure) == words(DOCS / figure.name)
        assert len(words(figure)) > 5
        assert f"({figure.name})" in (DOCS / "method.md").read_text()
