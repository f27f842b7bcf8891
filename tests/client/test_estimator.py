import copy
import hashlib
import io
import json
import linecache
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags

from craft_client.api import Client
from craft_client.estimator import ESTIMATOR_FILE, CraFTClassifier
from craft_client.exceptions import CraftError, DataError, MissingKey
from craft_client.journal import Journal, JournalError
from craft_client.progress import units_line
from craft_client.settings import SettingsError
from craft_shared import codec
from craft_shared.units import Units
from craft_shared.wire import Context, ImageUpload, PredictionRequest

from .fake_clip import FakeClip
from .wire_server import KEY, Answer, WireServer

CLIP = FakeClip(4, ignorance=3.0, noise=40)
PICTURES, LABELS = CLIP.pictures(6)
NAMES = [CLIP.names[label] for label in LABELS]
FAST: dict[str, Any] = {"texts": [f"thing {number}" for number in range(30)]}
STRICT: dict[str, Any] = {"strict": True, "dim": 8, "random_codes": 7}


class ClipServer(WireServer):
    """The wire server with a model that looks at the pictures."""

    context: Context | None = None

    def _upload(self, name: str, upload: ImageUpload, tensors: codec.Tensors) -> Answer:
        answer = super()._upload(name, upload, tensors)
        for file in codec.unpack_files(tensors):
            features = CLIP.features(CLIP.decode([file]))[0]
            self.features[hashlib.sha256(file).hexdigest()] = features.astype(np.float32)
        return answer

    def _predict(self, request: PredictionRequest, tensors: codec.Tensors) -> Answer:
        self.context = request.context
        return super()._predict(request, tensors)

    def _score(self, prompts: Any, classes: Any, images: Any) -> Any:
        templates = [prompt for prompt in prompts if isinstance(prompt, str)]
        codes = [np.frombuffer(code, np.float32) for code in prompts[len(templates) :]]
        return CLIP.log_probs(
            images, classes, templates, self.context, np.stack(codes) if codes else None
        )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ClipServer]:
    with ClipServer().listening() as server:
        monkeypatch.setenv("CRAFT_URL", server.url)
        monkeypatch.setenv("CRAFT_API_KEY", KEY)
        yield server


@pytest.fixture
def client(server: ClipServer) -> Iterator[Client]:
    with Client() as client:
        yield client


# --- learning and predicting ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [FAST, STRICT, {}], ids=["vocabulary", "strict", "common nouns"]
)
def test_it_learns_to_name_new_pictures(
    client: Client, server: ClipServer, options: dict[str, Any]
) -> None:
    server.limits = server.limits.model_copy(update={"classes": 2000})
    classifier = CraFTClassifier(client, **options).fit(list(PICTURES), NAMES)
    new_pictures, new_labels = CLIP.pictures(10, seed=1)
    new_names = [CLIP.names[label] for label in new_labels]
    plain = CLIP.log_probs(CLIP.features(new_pictures), CLIP.names, ["a photo of a {}."])[0]
    assert classifier.classes_.tolist() == CLIP.names
    before = (plain.argmax(axis=1) == new_labels).mean()
    assert classifier.score(list(new_pictures), new_names) > before + 0.1
    assert set(classifier.predict(list(new_pictures))) <= set(CLIP.names)


@pytest.mark.parametrize("options", [FAST, STRICT], ids=["open text", "strict"])
def test_probabilities_are_the_adapters_on_the_models_answers(
    client: Client, options: dict[str, Any]
) -> None:
    classifier = CraFTClassifier(client, **options).fit(list(PICTURES), NAMES)
    new_pictures, _ = CLIP.pictures(3, seed=1)
    config = classifier.adapter_.config
    codes = classifier.adapter_.codes if config.codes else None
    answers = CLIP.log_probs(
        CLIP.features(new_pictures), config.scored, config.templates, config.context, codes
    )
    expected = classifier.adapter_.head(answers)
    log_proba = classifier.predict_log_proba(list(new_pictures))
    np.testing.assert_allclose(log_proba, expected, atol=0.1)
    proba = classifier.predict_proba(list(new_pictures))
    np.testing.assert_allclose(proba, np.exp(log_proba), atol=1e-5)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-12)


