"""What a method may ask, and what it is charged, whoever wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from craft_client.arena import Method, Outcome, Question, Reading, Run, cross_entropy
from craft_client.exceptions import CraftError, UnusablePlugin
from craft_client.journal import Journal, JournalError
from craft_client.recipes import added, label
from craft_client.settings import SettingsError
from craft_client.tune import TuneResult, TuneSettings, run_document, tune
from craft_shared.head import log_softmax
from craft_shared.units import MEASURES, Measure, Units
from craft_shared.wire import Budget

from .fake_clip import SIDE, FakeBlackBox, budget
from .recipes import field
from .recipes.field import CLIP, LABELS, PICTURES


def tuned(
    folder: Path, method: Method | str, black_box: FakeBlackBox | None = None, **more: Any
) -> TuneResult:
    return field.tuned(folder, method, black_box, **{"dim": 8, **more})[0]


# --- questions --------------------------------------------------------------------------------


def test_rows_are_asked_about_alone_and_charged_so(tmp_path: Path) -> None:
    rows = np.array([3, 17, 30])

    def method(run: Run) -> Outcome:
        run.plain()
        expected = run.units(Question(2, images=3))
        before = run.answers.units
        codes = np.ones((2, 8), np.float32)
        codes[1] = -1
        found = run.ask(codes=codes, rows=rows)
        assert before + expected == run.answers.units
        whole = run.ask(
            lambda log_probs: Reading(np.zeros(2, np.float32), {"all": log_probs}), codes
        )
        some = whole.kept["all"][:, rows]
        np.testing.assert_allclose(found.losses, cross_entropy(some, LABELS[rows]), rtol=1e-5)
        return Outcome("the plain prompt")

    result = tuned(tmp_path / "run", method)
    assert result.units == Units(queries=5, predictions=40 + 6 + 80, texts=25, requests=3)


def test_texts_alone_stand_in_the_place_of_class_names(tmp_path: Path) -> None:
    texts = ["a", "b", "c", "d", "e", "f", "g"]

    def method(run: Run) -> Outcome:
        run.plain()

        def read(log_probs: np.ndarray) -> Reading:
            return Reading(np.zeros(1, np.float32), {"all": log_probs})

        alone = run.ask(read, templates=["{}"], texts=texts, alone=True).kept["all"]
        beside = run.ask(read, templates=["{}"], texts=texts).kept["all"]
        assert (alone.shape[2], beside.shape[2]) == (7, 12)
        np.testing.assert_allclose(alone, log_softmax(beside[..., 5:]), rtol=1e-4, atol=1e-5)
        return Outcome("the plain prompt")

    assert tuned(tmp_path / "run", method).units.texts == 5 + 7 + 12


def test_images_that_a_method_makes_are_read_as_they_are(tmp_path: Path) -> None:
    def method(run: Run) -> Outcome:
        run.plain()
        np.testing.assert_array_equal(run.images, PICTURES)
        same = run.ask(codes=np.ones((1, 8), np.float32), images=run.images).losses
        kept = run.ask(codes=np.ones((1, 8), np.float32)).losses
        np.testing.assert_allclose(same, kept, rtol=1e-5)
        rows = np.array([1, 9])
        darker = run.ask(templates=["{}"], images=run.images[rows] / 510, rows=rows).losses
        assert darker != run.ask(templates=["{}"], rows=rows).losses
        return Outcome("the plain prompt")

    assert tuned(tmp_path / "run", method).units.images == 40 + 2


def test_images_larger_than_a_visual_prompt_can_be_are_never_made(tmp_path: Path) -> None:
    """However large a server says that they are."""
    black_box = FakeBlackBox(CLIP, PICTURES)
    black_box.image_size = 1_000_000
    with pytest.raises(CraftError, match="reads images of 1,000,000 pixels a side"):
        tuned(tmp_path / "run", "blackvip", black_box)
    assert black_box.charged == Units()


def test_a_run_without_its_images_says_so(tmp_path: Path) -> None:
    def method(run: Run) -> Outcome:
        run.plain()
        run.images  # noqa: B018
        return Outcome("x")

    black_box = FakeBlackBox(CLIP, PICTURES)
    with added(method) as name:
        options = TuneSettings(recipe=name, dim=8)
        journal = Journal.create(tmp_path / "run", run_document(black_box, LABELS, options))
        with pytest.raises(CraftError, match="was given none to make them of"):
            tune(black_box, LABELS, options, journal)


@pytest.mark.parametrize(
    "changed",
    [{"rows": [1, 3]}, {"texts": ["x"]}, {"templates": ["the {}."]}, {"images": PICTURES[:2]}],
    ids=lambda changed: next(iter(changed)),
)
def test_a_run_that_asks_something_else_is_not_gone_on_with(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    asked: dict[str, Any] = {"templates": ["a {}."], "rows": [1, 2]}
    runs = iter((1, 2))

    def method(run: Run) -> Outcome:
        run.plain()
        run.ask(**asked)
        if next(runs) == 1:
            raise KeyboardInterrupt
        return Outcome("x")

    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path / "run", method)
    asked |= changed
    with pytest.raises(JournalError, match="other codes, texts or images"):
        tuned(tmp_path / "run", method)


# --- budgets ----------------------------------------------------------------------------------


def searching(run: Run, *, population: int = 7, batch: int = 11) -> Outcome:
    """Random codes on mini-batches, a last generation being smaller."""
    run.plain()
    generator = np.random.default_rng(run.settings.seed)
    while some := run.most(Question(population, images=batch)):
        run.generation += 1
        rows = generator.permutation(len(run.labels))[:batch]
        codes = generator.standard_normal((population, 8), dtype=np.float32)[:some]
        losses = run.ask(codes=codes, rows=rows).losses
        run.report("search", float(losses.mean()), float(losses.min()), None)
    return Outcome("the last code", codes=codes[:1] if run.generation else None)


@settings(max_examples=20, deadline=None)
@given(unit=st.sampled_from(MEASURES), amount=st.integers(1, 700), price=st.integers(1, 9))
def test_no_budget_in_any_unit_is_exceeded_nor_wasted(
    tmp_path_factory: pytest.TempPathFactory, unit: Measure, amount: int, price: int
) -> None:
    black_box = FakeBlackBox(CLIP, PICTURES, price_micros=price)
    folder = tmp_path_factory.mktemp("run") / "run"
    opening = black_box.units(Question(1))
    least = price if unit == "cost_micros" else opening[unit]
    try:
        result = tuned(folder, searching, black_box, budget=amount, budget_unit=unit)
    except SettingsError:
        assert amount < least
        assert black_box.charged == Units()
        return
    lines = list(Journal.open(folder).lines())
    spent = sum(line["cost_micros"] for line in lines)
    one = black_box.units(Question(1, images=11))
    further = price
    if unit != "cost_micros":
        spent, further = result.units[unit], one[unit]
    if amount >= least:
        assert spent <= amount
    if unit == "images":
        assert result.units.queries == 1
        assert "a generation takes none" in (result.stopped_by or "")
        return
    # Of money, a first question says what one costs, on all images: its predictions bound the rest.
    assert amount - spent < further or unit == "cost_micros"


def test_a_budget_of_what_a_recipe_never_asks_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is 'images', of which 'paper' asks for none"):
        tuned(tmp_path / "run", "paper", budget_unit="images")
    free = tuned(tmp_path / "run", searching, budget_unit="cost_micros")
    assert free.units.queries == 1
    assert "budget is of cost, and a generation takes none" in (free.stopped_by or "")


def test_prices_of_questions_that_were_never_asked_are_bounded_by_those_that_were(
    tmp_path: Path,
) -> None:
    seen: list[int | None] = []

    def method(run: Run) -> Outcome:
        seen.append(run.answers.price(run.units(Question(1))))
        run.plain()
        for question in (Question(1), Question(4), Question(1, images=5), Question(1, 3)):
            seen.append(run.answers.price(run.units(question)))
        seen.append(run.answers.price(run.units(Question(1, images=2, sent=True))))
        return Outcome("x")

    tuned(tmp_path / "run", method, FakeBlackBox(CLIP, PICTURES, price_micros=10))
    assert seen == [None, 10, 40, 10, 16, None]


class Scarce(FakeBlackBox):
    """A key of few predictions."""

    def budgets(self) -> list[Budget]:
        return self._left()

    def _left(self) -> list[Budget]:
        return [budget("predictions", 500, spent=self.charged.predictions)]


def test_a_generation_of_unknown_price_is_not_asked_for_where_cost_is_bounded(
    tmp_path: Path,
) -> None:
    def method(run: Run) -> Outcome:
        run.plain()
        assert not run.covers(Question(1, images=2, sent=True))
        return Outcome("the plain prompt")

    black_box = FakeBlackBox(CLIP, PICTURES, price_micros=10)
    result = tuned(tmp_path / "run", method, black_box, budget=1_000_000, budget_unit="cost_micros")
    assert result.stopped_by is not None
    assert "cost is bounded" in result.stopped_by


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        (Outcome("x", texts=["cat", "cat"]), "texts"),
        (Outcome("x", visual=np.full((SIDE, SIDE, 3), 1e6)), "visual"),
    ],
)
def test_an_end_that_is_no_adapter_is_told_and_the_answers_stay(
    tmp_path: Path, outcome: Outcome, told: str
) -> None:
    def method(run: Run) -> Outcome:
        run.plain()
        return outcome

    with pytest.raises(CraftError, match="ended in no adapter") as caught:
        tuned(tmp_path / "run", method)
    assert told in caught.value.message
    assert len(list(Journal.open(tmp_path / "run").lines())) == 1


def test_a_keys_budget_ends_a_run_in_good_order_and_says_which(tmp_path: Path) -> None:
    result = tuned(tmp_path / "run", searching, Scarce(CLIP, PICTURES), budget=10_000)
    assert 500 - 11 < result.units.predictions <= 500
    assert result.stopped_by is not None
    assert "predictions budget" in result.stopped_by


def test_a_limit_of_prompts_ends_a_run_in_good_order(tmp_path: Path) -> None:
    black_box = FakeBlackBox(CLIP, PICTURES)
    black_box.prompt_limit = 20
    result = tuned(tmp_path / "run", searching, black_box, budget=10_000, budget_unit="predictions")
    assert result.units.queries == 20
    assert "20 different prompts" in (result.stopped_by or "")


# --- methods of one's own ---------------------------------------------------------------------


FILE = """
from craft_client.arena import Outcome, Question

