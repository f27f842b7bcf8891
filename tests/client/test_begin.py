"""A run on a server begins the same way, whoever begins it: what is wrong is told for free."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from craft_client.api import Client
from craft_client.arena import Method, Outcome, Run, run_method
from craft_client.estimator import CraFTClassifier
from craft_client.exceptions import BudgetTooSmall, CraftError, DataError, InvalidRequest
from craft_client.journal import Journal, JournalError
from craft_client.pictures import file
from craft_client.settings import SettingsError
from craft_shared.units import Units

from .fake_clip import FakeClip
from .wire_server import KEY, WireServer

PICTURES, LABELS = FakeClip(4).pictures(6)
CLASSES = ["cat", "dog", "owl", "fox"]

Tunes = Callable[..., Any]


def plain(run: Run) -> Outcome:
    run.plain()
    return Outcome("the plain prompt")


def by_method(client: Client, pictures: Any, classes: list[str], **options: Any) -> Any:
    return run_method(plain, pictures, LABELS, classes, client=client, **options)


def by_recipe(client: Client, pictures: Any, classes: list[str], **options: Any) -> Any:
    return run_method("random", pictures, LABELS, classes, client=client, **options)


def by_estimator(client: Client, pictures: Any, classes: list[str], **options: Any) -> Any:
    options = {"strict": True, "dim": 8, "random_codes": 7, **options}
    return CraFTClassifier(client, classes=classes, **options).fit(pictures, LABELS)


EVERY_WAY = pytest.mark.parametrize("tunes", [by_method, by_recipe, by_estimator])


@EVERY_WAY
@pytest.mark.parametrize("kept", [True, False])
def test_a_class_name_that_the_server_cannot_use_costs_nothing(
    tmp_path: Path, tunes: Tunes, kept: bool
) -> None:
    run_dir = tmp_path / "run" if kept else None
    with WireServer().listening() as server, Client(server.url, KEY) as client:
        server.longest_class_name = 5
        with pytest.raises(InvalidRequest, match=r"classes\[3\]: is too long"):
            tunes(client, list(PICTURES), [*CLASSES[:3], "arctic fox"], run_dir=run_dir)
        assert server.charged == Units()
        assert server.image_sets == {}
    assert not (tmp_path / "run").exists()


def test_as_many_labels_as_images_are_asked_for(tmp_path: Path) -> None:
    with WireServer().listening() as server, Client(server.url, KEY) as client:
        with pytest.raises(DataError, match="There are 23 images and 24 labels"):
            by_method(client, list(PICTURES)[:-1], CLASSES)
        assert server.charged == Units()


@pytest.mark.parametrize(
    ("classes", "options", "told"),
    [
        (["cat", "dog", "owl", "wolf"], {}, "other images, labels or classes"),
        (CLASSES, {"budget": 9}, "began with budget=5"),
    ],
)
def test_a_run_is_continued_only_as_it_began(
    tmp_path: Path, classes: list[str], options: dict[str, Any], told: str
) -> None:
    kept = {"run_dir": tmp_path / "run", "budget": 5}
    with WireServer().listening() as server, Client(server.url, KEY) as client:
        by_method(client, list(PICTURES), CLASSES, **kept)
        charged = server.charged
        by_method(client, list(PICTURES), CLASSES, **kept)
        with pytest.raises(DataError, match=told):
            by_method(client, list(PICTURES), classes, **{**kept, **options})
        assert server.charged == charged


@EVERY_WAY
def test_a_budget_that_does_not_cover_the_upload_is_told_before_it(tunes: Tunes) -> None:
    with WireServer().listening() as server, Client(server.url, KEY) as client:
        server.budgets["requests"] = 2
        with pytest.raises(CraftError, match="requests budget") as told:
            tunes(client, list(PICTURES), CLASSES)
        assert isinstance(told.value, BudgetTooSmall)
        assert server.charged == Units()


@EVERY_WAY
def test_an_image_that_is_none_is_told_before_the_first_is_sent(tunes: Tunes) -> None:
    broken = file(PICTURES[-1])[:-30]
    with WireServer().listening() as server, Client(server.url, KEY) as client:
        with pytest.raises(DataError, match=r"images\[23\]: cannot be read as a picture"):
            tunes(client, [*PICTURES[:-1], broken], CLASSES)
        assert server.charged == Units()


def test_a_run_is_continued_with_the_images_that_began_it(tmp_path: Path) -> None:
    with WireServer().listening() as server, Client(server.url, KEY) as client:
        first = by_method(client, list(PICTURES), CLASSES, run_dir=tmp_path / "run")
        charged = server.charged
        again = by_method(client, list(PICTURES), CLASSES, run_dir=tmp_path / "run")
        assert again.adapter.digest == first.adapter.digest
        with pytest.raises(DataError, match="is of other images, labels"):
            by_method(client, list(PICTURES[::-1]), CLASSES, run_dir=tmp_path / "run")
        assert server.charged == charged


def test_what_a_temporary_run_uploaded_is_deleted_and_what_a_kept_one_did_stays(
    tmp_path: Path,
) -> None:
    with WireServer().listening() as server, Client(server.url, KEY) as client:
        by_method(client, list(PICTURES), CLASSES)
        assert server.image_sets == {}
        by_method(client, list(PICTURES), CLASSES, run_dir=tmp_path / "run")
        assert [len(images) for images in server.image_sets.values()] == [
            len(np.unique(LABELS)) * 6
        ]


# --- functions, and what a run was begun by -------------------------------------------------------


def named(deployed: str) -> Method:
    def method(run: Run) -> Outcome:
        run.plain()
        return Outcome(deployed)

    return method


def deployed_by(method: Method | str, folder: Path, client: Client) -> str:
    run_method(method, list(PICTURES), LABELS, CLASSES, client=client, run_dir=folder, dim=4)
    return str(Journal.open(folder).summary()["deployed"])


def test_of_two_functions_of_one_name_that_run_at_once_each_is_run(tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=30)
    with WireServer().listening() as server, Client(server.url, KEY) as client:

        def deployed(name: str) -> str:
            def method(run: Run) -> Outcome:
                run.plain()
                return Outcome(name)

            both.wait()
            return deployed_by(method, tmp_path / name, client)

        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(deployed, ["one", "other"])) == ["one", "other"]


def test_a_function_is_a_recipe_only_while_it_is_run(tmp_path: Path) -> None:
    with WireServer().listening() as server, Client(server.url, KEY) as client:
        deployed_by(named("x"), tmp_path / "run", client)
        with pytest.raises(SettingsError, match="no recipe is called 'method'"):
            deployed_by("method", tmp_path / "other", client)


def test_a_run_is_not_continued_by_a_recipe_of_another_name(tmp_path: Path) -> None:
    with WireServer().listening() as server, Client(server.url, KEY) as client:
        deployed_by(named("x"), tmp_path / "run", client)
        for other in (plain, "random"):
            with pytest.raises(JournalError, match="was begun by 'method'"):
                deployed_by(other, tmp_path / "run", client)


def test_a_function_that_was_mended_goes_on_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(run: Run) -> Outcome:
        run.plain()
        raise KeyError("a mistake")

    def mended(run: Run) -> Outcome:
        run.plain()
        return Outcome("mended")

    mended.__name__ = "fails"
    with WireServer().listening() as server, Client(server.url, KEY) as client:
        with pytest.raises(KeyError, match="a mistake"):
            deployed_by(fails, tmp_path / "run", client)
        assert not caplog.records
        charged = server.charged
        assert deployed_by(mended, tmp_path / "run", client) == "mended"
        assert server.charged == charged
    (record,) = caplog.records
    assert "it began by recipe 'fails'" in record.getMessage()


def test_a_file_that_was_moved_goes_on_and_another_of_its_name_does_not(tmp_path: Path) -> None:
    text = """
from craft_client.arena import Outcome

def tune(run):
    run.plain()
    return Outcome("mine")
"""
    for folder, more in (("a", ""), ("moved", ""), ("b", "# another\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m.py").write_text(text + more)
    with WireServer().listening() as server, Client(server.url, KEY) as client:
        run = tmp_path / "run"
        assert deployed_by(f"{tmp_path}/a/m.py:tune", run, client) == "mine"
        with pytest.raises(JournalError, match=r"was begun by '.*/a/m.py:tune'"):
            deployed_by(f"{tmp_path}/b/m.py:tune", run, client)
        (tmp_path / "a/m.py").unlink()
        assert deployed_by(f"{tmp_path}/moved/m.py:tune", run, client) == "mine"
