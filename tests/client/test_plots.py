from __future__ import annotations

import subprocess
import sys
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from craft_client import plots
from craft_client.evaluation import Metrics
from craft_client.plots import PlotError, draw_comparison, draw_run
from craft_client.runs import Run

from .run_folders import ACCURACIES, ANSWERS, EVALUATION, answer, write_run

QUERIES = [4, 12, 20, 28]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn from now on."""
    drawn: list[Figure] = []
    real = plots._png

    def png(figure: Figure) -> bytes:
        drawn.append(figure)
        return real(figure)

    monkeypatch.setattr(plots, "_png", png)
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


# --- several runs ---------------------------------------------------------------------------------


def test_each_run_is_a_line_over_predictions_on_a_log_axis(
    tmp_path: Path, figures: list[Figure]
) -> None:
    runs = [Run.load(write_run(tmp_path / name)) for name in ("a", "b")]
    draw_comparison(runs)
    (axes,) = figures[0].axes
    assert axes.get_xscale() == "log"
    lines = [one for one in axes.get_lines() if one.get_marker() != "*"]
    stars = [one for one in axes.get_lines() if one.get_marker() == "*"]
    assert [list(one.get_xdata()) for one in lines] == [[120, 360, 600, 840]] * 2
    assert [list(one.get_ydata()) for one in lines] == [list(ACCURACIES)] * 2
    assert [(list(one.get_xdata()), list(one.get_ydata())) for one in stars] == [
        ([840], [72.5])
    ] * 2
    assert lines[0].get_color() != lines[1].get_color()


def test_more_runs_than_colours_are_still_told_apart(tmp_path: Path, figures: list[Figure]) -> None:
    draw_comparison([Run.load(write_run(tmp_path / f"{number:02}")) for number in range(12)])
    lines = [one for one in figures[0].axes[0].get_lines() if one.get_marker() != "*"]
    assert len({(one.get_color(), one.get_linestyle()) for one in lines}) == 12


def test_the_legend_has_every_runs_name_as_it_is(tmp_path: Path, figures: list[Figure]) -> None:
    names = ["$x^2$", "_hidden", "a" * 200]
    runs = [Run.load(write_run(tmp_path / name)) for name in names]
    for run, name in zip(runs, names, strict=True):
        object.__setattr__(run, "folder", Path(name))
    draw_comparison(runs)
    (legend,) = figures[0].legends
    shown = legend.get_texts()
    assert [text.get_text() for text in shown] == ["$x^2$", "_hidden", "..." + "a" * 90]
    assert not any(text.get_parse_math() for text in shown)


def test_runs_without_accuracies_are_left_out(tmp_path: Path, figures: list[Figure]) -> None:
    runs = [
        Run.load(write_run(tmp_path / "open", finished=False)),
        Run.load(write_run(tmp_path / "run")),
    ]
    draw_comparison(runs)
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == [str(runs[1].folder)]
    with pytest.raises(PlotError, match="None of these runs has accuracies"):
        draw_comparison(runs[:1])


# --- the picture ----------------------------------------------------------------------------------


def test_light_and_dark_differ_in_their_ground(tmp_path: Path) -> None:
    run = Run.load(write_run(tmp_path / "run"))
    for draw in (draw_run, lambda run, dark=False: draw_comparison([run], dark=dark)):
        corners = []
        for png in (draw(run), draw(run, dark=True)):
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
