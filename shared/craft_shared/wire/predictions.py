"""Images uploaded once, predictions, and the space of codes.

`/v1/image-sets`, `/v1/predictions` and `/v1/zero-shot-image-classification`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from craft_shared.wire.account import Cost
from craft_shared.wire.messages import (
    Answer,
    ClassName,
    Count,
    Format,
    Image,
    Images,
    LabelScore,
    Many,
    Message,
    ModelName,
    Revision,
    Row,
    Rows,
    Template,
    TopK,
)
from craft_shared.wire.models import EVERYTHING, Output

# Standard deviations of the released code's projections, by name; see `Context`.
AbsoluteScale = Literal["paper", "paper-wide", "paper-imagenet"]
Scale = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] | AbsoluteScale


# Far outside what a search visits; far inside what half precision can hold.
MAX_CODE = 1000.0


class Context(Message):
    """A search space for prompts, p = p0 + A z (CraFT, section 3.1; the server holds p0 and A).

    Attributes:
        init: words whose token embeddings are p0; `dim` times their tokens is at most 65,536.
        dim: intrinsic dimension, the length of a code z.
        seed: names the Gaussian projection A.
        scale: a standard normal code moves each coordinate of p0 by `scale` times the standard
            deviation of the model's token embeddings. By name, A's entries have an absolute
            standard deviation of the released code instead: 0.2 for `"paper"`, its setting of most
            data sets, 1 for `"paper-wide"` (DTD, EuroSAT), and 0.0255 for `"paper-imagenet"`.
    """

    init: Annotated[str, StringConstraints(min_length=1, max_length=200)] = "a photo of a"
    dim: int = Field(default=512, ge=1, le=4096)
    seed: int = Field(default=1, ge=0, lt=2**63)
    scale: Scale = 1.0


class PredictionRequest(Message):
    """Body of `POST /v1/predictions`: prompts x images x classes.

    The prompts are the templates, in order, and after them the codes: at least one. Either
    `image_set` (with optional `rows`) or images must be given. No text holds the tokenizer's
    words for a text's start and end, and every prompt is short enough for the model with every
    class name.

    Attributes:
        classes: C class names, no two alike and none blank.
        templates: plain prompts with one `{}` for the class name.
        context: the codes' search space; required with codes.
        codes: tensor, float32 [prompts, dim].
        rows: rows of the image set to score; all when null.
        images: images as base64 strings (JSON only).
        dtype: precision of the answer's log-probabilities.
        top_k: of each prompt and image only the so many most probable classes are answered, at
            most C; as many as the key may see when null, and never more. The charge is the same.
        format: `labels` answers class names with their probabilities, as JSON, in place of tensors.
    """

    model: ModelName
    classes: list[ClassName] = Field(
        min_length=1,
        json_schema_extra={"uniqueItems": True},
        examples=[["zero", "one", "two"]],
    )
    templates: list[Template] = Field(
        default_factory=list, examples=[["a photo of the number {}."]]
    )
    context: Context | None = None
    codes: list[list[Annotated[float, Field(ge=-MAX_CODE, le=MAX_CODE)]]] | None = None
    image_set: str | None = None
    rows: Rows | None = None
    images: Images = None
    dtype: Literal["float32", "float16"] = "float32"
    top_k: TopK | None = None
    format: Format = None


class PredictionAnswer(Answer):
    """Answer of `POST /v1/predictions`.

    Attributes:
        output: what the tensors show.
        log_probs: tensor [prompts, images, classes] of natural-log probabilities over the classes.
            With k, [prompts, images, k]: the largest of these same numbers, in descending order.
            Not with the levels `label` and `probs`.
        probs: tensor like `log_probs`, with level `probs` alone: probabilities.
        top_classes: tensor, int32 of the same shape, only with k and, [prompts, images, 1], with
            level `label`: which of the request's classes each number belongs to, from 0. Of equal
            numbers the lower index comes first.
        labels: with the format `labels` in the tensors' place: of each prompt and image the classes
            that the answer shows, the most probable one first.
    """

    model: ModelName
    revision: Revision
    cost: Cost
    output: Output = EVERYTHING
    log_probs: Many[Many[Many[float]]] | None = Field(
        default=None, examples=[[[[-1.3409, -0.544, -1.8451]]]]
    )
    probs: Many[Many[Many[float]]] | None = None
    top_classes: Many[Many[Many[int]]] | None = None
    labels: Many[Many[Many[LabelScore]]] | None = None


def _image_of(value: object) -> object:
    # huggingface.js sends the image in an object.
    return value["image"] if isinstance(value, dict) and value.keys() == {"image"} else value


class ZeroShotParameters(Message):
    """What an image is to be classified as.

    Attributes:
        candidate_labels: C class names, no two alike and none blank.
        hypothesis_template: the prompt, with one `{}` for the label.
    """

    candidate_labels: list[ClassName] = Field(
        min_length=1,
        json_schema_extra={"uniqueItems": True},
        examples=[["zero", "one", "two"]],
    )
    hypothesis_template: Template = "This is a photo of {}."


class ZeroShotRequest(Message):
    """Body of `POST /v1/zero-shot-image-classification`, as Hugging Face's clients send it.

    Attributes:
        inputs: the image file's bytes as a base64 string.
    """

    inputs: Annotated[Image, BeforeValidator(_image_of)]
    parameters: ZeroShotParameters


ImageSetId = Annotated[str, Field(examples=["is_NdWOtiHJAymCqPRMv8BSWA"])]


class ImageSetCreate(Message):
    """Body of `POST /v1/image-sets`."""

    model: ModelName


class ImageSet(Answer):
    """An image set: a handle on images that the server has seen. `count` is its rows."""

    id: ImageSetId
    model: ModelName
    revision: Revision
    count: Count


class ImageUpload(Message):
    """Body of `POST /v1/image-sets/{id}/images`.

    Attributes:
        first_row: the row that the first image gets; must equal the set's present count, so that
            a chunk is never added twice.
        images: images as base64 strings (JSON only).
    """

    first_row: Row
    images: Images = None


class ImageUploadAnswer(Answer):
    """What an upload did. Images that the owner has had encoded before are not charged again."""

    image_set: ImageSet
    cost: Cost