def tune(run, *, wanted: int = 3, share: float = 0.5, name: str = "x", on: bool = False):
    run.plain()
    return Outcome(f"{wanted} {share} {name} {on}")

def fails(run):
    raise ZeroDivisionError("by hand")

def says_nothing(run):
    return Outcome("x", accuracy_before=1.0)

number = 3
"""


@pytest.fixture
def method_file(tmp_path: Path) -> Path:
    path = tmp_path / "my_method.py"
    path.write_text(FILE)
    return path


def test_a_method_in_a_file_is_run_with_settings_of_its_own(
    method_file: Path, tmp_path: Path
) -> None:
    options = {"wanted": "5", "share": "0.25", "on": "true"}
    result = tuned(tmp_path / "run", f"{method_file}:tune", options=options)
    journal = Journal.open(tmp_path / "run")
    assert journal.summary()["deployed"] == "5 0.25 x True"
    assert journal.document["settings"]["options"] == {"wanted": 5, "share": 0.25, "on": True}
    assert str(method_file) in journal.document["plugin"]
    assert result.adapter.config.provenance.recipe == "my_method.py:tune"
    assert label(f"{method_file}:tune") == "my_method.py:tune"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"wnated": 1}, "no setting 'wnated'; it has wanted, share, name, on"),
        ({"wanted": "many"}, "'wanted' is 'many', not an integer"),
        ({"on": "perhaps"}, "'on' is 'perhaps', not true or false"),
    ],
)
def test_settings_that_a_method_has_not_are_refused(
    method_file: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        TuneSettings(recipe=f"{method_file}:tune", options=options)


def test_recipes_of_craftboxs_own_say_which_settings_they_have() -> None:
    with pytest.raises(SettingsError, match="'paper' has no setting 'rank'; it has none"):
        TuneSettings(recipe="paper", options={"rank": 1})
    with pytest.raises(SettingsError, match="it has rank, batch, directions, step, distance"):
        TuneSettings(recipe="zip", options={"x": 1})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "cannot be loaded: AttributeError"),
        ("number", "cannot be called"),
        ("fails", "failed: ZeroDivisionError: by hand"),
        ("says_nothing", "reported nothing, and begins with `run.plain"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(
    method_file: Path, tmp_path: Path, name: str, words: str
) -> None:
    with pytest.raises(UnusablePlugin, match=words) as told:
        tuned(tmp_path / "run", f"{method_file}:{name}")
    assert "\n" not in told.value.message
    assert "my_method.py" in told.value.message


def test_a_file_that_is_not_there_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    black_box = FakeBlackBox(CLIP, PICTURES)
    with pytest.raises(UnusablePlugin, match="cannot be loaded: FileNotFoundError"):
        tuned(tmp_path / "run", f"{tmp_path}/none.py:tune", black_box)
    assert black_box.charged == Units()


def test_templates_that_cannot_be_made_again_come_from_the_journal(tmp_path: Path) -> None:
    proposals = iter(["one {}", "two {}", "three {}"])
    asked: list[list[str]] = []

    def method(run: Run) -> Outcome:
        run.plain()
        for _ in range(2):
            templates = run.templates(lambda: [next(proposals)])
            asked.append(templates)
            run.ask(templates=templates)
            if len(asked) == 1:
                raise KeyboardInterrupt
        return Outcome("x", templates=templates)

    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path / "run", method)
    result = tuned(tmp_path / "run", method)
    assert asked == [["one {}"], ["one {}"], ["two {}"]]
    assert result.adapter.config.templates == ["a photo of a {}.", "two {}"]


def test_no_function_takes_the_name_of_craftboxs_own() -> None:
    def paper(run: Run) -> Outcome:
        raise NotImplementedError

    with pytest.raises(ValueError, match="rename yours"), added(paper):
        pass
