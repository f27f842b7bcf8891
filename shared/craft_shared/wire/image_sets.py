"""`/v1/image-sets`: pictures that are uploaded once."""

from __future__ import annotations

from craft_shared.wire.account import Cost
from craft_shared.wire.messages import Answer, Count, Message, Row


class ImageSetCreate(Message):
    """Body of `POST /v1/image-sets`."""

    model: str


class ImageSet(Answer):
    """An image set: a handle on pictures that the server has seen. `count` is its rows."""

    id: str
    model: str
    revision: str
    count: Count


class ImageUpload(Message):
    """Body of `POST /v1/image-sets/{id}/images`.

    Attributes:
        first_row: the row that the first picture gets; must equal the set's present count, so that
            a chunk is never added twice.
        images: pictures as base64 strings (JSON only).
    """

    first_row: Row
    images: list[str] | None = None


class ImageUploadAnswer(Answer):
    """What an upload did. Pictures that the owner has had encoded before are not charged again."""

    image_set: ImageSet
    cost: Cost
