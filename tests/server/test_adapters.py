from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy as sa

from craft_server.adapters import registry, sharing
from craft_server.adapters.sharing import NoSuchVersion
from craft_server.adapters.tables import ADAPTER_SETTINGS, ADAPTERS, NoSuchAdapter
from craft_server.clock import now_ms
from craft_server.database import Database
from craft_server.ledger.keys import Caller, authenticate, create_key, rotate_key
from craft_server.ledger.prices import set_prices
from craft_server.ledger.tables import TEAMS
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


def test_a_card_says_what_one_image_costs_at_the_prices_of_now(store: Database) -> None:
    assert publish(store).image_cost_micros == 0
    with store.writing() as connection:
        set_prices(connection, "tiny", {"queries": 500, "predictions": 3, "images": 20})
        set_prices(connection, "another", {"queries": 7})
    card = find(store, "pets")
    assert card.image_units == Units(queries=1, predictions=1, images=1, requests=1)
    assert card.image_cost_micros == 500 + 3 + 20


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


def paged(store: Database, caller: Caller, limit: int) -> list[list[tuple[str, str, int]]]:
    pages, after = [], None
    while True:
        with store.reading() as connection:
            page = registry.list_page(connection, caller, after=after, limit=limit)
        pages.append([(card.owner, card.name, card.version) for card in page.cards])
        after = page.next_after
        if after is None:
            return pages


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_pages_are_the_list_cut_into_parts(store: Database, limit: int) -> None:
    caller = key(store, "m", "lab")
    for owner in ("a", "m", "z"):
        for name in ("first", "gone", "private", "second"):
            publish(store, name, owner=owner)
        publish(store, "first", owner=owner)
        retire(store, "gone", owner)
        change(store, key(store, owner), "first", public=True, keys=[caller.prefix], teams=["lab"])
        change(store, key(store, owner), "second", keys=[caller.prefix], teams=["lab"])
        change(store, key(store, owner), "gone", public=True)
    of = {owner: [(owner, "first", 1), (owner, "first", 2), (owner, "second", 1)] for owner in "az"}
    own = [("m", "first", 1), ("m", "first", 2), ("m", "private", 1), ("m", "second", 1)]
    whole = [*own, *of["a"], *of["z"]]
    pages = paged(store, caller, limit)
    assert [card for page in pages for card in page] == whole
    assert listed(store, caller) == whole
    sizes = [len({(owner, name) for owner, name, _ in page}) for page in pages]
    assert sizes == [*[limit] * (len(pages) - 1), 7 - limit * (len(pages) - 1)]


def published_in_bulk(store: Database, owner: str, count: int, *, public: bool = False) -> None:
    publish(store, "n", owner=owner)
    with store.writing() as connection:
        row = connection.execute(
            sa.select(ADAPTERS).where(ADAPTERS.c.owner == owner, ADAPTERS.c.name == "n")
        ).one()
        names = [f"n{number:06d}" for number in range(count)]
        template = {key: value for key, value in row._mapping.items() if key != "id"}
        connection.execute(sa.insert(ADAPTERS), [{**template, "name": name} for name in names])
        connection.execute(
            sa.insert(ADAPTER_SETTINGS),
            [{"owner": owner, "name": name, "public": public} for name in names],
        )
        teams = [{"name": f"{owner} {name}", "created_at": 0} for name in names]
        connection.execute(sa.insert(TEAMS), teams)


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_a_list_may_have_more_names_than_a_statement_has_parameters(store: Database) -> None:
    published_in_bulk(store, "owner", 1_000)
    caller = key(store)
    with store.reading() as connection:
        driver = connection.connection.driver_connection
        # SQLite's own is 32,766 or more, PostgreSQL's 65,535; each name takes two.
        before = driver.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 1_500)
        cards = registry.list_cards(connection, caller)
        driver.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, before)
    assert len(cards) == 1_001


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("whose", ["its own", "others'"])
@pytest.mark.parametrize("after", [None, ("owner", "n000009")])
def test_a_page_reads_no_more_of_many_adapters_than_of_few(
    store: Database, whose: str, after: tuple[str, str] | None
) -> None:
    caller = key(store, "owner" if whose == "its own" else "other")
    steps = []
    for owner, count in (("owner", 30), ("owner 2", 2_000)):
        published_in_bulk(store, owner, count, public=whose != "its own")
        me = replace(caller, owner=owner if whose == "its own" else "other")
        last = after and (owner, after[1])
        with store.reading() as connection:
            taken = 0

            def count_step() -> int:
                nonlocal taken
                taken += 1
                return 0

            connection.connection.driver_connection.set_progress_handler(count_step, 1)
            page = registry.list_page(connection, me, after=last, limit=10)
            connection.connection.driver_connection.set_progress_handler(None, 1)
        assert len(page.cards) == 10
        steps.append(taken)
    assert steps[1] < 1.1 * steps[0]
