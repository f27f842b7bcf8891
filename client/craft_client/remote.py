"""The black box over HTTP: what tuning asks, cut into calls within a model's limits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from craft_client.api import Client
from craft_client.blackbox import Question, Scores
from craft_client.calls import message
from craft_client.exceptions import CraftError, InvalidRequest, LimitExceeded, ProtocolError
from craft_client.limits import bodies, images_per_body, rows_per_call
from craft_client.pictures import Picture, file, pixels
from craft_client.predictions import AdapterPrediction, Prediction
from craft_shared.adapter import Adapter, AdapterConfig, prompted
from craft_shared.counting import blocks, calls, prediction_units, units_of_calls
from craft_shared.output import DType, scores_of, shown_bytes
from craft_shared.units import Units
from craft_shared.wire import (
    AdapterCard,
    Budget,
    Context,
    Cost,
    ImageSet,
    ImageUploadAnswer,
    Limits,
    ModelCard,
    Output,
    PredictionRequest,
)

if TYPE_CHECKING:
    from craft_shared.image_view import View

T = TypeVar("T")

PICTURES_AT_ONCE = 256  # that are made with a visual prompt, and held in memory


@dataclass(frozen=True)
class RemoteBlackBox:
    """A model on a server, N images that it has seen, and C class names: a `BlackBox`.

    Answers travel in half precision unless asked otherwise: a log-probability keeps eleven
    significant bits, which is enough to learn from, in half the bytes. Answers that the key's
    policy makes coarse travel in single precision: a rounded number is then the one it was rounded
    to.
    """

    client: Client
    image_set: ImageSet
    classes: Sequence[str]
    dtype: DType = "float16"  # in which answers travel
    run: str | None = None
    card: ModelCard | None = None  # the model's; asked for when None

    def with_count(self, count: int) -> RemoteBlackBox:
        """As it will be once the image set has so many images: for what is counted beforehand."""
        return replace(self, image_set=self.image_set.model_copy(update={"count": count}))

    @property
    def model(self) -> str:
        """The model's name."""
        return self.image_set.model

    @property
    def revision(self) -> str:
        """The model's opaque revision, to which the image set is bound."""
        return self.image_set.revision

    @cached_property
    def _card(self) -> ModelCard:
        return self.card or self.client.model(self.model)

    @property
    def output(self) -> Output:
        """What the key's answers show."""
        return self._card.output

    @property
    def prompt_limit(self) -> int | None:
        """How many different prompts the key may ask about the images; None is not bounded."""
        return self._card.prompts_per_image_set

    @property
    def image_size(self) -> int:
        """Side in pixels of the square that the model reads."""
        return self._card.image_size

    @property
    def view(self) -> View:
        """What of an image of another size the model reads."""
        from craft_shared.image_view import View

        card = self._card
        bilinear = card.interpolation == "bilinear"
        return View(card.image_size, card.image_size, card.resize_mode, bilinear=bilinear)

    @property
    def _dtype(self) -> DType:
        return self.dtype if self.output.whole else "float32"

    def score(
        self,
        *,
        templates: Sequence[str] = (),
        context: Context | None = None,
        codes: NDArray[np.float32] | None = None,
        texts: Sequence[str] = (),
        alone: bool = False,
        rows: Sequence[int] | None = None,
        images: Sequence[bytes] | None = None,
        name: str | None = None,
    ) -> Scores:
        """Scores the templates and after them the codes, [P, n, C + M], in the fewest calls.

        A prompt is one query however many calls the prompts are spread over, unless its answer
        alone is larger than the server sends at once, or its images than it takes; `units` has the
        number beforehand. See `craft_client.blackbox.BlackBox.score`.

        Raises:
            ProblemError: the server refused a call.
            AnswerLost: an answer did not arrive.
            LimitExceeded: an image is larger than any of the model's input size.
            ProtocolError: an answer shows another level than the first did: the policy changed.
        """
        found = np.zeros((0, 0), np.float32) if codes is None else codes
        scored = [*(() if alone else self.classes), *texts]
        chosen = rows if images is None else range(len(images))
        chosen = range(self.image_set.count) if chosen is None else chosen
        for number, image in enumerate(images or ()):
            if len(image) > self._most_image_bytes:
                raise LimitExceeded(
                    f"images[{number}]: it has {len(image):,} bytes, more than any of "
                    f"{self.image_size} x {self.image_size} pixels.",
                    remedy="Make images of the size that the model reads.",
                )
        scores = np.empty((len(templates) + len(found), len(chosen), len(scored)), np.float32)
        costs: list[Cost] = []
        answers: list[str] = []
        named = self.run is not None and name is not None
        cut = calls(
            len(scores),
            len(chosen),
            self._row_bytes(len(scored)),
            self._card.limits,
            most_images=None if images is None else self._images_per_call,
        )
        for number, (prompts, some) in enumerate(cut):
            code = slice(*(max(0, end - len(templates)) for end in (prompts.start, prompts.stop)))
            some_codes = found[code]
            own = images is None
            whole = own and rows is None and len(some) == self.image_set.count
            request = message(
                PredictionRequest,
                model=self.model,
                classes=scored,
                templates=list(templates[prompts.start : prompts.stop]),
                context=context if len(some_codes) else None,
                image_set=self.image_set.id if own else None,
                rows=[chosen[place] for place in some] if own and not whole else None,
                dtype=self._dtype,
            )
            answer = self.client.predict(
                request,
                codes=some_codes if len(some_codes) else None,
                images=None if images is None else images[some.start : some.stop],
                count=self.image_set.count,
                idempotency_key=f"{self.run}/{name}/{number}" if named else None,
            )
            read = self._read(answer, len(scored))
            scores[prompts.start : prompts.stop, some.start : some.stop] = read
            costs.append(answer.cost)
            answers.append(answer.idempotency_key)
        return Scores(
            log_probs=scores,
            charged=sum((cost.charged for cost in costs), Units()),
            cost_micros=sum(cost.cost_micros for cost in costs),
            budgets=costs[-1].budgets if costs else (),
            answers=answers,
        )

    def acknowledge(self, scores: Scores) -> None:
        """Lets the server delete the answers' bytes. Free; it never fails."""
        for answer in scores.answers:
            with suppress(CraftError):
                self.client.acknowledge(answer)

    def units(self, question: Question) -> Units:
        """What a question is charged."""
        scored = question.scored(len(self.classes))
        return units_of_calls(
            question.prompts,
            self._images(question),
            scored,
            self._row_bytes(scored),
            self._card.limits,
            most_images=self._images_per_call if question.sent else None,
        )

    def answer_bytes(self, question: Question) -> int:
        """Bytes of numbers and indices in the answer to a question, without calls' documents."""
        row_bytes = self._row_bytes(question.scored(len(self.classes)))
        return question.prompts * self._images(question) * row_bytes

    def _images(self, question: Question) -> int:
        return self.image_set.count if question.images is None else question.images

    def budgets(self) -> Sequence[Budget]:
        """All budgets that bound the key now. Asks the server; `Scores` has them too."""
        return self.client.budgets()

    @property
    def _most_image_bytes(self) -> int:
        """Of an RGB image of the model's size as PNG, whatever it shows."""
        size = self.image_size
        return size * (3 * size + 1) * 1001 // 1000 + 4096  # deflate's blocks and PNG's chunks

    @property
    def _images_per_call(self) -> int:
        return images_per_body(self._card.limits, self._most_image_bytes)

    def _row_bytes(self, scored: int) -> int:
        """Of one prompt's answer for one image.

        Raises:
            LimitExceeded: the server does not send as much.
        """
        row_bytes = shown_bytes(self.output, scored, np.dtype(self._dtype).itemsize)
        rows_per_call(self._card.limits, row_bytes, 1)
        return row_bytes

    def _read(self, answer: Prediction, scored: int) -> NDArray[np.float32]:
        if answer.output != self.output:
            raise ProtocolError(
                f"The answer is of level '{answer.output.level}'; the key's was "
                f"'{self.output.level}' when the run began.",
                remedy="The key's policy has changed: tune anew.",
            )
        return scores_of(answer.tensors, self.output, scored)


