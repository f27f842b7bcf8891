from __future__ import annotations

import subprocess
import sys
from functools import partial
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from PIL import Image

from craft_client import plots
from craft_client.comparison import Asked, groups
from craft_client.evaluation import Metrics
from craft_client.plots import Course, Form, PlotError, draw_methods, draw_run, method_looks
from craft_client.runs import Run

from .run_folders import ACCURACIES, ANSWERS, EVALUATION, answer, write_run
from .test_comparison import row

QUERIES = [4, 12, 20, 28]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn from now on."""
    drawn: list[Figure] = []
    real = plots._saved

    def saved(figure: Figure, form: Form) -> bytes:
        drawn.append(figure)
        return real(figure, form)

    monkeypatch.setattr(plots, "_saved", saved)
    return drawn


def panels(figure: Figure) -> dict[str, Axes]:
    return {axes.get_ylabel(): axes for axes in figure.axes}


def line(axes: Axes, label: str) -> tuple[list[float], list[float]]:
    (found,) = [one for one in axes.get_lines() if one.get_label() == label]
    return list(found.get_xdata()), list(found.get_ydata())


def points(axes: Axes) -> list[tuple[float, float]]:
    """The points that have a bar, or the room for one."""
    return [
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for container in axes.containers
        if (line := container.lines[0])
    ]


def texts(figure: Figure) -> str:
    shown = [*figure.findobj(mpl.text.Text)]
    return "\n".join(text.get_text() for text in shown)


# --- one run --------------------------------------------------------------------------------------


def test_accuracy_loss_and_cost_stand_over_queries(tmp_path: Path, figures: list[Figure]) -> None:
    draw_run(Run.load(write_run(tmp_path / "run")))
    _, accuracy, loss, cost = panels(figures[0]).values()
    assert list(panels(figures[0])) == [
        "", "training accuracy (%)", "loss (nats)", "cost (provider's currency)"
    ]  # fmt: skip
    assert line(accuracy, "while tuning") == (QUERIES, list(ACCURACIES))
    assert line(accuracy, "before: the plain prompt")[1] == [40.0, 40.0]
    assert line(accuracy, "after: the adapter, held out") == ([28], [72.5])
    assert line(loss, "mean of the generation's prompts") == (QUERIES, [2.5, 2.25, 2.0, 1.75])
    assert line(loss, "best prompt so far") == (QUERIES, [2.0, 1.5, 1.5, 1.25])
    (costs,) = cost.get_lines()
    assert list(costs.get_xdata()) == [0, *QUERIES]
    assert list(costs.get_ydata()) == [0, 0.004, 0.012, 0.020, 0.028]
    assert cost.get_xlabel() == "queries (of a budget of 40)"


def test_predictions_are_a_second_axis_where_a_query_is_always_as_many(
    tmp_path: Path, figures: list[Figure]
) -> None:
    draw_run(Run.load(write_run(tmp_path / "run")))
    (second,) = figures[0].axes[1].child_axes
    assert second.get_xlabel() == "predictions"
    low, high = figures[0].axes[1].get_xlim()
    assert second.get_xlim() == pytest.approx((30 * low, 30 * high))


def test_predictions_are_noted_where_a_query_is_not_always_as_many(
    tmp_path: Path, figures: list[Figure]
) -> None:
    uneven = answer(1, 8, 2.0, 1.5)
    uneven["charged"]["predictions"] = 100
    draw_run(Run.load(write_run(tmp_path / "run", answers=[ANSWERS[0], uneven])))
    assert all(axes.child_axes == [] for axes in figures[0].axes)
    assert figures[0].axes[-1].get_xlabel().endswith("; 220 predictions in all")


def test_an_unfinished_run_is_drawn_without_accuracy_and_says_so(
    tmp_path: Path, figures: list[Figure]
) -> None:
    draw_run(Run.load(write_run(tmp_path / "run", finished=False)))
    assert list(panels(figures[0])) == ["loss (nats)", "cost (provider's currency)"]
    assert "unfinished" in texts(figures[0])


@pytest.mark.parametrize("cost_micros", [0, None])
def test_costs_that_are_nothing_or_unknown_are_left_out(
    tmp_path: Path, figures: list[Figure], cost_micros: int | None
) -> None:
    answers = [answer(number, 4, 2.5, 2.0, cost_micros=cost_micros) for number in range(2)]
    draw_run(Run.load(write_run(tmp_path / "run", answers=answers)))
    assert list(panels(figures[0])) == ["", "training accuracy (%)", "loss (nats)"]


def test_a_single_point_is_seen(tmp_path: Path, figures: list[Figure]) -> None:
    draw_run(Run.load(write_run(tmp_path / "run", answers=ANSWERS[:1], finished=False)))
    (mean, best) = panels(figures[0])["loss (nats)"].get_lines()
    assert (mean.get_marker(), best.get_marker()) == ("o", "o")


def test_a_finished_run_of_one_point_is_drawn_without_a_course(
    tmp_path: Path, figures: list[Figure]
) -> None:
    draw_run(Run.load(write_run(tmp_path / "run", answers=ANSWERS[:1])))
    (axes,) = figures[0].axes
    assert axes.get_xlabel() == "accuracy (%), training pictures (after: held out)"
    assert points(axes) == [(40.0, 0), (72.5, 1)]
    assert "72.5 %" in texts(figures[0])


def test_an_evaluation_is_drawn_with_intervals_and_the_change_of_each_class(
    tmp_path: Path, figures: list[Figure]
) -> None:
    draw_run(Run.load(write_run(tmp_path / "run", answers=ANSWERS[:1], evaluation=EVALUATION)))
    end, classes = figures[0].axes
    assert end.get_xlabel() == "accuracy (%), test split of animals, 10 pictures"
    assert points(end) == [(50.0, 0), (80.0, 1)]
    bars = [container.lines[2][0].get_segments()[0][:, 0] for container in end.containers]
    assert [list(bar) for bar in bars] == [
        pytest.approx(EVALUATION.before.interval),
        pytest.approx(EVALUATION.interval),
    ]
    assert "80.0 % (49.0 to 94.3)" in texts(figures[0])
    assert [label.get_text() for label in classes.get_yticklabels()] == ["dog", "cat", "owl"]
    assert [bar.get_width() for bar in classes.patches] == pytest.approx([50, 100 / 3, 0])


def test_of_many_classes_those_at_either_end_are_drawn(
    tmp_path: Path, figures: list[Figure]
) -> None:
    """Class n is right n + 1 times of 31 after, and 15 times before."""
    names = [f"{number:02}" for number in range(30)]
    after = {name: {name: int(name) + 1, "x": 30 - int(name)} for name in names}
    before = {name: {name: 15, "x": 16} for name in names}
    evaluation = EVALUATION.model_copy(
        update={"confusion": after, "before": Metrics(confusion=before, calibration_error=None)}
    )
    draw_run(Run.load(write_run(tmp_path / "run", evaluation=evaluation)))
    classes = figures[0].axes[1]
    shown = [label.get_text() for label in classes.get_yticklabels()]
    assert shown == [*reversed(names[20:]), *reversed(names[:10])]
    assert "of 30, 10 at either end" in classes.get_xlabel()


def test_a_run_without_answers_is_told(tmp_path: Path) -> None:
    run = Run.load(write_run(tmp_path / "run", answers=[], finished=False))
    with pytest.raises(PlotError, match=r"(?s)no answers yet.*craft tune --resume"):
        draw_run(run)


# --- methods beside each other --------------------------------------------------------------------

BUDGETS = [Asked(1000 * size, "predictions") for size in (1, 10)]
ROWS = [
    row(method, seed, accuracy + seed, data, asked=asked, spent={"predictions": asked.amount})
    for data in ("a", "b")
    for method, accuracy in (("craftbox", 80.0), ("zip", 60.0))
    for asked in BUDGETS
    for seed in (1, 2, 3)
]


def test_each_data_set_is_a_panel_of_means_over_what_was_spent(figures: list[Figure]) -> None:
    draw_methods(groups(ROWS), "predictions")
    assert [axes.get_title() for axes in figures[0].axes] == [
        "a, 16 shots, pocket", "b, 16 shots, pocket"
    ]  # fmt: skip
    for axes in figures[0].axes:
        assert axes.get_xscale() == "log"
        assert axes.get_xlabel() == "predictions spent by tuning"
        assert axes.get_ylabel() == "test accuracy (%)"
        # Beside them are the ends of bars and the line of zero-shot.
        lines = [one for one in axes.get_lines() if one.get_marker() in ("o", "^")]
        assert [list(one.get_xdata()) for one in lines] == [[1000, 10_000]] * 2
        assert [list(one.get_ydata()) for one in lines] == [[82.0, 82.0], [62.0, 62.0]]
        bands = [band for band in axes.collections if isinstance(band, PolyCollection)]
        heights = [band.get_paths()[0].vertices[:, 1] for band in bands]
        assert [(min(band), max(band)) for band in heights] == [(81.0, 83.0), (61.0, 63.0)]
    shown = texts(figures[0])
    assert "n = 3 seeds; bars and bands: one standard deviation" in shown


def test_a_method_looks_the_same_whatever_it_is_drawn_beside() -> None:
    alone = method_looks({"zip", "of a stranger"})
    beside = method_looks({"craftbox", "paper", "zip", "spsa", "of a stranger"})
    assert {name: beside[name] for name in alone} == alone
    many = method_looks({f"method {number}" for number in range(40)} | {"craftbox"})
    assert len(set(many.values())) == 41


def test_names_in_the_legend_are_no_formulas(figures: list[Figure]) -> None:
    draw_methods(groups([row("$x^2$", 1, 50.0), row("_hidden", 1, 50.0)]), "queries")
    (legend,) = figures[0].legends
    names = [text.get_text() for text in legend.get_texts()]
    assert sorted(names) == ["$x^2$", "_hidden", "zero-shot"]
    assert not any(text.get_parse_math() for text in legend.get_texts())


def test_courses_have_axes_of_their_own(figures: list[Figure]) -> None:
    course = Course("a, 16 shots, pocket", "zip", [10, 20], [30.0, 40.0])
    draw_methods(groups(ROWS[:3]), "predictions", courses=[course])
    first, second = figures[0].axes
    assert first.get_ylabel() == "test accuracy (%)"
    assert "while tuning" in second.get_ylabel()
    (line,) = second.get_lines()
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([10, 20], [30.0, 40.0])


def test_what_has_not_spent_the_unit_cannot_be_drawn() -> None:
    with pytest.raises(
        PlotError, match="None of these runs has a test accuracy and has spent cost"
    ):
        draw_methods(groups(ROWS), "cost_micros")


@pytest.mark.parametrize(
    ("form", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_the_same_numbers_are_the_same_file(form: Form, begins: bytes) -> None:
    once, again = (draw_methods(groups(ROWS), "predictions", form=form) for _ in range(2))
    assert once == again
    assert once.startswith(begins)


# --- the picture ----------------------------------------------------------------------------------


def test_light_and_dark_differ_in_their_ground(tmp_path: Path) -> None:
    run = Run.load(write_run(tmp_path / "run"))
    for draw in (partial(draw_run, run), partial(draw_methods, groups(ROWS), "predictions")):
        corners = []
        for png in (draw(), draw(dark=True)):
            with Image.open(BytesIO(png)) as image:
                assert image.format == "PNG"
                corners.append(image.convert("L").getpixel((0, 0)))
        assert corners[0] > 250
        assert corners[1] < 40


def test_the_users_settings_neither_change_nor_matter(tmp_path: Path) -> None:
    run = Run.load(write_run(tmp_path / "run"))
    plain = draw_run(run)
    with mpl.rc_context({"axes.facecolor": "red", "font.size": 30}):
        assert draw_run(run) == plain
        assert (mpl.rcParams["axes.facecolor"], mpl.rcParams["font.size"]) == ("red", 30)


def test_pyplot_and_its_global_state_are_not_loaded(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    code = (
        "import sys; from pathlib import Path; from craft_client.runs import Run;"
        "from craft_client.plots import draw_run;"
        f"draw_run(Run.load(Path({str(folder)!r})));"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
