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
# Two refiners whose head is an object of their own that passes for a linear one: the one has its
# tensors, the other lacks some.
CODE = """
import numpy as np
from craft_client.refine import Refinement
from craft_client.refiners import Candidate, Choice

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

class Whole:
    accuracy, extra = None, 0
    def __init__(self, settings, kept): pass
    def refined(self, log_probs): return None
    def learn(self, kept, generation): pass
    def choose(self, kept):
        classes = kept.plain.shape[1]
        head = Disguised(classes, classes + self.extra)
        chosen = Candidate("x", kept.none, Refinement(head, kept.plain, 50.0, np.zeros(1, "f4")))
        return Choice(chosen, [chosen])

class Wrong(Whole):
    extra = 1
"""


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    refiners = {"whole": "plugin_heads:Whole", "wrong": "plugin_heads:Wrong"}
    folder = tmp_path / "packages"
    write_package(folder, "heads", {"craftbox.refiners": refiners}, plugin_heads=CODE)
    monkeypatch.syspath_prepend(str(folder))
    yield
    sys.modules.pop("plugin_heads", None)


def tuned(folder: Path, refiner: str) -> TuneResult:
    settings = TuneSettings(budget=1, random_codes=0, search=False, dim=8, refiner=refiner)
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


@pytest.mark.parametrize("other", [{"recipe": "paper"}, {"refinement": False}])
def test_a_refiner_without_its_recipe_is_refused(other: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match="refiner: 'whole' is for craftbox's recipe"):
        TuneSettings(refiner="whole", **other)  # type: ignore[arg-type]
