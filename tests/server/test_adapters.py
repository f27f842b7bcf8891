from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from craft_server.adapters import registry, sharing
from craft_server.adapters.sharing import NoSuchVersion
from craft_server.adapters.tables import NoSuchAdapter
from craft_server.clock import now_ms
from craft_server.database import Database
from craft_server.ledger.keys import Caller, authenticate, create_key, rotate_key
from craft_shared.adapter import Adapter, AdapterConfig
from craft_shared.head import Unrefined
from craft_shared.units import Units
from craft_shared.wire import AdapterCard, AdapterChange, AdapterSettings


def make(classes: list[str]) -> Adapter:
    config = AdapterConfig(
        model="tiny", revision="r1", classes=classes, templates=["a {}."], head="none"
    )
    return Adapter(config, np.zeros((0, 0), np.float32), Unrefined())


def publish(
    store: Database,
    name: str = "pets",
    classes: tuple[str, ...] = ("cat",),
    owner: str = "owner",
    aliases: tuple[str, ...] = (),
) -> AdapterCard:
    adapter = make(list(classes))
    with store.writing() as connection:
        return registry.add(
            connection,
            owner,
            name,
            adapter=adapter,
            digest=adapter.digest,
            body=adapter.to_bytes(),
            text_features=np.arange(len(classes) * 3, dtype=np.float32).reshape(1, -1, 3),
            aliases=aliases,
        )


def key(store: Database, owner: str = "owner", team: str | None = None) -> Caller:
    with store.writing() as connection:
        secret = create_key(connection, owner=owner, team=team, at=now_ms())
        caller = authenticate(connection, secret, now_ms())
    assert caller is not None
    return caller


def find(store: Database, reference: str, owner: str | Caller = "owner") -> AdapterCard:
    caller = owner if isinstance(owner, Caller) else key(store, owner)
    with store.reading() as connection:
        return registry.find(connection, caller, reference).card


def listed(store: Database, caller: Caller) -> list[tuple[str, str, int]]:
    with store.reading() as connection:
        cards = registry.list_cards(connection, caller)
    return [(card.owner, card.name, card.version) for card in cards]


def change(
    store: Database, caller: Caller, name: str = "pets", **wanted: object
) -> AdapterSettings:
    with store.writing() as connection:
        return sharing.change(connection, caller, name, AdapterChange.model_validate(wanted))


def retire(store: Database, reference: str, owner: str = "owner") -> None:
    with store.writing() as connection:
        registry.retire(connection, owner, reference)


def restore(store: Database, reference: str, owner: str = "owner") -> None:
    with store.writing() as connection:
        registry.restore(connection, owner, reference)


def test_each_publication_is_the_next_version(store: Database) -> None:
    first, second = publish(store), publish(store, classes=("cat", "dog"))
    assert (first.version, second.version) == (1, 2)
    assert find(store, "pets") == second
    assert find(store, "pets@latest") == second
    assert find(store, "pets@1") == first.model_copy(update={"aliases": []})
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
    assert listed(store, key(store)) == [("owner", "pets", 1)]


def test_retiring_a_name_retires_all_versions(store: Database) -> None:
    publish(store)
    publish(store)
    retire(store, "pets")
    with pytest.raises(NoSuchAdapter):
        retire(store, "pets")
    assert listed(store, key(store)) == []
    with store.reading() as connection:
        digest = make(["cat"]).digest
        assert registry.find_digest(connection, "owner", "pets", digest) is None


