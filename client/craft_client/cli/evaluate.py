"""`craft zero-shot` and `craft evaluate`: accuracies on a split of images, and their cost."""

from __future__ import annotations

import hashlib
import os
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from craft_client.cli.options import (
    PLAIN_TEMPLATE,
    AsJson,
    Data,
    Key,
    Model,
    Split,
    Template,
    Url,
    adapter_names,
    argument,
    flag,
    option,
    run_folders,
)
from craft_client.cli.root import command
from craft_client.cli.session import check_files, connect, reporting_client, upload
from craft_client.cli.show import document, say, table, units_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from craft_client.api import Client
    from craft_client.data import Dataset, Sample
    from craft_client.data import Split as DataSplit
    from craft_client.evaluation import Evaluation, Metrics
    from craft_client.journal import Journal
    from craft_client.remote import RemoteBlackBox
    from craft_shared.adapter import Adapter
    from craft_shared.units import Units
    from craft_shared.wire import ImageSet, ModelCard

# The seven that CLIP's authors found best together on ImageNet (github.com/openai/CLIP, notebooks).
CLIP_TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
_TOP_UP = "Ask the provider for a top-up, or use a split with fewer pictures."


@command(
    "Tune and measure",
    "craft zero-shot --data digits",
    "craft zero-shot --data digits --ensemble --json",
    "craft zero-shot --data digits --template 'a scan of the number {}.'",
    name="zero-shot",
)
def zero_shot(
    data: Data,
    split: Split = "test",
    template: Template = PLAIN_TEMPLATE,
    ensemble: Annotated[
        bool, flag("--ensemble", "CLIP's seven templates together, in place of one.")
    ] = False,
    model: Model = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Measure the untuned model on labelled pictures."""
    templates = CLIP_TEMPLATES if ensemble else (template,)
    _report(measure_zero_shot(data, split, templates, model, url, key), as_json=as_json)


@dataclass(frozen=True)
class Measured:
    """Metrics by name; what was measured; on which images; what it cost."""

    metrics: dict[str, Metrics]
    about: dict[str, Any]
    pictures: int
    charged: Units  # by this process alone
    notes: Sequence[str]  # on the data
    run: str | None = None  # what the ledger calls all calls, where they are of one run
    evaluation: Evaluation | None = None  # what a run directory may keep
    image_set: str | None = None  # that holds the images now

    @property
    def accuracies(self) -> dict[str, float]:
        """By name, percent."""
        return {name: one.accuracy for name, one in self.metrics.items()}

    @property
    def document(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            **self.about,
            "pictures": self.pictures,
            **self.accuracies,
            "intervals": {name: list(one.interval) for name, one in self.metrics.items()},
            "image_set": self.image_set,
            "charged": self.charged.model_dump(),
        }


def measure_zero_shot(
    data: Path,
    split: str,
    templates: Sequence[str],
    model: str | None,
    url: str | None,
    key: str | None,
) -> Measured:
    """Scores the templates over HTTP; of several, the mean of their log-probabilities counts.

    That is the score of the mean of a class's text embeddings, which is how CLIP's own ensemble
    (Radford et al., ICML 2021, section 3.1.4) is made where embeddings are at hand.
    """
    from craft_client.blackbox import check_budgets
    from craft_client.data import labels_of, notes
    from craft_client.evaluation import metrics_of
    from craft_client.remote import check_prompts

    dataset, samples = _pictures(data, split)
    with connect(url, key) as client:
        card = client.model(model)
        paths = [sample.path for sample in samples]
        digests = check_files(paths, card.limits)
        image_set = client.create_image_set(card.name)
        black_box = _black_box(client, image_set, dataset.classes, card)
        need = _need(black_box.with_count(len(samples)), len(templates))
        check_budgets(client.budgets(), need, remedy=_TOP_UP)
        check_prompts(client, image_set, dataset.classes, templates=templates)
        image_set, uploaded = upload(client, image_set, paths, card.limits)
        scores = replace(black_box, image_set=image_set).score(templates=templates)
    mean = scores.log_probs.mean(axis=0)
    return Measured(
        {"accuracy": metrics_of(mean, labels_of(samples), dataset.classes)},
        {
            "data": str(data),
            "split": split,
            "model": card.name,
            "revision": card.revision,
            "templates": list(templates),
        },
        len(samples),
        uploaded + scores.charged,
        (*dataset.notes, *notes(samples, digests)),
        image_set=image_set.id,
    )


@command(
    "Tune and measure",
    "craft evaluate runs/digits-16shots-seed1 --data digits",
    "craft evaluate --adapter alice/digits --data digits --split validation",
)
def evaluate(
    data: Data,
    run: Annotated[Path | None, argument("[RUN]", "A run directory.", run_folders)] = None,
    adapter: Annotated[
        str | None,
        option("A published adapter instead of a run.", autocompletion=adapter_names),
    ] = None,
    split: Split = "test",
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Measure a tuned adapter on labelled pictures: a run's, or a published one.

    A run keeps it: `craft runs`, `craft compare` and `craft report` lead with it.
    """
    if (run is None) == (adapter is None):
        raise typer.BadParameter("name either a run directory or --adapter NAME.")
    kept = None
    if run is not None:
        measured = measure_run(run, data, split, url, key)
        kept = keep(run, measured.evaluation)
    else:
        measured = _measure_published(str(adapter), data, split, url, key)
    _report(measured, as_json=as_json)
    if run is not None and kept:
        _report_evaluation(run, kept, url, key)


def keep(run: Path, evaluation: Evaluation | None) -> Evaluation | None:
    """Writes an evaluation into its run, or says why not; gives what was written."""
    from craft_client.evaluation import keep_evaluation

    if evaluation is not None and (reason := keep_evaluation(run, evaluation)):
        say(f"Not kept in '{run}': {reason}.")
        return None
    return evaluation


def _report_evaluation(run: Path, evaluation: Evaluation, url: str | None, key: str | None) -> None:
    """Sends it to the server where the run had reported itself; what goes wrong is said."""
    from craft_client.calls import message
    from craft_client.exceptions import CraftError, NotFound
    from craft_client.journal import Journal
    from craft_shared.names import made_sound
    from craft_shared.run_reports import RunEvaluation

    low, high = evaluation.interval
    worth = message(
        RunEvaluation,
        subject=made_sound(evaluation.subject)[:200],
        n=evaluation.n,
        before=evaluation.before.accuracy,
        accuracy=evaluation.accuracy,
        low=low,
        high=high,
    )
    try:
        with reporting_client(url, key) as client:
            client.report_evaluation(Journal.open(run).document["run"], worth)
    except NotFound:  # it had not reported itself, or the report was deleted
        pass
    except CraftError as error:
        say(f"The server's console does not show it: {error.message}")


def measure_run(
    run: Path,
    data: Path,
    split: str,
    url: str | None,
    key: str | None,
    *,
    among_its_classes: bool = False,
    once: bool = False,
) -> Measured:
    """Scores the prompts of a run's adapter over HTTP and applies its head here.

    The adapter may know more classes than the data have. Every class is scored and charged, but
    with `among_its_classes` a prediction is the likeliest of the data's. With `once` the same
    evaluation, under way or done, is continued for as long as the server remembers its calls.
    """
    import numpy as np

    from craft_client.blackbox import check_budgets
    from craft_client.data import digest_of_images, labels_of, notes
    from craft_client.evaluation import Evaluation, metrics_of
    from craft_client.exceptions import CraftError, ImageSetNotFound
    from craft_client.journal import Journal
    from craft_client.remote import classify_here, units_here
    from craft_shared.printing import printable
    from craft_shared.units import Units

    dataset, samples = _pictures(data, split)
    journal = Journal.open(run)
    adapter = journal.adapter()
    config = adapter.config
    columns = _columns(dataset.classes, config.classes)
    labels, asked = columns[labels_of(samples)], np.arange(len(config.classes))
    if among_its_classes:
        labels, asked = labels_of(samples), columns
    classes = [config.classes[column] for column in asked]
    digest = _digest(journal, adapter, samples) if once else uuid.uuid4().hex
    name = f"evaluation-{digest}"
    with connect(url, key, run=name) as client:
        card = client.model(config.model)
        if card.revision != config.revision:
            raise CraftError(
                f"The adapter was tuned on revision {config.revision} of '{card.name}'; the server "
                f"hosts {card.revision}. Nothing was charged.",
                remedy="Tune again on the model that the server hosts now.",
            )
        pictures = [sample.path for sample in samples]
        digests = check_files(pictures, card.limits)
        image_set = client.create_image_set(card.name, idempotency_key=f"{name}/image-set")
        calls = name
        if once:
            try:
                image_set = client.image_set(image_set.id)
            except ImageSetNotFound:  # It was deleted since.
                calls = f"{name}-{uuid.uuid4().hex}"
                image_set = client.create_image_set(card.name)
        if not image_set.count:
            expected = _black_box(client, image_set, config.scored, card).with_count(len(samples))
            need = units_here(config, expected) + Units(requests=1)
            check_budgets(client.budgets(), need, remedy=_TOP_UP)
        image_set, uploaded = upload(
            client,
            image_set,
            pictures[image_set.count :],
            card.limits,
            idempotency_key=f"{calls}/upload",
        )
        black_box = replace(_black_box(client, image_set, config.scored, card), run=calls)
        scores, refined = classify_here(adapter, black_box, pictures)
    numbers = black_box.output.level != "label"
    before = metrics_of(scores.log_probs[0][:, asked], labels, classes, calibrated=numbers)
    after = metrics_of(
        refined[:, asked], labels, classes, calibrated=numbers or config.head != "none"
    )
    evaluation = Evaluation(
        **after.model_dump(),
        data=printable(dataset.root.resolve().name),  # as the run names it
        split=cast("DataSplit", split),
        model=card.name,
        revision=card.revision,
        adapter=adapter.digest,
        digest=digest_of_images(digests, [dataset.classes[one.label] for one in samples]),
        before=before,
        charged=uploaded + scores.charged,
    )
    return Measured(
        {"accuracy_before": before, "accuracy_after": after},
        {
            "run": str(run),
            "data": dataset.name,
            "split": split,
            "model": card.name,
            "revision": card.revision,
        },
        len(samples),
        evaluation.charged,
        (*dataset.notes, *notes(samples, digests), *_tuned_on(journal, samples, digests)),
        name,
        evaluation,
        image_set.id,
    )


def _digest(journal: Journal, adapter: Adapter, samples: Sequence[Sample]) -> str:
    """Of a run, its adapter and the files that it is measured on: as long as it stays, they do."""
    files = [
        (os.fspath(sample.path), sample.label, about.st_size, about.st_mtime_ns)
        for sample in samples
        for about in [sample.path.stat()]
    ]
    measured = repr((journal.document.get("run"), adapter.digest, files))
    return hashlib.sha256(measured.encode(errors="surrogateescape")).hexdigest()


def _tuned_on(
    journal: Journal, samples: Sequence[Sample], digests: Sequence[str]
) -> tuple[str, ...]:
    """A line on images that the run was tuned on, if there are any among these."""
    from craft_client.data import in_common

    about = journal.document
    # A run that an earlier version began has no word of them.
    tuned = zip(about.get("pictures", ()), about.get("digests", ()), strict=False)
    return in_common({digest: picture for picture, digest in tuned}, samples, digests)


def _measure_published(
    name: str, data: Path, split: str, url: str | None, key: str | None
) -> Measured:
    """Lets the server classify with a published adapter."""
    from craft_client.blackbox import check_budgets
    from craft_client.data import labels_of, notes
    from craft_client.evaluation import metrics_of
    from craft_client.remote import RemoteAdapter
    from craft_shared.units import Units

    dataset, samples = _pictures(data, split)
    with connect(url, key) as client:
        card = client.adapter(name)
        labels = _columns(dataset.classes, card.classes)[labels_of(samples)]
        remote = RemoteAdapter(client, card)
        paths = [sample.path for sample in samples]
        digests = check_files(paths, remote.limits)
        if card.visual:  # it is added to pixels, which an image set does not keep
            calls, sent, upload_units = len(remote.file_calls(paths)), len(paths), Units()
        else:
            calls, sent, upload_units = len(remote.row_calls(len(paths))), 0, Units(requests=1)
        own = Units() if card.pays == "publisher" else remote.units(calls, len(paths), sent=sent)
        check_budgets(client.budgets(), own + upload_units, remedy=_TOP_UP)
        if card.visual:
            image_set, uploaded, found = None, Units(), remote.classify_files(paths)
        else:
            empty = client.create_image_set(card.model)
            image_set, uploaded = upload(client, empty, paths, remote.limits)
            found = remote.classify_image_set(image_set)
    return Measured(
        {"accuracy_after": metrics_of(found.log_probs, labels, card.classes)},
        {
            "adapter": card.name,
            "version": card.version,
            "data": dataset.name,
            "split": split,
            "model": card.model,
            "revision": card.revision,
        },
        len(samples),
        uploaded + found.charged,
        (*dataset.notes, *notes(samples, digests)),
        image_set=image_set.id if image_set else None,
    )


def _report(measured: Measured, *, as_json: bool) -> None:
    for note in measured.notes:
        say(note)
    if as_json:
        document(measured.document)
        return
    names = {
        "accuracy": "zero-shot",
        "accuracy_before": "before (plain prompt)",
        "accuracy_after": "after (adapter)",
    }
    table(
        [f"{measured.about['split']} pictures: {measured.pictures:,}", "accuracy (95 % interval)"],
        [[names[field], str(metrics)] for field, metrics in measured.metrics.items()],
    )
    say(f"Charged: {units_line(measured.charged)}.")
    if image_set := measured.image_set:
        say(
            f"The pictures stay in image set {image_set}, free for the next evaluation; "
            f"'craft image-sets delete {image_set}' removes them."
        )


def _pictures(data: Path, split: str) -> tuple[Dataset, tuple[Sample, ...]]:
    from craft_client import data as pictures
    from craft_client.layouts import load_dataset

    dataset = load_dataset(data)
    return dataset, dataset.split(cast(pictures.Split, split))


def _columns(classes: Sequence[str], known: Sequence[str]) -> NDArray[np.int64]:
    """The data's C classes as indices into the adapter's [C]; DataError where it lacks one."""
    import numpy as np

    from craft_client.exceptions import DataError
    from craft_shared.names import same_text

    numbers = {same_text(name): number for number, name in enumerate(known)}
    unknown = [name for name in classes if same_text(name) not in numbers]
    if unknown:
        raise DataError(
            f"The adapter does not know {len(unknown)} of the data's classes, such as "
            f"'{unknown[0]}'.",
            remedy="Evaluate it on the classes that it was tuned for.",
        )
    return np.array([numbers[same_text(name)] for name in classes], np.int64)


def _black_box(
    client: Client, image_set: ImageSet, classes: Sequence[str], card: ModelCard
) -> RemoteBlackBox:
    """Answers in single precision, so that what is measured is what the server serves."""
    from craft_client.remote import RemoteBlackBox

    return RemoteBlackBox(client, image_set, classes, dtype="float32", card=card)


def _need(black_box: RemoteBlackBox, prompts: int) -> Units:
    """What scoring the prompts charges at least; known images are not encoded again."""
    from craft_client.blackbox import Question
    from craft_shared.units import Units

    return black_box.units(Question(prompts)) + Units(requests=1)
