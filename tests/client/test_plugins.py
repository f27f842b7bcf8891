"""What a plug-in's head becomes; `tests/e2e/test_plugins.py` uses whole plug-ins."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from craft_client.exceptions import UnusablePlugin
from craft_client.journal import Journal
from craft_client.settings import SettingsError
from craft_client.tune import TuneResult, TuneSettings, run_document, tune
from craft_shared.head import LinearHead
from plugin_packages import write_package

from .fake_clip import FakeBlackBox, FakeClip

CLIP = FakeClip(3, ignorance=2.0, noise=40)
PICTURES, LABELS = CLIP.pictures(4)
# Two recipes whose head is an object of their own that passes for a linear one: the one has its
# tensors, the other lacks some.
CODE = """
import numpy as np
from craft_client.losses import cross_entropy
from craft_client.paid_answers import Reading
from craft_client.tuning_run import Candidate, Outcome

class Disguised:
    kind = "ridge"
    def __init__(self, classes, rows): self.shape = (rows, classes)
    def __call__(self, log_probs): raise SystemError("code of a plug-in's")
    def tensors(self):
        rows, classes = self.shape
        return {
            "head.weight": np.zeros((rows, classes), np.float32),
            "head.bias": np.zeros(classes, np.float32),
            "head.scales": np.ones(2, np.float32),
        }

def whole(run, extra=0):
    read = lambda log_probs: Reading(cross_entropy(log_probs, run.labels), {})
    none = np.zeros((0, run.settings.dim), np.float32)
    loss = float(run.ask(read, none, templates=[run.settings.template]).losses[0])
    run.report("start", loss, loss, None)
    classes = run.labels.max() + 1
    head = Disguised(classes, classes + extra)
    return Outcome("x", none, (), head, 50.0, None, loss, [Candidate("x", 1, 0, loss)])

def wrong(run):
    return whole(run, extra=1)
"""


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    recipes = {"whole": "plugin_heads:whole", "wrong": "plugin_heads:wrong"}
    folder = tmp_path / "packages"
    write_package(folder, "heads", {"craftbox.recipes": recipes}, plugin_heads=CODE)
    monkeypatch.syspath_prepend(str(folder))
    yield
    sys.modules.pop("plugin_heads", None)


def tuned(folder: Path, recipe: str) -> TuneResult:
    settings = TuneSettings(budget=1, random_codes=0, search=False, dim=8, recipe=recipe)
    black_box = FakeBlackBox(CLIP, PICTURES)
    journal = Journal.create(folder, run_document(black_box, LABELS, settings))
    return tune(black_box, LABELS, settings, journal)


def test_what_is_deployed_is_data_whatever_object_a_plug_in_made(tmp_path: Path) -> None:
    head = tuned(tmp_path / "run", "whole").adapter.head
    assert type(head) is LinearHead
    assert np.isfinite(head(np.log(np.full((1, 2, 3), 1 / 3, np.float32)))).all()


def test_a_head_that_no_server_would_take_ends_the_run_before_it_is_deployed(
    tmp_path: Path,
) -> None:
    with pytest.raises(UnusablePlugin, match=r"package heads 0.1.0\) failed: .*head.weight"):
        tuned(tmp_path / "run", "wrong")
    assert not (tmp_path / "run" / "adapter").exists()


def test_what_a_plug_in_chose_from_is_in_the_summary(tmp_path: Path) -> None:
    tuned(tmp_path / "run", "whole")
    (candidate,) = Journal.open(tmp_path / "run").summary()["candidates"]
    assert (candidate["name"], candidate["prompts"], candidate["texts"]) == ("x", 1, 0)


def test_a_recipe_that_reads_no_texts_refuses_them() -> None:
    with pytest.raises(SettingsError, match="texts: are a setting of 'craftbox'"):
        TuneSettings(recipe="whole", texts=("a",))