def filled(
    client: Client,
    image_set: ImageSet,
    images: Iterable[Picture],
    limits: Limits,
    on_chunk: Callable[[ImageUploadAnswer], None] = lambda answer: None,
    idempotency_key: str | None = None,
) -> tuple[ImageSet, Units]:
    """The image set with these images too, and what uploading them cost."""
    charged: list[Units] = []

    def count(answer: ImageUploadAnswer) -> None:
        charged.append(answer.cost.charged)
        on_chunk(answer)

    image_set = client.upload_images(
        image_set, images, limits=limits, on_chunk=count, idempotency_key=idempotency_key
    )
    return image_set, sum(charged, Units())


def check_prompts(
    client: Client,
    image_set: ImageSet,
    classes: Sequence[str],
    *,
    templates: Sequence[str],
    context: Context | None = None,
) -> None:
    """Asks the server about prompts and class names before images are paid for. Free.

    Only the server can tell whether a class name fits into its text context. A prediction on an
    image set that is still empty is refused for that reason alone, unless there is another.

    Raises:
        InvalidRequest: a template, the context or a class name cannot be used.
    """
    request = message(
        PredictionRequest,
        model=image_set.model,
        classes=list(classes),
        templates=list(templates),
        context=context,
        image_set=image_set.id,
    )
    try:
        client.predict(request)
    except InvalidRequest as error:
        others = [field for field in error.errors if not field.field.startswith("image_set")]
        if others:
            problem = error.problem.model_copy(update={"errors": others})
            raise InvalidRequest(problem) from error


