"""`/v1/image-sets`: pictures that are uploaded once."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from craft_shared.wire.account import Cost
from craft_shared.wire.messages import Answer, Count, Images, Message, ModelName, Revision, Row

ImageSetId = Annotated[str, Field(examples=["is_NdWOtiHJAymCqPRMv8BSWA"])]


class ImageSetCreate(Message):
    """Body of `POST /v1/image-sets`."""

    model: ModelName


class ImageSet(Answer):
    """An image set: a handle on pictures that the server has seen. `count` is its rows."""

    id: ImageSetId
    model: ModelName
    revision: Revision
    count: Count


class ImageUpload(Message):
    """Body of `POST /v1/image-sets/{id}/images`.

    Attributes:
        first_row: the row that the first picture gets; must equal the set's present count, so that
            a chunk is never added twice.
        images: pictures as base64 strings (JSON only).
    """

    first_row: Row
    images: Images = None


class ImageUploadAnswer(Answer):
    """What an upload did. Pictures that the owner has had encoded before are not charged again."""

    image_set: ImageSet
    cost: Cost