def test_labels_may_be_row_numbers_of_the_classes(client: Client) -> None:
    classifier = CraFTClassifier(client, classes=CLIP.names, **FAST)
    classifier.fit(list(PICTURES), LABELS)
    assert classifier.classes_.tolist() == [0, 1, 2, 3]
    assert classifier.adapter_.config.classes == CLIP.names
    assert (classifier.predict(list(PICTURES)) == LABELS).mean() > 0.7


def test_columns_follow_classes_whatever_the_order_of_the_names(client: Client) -> None:
    shuffled = [CLIP.names[index] for index in (2, 0, 3, 1)]
    named = CraFTClassifier(client, classes=shuffled, **FAST).fit(list(PICTURES), NAMES)
    assert named.classes_.tolist() == sorted(shuffled)
    assert named.adapter_.config.classes == sorted(shuffled)
    assert named.score(list(PICTURES), NAMES) > 0.7


def test_pictures_may_be_paths_files_images_or_arrays(client: Client, tmp_path: Path) -> None:
    forms: list[Any] = []
    for index, pixels in enumerate(PICTURES[:4]):
        path = tmp_path / f"{index}.png"
        Image.fromarray(pixels).save(path)
        forms += [pixels, path, str(path), path.read_bytes(), Image.open(path)]
    classifier = CraFTClassifier(client, **FAST).fit(list(PICTURES), NAMES)
    log_proba = classifier.predict_log_proba(forms).reshape(4, 5, -1)
    for form in range(1, 5):
        np.testing.assert_array_equal(log_proba[:, form], log_proba[:, 0])


def test_grey_and_unusual_modes_become_files(client: Client) -> None:
    grey = np.full((8, 8), 100, np.uint8)
    coloured = Image.fromarray(PICTURES[0])
    classifier = CraFTClassifier(client, **FAST).fit(list(PICTURES), NAMES)
    found = classifier.predict([grey, coloured.convert("CMYK"), coloured.convert("RGBA")])
    assert len(found) == 3


def test_it_counts_what_fitting_was_charged_and_leaves_no_image_set(
    client: Client, server: ClipServer
) -> None:
    classifier = CraFTClassifier(client, **FAST).fit(list(PICTURES), NAMES)
    assert classifier.units_ == server.charged
    assert classifier.units_.images == len(PICTURES)
    assert classifier.result_.units.queries == 1
    assert classifier.result_.units.texts == 4 + 30
    assert server.image_sets == {}
    before = server.charged
    classifier.predict(list(PICTURES))
    assert server.charged.queries - before.queries == classifier.adapter_.config.prompts
    assert server.charged.images == before.images, "known pictures are not encoded again"
    assert server.image_sets == {}


def test_without_a_client_the_environment_names_the_server(server: ClipServer) -> None:
    classifier = CraFTClassifier(**FAST).fit(list(PICTURES), NAMES)
    assert classifier.score(list(PICTURES), NAMES) > 0.7


