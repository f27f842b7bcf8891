"""A run on a server begins the same way, whoever begins it: what is wrong is told for free."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from craft_client.api import Client
from craft_client.arena import Outcome, Run, run_method
from craft_client.estimator import CraFTClassifier
from craft_client.exceptions import BudgetTooSmall, CraftError, DataError, InvalidRequest
from craft_client.pictures import file
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
        with pytest.raises(DataError, match="is of other images or labels"):
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