def units_here(config: AdapterConfig, black_box: RemoteBlackBox) -> Units:
    """What `classify_here` is charged."""
    if not config.visual:
        return black_box.units(Question(config.prompts))
    asked = [
        Question(config.prompts, images=len(some), sent=True)
        for some in blocks(black_box.image_set.count, PICTURES_AT_ONCE)
    ]
    return sum(map(black_box.units, asked), black_box.units(Question(1)))


def classify_here(
    adapter: Adapter, black_box: RemoteBlackBox, pictures: Sequence[Picture] = ()
) -> tuple[Scores, NDArray[np.float32]]:
    """Scores an adapter's prompts [P, N, C + M] and applies its head here [N, C].

    The scores are of the images as they were uploaded. One that adds a visual prompt is then asked
    about the N `pictures` with it, which are encoded, and charged, for that.

    Raises:
        CraftError: the head reads answers that the key may not see, or the visual prompt is not of
            the model's size; nothing was charged.
    """
    config, seen = adapter.config, black_box.output
    if not (seen.whole or config.output.same_level(seen)):
        raise CraftError(
            f"The adapter reads answers of level '{config.output.level}'; the key sees the level "
            f"'{seen.level}'. Nothing was charged.",
            remedy="Use a key of that level, or publish the adapter and let the server apply it.",
        )
    asked: dict[str, Any] = {
        "templates": config.templates,
        "context": config.context,
        "codes": adapter.codes if config.codes else None,
    }
    if adapter.visual is None:
        scores = black_box.score(**asked, name="adapter")
        return scores, adapter.refined(scores.log_probs, seen)
    if config.visual != black_box.image_size:
        raise CraftError(
            f"The adapter's visual prompt is of {config.visual} pixels a side; the model reads "
            f"{black_box.image_size}. Nothing was charged.",
            remedy="Use the model that it was tuned on.",
        )
    plain = black_box.score(templates=config.templates[:1], name="plain")
    charged, refined = plain.charged, []
    for some in blocks(len(pictures), PICTURES_AT_ONCE):
        images = [
            file(prompted(pixels(pictures[place], black_box.view), adapter.visual))
            for place in some
        ]
        scores = black_box.score(**asked, images=images, name=f"adapter-{some.start}")
        charged += scores.charged
        refined.append(adapter.refined(scores.log_probs, seen))
    return replace(plain, charged=charged), np.concatenate(refined)