def test_another_revision_of_the_model_is_refused(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = CraFTClassifier(client, **FAST).fit(list(PICTURES), NAMES)
    monkeypatch.setattr("tests.client.wire_server.REVISION", "another")
    with pytest.raises(CraftError, match="Fit it anew"):
        classifier.predict(list(PICTURES))


def test_strict_access_asks_about_the_classes_alone(client: Client, server: ClipServer) -> None:
    classifier = CraFTClassifier(client, **STRICT).fit(list(PICTURES), NAMES)
    units = classifier.result_.units
    assert 1 < units.queries <= 8
    assert units.texts == 4 * units.queries
    assert classifier.adapter_.config.access_mode == "strict"


def test_class_names_among_the_texts_are_left_out(client: Client) -> None:
    classifier = CraFTClassifier(client, texts=["thing 1", "Class 2", "thing 3"])
    classifier.fit(list(PICTURES), NAMES)
    assert classifier.result_.units.texts == 4 + 2


# --- the run directory ----------------------------------------------------------------------------


def test_the_run_directory_is_kept_if_named(client: Client, tmp_path: Path) -> None:
    classifier = CraFTClassifier(client, run_dir=tmp_path / "run", **FAST)
    classifier.fit(list(PICTURES), NAMES)
    journal = Journal.open(tmp_path / "run")
    assert journal.adapter().digest == classifier.adapter_.digest
    with pytest.raises(JournalError, match="already holds"):
        classifier.fit(list(PICTURES), NAMES)


def test_without_a_run_directory_nothing_is_left_behind(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    CraFTClassifier(client, **FAST).fit(list(PICTURES), NAMES)
    assert list(tmp_path.iterdir()) == []


# --- kept, published, watched ---------------------------------------------------------------------


def fitted(client: Client, **options: Any) -> CraFTClassifier:
    return CraFTClassifier(client, **{**FAST, **options}).fit(list(PICTURES), NAMES)


def test_a_saved_classifier_predicts_in_another_place_without_a_key_in_any_file(
    client: Client, tmp_path: Path
) -> None:
    options = {"seed": np.int64(3), "classes": tuple(CLIP.names), "run_dir": tmp_path / "run"}
    classifier = fitted(client, **options)
    classifier.save(tmp_path / "kept")
    for file in (tmp_path / "kept").iterdir():
        assert KEY.encode() not in file.read_bytes()
    with Client() as other:
        loaded = CraFTClassifier.load(tmp_path / "kept", client=other)
        assert loaded.client is other
        np.testing.assert_array_equal(
            loaded.predict_log_proba(list(PICTURES)), classifier.predict_log_proba(list(PICTURES))
        )
    assert loaded.classes_.tolist() == classifier.classes_.tolist()
    assert loaded.units_ == classifier.units_
    assert (loaded.seed, loaded.texts, loaded.run_dir) == (3, FAST["texts"], None)
    # Without a client the environment names the server.
    assert CraFTClassifier.load(tmp_path / "kept").score(list(PICTURES), NAMES) > 0.7


def test_a_path_among_the_arguments_is_saved_as_its_path(client: Client, tmp_path: Path) -> None:
    sentences = tmp_path / "sentences.json"
    sentences.write_text(json.dumps({name: [f"a {name}"] for name in CLIP.names}))
    options = {"recipe": "descriptions", "texts": None, "options": {"file": sentences}}
    fitted(client, **options).save(tmp_path / "kept")
    assert CraFTClassifier.load(tmp_path / "kept").options == {"file": str(sentences)}


def test_a_folder_makes_nobody_run_a_file_that_it_names(client: Client, tmp_path: Path) -> None:
    ran, saved = tmp_path / "ran", tmp_path / "saved"
    method = tmp_path / "method.py"
    method.write_text(f"open({str(ran)!r}, 'w').close()\ndef tune(run): ...\n")
    fitted(client).save(saved)
    file = saved / ESTIMATOR_FILE
    document = json.loads(file.read_text())
    document["arguments"] |= {"recipe": f"{method}:tune"}
    file.write_text(json.dumps(document))
    with pytest.raises(DataError, match="run only where you name it"):
        CraFTClassifier.load(saved)
    assert not ran.exists()
    assert CraFTClassifier.load(saved, recipe="craftbox").recipe == "craftbox"


def test_a_saved_classifier_of_row_numbers_predicts_those(client: Client, tmp_path: Path) -> None:
    classifier = CraFTClassifier(client, classes=CLIP.names, **FAST).fit(list(PICTURES), LABELS)
    classifier.save(tmp_path)
    loaded = CraFTClassifier.load(tmp_path, client=client)
    assert loaded.classes_.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(
        loaded.predict(list(PICTURES)), classifier.predict(list(PICTURES))
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("{", "JSON"),
        ("{}", "labels"),
        ('{"labels": "names", "arguments": {"client": 1}, "units": {}}', "client"),
        ('{"labels": "names", "arguments": {"nothing": 1}, "units": {}}', "nothing"),
    ],
)
def test_a_folder_without_a_classifier_is_refused_by_name(
    client: Client, tmp_path: Path, text: str | None, message: str
) -> None:
    fitted(client).adapter_.save(tmp_path)
    if text is not None:
        (tmp_path / "estimator.json").write_text(text)
    with pytest.raises(DataError, match=message) as raised:
        CraFTClassifier.load(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_a_pickle_holds_no_key_and_works_with_a_client_given_again(client: Client) -> None:
    classifier = fitted(client)
    pickled = pickle.dumps(classifier)
    assert KEY.encode() not in pickled
    loaded = pickle.loads(pickled)
    assert loaded.client is None
    assert classifier.client is client
    loaded.set_params(client=client)
    np.testing.assert_array_equal(
        loaded.predict_proba(list(PICTURES)), classifier.predict_proba(list(PICTURES))
    )
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(client)


@pytest.mark.parametrize("copied", [clone, copy.copy, copy.deepcopy])
def test_a_clone_or_copy_has_the_client_itself(client: Client, copied: Any) -> None:
    classifier = CraFTClassifier(client, texts=["a thing"])
    twin = copied(classifier)
    assert twin is not classifier
    assert twin.client is client
    assert (twin.texts is classifier.texts) == (copied is copy.copy)


def test_a_copy_is_fitted_as_its_original_is(client: Client) -> None:
    classifier = fitted(client)
    twin = copy.deepcopy(classifier)
    assert twin.adapter_ is not classifier.adapter_
    np.testing.assert_array_equal(
        twin.predict_proba(list(PICTURES)), classifier.predict_proba(list(PICTURES))
    )


def scored_by_workers(client: Client) -> Any:
    classifier = CraFTClassifier(client, **FAST)
    return cross_val_score(classifier, list(PICTURES), NAMES, cv=2, n_jobs=2, error_score="raise")


def test_workers_of_n_jobs_say_that_they_have_no_client(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CRAFT_API_KEY")
    with pytest.raises(MissingKey, match="no client") as caught:
        scored_by_workers(client)
    assert "n_jobs" in caught.value.remedy
    assert "set_params(client=" in caught.value.remedy


def test_workers_of_n_jobs_take_the_client_of_the_environment(client: Client) -> None:
    assert scored_by_workers(client).mean() > 0.5


def test_publishing_gives_the_card_and_the_same_adapter_again_is_free(
    client: Client, server: ClipServer
) -> None:
    classifier = fitted(client)
    card = classifier.publish("shapes")
    assert (card.name, card.version, card.classes) == ("shapes", 1, CLIP.names)
    before = server.charged
    assert classifier.publish("shapes").version == 1
    assert server.charged == before


@pytest.mark.parametrize("call", ["publish", "save"])
def test_what_is_not_fitted_is_neither_published_nor_saved(client: Client, call: str) -> None:
    with pytest.raises(NotFittedError):
        getattr(CraFTClassifier(client), call)("x")


def test_fitting_says_where_it_is_and_what_it_was_charged(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier = fitted(client, verbose=True)
    charged = f"charged {units_line(classifier.units_)}"
    last = capsys.readouterr().err.splitlines()[-1]
    assert "held-out accuracy" in last
    assert last.endswith(charged)


@pytest.mark.parametrize("verbose", [None, False])
def test_where_nobody_watches_nothing_is_said(
    client: Client, capsys: pytest.CaptureFixture[str], verbose: bool | None
) -> None:
    fitted(client, verbose=verbose)
    assert capsys.readouterr().err == ""


class Notebook:
    """What IPython has in a notebook: displays that are made once and changed."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.made = 0

    def HTML(self, text: str) -> str:  # noqa: N802 - IPython's name
        return text

    def display(self, shown: str, *, display_id: bool) -> "Notebook":
        assert display_id
        self.made += 1
        self.update(shown)
        return self

    def update(self, shown: str) -> None:
        self.shown.append(shown)


def test_in_a_notebook_one_output_is_redrawn(
    client: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = Notebook()
    shell = SimpleNamespace(kernel=object())
    ipython = SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", notebook)
    classifier = fitted(client)
    assert notebook.made == 1
    assert len(notebook.shown) > 1
    assert units_line(classifier.units_) in notebook.shown[-1]
    assert capsys.readouterr().err == ""
    del shell.kernel  # the prompt of a terminal
    fitted(client)
    assert notebook.made == 1


def test_a_notebook_shows_an_error_as_the_cells_line_and_a_message(client: Client) -> None:
    cell = "def run(classifier, X, y):\n    classifier.fit(X, y)\n"
    linecache.cache["<cell>"] = (len(cell), None, cell.splitlines(keepends=True), "<cell>")
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(cell, "<cell>", "exec"), names)
    with pytest.raises(SettingsError) as raised:
        names["run"](CraFTClassifier(client, population=2), list(PICTURES), NAMES)
    first, second = raised.value._render_traceback_()
    assert first == "----> classifier.fit(X, y)"
    assert second == f"SettingsError: {raised.value}"
    assert "population" in second


# --- scikit-learn ---------------------------------------------------------------------------------


def test_scikit_learn_takes_it_for_a_classifier_of_any_input() -> None:
    classifier = CraFTClassifier()
    assert is_classifier(classifier)
    tags = get_tags(classifier)
    assert tags.no_validation
    assert tags.target_tags.required


def test_parameters_are_got_set_and_cloned(client: Client) -> None:
    classifier = CraFTClassifier(client, classes=["a", "b"], budget=99)
    assert classifier.get_params()["budget"] == 99
    twin = clone(classifier).set_params(seed=7)
    assert twin.seed == 7
    assert classifier.seed == 1
    assert twin.client is client
    assert twin.classes == ["a", "b"]


def test_cloning_forgets_the_fit(client: Client) -> None:
    classifier = CraFTClassifier(client, **FAST).fit(list(PICTURES), NAMES)
    with pytest.raises(NotFittedError):
        clone(classifier).predict(list(PICTURES))


def test_the_key_is_in_no_repr(client: Client) -> None:
    classifier = CraFTClassifier(client)
    assert KEY not in repr(classifier)
    assert KEY not in classifier._repr_html_()


def test_cross_validation_works(client: Client) -> None:
    classifier = CraFTClassifier(client, **FAST)
    scores = cross_val_score(classifier, list(PICTURES), NAMES, cv=3)
    assert scores.shape == (3,)
    assert scores.mean() > 0.5


def test_it_ends_a_pipeline(client: Client) -> None:
    class Darken:
        def fit(self, X: Any, y: Any = None) -> Any:
            return self

        def transform(self, X: Any) -> list[Any]:
            return [(picture * 0.9).astype(np.uint8) for picture in X]

    pipeline = Pipeline([("darken", Darken()), ("craft", CraFTClassifier(client, **FAST))])
    pipeline.fit(list(PICTURES), NAMES)
    assert pipeline.score(list(PICTURES), NAMES) > 0.5


# --- what cannot be used --------------------------------------------------------------------------


def _file(size: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ("cat.png", "one picture"),
        ([], "no picture"),
        ([_file(), 3], r"X\[1\]: is a int"),
        ([_file(), "no/such.png"], r"X\[1\]: 'no/such.png': No such file"),
        ([np.zeros((8, 8, 3), int)], r"X\[0\]: has values of type int64"),
        ([np.zeros((8, 8, 2), np.uint8)], r"X\[0\]: is an array"),
        ([np.zeros((0, 8), np.uint8)], r"X\[0\]: is an array"),
    ],
)
def test_pictures_that_cannot_be_used_are_named_and_nothing_is_sent(
    client: Client, server: ClipServer, pictures: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        CraFTClassifier(client, **FAST).fit(pictures, ["a"] * len(pictures))
    assert server.calls == []


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (LABELS, None, "names, in their order"),
        (LABELS, CLIP.names[:3], "outside 0 to 2"),
        (NAMES, CLIP.names[:3], "holds 'class 3'"),
        (LABELS + 0.5, CLIP.names, "of type float64"),
    ],
)
def test_labels_that_cannot_be_used_are_told_and_nothing_is_sent(
    client: Client, server: ClipServer, labels: Any, classes: Any, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        CraFTClassifier(client, classes=classes, **FAST).fit(list(PICTURES), labels)
    assert server.calls == []


def test_a_class_without_pictures_is_told_before_anything_is_charged(
    client: Client, server: ClipServer
) -> None:
    classifier = CraFTClassifier(client, classes=[*CLIP.names, "class 9"], **FAST)
    with pytest.raises(SettingsError, match="'class 9' has no picture"):
        classifier.fit(list(PICTURES), NAMES)
    assert server.charged == Units()


def test_pictures_and_labels_of_different_number_are_refused(client: Client) -> None:
    with pytest.raises(ValueError, match="inconsistent numbers"):
        CraFTClassifier(client, **FAST).fit(list(PICTURES), NAMES[:-1])


def test_an_impossible_option_is_told_when_fitting(client: Client, server: ClipServer) -> None:
    with pytest.raises(SettingsError, match="population"):
        CraFTClassifier(client, population=2).fit(list(PICTURES), NAMES)
    assert server.calls == []


def test_a_failed_fit_leaves_no_image_set(client: Client, server: ClipServer) -> None:
    server.budgets["texts"] = 33
    with pytest.raises(SettingsError, match="texts budget"):
        CraFTClassifier(client, **FAST).fit(list(PICTURES), NAMES)
    assert server.charged == Units()
    assert server.image_sets == {}
