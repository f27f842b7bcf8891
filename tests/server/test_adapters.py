from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from craft_server import adapters
from craft_server.adapters import NoSuchAdapter
from craft_server.database import Database
from craft_shared.adapter import Adapter, AdapterConfig
from craft_shared.head import Unrefined
from craft_shared.wire import AdapterCard


def make(classes: list[str]) -> Adapter:
    config = AdapterConfig(
        model="tiny", revision="r1", classes=classes, templates=["a {}."], head="none"
    )
    return Adapter(config, np.zeros((0, 0), np.float32), Unrefined())


def publish(
    store: Database, name: str = "pets", classes: tuple[str, ...] = ("cat",), owner: str = "owner"
) -> AdapterCard:
    adapter = make(list(classes))
    with store.writing() as connection:
        return adapters.add(
            connection,
            owner,
            name,
            adapter=adapter,
            digest=adapter.digest,
            body=adapter.to_bytes(),
            text_features=np.arange(len(classes) * 3, dtype=np.float32).reshape(1, -1, 3),
        )


def find(store: Database, reference: str, owner: str = "owner") -> AdapterCard:
    with store.reading() as connection:
        return adapters.find(connection, owner, reference).card


def retire(store: Database, reference: str, owner: str = "owner") -> None:
    with store.writing() as connection:
        adapters.retire(connection, owner, reference)


def test_each_publication_is_the_next_version(store: Database) -> None:
    first, second = publish(store), publish(store, classes=("cat", "dog"))
    assert (first.version, second.version) == (1, 2)
    assert find(store, "pets") == second
    assert find(store, "pets@1") == first
    assert publish(store, "other").version == 1


def test_publications_at_once_get_different_versions(store: Database) -> None:
    with ThreadPoolExecutor(8) as threads:
        cards = list(threads.map(lambda _: publish(store), range(16)))
    assert sorted(card.version for card in cards) == list(range(1, 17))


def test_a_number_is_not_given_again(store: Database) -> None:
    publish(store)
    retire(store, "pets")
    assert publish(store).version == 2


def test_retiring_a_version_keeps_the_others(store: Database) -> None:
    publish(store)
    publish(store)
    retire(store, "pets@2")
    assert find(store, "pets").version == 1
    with pytest.raises(NoSuchAdapter):
        find(store, "pets@2")
    with store.reading() as connection:
        assert [card.version for card in adapters.list_cards(connection, "owner")] == [1]


def test_retiring_a_name_retires_all_versions(store: Database) -> None:
    publish(store)
    publish(store)
    retire(store, "pets")
    with pytest.raises(NoSuchAdapter):
        retire(store, "pets")
    with store.reading() as connection:
        assert adapters.list_cards(connection, "owner") == []
        digest = make(["cat"]).digest
        assert adapters.find_digest(connection, "owner", "pets", digest) is None


@pytest.mark.parametrize(
    "reference",
    ["nothing", "pets@2", "pets@0", "pets@99999999999999999999", "pets@x", "", "\0", "pets\n"],
)
def test_an_unknown_reference_is_told(store: Database, reference: str) -> None:
    publish(store)
    with pytest.raises(NoSuchAdapter):
        find(store, reference)


def test_names_belong_to_their_owner(store: Database) -> None:
    publish(store)
    with pytest.raises(NoSuchAdapter):
        find(store, "pets", owner="other")
    with pytest.raises(NoSuchAdapter):
        retire(store, "pets", owner="other")
    assert publish(store, owner="other").version == 1


def test_what_is_served_is_what_was_published(store: Database) -> None:
    publish(store, classes=("cat", "dog"))
    with store.reading() as connection:
        publication = adapters.find(connection, "owner", "pets")
        served = adapters.servable(*adapters.read_content(connection, publication.id))
    assert served.adapter.config == make(["cat", "dog"]).config
    assert served.text_features.tolist() == [[[0, 1, 2], [3, 4, 5]]]