@pytest.mark.parametrize(
    "reference",
    [
        "nothing",
        "pets@2",
        "pets@0",
        "pets@99999999999999999999",
        "pets@x",
        "",
        "\0",
        "owner\0/pets",
        "pets\n",
        "/pets",
        "pets@",
    ],
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
    caller = key(store)
    with store.reading() as connection:
        publication = registry.find(connection, caller, "pets")
        served = registry.servable(*registry.read_content(connection, publication.id))
    assert served.adapter.config == make(["cat", "dog"]).config
    assert served.text_features.tolist() == [[[0, 1, 2], [3, 4, 5]]]


def test_a_retired_version_comes_back_as_it_was(store: Database) -> None:
    card = publish(store)
    retire(store, "pets@1")
    with store.reading() as connection:
        (retired,) = registry.versions(connection, "owner", "pets")
    assert retired.retired_at is not None
    for _ in range(2):  # as when the first answer was lost
        restore(store, "pets")
        assert find(store, "pets") == card
    with pytest.raises(NoSuchAdapter):
        restore(store, "pets@2")


def test_an_alias_means_the_version_that_it_was_moved_to(store: Database) -> None:
    owner = key(store)
    publish(store, aliases=("stable",))
    publish(store, classes=("cat", "dog"))
    assert find(store, "pets@stable").version == 1
    assert find(store, "pets@stable").aliases == ["stable"]
    assert find(store, "pets").aliases == ["latest"]
    assert change(store, owner, aliases={"stable": 2}).aliases == {"stable": 2}
    assert find(store, "pets@stable").aliases == ["latest", "stable"]
    assert change(store, owner, aliases={"stable": None, "old": 1}).aliases == {"old": 1}
    with pytest.raises(NoSuchAdapter):
        find(store, "pets@stable")


def test_an_alias_of_a_retired_version_means_nothing_rather_than_another(store: Database) -> None:
    publish(store, aliases=("stable",))
    publish(store)
    retire(store, "pets@1")
    with pytest.raises(NoSuchAdapter):
        find(store, "pets@stable")
    restore(store, "pets@1")
    assert find(store, "pets@stable").version == 1


def test_a_change_happens_as_a_whole_or_not_at_all(store: Database) -> None:
    owner = key(store)
    publish(store)
    before = change(store, owner, aliases={"stable": 1})
    with pytest.raises(NoSuchVersion):
        change(store, owner, public=True, teams=["lab"], aliases={"new": 1, "stable": 2})
    retire(store, "pets")
    with pytest.raises(NoSuchVersion):
        change(store, owner, aliases={"other": 1})
    assert change(store, owner) == before


def test_what_is_private_does_not_exist_for_others(store: Database) -> None:
    publish(store)
    stranger = key(store, "stranger")
    for reference in ("owner/pets", "owner/pets@1", "pets"):
        with pytest.raises(NoSuchAdapter):
            find(store, reference, stranger)
    assert listed(store, stranger) == []
    with pytest.raises(NoSuchAdapter):
        change(store, stranger, public=True)


def test_grants_are_to_keys_and_teams_and_end(store: Database) -> None:
    owner, other = key(store), key(store, "other")
    member, stranger = key(store, "somebody", "lab"), key(store, "other")
    publish(store)
    shared = change(store, owner, keys=[other.prefix, other.prefix], teams=["lab", "no such team"])
    assert (shared.keys, shared.teams) == ([other.prefix], ["lab", "no such team"])
    for guest in (other, member):
        assert find(store, "owner/pets", guest).owner == "owner"
        assert listed(store, guest) == [("owner", "pets", 1)]
    with pytest.raises(NoSuchAdapter):  # another key of an owner one of whose keys may
        find(store, "owner/pets", stranger)
    change(store, owner, keys=[])
    with pytest.raises(NoSuchAdapter):
        find(store, "owner/pets", other)
    assert find(store, "owner/pets", member).version == 1


def test_a_grant_is_the_keys_own_through_rotation(store: Database) -> None:
    owner, other = key(store), key(store, "other")
    publish(store)
    change(store, owner, keys=[other.prefix])
    with store.writing() as connection:
        secret = rotate_key(connection, other.prefix, overlap_ms=0, at=now_ms())
        rotated = authenticate(connection, secret, now_ms())
    assert rotated is not None
    assert rotated.prefix != other.prefix
    assert find(store, "owner/pets", rotated).version == 1


def test_public_ones_are_everybodys_and_come_after_the_owners_own(store: Database) -> None:
    publish(store, "a-pets")
    publish(store, "mine", owner="z")
    change(store, key(store), "a-pets", public=True)
    assert listed(store, key(store, "z")) == [("z", "mine", 1), ("owner", "a-pets", 1)]


def test_owners_are_any_labels(store: Database) -> None:
    publish(store, owner="a lab / b@c")
    change(store, key(store, "a lab / b@c"), public=True)
    assert find(store, "a lab / b@c/pets@1", key(store)).owner == "a lab / b@c"


def test_use_is_counted_by_version(store: Database) -> None:
    owner = key(store)
    publish(store)
    publish(store)
    units = Units(queries=2, predictions=6, images=3, requests=1)
    with store.writing() as connection:
        adapter_id = registry.find(connection, owner, "pets@2").id
        for _ in range(3):
            sharing.count_use(connection, adapter_id, units)
        first, second = sharing.usage(connection, "owner", "pets").versions
        with pytest.raises(NoSuchAdapter):
            sharing.usage(connection, "other", "pets")
    assert (first.version, first.calls, first.units) == (1, 0, Units())
    assert (second.calls, second.units) == (3, units + units + units)
