"""Image sets: whose images a server has seen, as rows of features; their bytes are not kept.

An image is known by the SHA-256 of its bytes, for one owner, one model revision and one precision:
it is encoded once and its features are shared by all image sets of the owner. Every function is one
transaction of its caller.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from pydantic import Field

from craft_server.clock import now
from craft_server.database import METADATA, Id
from craft_shared.wire import ImageSet

IMAGE_SETS = sa.Table(
    "image_sets",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("revision", sa.Text, nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
)

IMAGE_FEATURES = sa.Table(
    "image_features",
    METADATA,
    sa.Column("id", Id, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("revision", sa.Text, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("features", sa.LargeBinary, nullable=False),
    sa.UniqueConstraint("owner", "model", "revision", "sha256"),
)

IMAGE_SET_ROWS = sa.Table(
    "image_set_rows",
    METADATA,
    sa.Column("image_set_id", sa.Text, sa.ForeignKey("image_sets.id"), primary_key=True),
    sa.Column("row", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("feature_id", Id, sa.ForeignKey("image_features.id"), nullable=False),
    sa.Index("ix_image_set_rows_feature_id", "feature_id"),
)

_ID_FORM = re.compile(r"is_[A-Za-z0-9_-]{22}", re.ASCII)

Features = NDArray[np.float32]


def bound_revision(revision: str, computed_in: str) -> str:
    """A name for a revision's features that tells those of one precision from another's."""
    return revision if computed_in == "float32" else f"{revision}+{computed_in}"


def precision_of(bound: str) -> tuple[str, str]:
    """The revision and the precision of which `bound_revision` has made a name."""
    revision, _, computed_in = bound.partition("+")
    return revision, computed_in or "float32"


class NoSuchImageSet(Exception):  # noqa: N818 - reads as what it is where it is caught
    """The owner has no image set with this id."""


class WrongFirstRow(Exception):  # noqa: N818 - reads as what it is where it is caught
    """The chunk does not begin where the image set ends, at row `count`."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count


class StoredImageSet(ImageSet):
    """An image set, and the precision in which its images are read, which clients are not shown."""

    images_in: str = Field(exclude=True)

    @property
    def bound_revision(self) -> str:
        """The model's revision and the precision, as the tables have them."""
        return bound_revision(self.revision, self.images_in)


def create_image_set(
    connection: sa.Connection, owner: str, *, model: str, revision: str, images_in: str = "float32"
) -> StoredImageSet:
    """Makes an empty image set."""
    image_set = StoredImageSet(
        id=f"is_{secrets.token_urlsafe(16)}",
        model=model,
        revision=revision,
        count=0,
        images_in=images_in,
    )
    connection.execute(
        sa.insert(IMAGE_SETS).values(
            id=image_set.id,
            owner=owner,
            model=model,
            revision=image_set.bound_revision,
            created_at=now(),
        )
    )
    return image_set


def get_image_set(connection: sa.Connection, owner: str, image_set_id: str) -> StoredImageSet:
    """The owner's image set.

    Raises:
        NoSuchImageSet: there is none; another owner's does not count.
    """
    if _ID_FORM.fullmatch(image_set_id) is None:
        raise NoSuchImageSet(image_set_id)
    row = connection.execute(
        sa.select(IMAGE_SETS).where(IMAGE_SETS.c.id == image_set_id, IMAGE_SETS.c.owner == owner)
    ).one_or_none()
    if row is None:
        raise NoSuchImageSet(image_set_id)
    last = connection.execute(
        sa.select(sa.func.max(IMAGE_SET_ROWS.c.row)).where(
            IMAGE_SET_ROWS.c.image_set_id == image_set_id
        )
    ).scalar()
    count = 0 if last is None else last + 1
    revision, images_in = precision_of(row.revision)
    return StoredImageSet(
        id=row.id, model=row.model, revision=revision, count=count, images_in=images_in
    )


def known_features(
    connection: sa.Connection, owner: str, image_set: StoredImageSet, digests: Sequence[str]
) -> dict[str, Features]:
    """Features, each [width], of those images that the owner has had encoded before."""
    rows = connection.execute(
        sa.select(IMAGE_FEATURES.c.sha256, IMAGE_FEATURES.c.features).where(
            *_of_owner(owner, image_set), IMAGE_FEATURES.c.sha256.in_(set(digests))
        )
    )
    return {row.sha256: np.frombuffer(row.features, np.float32) for row in rows}


