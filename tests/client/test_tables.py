from __future__ import annotations

from craft_client.comparison import Asked, differences, groups, means
from craft_client.tables import cells_of, columns, csv, difference_cells, latex, markdown
from craft_shared.text_files import rows_of

from .test_comparison import row

BUDGET = Asked(10_000, "predictions")
ROWS = [
    row("craftbox", seed, 80.0 + seed, data, asked=BUDGET) for data in ("a", "b") for seed in (1, 2)
] + [row("bb_t", seed, 70.0, data, asked=BUDGET) for data in ("a", "b") for seed in (1, 2)]


def test_the_csv_has_a_row_a_run_and_no_formula() -> None:
    head, *lines = rows_of(csv([*ROWS, row("=1+1", 1, 5.0)]).encode())
    assert len(lines) == len(ROWS) + 1
    first = dict(zip(head, lines[0], strict=True))
    assert {name: first[name] for name in ("data", "recipe", "seed", "accuracy", "queries")} == {
        "data": "a", "recipe": "craftbox", "seed": "1", "accuracy": "81.0", "queries": "1",
    }  # fmt: skip
    assert (first["budget_unit"], first["budget"]) == ("predictions", "10000")
    assert ",'=1+1," in csv([row("=1+1", 1, 5.0)])


def test_the_table_says_what_was_asked_and_what_was_spent_predictions_first() -> None:
    found = groups(ROWS)
    shown = cells_of(found, [*found, *means(found)])
    assert columns(found)[3:] == [
        "budget", "zero-shot", "tuned", "95 % interval", "n", "predictions", "queries", "images",
        "texts", "requests",
    ]  # fmt: skip
    assert shown[0] == [
        "a", "16", "craftbox", "10,000 predictions", "20.00", "81.50 ± 0.71", "75.15 to 87.85",
        "2", "150", "2", "0", "0", "0",
    ]  # fmt: skip
    assert [cells[0] for cells in shown[-2:]] == ["mean of 2", "mean of 2"]


def test_a_cost_is_a_column_where_there_is_any() -> None:
    found = groups([row("ours", 1, 50.0, spent={"cost_micros": 2_500_000})])
    assert (columns(found)[-1], cells_of(found, found)[0][-1]) == ("cost", "2.5")


def test_markdown_cannot_be_broken_by_a_name() -> None:
    assert markdown(["a"], [["x|y\n"]]) == "| a |\n| --- |\n| x\\|y\\n |\n"


def test_latex_is_booktabs_with_every_name_escaped_and_the_best_in_bold() -> None:
    found = groups(ROWS)
    paired = differences(ROWS, "bb_t")
    text = latex(found, means(found), paired)
    tables = text.split(r"\begin{tabular}")
    assert len(tables) == 3
    for table in tables[1:]:
        assert all(rule in table for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
        lines = [line for line in table.splitlines() if line.endswith(r"\\")]
        assert len({line.count(" & ") for line in lines}) == 1
    assert r"craftbox & 16 & 10,000 predictions & \textbf{81.50 $\pm$ 0.71}" in text
    assert r"bb\_t & 16 & 10,000 predictions & 70.00 $\pm$ 0.00" in text
    assert "n = 2 seeds" in text
    assert "standard deviation over seeds" in text
    assert difference_cells(paired)[-1][5:] == ["+11.50", "+5.15 to +17.85", "2", "4", "0", "0"]
