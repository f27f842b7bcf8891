"""How many different prompts an owner asks about which images, on both stores."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa

from craft_server.database import Database
from craft_server.policy import ASKED_PROMPTS, PromptLimitReached, note_prompts


def note(
    store: Database,
    *prompts: str,
    limit: int = 3,
    owner: str = "ann",
    about: tuple[str, ...] = ("set",),
) -> None:
    with store.writing() as connection:
        note_prompts(connection, owner, about, prompts, limit=limit)


def noted(store: Database) -> int:
    with store.reading() as connection:
        query = sa.select(sa.func.count()).select_from(ASKED_PROMPTS)
        return int(connection.execute(query).scalar_one())


def test_only_prompts_that_were_not_asked_before_count(store: Database) -> None:
    note(store, "a", "b", "a")
    note(store, "b")
    note(store, "c", "a")
    note(store, "a", "b", "c")
    assert noted(store) == 3


def test_past_the_limit_nothing_is_noted_and_the_counts_are_told(store: Database) -> None:
    note(store, "a", "b")
    with pytest.raises(PromptLimitReached) as refused:
        note(store, "b", "c", "d")
    assert (refused.value.used, refused.value.new, refused.value.limit) == (2, 2, 3)
    assert noted(store) == 2
    note(store, "c")


def test_of_several_images_all_are_noted_or_none(store: Database) -> None:
    note(store, "a", "b", "c", about=("second",))
    with pytest.raises(PromptLimitReached):
        note(store, "d", about=("first", "second"))
    assert noted(store) == 3


def test_other_owners_and_images_count_for_themselves(store: Database) -> None:
    note(store, "a", "b", "c")
    note(store, "d", "e", "f", owner="bob")
    note(store, "d", "e", "f", about=("another set",))
    assert noted(store) == 9


def test_a_limit_that_was_lowered_still_lets_old_prompts_through(store: Database) -> None:
    note(store, "a", "b", "c")
    note(store, "a", "c", limit=1)
    with pytest.raises(PromptLimitReached):
        note(store, "d", limit=1)


def test_many_at_a_time_do_not_pass_the_limit(store: Database) -> None:
    refused: list[int] = []
    together = threading.Barrier(8)

    def ask(number: int) -> None:
        together.wait(30)
        try:
            note(store, f"{number} a", f"{number} b", limit=6)
        except PromptLimitReached:
            refused.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(refused) == 5
    assert noted(store) == 6
