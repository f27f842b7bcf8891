"""A tuning task, from images in a folder to a run on the server: begun, continued, reported.

What can be checked for free is checked before anything is paid for.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from craft_client.cli.session import check_budgets, check_files, connect, reporting_client, upload
from craft_client.cli.show import say, size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from craft_client.api import Client
    from craft_client.data import Dataset, Sample, Split
    from craft_client.journal import Journal
    from craft_client.remote import RemoteBlackBox
    from craft_client.run_report import RunReporter
    from craft_client.tune import TuneResult, TuneSettings
    from craft_shared.units import Units
    from craft_shared.wire import ImageSet, Level, Limits, ModelCard

# Measured on photographs: docs/output-levels.md.
_EXPECT: dict[Level, str] = {
    "label": "Expect four to seven tenths of what tuning gains from whole answers, for more cost.",
    "top_k": "Expect six to nine tenths of what tuning gains from whole answers, by k.",
    "probs": "Expect eight tenths of what tuning gains from whole answers, or more, by decimals.",
    "log_probs": "Expect about what tuning gains from whole answers; less, the more noise.",
}
_TRAFFIC = ("answer_bytes", "picture_bytes")


@dataclass(frozen=True)
class Task:
    """Settings, class names, and images of the folder `data`; what it has beside is in `others`.

    `settings_of` makes the settings anew for what a key may see (`output`, `prompt_limit` and
    `name_limit`), while the run has not begun.
    """

    settings: TuneSettings
    classes: Sequence[str]
    data: Path
    samples: Sequence[Sample]
    settings_of: Callable[..., TuneSettings] | None = None
    others: Sequence[tuple[Split | None, Sample]] = ()

    def of_key(self, card: ModelCard) -> Task:
        """The task as it is for a key that the model's card is for."""
        if self.settings_of is None:
            return self
        settings = self.settings_of(
            output=card.output,
            prompt_limit=card.prompts_per_image_set,
            name_limit=card.limits.classes,
        )
        return replace(self, settings=settings)


@dataclass(frozen=True)
class Tuned:
    """What a run came to."""

    result: TuneResult
    image_set: ImageSet  # its images on the server
    uploaded: Units  # what they were charged
    traffic: dict[str, int]  # of the whole run, see `_traffic`
    # Of the provider that was simulated when it began; None where none was.
    profile: dict[str, Any] | None


def new_task(
    dataset: Dataset,
    data: Path,
    recipe: str,
    shots: int,
    seed: int,
    *,
    shots_strict: bool,
    **options: Any,
) -> Task:
    """The task of a few shots of a data set in the folder `data`.

    `options` are those of `craft_client.paper_presets.recipe_settings`.

    Raises:
        DataError: images are missing.
        SettingsError: an option's value is impossible.
    """
    from craft_client.data import few_shot, fewer_note
    from craft_client.paper_presets import recipe_settings

    settings_of = partial(
        recipe_settings,
        recipe,
        dataset.name,
        shots,
        classes=dataset.classes,
        seed=seed,
        **options,
    )
    samples = few_shot(dataset.split("train"), shots, seed, dataset.classes, strict=shots_strict)
    if note := fewer_note(samples, shots, dataset.classes):
        say(note)
    others = dataset.beside(samples)
    return Task(settings_of(), dataset.classes, data, samples, settings_of, others)


def task_of(folder: Path) -> Task:
    """The task of a run that was begun."""
    from craft_client.data import Sample
    from craft_client.exceptions import DataError
    from craft_client.journal import Journal
    from craft_client.tune import run_settings

    journal = Journal.open(folder)
    if journal.whole:
        raise DataError(
            f"The run in '{folder}' came to its end.", remedy=f"See it: craft report {folder}"
        )
    settings = run_settings(journal)
    document = journal.document
    data = Path(document["data"])
    samples = [
        Sample(data / picture, label)
        for picture, label in zip(document["pictures"], document["labels"], strict=True)
    ]
    return Task(settings, document["classes"], data, samples)


def tune_task(
    task: Task,
    journal: Journal,
    model: str | None,
    url: str | None,
    key: str | None,
    *,
    report: bool = False,
) -> Tuned:
    """Checks everything that can be checked for free, then uploads, then tunes.

    `journal` is claimed; a run that it has is continued, otherwise one is begun. With `report`
    the run reports itself to the server's console; the run continues where that fails.
    """
    import numpy as np

    from craft_client.cli.progress import watch
    from craft_client.remote import RemoteBlackBox
    from craft_client.run_report import reported
    from craft_client.tune import tune

    labels = np.array([sample.label for sample in task.samples], np.int64)
    folder, begun = journal.folder, journal.document
    run: str = begun["run"] if begun else _run_name(folder)
    with connect(url, key, run=run) as client:
        if begun:
            image_set = client.image_set(begun["image_set"])
            card = client.model(image_set.model)
        else:
            card = client.model(model)
            task = task.of_key(card)
            image_set = _begin(task, journal, labels, client, run, card)
        image_set, uploaded = upload(
            client, image_set, task.samples[image_set.count :], card.limits, name=f"{run}/upload"
        )
        black_box = RemoteBlackBox(client, image_set, task.classes, run=run, card=card)
        with (
            watch() as show,
            _reporter(task, folder, image_set.model, run, url, key, wanted=report) as reporter,
            reported(reporter, show) as on_progress,
        ):
            result = tune(black_box, labels, task.settings, journal, on_progress)
    # A run that an earlier version began has no word of it.
    traffic = {name: journal.document[name] for name in _TRAFFIC if name in journal.document}
    return Tuned(result, image_set, uploaded, traffic, journal.document.get("profile"))