@dataclass(frozen=True)
class Classified:
    """Refined predictions of a published adapter."""

    log_probs: NDArray[np.float32]  # [N, C], by `craft_shared.output.scores_of`
    charged: Units  # what they cost
    output: Output  # what the answers show


@dataclass(frozen=True)
class RemoteAdapter:
    """A published adapter that classifies images, in as few calls as the limits allow."""

    client: Client
    card: AdapterCard  # the adapter's, its version included: a later version is not used

    @cached_property
    def _model(self) -> ModelCard:
        return self.client.model(self.card.model)

    @property
    def limits(self) -> Limits:
        """The model's."""
        return self._model.limits

    def row_calls(self, rows: int) -> list[range]:
        """Which rows of an image set each call classifies. Each call is `prompts` queries."""
        row_bytes = shown_bytes(self._model.output, len(self.card.classes))
        return blocks(rows, rows_per_call(self.limits, row_bytes, rows))

    def image_calls(
        self, images: Iterable[T], size_of: Callable[[T], int], top: int | None
    ) -> Iterator[list[T]]:
        """Which images each call sends and classifies, `top` classes of each, or all.

        Each call is `prompts` queries. `size_of` gives the bytes of what stands for an image.
        """
        seen, count = self._model.output, self.limits.images_per_call
        shown = seen if top is None else seen.model_copy(update={"k": min(top, seen.k or top)})
        most = rows_per_call(self.limits, shown_bytes(shown, len(self.card.classes)), count)
        return bodies(images, size_of, self.limits, most)

    def units(self, calls: int, rows: int, *, sent: int = 0) -> Units:
        """What so many calls that classify so many rows are charged, images sent among them."""
        return prediction_units(self.card.prompts, rows, sent=sent, calls=calls)

    def file_calls(self, files: Sequence[Path], top: int | None = None) -> list[list[Path]]:
        """Which files each call sends, `top` classes of each answered, or all."""
        allowed = self.limits.image_bytes

        def size_of(image: Path) -> int:
            size = image.stat().st_size if image.is_file() else 0
            # What is not there, or too large, is not sent.
            return 0 if size > allowed else size

        return list(self.image_calls(files, size_of, top))

    def classify_image_set(self, image_set: ImageSet) -> Classified:
        """Classifies all N images of an image set."""
        return self._classified(
            self.client.adapter_predict(
                self.reference,
                image_set=image_set.id,
                rows=None if len(rows) == image_set.count else rows,
                classes=self.card.classes,
                count=image_set.count,
            )
            for rows in self.row_calls(image_set.count)
        )

    def classify_files(self, files: Sequence[Path]) -> Classified:
        """Classifies N image files, which each call sends and is charged for."""
        return self._classified(
            self.client.adapter_predict(self.reference, images=some, classes=self.card.classes)
            for some in self.file_calls(files)
        )

    def _classified(self, calls: Iterable[AdapterPrediction]) -> Classified:
        answers, classes = list(calls), len(self.card.classes)
        scores = [scores_of(answer.tensors, answer.output, classes) for answer in answers]
        charged = sum((answer.cost.charged for answer in answers), Units())
        return Classified(np.concatenate(scores), charged, answers[0].output)

    @property
    def reference(self) -> str:
        """What calls name the version by, whoever makes them."""
        owner = f"{self.card.owner}/" if self.card.owner else ""
        return f"{owner}{self.card.name}@{self.card.version}"