def add_rows(
    connection: sa.Connection,
    owner: str,
    image_set_id: str,
    *,
    first_row: int,
    digests: Sequence[str],
    features: Mapping[str, Features],
) -> tuple[StoredImageSet, list[str]]:
    """Appends images to an image set.

    `digests` are SHA-256, one a row from `first_row` on, which must be the set's present count;
    `features` has [width] for each digest.

    Returns:
        The image set after it, and those of the digests that the owner had not had encoded before
        this transaction.

    Raises:
        NoSuchImageSet: it was deleted meanwhile.
        WrongFirstRow: it has grown meanwhile, or `first_row` was wrong.
    """
    lock_owner(connection, owner)
    image_set = get_image_set(connection, owner, image_set_id)
    if image_set.count != first_row:
        raise WrongFirstRow(image_set.count)
    ids = _feature_ids(connection, owner, image_set, digests)
    missing = [digest for digest in dict.fromkeys(digests) if digest not in ids]
    if missing:
        connection.execute(
            sa.insert(IMAGE_FEATURES),
            [
                {
                    "owner": owner,
                    "model": image_set.model,
                    "revision": image_set.bound_revision,
                    "sha256": digest,
                    "features": features[digest].astype("<f4").tobytes(),
                }
                for digest in missing
            ],
        )
        ids = _feature_ids(connection, owner, image_set, digests)
    connection.execute(
        sa.insert(IMAGE_SET_ROWS),
        [
            {"image_set_id": image_set_id, "row": row, "feature_id": ids[digest]}
            for row, digest in enumerate(digests, start=first_row)
        ],
    )
    return image_set.model_copy(update={"count": first_row + len(digests)}), missing


def read_features(connection: sa.Connection, image_set: ImageSet) -> Features:
    """The features of an image set that is not empty, [count, width], in the order of its rows."""
    rows = connection.execute(_of_rows(image_set, IMAGE_FEATURES.c.features)).scalars()
    flat = np.frombuffer(bytearray().join(rows), np.float32)  # writable, as torch wants it
    return flat.reshape(image_set.count, -1)


def read_digests(
    connection: sa.Connection, image_set: ImageSet, rows: Sequence[int] | None
) -> list[str]:
    """SHA-256 of the images in some rows of an image set, or in all, in hexadecimal."""
    every = connection.execute(_of_rows(image_set, IMAGE_FEATURES.c.sha256)).scalars()
    digests = list(every)
    return digests if rows is None else [digests[row] for row in rows]


def delete_image_set(connection: sa.Connection, owner: str, image_set_id: str) -> None:
    """Deletes an image set, and the features that no other image set uses.

    Raises:
        NoSuchImageSet: the owner has none with this id.
    """
    lock_owner(connection, owner)
    image_set = get_image_set(connection, owner, image_set_id)
    of_set = IMAGE_SET_ROWS.c.image_set_id == image_set.id
    used = connection.execute(
        sa.select(IMAGE_SET_ROWS.c.feature_id).where(of_set).distinct()
    ).scalars()
    candidates = list(used)
    connection.execute(sa.delete(IMAGE_SET_ROWS).where(of_set))
    still_used = sa.exists().where(IMAGE_SET_ROWS.c.feature_id == IMAGE_FEATURES.c.id)
    for start in range(0, len(candidates), 500):
        connection.execute(
            sa.delete(IMAGE_FEATURES).where(
                IMAGE_FEATURES.c.id.in_(candidates[start : start + 500]), ~still_used
            )
        )
    connection.execute(sa.delete(IMAGE_SETS).where(IMAGE_SETS.c.id == image_set.id))


def _of_rows(image_set: ImageSet, column: sa.ColumnElement[Any]) -> sa.Select[Any]:
    """A column of `IMAGE_FEATURES` for each row of an image set, in their order."""
    return (
        sa.select(column)
        .join(IMAGE_SET_ROWS, IMAGE_SET_ROWS.c.feature_id == IMAGE_FEATURES.c.id)
        .where(
            IMAGE_SET_ROWS.c.image_set_id == image_set.id,
            IMAGE_SET_ROWS.c.row < image_set.count,
        )
        .order_by(IMAGE_SET_ROWS.c.row)
    )


def _of_owner(owner: str, image_set: StoredImageSet) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        IMAGE_FEATURES.c.owner == owner,
        IMAGE_FEATURES.c.model == image_set.model,
        IMAGE_FEATURES.c.revision == image_set.bound_revision,
    )


def _feature_ids(
    connection: sa.Connection, owner: str, image_set: StoredImageSet, digests: Sequence[str]
) -> dict[str, int]:
    rows = connection.execute(
        sa.select(IMAGE_FEATURES.c.sha256, IMAGE_FEATURES.c.id).where(
            *_of_owner(owner, image_set), IMAGE_FEATURES.c.sha256.in_(set(digests))
        )
    )
    return {row.sha256: row.id for row in rows}


def lock_owner(connection: sa.Connection, owner: str) -> None:
    """Makes changes of one owner's image sets wait for each other until the transaction ends."""
    if connection.dialect.name == "postgresql":  # SQLite has one writer at a time anyway
        connection.execute(
            sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(owner, 0)))
        )
