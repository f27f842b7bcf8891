from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import sqlalchemy as sa

from craft_server import image_sets
from craft_server.database import Database
from craft_server.image_sets import IMAGE_FEATURES, NoSuchImageSet, WrongFirstRow
from craft_shared.wire import ImageSet

WIDTH = 4


def digest(number: int) -> str:
    return f"{number:064x}"


def features(number: int) -> image_sets.Features:
    return np.full(WIDTH, number, np.float32)


def make(store: Database, owner: str = "owner", revision: str = "r1") -> ImageSet:
    with store.writing() as connection:
        return image_sets.create_image_set(connection, owner, model="tiny", revision=revision)


def add(
    store: Database, image_set: ImageSet, first_row: int, *numbers: int, owner: str = "owner"
) -> ImageSet:
    with store.writing() as connection:
        grown, _ = image_sets.add_rows(
            connection,
            owner,
            image_set.id,
            first_row=first_row,
            digests=[digest(number) for number in numbers],
            features={digest(number): features(number) for number in numbers},
        )
    return grown


def rows(store: Database, image_set: ImageSet, owner: str = "owner") -> list[float]:
    with store.reading() as connection:
        present = image_sets.get_image_set(connection, owner, image_set.id)
        return image_sets.read_features(connection, present)[:, 0].tolist()


def stored(store: Database) -> int:
    with store.reading() as connection:
        count = connection.execute(sa.select(sa.func.count()).select_from(IMAGE_FEATURES))
        return int(count.scalar_one())


def test_rows_keep_their_order_over_chunks_and_repetitions(store: Database) -> None:
    image_set = make(store)
    assert add(store, image_set, 0, 5, 3, 5).count == 3
    assert add(store, image_set, 3, 1, 3).count == 5
    assert rows(store, image_set) == [5, 3, 5, 1, 3]
    assert stored(store) == 3


@pytest.mark.parametrize("first_row", [0, 1, 3])
def test_a_chunk_is_added_only_where_the_set_ends(store: Database, first_row: int) -> None:
    image_set = make(store)
    add(store, image_set, 0, 1, 2)
    with pytest.raises(WrongFirstRow) as caught:
        add(store, image_set, first_row, 3)
    assert caught.value.count == 2
    assert rows(store, image_set) == [1, 2]


def test_features_are_known_to_their_owner_and_revision_only(store: Database) -> None:
    first, later = make(store), make(store, revision="r2")
    add(store, first, 0, 1)
    with store.reading() as connection:
        known = image_sets.known_features(connection, "owner", first, [digest(1), digest(2)])
        assert {key: value.tolist() for key, value in known.items()} == {digest(1): [1.0] * WIDTH}
        assert image_sets.known_features(connection, "owner", later, [digest(1)]) == {}
        assert image_sets.known_features(connection, "other", first, [digest(1)]) == {}


def test_one_of_many_chunks_for_the_same_row_is_added(store: Database) -> None:
    image_set = make(store)

    def attempt(number: int) -> bool:
        try:
            add(store, image_set, 0, number, number + 100)
        except WrongFirstRow:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(attempt, range(24))) == 1
    assert len(rows(store, image_set)) == 2
    assert stored(store) == 2


def test_deleting_keeps_what_other_sets_use(store: Database) -> None:
    first, second = make(store), make(store)
    add(store, first, 0, 1, 2, 2)
    add(store, second, 0, 2, 3)
    with store.writing() as connection:
        image_sets.delete_image_set(connection, "owner", first.id)
    assert rows(store, second) == [2, 3]
    assert stored(store) == 2
    with store.reading() as connection, pytest.raises(NoSuchImageSet):
        image_sets.get_image_set(connection, "owner", first.id)


@pytest.mark.parametrize("image_set_id", ["", "is_" + "x" * 22, "is_\0", "x" * 10_000])
def test_an_unknown_id_is_told(store: Database, image_set_id: str) -> None:
    with store.writing() as connection, pytest.raises(NoSuchImageSet):
        image_sets.delete_image_set(connection, "owner", image_set_id)


def test_another_owner_does_not_see_a_set(store: Database) -> None:
    image_set = make(store)
    with store.reading() as connection, pytest.raises(NoSuchImageSet):
        image_sets.get_image_set(connection, "other", image_set.id)
    with pytest.raises(NoSuchImageSet):
        add(store, image_set, 0, 1, owner="other")
    with store.writing() as connection, pytest.raises(NoSuchImageSet):
        image_sets.delete_image_set(connection, "other", image_set.id)
    with store.reading() as connection:
        assert image_sets.get_image_set(connection, "owner", image_set.id).count == 0
