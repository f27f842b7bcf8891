"""How what the client gives shows itself; `tests/shared/test_display.py` has the HTML."""

from __future__ import annotations

from pathlib import Path

from craft_client.api import Client
from craft_client.runs import Run, compared, runs_below
from craft_shared.display import Displayed
from craft_shared.wire import PredictionRequest

from .run_folders import ADAPTER, ANSWERS, EVALUATION, write_run
from .wire_server import WireServer

HOSTILE = "<b onclick=alert(1)>"


def test_answers_show_themselves(connected: WireServer) -> None:
    connected.budgets = {"queries": 100}
    request = PredictionRequest(model="fake", classes=["cat", HOSTILE], templates=["{}"])
    with Client() as client:
        scores = client.predict(request, images=[b"a", b"b"])
        client.publish("pets", ADAPTER)
        found = client.adapter_predict("pets", images=[b"a", b"b"])
        shown = {
            "log_probs": scores,
            "probability": found,
            "remaining": client.budgets(),
            "predict": client.usage(),
            "pets@1": client.adapters(),
            "fake": client.models(),
        }
    for word, one in shown.items():
        assert isinstance(one, Displayed)
        assert word in one._repr_html_()
    assert "log_probs=[1, 2, 2]" in repr(scores)
    assert "charged queries=2" in repr(found)


def test_a_run_shows_what_it_came_to_and_its_course(tmp_path: Path) -> None:
    run = Run.load(write_run(tmp_path / "run", answers=ANSWERS * 20, model=HOSTILE))
    assert repr(run).startswith("<Run 'run', state='finished', accuracy before='40.0 %'")
    assert len(repr(run)) < 500
    page = run._repr_html_()
    assert HOSTILE not in page
    assert "&lt;b onclick=alert(1)&gt;" in page
    assert page.count("<tr") < 25
    assert f"{run.points[-1].queries:,}" in page


def test_a_run_that_was_evaluated_shows_that_first_and_on_which_pictures(tmp_path: Path) -> None:
    run = Run.load(write_run(tmp_path / "run", evaluation=EVALUATION))
    for words in ("50.0 % (23.7 to 76.3)", "80.0 % (49.0 to 94.3)", "test split of animals"):
        assert words in repr(run)
        assert words in run._repr_html_()
    (tmp_path / "run/evaluation.json").write_text("{")
    run = Run.load(tmp_path / "run")
    assert "72.5 %" in run._repr_html_()
    assert "is damaged, or of another version of craftbox" in run._repr_html_()


def test_runs_are_compared_side_by_side(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name) for name in ("one", "two")]
    for runs in (compared(folders), runs_below(tmp_path)[0]):
        assert [run.name for run in runs] == ["one", "two"]
        assert isinstance(runs, Displayed)
        assert runs._repr_html_().count("<tr") == 3


def test_an_adapter_shows_what_it_is() -> None:
    assert "classes='cat, dog, owl'" in repr(ADAPTER)
    assert "head" in ADAPTER._repr_html_()
