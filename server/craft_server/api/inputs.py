"""What a call is to score (model, prompts, images): checked before it is paid for, then loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from craft_server.api.idempotency import Call
from craft_server.api.services import Services
from craft_server.engine import ImageError, Prompts
from craft_server.image_sets import Features, StoredImageSet, get_image_set, read_features
from craft_server.problems import ProblemError, invalid_field, invalid_request
from craft_shared.problems import INVALID_IMAGE, MODEL_NOT_FOUND, REVISION_MISMATCH, FieldError
from craft_shared.wire import AdapterPredictionRequest, Context, ImageSet, Limits, PredictionRequest

if TYPE_CHECKING:
    import torch


def check_model(services: Services, name: str) -> None:
    """Raises ProblemError unless the server hosts the model `name`."""
    hosted = services.engine.name
    if name != hosted:
        error = FieldError(field="model", message="unknown model", remedy=f"Name '{hosted}'.")
        raise ProblemError(MODEL_NOT_FOUND, f"this server hosts no model '{name}'", [error])


def check_revision(
    services: Services,
    model: str,
    revision: str,
    *,
    made: str = "the adapter was tuned on",
    errors: Sequence[FieldError] = (),
) -> None:
    """Raises ProblemError if what was `made` under this model and revision is of no use here."""
    hosted, current = services.engine.name, services.revision
    if (model, revision) != (hosted, current):
        raise ProblemError(
            REVISION_MISMATCH,
            f"{made} '{model}' revision {revision}; the server hosts '{hosted}' revision {current}",
            errors,
        )


def counted_prompts(
    limits: Limits,
    classes: Sequence[str],
    templates: Sequence[str],
    context: Context | None,
    codes: NDArray[np.float32] | None,
) -> Prompts:
    """The prompts, if they and the class names are not too many; nobody has read them yet.

    Raises:
        ProblemError: `invalid-request` with all that is wrong.
    """
    points = np.zeros((0, 0), np.float32) if codes is None else codes
    prompts = Prompts(templates=tuple(templates), context=context, codes=points)
    errors = []
    if len(classes) > limits.classes:
        errors.append(
            FieldError(
                field="classes",
                message=f"{len(classes)} classes; {limits.classes} are allowed",
                remedy="Score fewer classes in one call.",
            )
        )
    if prompts.count > limits.prompts_per_call:
        errors.append(
            FieldError(
                field="codes" if len(points) else "templates",
                message=f"{prompts.count} prompts; {limits.prompts_per_call} are allowed",
                remedy="Spread the prompts over several calls.",
            )
        )
    if context is not None and context.dim > limits.dim:
        errors.append(
            FieldError(
                field="context.dim",
                message=f"{context.dim}; at most {limits.dim} is allowed",
                remedy="Search in fewer dimensions.",
            )
        )
    if errors:
        raise invalid_request(errors)
    return prompts


async def check_prompts(call: Call, prompts: Prompts, classes: Sequence[str]) -> None:
    """Checks that the model can read prompts and class names, which takes time for each of them.

    Raises:
        ProblemError: `invalid-request` with all that is wrong.
    """
    engine = call.services.engine
    if errors := await engine.check_prompts(prompts, classes, tenant=call.caller.tenant):
        raise invalid_request(errors)


@dataclass(frozen=True)
class ImageSelection:
    """Which images a call is about, checked, not yet loaded: rows of an image set, or files.

    All rows if `rows` is None.
    """

    image_set: ImageSet | None
    rows: Sequence[int] | None
    files: Sequence[bytes]

    @property
    def count(self) -> int:
        """N, the number of images."""
        if self.image_set is None:
            return len(self.files)
        return self.image_set.count if self.rows is None else len(self.rows)

    @property
    def resolved(self) -> int | None:
        """How many rows the image set has, if there is one."""
        return None if self.image_set is None else self.image_set.count

    @property
    def field(self) -> str:
        """The request's field that says how many images there are."""
        if self.image_set is None:
            return "images"
        return "image_set" if self.rows is None else "rows"


@dataclass(frozen=True)
class Images:
    """Loaded images: features that are known, or tensors that are still to be encoded."""

    known: Features | None
    decoded: Sequence[torch.Tensor]

    async def features(self, call: Call) -> Features:
        """[N, width], unit norm."""
        if self.known is not None:
            return self.known
        return await call.services.engine.encode_images(self.decoded, tenant=call.caller.tenant)


