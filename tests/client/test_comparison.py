from __future__ import annotations

from pathlib import Path

import pytest

from craft_client.comparison import (
    Asked,
    Row,
    differences,
    groups,
    means,
    methods_of,
    rows_of,
)
from craft_client.runs import Run

from .run_folders import EVALUATION, write_run

TEN, MORE = Asked(10, "queries"), Asked(10_000, "predictions")


def row(method: str, seed: int, accuracy: float, data: str = "a", **more: object) -> Row:
    facts = {
        "shots": 16, "zero_shot": 20.0, "spent": {"predictions": 100 * seed, "queries": seed},
        "model": "pocket", **more,
    }  # fmt: skip
    return Row(data, method, seed=seed, accuracy=accuracy, **facts)  # type: ignore[arg-type] # by name


def test_a_mean_has_its_spread_and_students_interval() -> None:
    (group,) = groups([row("ours", 1, 50.0), row("ours", 2, 60.0), row("ours", 3, 70.0)])
    accuracy = group.accuracy
    assert (accuracy.n, accuracy.mean, accuracy.spread) == (3, 60.0, 10.0)
    # t of two degrees of freedom is 4.3027.
    assert accuracy.interval == pytest.approx((60 - 24.841, 60 + 24.841), abs=1e-3)
    assert (group.spent["predictions"], group.spent["queries"]) == (200, 2)
    (alone,) = groups([row("ours", 1, 50.0)])
    assert (alone.accuracy.spread, alone.accuracy.interval) == (None, None)


def test_runs_are_together_only_where_all_but_the_seed_is_the_same() -> None:
    rows = [
        row("ours", 1, 50.0),
        row("ours", 2, 50.0, shots=1),
        row("ours", 2, 50.0, asked=TEN),
        row("ours", 2, 50.0, shift="v2"),
        row("ours", 2, 50.0, "b"),
        row("ours", 2, 50.0, model="other"),
        row("theirs", 2, 50.0),
    ]
    assert [group.accuracy.n for group in groups(rows)] == [1] * 7


def test_a_mean_over_data_sets_is_taken_seed_by_seed() -> None:
    """Data sets differ by 40 points, which is no spread over seeds."""
    rows = [row("ours", seed, 50.0 + seed) for seed in (1, 2)]
    rows += [row("ours", seed, 90.0 + seed, "b") for seed in (1, 2, 3)]
    rows += [row("ours", 1, 0.0, shift="v2")]
    (over,) = means(groups(rows))
    assert (over.data, over.accuracy.values) == ("mean of 2", (71.0, 72.0))
    assert over.accuracy.spread == pytest.approx(0.5**0.5)
    assert means(groups(rows[:2])) == []


def test_differences_pair_runs_of_the_same_seed_and_budget() -> None:
    rows = [row("base", seed, 10.0 * seed) for seed in (1, 2, 3)]
    rows += [row("ours", 1, 12.0), row("ours", 2, 19.0), row("ours", 3, 30.0)]
    rows += [row("ours", 4, 99.0), row("ours", 1, 99.0, asked=TEN)]
    (found,) = differences(rows, "base")
    assert found.points.values == (2.0, -1.0, 0.0)
    assert (found.wins, found.ties, found.losses) == (1, 1, 1)
    assert found.points.interval == pytest.approx((1 / 3 - 3.795, 1 / 3 + 3.795), abs=1e-3)


def test_the_mean_difference_over_data_sets_counts_all_pairs() -> None:
    rows = [row("base", seed, 50.0, data) for seed in (1, 2) for data in "ab"]
    rows += [row("ours", 1, 51.0), row("ours", 2, 53.0)]
    rows += [row("ours", 1, 49.0, "b"), row("ours", 2, 51.0, "b")]
    *by_data, over = differences(rows, "base")
    assert [one.points.values for one in by_data] == [(1.0, 3.0), (-1.0, 1.0)]
    assert (over.data, over.points.values) == ("mean of 2", (0.0, 2.0))
    assert (over.wins, over.ties, over.losses) == (3, 0, 1)


def test_zero_shot_is_a_baseline_too() -> None:
    (found,) = differences([row("ours", 1, 25.0)], "zero-shot")
    assert found.points.values == (5.0,)


def test_budgets_are_written_as_people_and_as_options_have_them() -> None:
    assert (str(MORE), MORE.option) == ("10,000 predictions", "predictions=10000")
    money = Asked(1_500_000, "cost_micros")
    assert (str(money), money.option) == ("cost 1.5", "cost=1.5")


# --- run directories ------------------------------------------------------------------------------


def test_runs_are_compared_by_one_kind_of_accuracy(tmp_path: Path) -> None:
    tested = Run.load(write_run(tmp_path / "tested", evaluation=EVALUATION))
    trained = Run.load(write_run(tmp_path / "trained"))
    subject, found = rows_of([tested, trained])
    assert subject == "test accuracy"
    assert [(run, row.accuracy, row.zero_shot) for run, row in found] == [(tested, 80.0, 50.0)]
    subject, found = rows_of([trained])
    assert subject == "held-out training accuracy"
    assert [(row.accuracy, row.asked) for _, row in found] == [(72.5, Asked(40, "queries"))]


def test_what_was_measured_on_other_images_is_a_shift(tmp_path: Path) -> None:
    other = EVALUATION.model_copy(update={"data": "birds"})
    _, [(_, found)] = rows_of([Run.load(write_run(tmp_path / "run", evaluation=other))])
    assert (found.data, found.shift) == ("animals", "birds")


def test_runs_that_saw_less_are_beside_no_others(tmp_path: Path) -> None:
    runs = [
        Run.load(write_run(tmp_path / level, output={"level": level}))
        for level in ("log_probs", "label")
    ]
    _, found = rows_of(runs)
    models = [group.model for group in groups(row for _, row in found)]
    assert models == ["pocket", "pocket, label: the most probable class, no number"]


def test_runs_of_other_settings_are_another_method(tmp_path: Path) -> None:
    runs = [
        Run.load(write_run(tmp_path / str(number), settings={"seed": number, **settings}))
        for number, settings in enumerate(
            ({"keep_texts": 1}, {"keep_texts": 2}, {"recipe": "paper", "texts": ["a", "b"]})
        )
    ]
    assert methods_of(runs) == ["craftbox (keep_texts=1)", "craftbox (keep_texts=2)", "paper"]