@contextmanager
def _reporter(
    task: Task,
    folder: Path,
    model: str,
    run: str,
    url: str | None,
    key: str | None,
    *,
    wanted: bool,
) -> Iterator[RunReporter | None]:
    """What reports the run, if it is to be; it says where the run is shown."""
    from craft_client.calls import message
    from craft_client.run_report import RunReporter
    from craft_shared.names import made_sound
    from craft_shared.run_reports import RunReport

    if not wanted:
        yield None
        return
    report = message(
        RunReport,
        title=made_sound(folder.resolve().name)[:200],
        model=made_sound(model)[:200],
        dataset=made_sound(task.data.resolve().name)[:200],
        recipe=task.settings.recipe,
        budget=task.settings.budget,
    )
    # Beside the run's own calls, and never in their way.
    with reporting_client(url, key) as client:
        say(f"Watch it: {client.base_url}/console/runs/{run}")
        yield RunReporter(
            client, run, report, lambda why: say(f"The run continues unreported: {why}")
        )


def _begin(
    task: Task,
    journal: Journal,
    labels: NDArray[np.int64],
    client: Client,
    run: str,
    card: ModelCard,
) -> ImageSet:
    """Checks what can be checked for free, and begins the run's journal."""
    from craft_client.copies import notes, twins_of
    from craft_client.remote import RemoteBlackBox, check_prompts
    from craft_client.tune import run_document
    from craft_shared.wire import Context

    settings, samples = task.settings, task.samples
    digests = check_files([sample.path for sample in samples], card.limits)
    for note in notes(samples, digests, twins_of(samples, task.others)):
        say(note)
    image_set = client.create_image_set(card.name)
    black_box = RemoteBlackBox(client, image_set, task.classes, card=card)
    expected = black_box.with_count(len(samples))
    budgets = client.budgets()
    traffic = _traffic(task, expected)
    about = run_document(
        expected,
        labels,
        settings,
        budgets=budgets,
        profile=card.profile,
        run=run,
        data=str(task.data.resolve()),
        pictures=[sample.path.relative_to(task.data).as_posix() for sample in samples],
        digests=digests,
        image_set=image_set.id,
        **traffic,
    )
    need = _need(settings, expected, card.limits)
    check_budgets(budgets, need, remedy="Use a smaller --budget, or ask the provider for a top-up.")
    context = Context(dim=settings.dim, seed=settings.seed, scale=settings.scale)
    scored = [*task.classes, *settings.texts]
    check_prompts(client, image_set, scored, templates=[settings.template], context=context)
    _say_level(card)
    answers, pictures = (size(traffic[name]) for name in _TRAFFIC)
    say(
        f"This run takes at most {need.queries:,} queries, receives at most {answers} of answers, "
        f"and uploads {pictures} of pictures."
    )
    journal.begin(about)
    return image_set


def _say_level(card: ModelCard) -> None:
    """Says what the key's answers show, if that is not everything."""
    from craft_shared.model_card import level_words
    from craft_shared.wire import EVERYTHING

    if card.output != EVERYTHING:
        expect = _EXPECT[card.output.level]
        say(f"The key sees {level_words(card.output)}. {expect} (docs/output-levels.md)")
    if card.prompts_per_image_set is not None:
        say(f"It may ask {card.prompts_per_image_set:,} different prompts about an image set.")


def _run_name(folder: Path) -> str:
    """What the server's ledger calls the run: after its directory, and like no other."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", folder.resolve().name).lstrip("-")[:100]
    return f"{readable}-{uuid.uuid4().hex}"


def _need(settings: TuneSettings, black_box: RemoteBlackBox, limits: Limits) -> Units:
    """What the run charges if no image has to be encoded anew."""
    from craft_shared.units import Units

    uploads = -(-black_box.image_set.count // limits.images_per_call)
    scores = (black_box.units(*question) for question in settings.questions(black_box.units))
    return sum(scores, Units(requests=uploads))


def _traffic(task: Task, black_box: RemoteBlackBox) -> dict[str, int]:
    """Bytes of log-probabilities that the run receives at most, and of images that it uploads.

    Images that the server knows already are uploaded too.
    """
    from craft_client.data import image_bytes_of

    questions = task.settings.questions(black_box.units)
    answers = sum(black_box.answer_bytes(*question) for question in questions)
    return dict(zip(_TRAFFIC, (answers, image_bytes_of(task.samples)), strict=True))