async def select_images(
    call: Call,
    message: PredictionRequest | AdapterPredictionRequest,
    files: Sequence[bytes] | None,
) -> ImageSelection:
    """Which images the call is about: of an image set, if it is sent again, those of then.

    Raises:
        ProblemError: not exactly one source, an empty one, too many, or rows out of range.
        NoSuchImageSet: the owner has no such image set.
    """
    services, limits = call.services, call.services.settings.limits
    if (message.image_set is None) == (files is None):
        neither, both = "names no image set and has no images", "names an image set and has images"
        has = neither if files is None else both
        raise invalid_field(
            "image_set", f"the call {has} in its body", "Send exactly one of the two."
        )
    if message.image_set is None:
        if message.rows is not None:
            raise invalid_field(
                "rows", "rows without an image set", "Leave rows out, or name an image set."
            )
        check_files(files or ())
        return ImageSelection(None, None, files or ())
    image_set = await services.database.read(get_image_set, call.caller.owner, message.image_set)
    check_same_model(services, image_set)
    if call.first is not None and call.first.rows is not None:
        # Rows are only ever added.
        image_set = image_set.model_copy(update={"count": call.first.rows})
    if image_set.count == 0:
        raise invalid_field("image_set", "the image set is empty", "Upload images to it first.")
    if message.rows is not None:
        _check_rows(limits, message.rows, image_set.count)
    return ImageSelection(image_set, message.rows, ())


async def load_images(
    call: Call, selection: ImageSelection, visual: NDArray[np.float32] | None = None
) -> Images:
    """Reads the features of an image set, or decodes the images of the body, with a visual prompt.

    Raises:
        ProblemError: `invalid-image`, naming every image that cannot be used.
    """
    image_set, services = selection.image_set, call.services
    if image_set is None:
        return Images(None, await decode_images(call, selection.files, visual=visual))
    key = (image_set.id, image_set.count)
    features = services.features.get(key)
    if features is None:
        features = await services.database.read(read_features, image_set)
        services.features.put(key, features)
    if selection.rows is not None:
        features = features[np.asarray(selection.rows, dtype=np.intp)]
    return Images(features, ())


async def decode_images(
    call: Call,
    files: Sequence[bytes],
    positions: Sequence[int] | None = None,
    *,
    visual: NDArray[np.float32] | None = None,
) -> list[torch.Tensor]:
    """The images as tensors [3, S, S], with a `visual` prompt if there is one.

    `positions` says where each file stands in the body's `images`; None means in this order.

    Raises:
        ProblemError: `invalid-image`, naming every image that cannot be used.
    """
    engine, limits = call.services.engine, call.services.settings.limits
    fitting = [file for file in files if len(file) <= limits.image_bytes]
    decoded = iter(
        await engine.decode_images(
            fitting, max_pixels=limits.image_pixels, visual=visual, tenant=call.caller.tenant
        )
    )
    results = [
        next(decoded)
        if len(file) <= limits.image_bytes
        else ImageError(
            f"the file has {len(file)} bytes; {limits.image_bytes} are allowed",
            "Send a smaller image.",
        )
        for file in files
    ]
    named = zip(range(len(files)) if positions is None else positions, results, strict=True)
    errors = [
        FieldError(field=f"images[{index}]", message=result.message, remedy=result.remedy)
        for index, result in named
        if isinstance(result, ImageError)
    ]
    if errors:
        raise ProblemError(
            INVALID_IMAGE, f"{errors[0].field}: {errors[0].message}; {len(errors)} in all", errors
        )
    return [result for result in results if not isinstance(result, ImageError)]


def digests_of(files: Sequence[bytes]) -> list[str]:
    """The SHA-256 of each file, in hexadecimal digits."""
    return [hashlib.sha256(file).hexdigest() for file in files]


def check_files(files: Sequence[bytes]) -> None:
    """Raises ProblemError if a call has no image; too many were refused with its body."""
    if not files:
        raise invalid_field("images", "the call has no image", "Send at least one.")


def check_same_model(services: Services, image_set: StoredImageSet) -> None:
    """Raises ProblemError unless the image set was made under the hosted model and revision.

    So it is with one that was read in another precision.
    """
    error = FieldError(
        field="image_set",
        message="made under another model, revision or precision",
        remedy="Make a new image set and upload the images again.",
    )
    made = "the image set belongs to model"
    check_revision(services, image_set.model, image_set.revision, made=made, errors=[error])
    images_in = services.engine.facts.images_in
    if image_set.images_in != images_in:
        raise ProblemError(
            REVISION_MISMATCH,
            f"the image set was read in {image_set.images_in}; the server reads images in "
            f"{images_in}",
            [error],
        )


def _check_rows(limits: Limits, rows: Sequence[int], count: int) -> None:
    if not 0 < len(rows) <= limits.images_per_set:
        raise invalid_field(
            "rows",
            f"{len(rows)} rows; 1 to {limits.images_per_set} are allowed",
            "Leave rows out to score the whole image set.",
        )
    errors = [
        FieldError(
            field=f"rows[{index}]",
            message=f"the image set has the rows 0 to {count - 1}",
            remedy="Name rows that exist.",
        )
        for index, row in enumerate(rows)
        if not 0 <= row < count
    ]
    if errors:
        raise invalid_request(errors)
