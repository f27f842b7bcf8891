"""CraFT as a scikit-learn classifier of images."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d

from craft_client.api import Client
from craft_client.begin import begun, empty_image_set
from craft_client.exceptions import CraftError, DataError, MissingKey
from craft_client.journal import Journal
from craft_client.pictures import Picture, files
from craft_client.presets import recipe_settings
from craft_client.progress import watching
from craft_client.recipes import Option, is_file
from craft_client.remote import RemoteBlackBox, classify_here, filled
from craft_client.settings import SettingsError, Strategy, TuneSettings
from craft_client.tune import tune
from craft_shared.adapter import Adapter, AdapterError
from craft_shared.files import write_whole
from craft_shared.problems import FieldError, first_error
from craft_shared.text_files import NotTextError, read_text
from craft_shared.units import Measure, Units
from craft_shared.wire import AdapterCard, ModelCard, Scale

ESTIMATOR_FILE = "estimator.json"


class _Saved(BaseModel):
    """What a saved classifier has beside its adapter."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    labels: Literal["names", "rows"]  # what `classes_` holds: class names, or their numbers
    arguments: dict[str, Any]  # of the constructor
    units: Units  # that fitting was charged


# scikit-learn has no type hints, so its base classes are Any to the type checker.
class CraFTClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn has no types
    """A classifier tuned on a model that is only called, as `craft tune` does it.

    Images are paths, encoded files, PIL images, arrays, tensors or rows of a data set; see
    `craft_client.pictures` for what each may hold.
    Fitting and predicting send them to the server, which charges the key for both.

    Args:
        client: the connection; None for one made from CRAFT_URL and CRAFT_API_KEY when needed.
        classes: class names, where labels are row numbers of them (from 0). With None, or where
            labels are names already, the names are the labels.
        model: the server's name of the model; None for its first.
        texts: the vocabulary; None for common nouns. Class names among them are left out.
        strict: whether to ask about the class names alone.
        run_dir: keeps the run's journal in this new directory; None for a temporary one. Clones
            that are fitted, as in cross-validation, each need their own: leave it None there.
        verbose: whether fitting shows where it is and what it was charged; None where somebody
            watches, on a terminal or in a notebook.

    Clones and copies have the client itself. A pickle and what `save` writes have none, and so no
    key: give one with `set_params(client=...)` or `load(path, client=...)`, or by the environment.

    All other arguments are those of `craft_client.settings.TuneSettings`; None stands for the
    recipe's own value (see `craft_client.presets.recipe_settings`).

    Attributes:
        classes_: the labels in the order of the columns of `predict_proba`.
        adapter_: the tuned adapter (`craft_shared.adapter.Adapter`), to save or publish.
        result_: the run's `craft_client.tune.TuneResult`.
        units_: everything that `fit` was charged, uploads included.
    """

    classes_: NDArray[Any]

    def __init__(
        self,
        client: Client | None = None,
        *,
        classes: Sequence[str] | None = None,
        model: str | None = None,
        recipe: str = "craftbox",
        budget: int | None = None,
        budget_unit: Measure | None = None,
        seed: int = 1,
        population: int | None = None,
        dim: int | None = None,
        random_codes: int | None = None,
        scale: Scale | None = None,
        sigma: float | None = None,
        strategy: Strategy = "cma-es",
        search: bool = True,
        refinement: bool = True,
        consistency: bool = True,
        consistency_weight: float | None = None,
        template: str = "a photo of a {}.",
        texts: Sequence[str] | None = None,
        keep_texts: int | None = None,
        options: Mapping[str, Option] | None = None,
        strict: bool = False,
        run_dir: str | Path | None = None,
        verbose: bool | None = None,
    ) -> None:
        self.client = client
        self.classes = classes
        self.model = model
        self.recipe = recipe
        self.budget = budget
        self.budget_unit = budget_unit
        self.seed = seed
        self.population = population
        self.dim = dim
        self.random_codes = random_codes
        self.scale = scale
        self.sigma = sigma
        self.strategy = strategy
        self.search = search
        self.refinement = refinement
        self.consistency = consistency
        self.consistency_weight = consistency_weight
        self.template = template
        self.texts = texts
        self.keep_texts = keep_texts
        self.options = options
        self.strict = strict
        self.run_dir = run_dir
        self.verbose = verbose

    def fit(self, X: Iterable[Picture], y: ArrayLike) -> Self:
        """Tunes on images and their labels.

        Args:
            X: N images.
            y: N labels: class names, or row numbers of `classes`.

        Raises:
            SettingsError: an option or a label cannot be used; nothing was sent.
            DataError: an image cannot be used; nothing was sent.
            CraftError: see `craft_client.tune.tune`.
        """
        encoded = _files(X)
        check_consistent_length(encoded, y)
        self.classes_, names, labels = _encode_labels(y, self.classes)
        self._settings(labels, names)  # refused before anything is sent
        with self._connected() as client, tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "run" if self.run_dir is None else Path(self.run_dir)
            settings_of = partial(self._settings, labels, names)
            with (
                Journal.claimed(folder, new=True) as journal,
                begun(
                    client,
                    journal,
                    encoded,
                    labels,
                    names,
                    settings_of,
                    model=self.model,
                    temporary=True,
                ) as run,
                watching(self.verbose) as show,
            ):
                self.result_ = tune(
                    run.black_box,
                    labels,
                    run.settings,
                    journal,
                    lambda now: show(replace(now, units=run.uploaded + now.units)),
                    encoded,
                )
        self.adapter_ = self.result_.adapter
        self.units_ = run.uploaded + self.result_.units
        return self

    def predict_log_proba(self, X: Iterable[Picture]) -> NDArray[np.float32]:
        """Natural-log probabilities of N images, float32 [N, C], columns as `classes_`."""
        check_is_fitted(self)
        encoded = _files(X)
        config = self.adapter_.config
        with self._connected() as client, empty_image_set(client, config.model) as empty:
            if empty.revision != config.revision:
                raise CraftError(
                    f"The model '{config.model}' is not the one that this classifier was tuned on.",
                    remedy="Fit it anew.",
                )
            card = client.model(config.model)
            image_set, _ = filled(client, empty, encoded, card.limits)
            black_box = RemoteBlackBox(client, image_set, config.scored, card=card)
            return classify_here(self.adapter_, black_box, encoded)[1]

    def predict_proba(self, X: Iterable[Picture]) -> NDArray[np.float64]:
        """Probabilities of N images, float64 [N, C], columns as `classes_`."""
        probs = np.exp(self.predict_log_proba(X).astype(np.float64))
        normalised: NDArray[np.float64] = probs / probs.sum(axis=1, keepdims=True)
        return normalised

    def predict(self, X: Iterable[Picture]) -> NDArray[Any]:
        """The most probable label of each of N images."""
        rows = self.predict_log_proba(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[rows]
        return labels

    def publish(self, name: str, *, aliases: Sequence[str] = ()) -> AdapterCard:
        """Publishes the fitted adapter under a name, for all that call the server.

        The same adapter again is free. Its labels are the class names.

        Args:
            name: under the key's owner.
            aliases: that mean this version from then on.

        Returns:
            Its card, which says what one image costs.
        """
        check_is_fitted(self)
        with self._connected() as client:
            return client.publish(name, self.adapter_, aliases=aliases).adapter

    def save(self, path: str | Path) -> None:
        """Writes what was fitted, and the arguments but the client and `run_dir`, to a folder.

        It holds the adapter as `craft tune` writes it, and `estimator.json`.

        Raises:
            DataError: it cannot be written.
        """
        check_is_fitted(self)
        folder = Path(path)
        arguments = {name: value for name, value in self._arguments().items() if name != "run_dir"}
        saved = _Saved(
            labels="rows" if self.classes_.dtype.kind == "i" else "names",
            arguments=json.loads(json.dumps(arguments, default=_plain)),
            units=self.units_,
        )
        try:
            self.adapter_.save(folder)
            write_whole(folder / ESTIMATOR_FILE, saved.model_dump_json(indent=2).encode() + b"\n")
        except OSError as error:
            reason = f"cannot be written: {error.strerror or error}"
            raise DataError(f"'{folder}' {reason}.", remedy="Name another folder.") from error

    @classmethod
    def load(
        cls, path: str | Path, *, client: Client | None = None, recipe: str | None = None
    ) -> Self:
        """The classifier that `save` wrote, fitted; it has no `result_`.

        Args:
            path: the folder.
            client: what it asks through.
            recipe: the method's file and name, FILE.py:NAME, where it was fitted by one: a folder
                from elsewhere may name any file.

        Raises:
            DataError: the folder holds none, or one of a method's file that is not named.
        """
        folder = Path(path)
        try:
            adapter = Adapter.load(folder)
            saved = _Saved.model_validate_json(read_text(folder / ESTIMATOR_FILE))
            arguments = {**saved.arguments, **({} if recipe is None else {"recipe": recipe})}
            named = str(saved.arguments.get("recipe"))
            if is_file(named) and recipe is None:
                raise DataError(
                    f"The classifier in '{folder}' was fitted by '{named}', which is run only "
                    "where you name it.",
                    remedy=f"If that file is yours: load(path, recipe='{named}').",
                )
            classifier = cls(client, **arguments)
        except (AdapterError, OSError, NotTextError, TypeError, ValidationError) as error:
            reason = first_error(error) if isinstance(error, ValidationError) else error
            raise DataError(
                f"'{folder}' holds no classifier that can be used: {reason}.",
                remedy="Name a folder that CraFTClassifier.save wrote.",
            ) from error
        classes = adapter.config.classes
        classifier.classes_ = (
            np.arange(len(classes)) if saved.labels == "rows" else np.array(classes)
        )
        classifier.adapter_ = adapter
        classifier.units_ = saved.units
        return classifier

    def __copy__(self) -> Self:
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = copy.copy(self)
        twin.__dict__ = copy.deepcopy(self.__dict__, memo)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        # A client holds a key and connections.
        return {**super().__getstate__(), "client": None}

    def _arguments(self) -> dict[str, Any]:
        """All but the client; NumPy's numbers, as searches over parameters give, as Python's."""
        return {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in self.get_params(deep=False).items()
            if name != "client"
        }

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.no_validation = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags

    def _settings(
        self,
        labels: NDArray[np.int64],
        names: Sequence[str],
        card: ModelCard | None = None,
    ) -> TuneSettings:
        counts = np.unique(np.bincount(labels))
        given = self._arguments()
        for name in ("classes", "model", "run_dir", "verbose"):
            del given[name]
        return recipe_settings(
            given.pop("recipe"),
            "",
            int(counts[0]) if len(counts) == 1 else None,
            card=card,
            classes=names,
            vocabulary=given.pop("texts"),
            **given,
        )

    @contextmanager
    def _connected(self) -> Iterator[Client]:
        if self.client is not None:
            yield self.client
            return
        try:
            client = Client()
        except MissingKey as error:
            raise MissingKey(
                "The classifier has no client, and the environment names no key that can be used: "
                f"{error.message}",
                remedy="Give it a client: set_params(client=Client(...)). A pickle, as other "
                "processes get it with n_jobs, never holds one: set CRAFT_URL and CRAFT_API_KEY.",
            ) from error
        with client:
            yield client


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays, paths, and any mapping or sequence, as JSON has them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return dict(value) if isinstance(value, Mapping) else list(value)


def _encode_labels(
    y: ArrayLike, classes: Sequence[str] | None
) -> tuple[NDArray[Any], list[str], NDArray[np.int64]]:
    """Labels as scikit-learn shows them [C], class names [C], and each image's row [N]."""
    given = column_or_1d(np.asarray(y))
    rows = "Labels are row numbers of `classes`."
    if np.issubdtype(given.dtype, np.integer):
        if classes is None:
            remedy = "Give the classes' names, in their order."
            raise _wrong("classes", "labels are numbers.", remedy)
        if given.size and not 0 <= given.min() <= given.max() < len(classes):
            raise _wrong("y", f"holds labels outside 0 to {len(classes) - 1}.", rows)
        return np.arange(len(classes)), list(classes), given.astype(np.int64)
    if not all(isinstance(label, str) for label in given.tolist()):
        remedy = "Labels are class names, or row numbers of `classes`."
        raise _wrong("y", f"holds labels of type {given.dtype}.", remedy)
    labels = np.unique(given if classes is None else np.asarray(classes, dtype=str)).astype(str)
    unknown = sorted(set(given.tolist()) - set(labels.tolist()))
    if unknown:
        raise _wrong("y", f"holds '{unknown[0]}'.", "Name it in `classes`, or leave `classes` out.")
    return labels, labels.tolist(), np.searchsorted(labels, given.astype(str)).astype(np.int64)


def _wrong(field: str, message: str, remedy: str) -> SettingsError:
    error = FieldError(field=field, message=message, remedy=remedy)
    return SettingsError("The labels cannot be used.", errors=[error])


def _files(X: Iterable[Picture]) -> list[bytes]:
    encoded = list(files(X, "X"))
    if not encoded:
        error = FieldError(field="X", message="holds no picture.", remedy="Give at least one.")
        raise DataError("The pictures cannot be used.", errors=[error])
    return encoded
