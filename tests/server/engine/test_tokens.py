from __future__ import annotations

import open_clip
import pytest
from hypothesis import given
from hypothesis import strategies as st

from craft_server.engine import tokens as module
from craft_server.engine.tokens import Tokens

TOKENS = Tokens(open_clip.SimpleTokenizer(), 77)


@given(st.text(st.characters(categories=("L", "N", "P", "Zs")), min_size=1, max_size=30))
def test_class_name_has_the_same_tokens_alone_as_in_the_sentence(name: str) -> None:
    assert TOKENS.context("a photo of a", name) == TOKENS.template("a photo of a {}.", name)


@pytest.mark.parametrize("name", ["golden retriever", "'s", "7-up", "crème brûlée", "A.B.", "_x_"])
def test_template_is_what_open_clip_reads(name: str) -> None:
    ids = TOKENS.template("a photo of a {}.", name)
    row = open_clip.tokenize([f"a photo of a {name}."])[0].tolist()
    assert row == [*ids, *[0] * (77 - len(ids))]


def test_long_text_is_not_truncated() -> None:
    assert len(TOKENS.template("{}", "cat " * 200)) == 202


def test_remembered_words_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenize = open_clip.SimpleTokenizer()
    tokens = Tokens(tokenize, 77)
    monkeypatch.setattr(module, "MAX_REMEMBERED_WORDS", 10)
    expected = tokens.words("word17 <end_of_text>")
    for i in range(100):
        tokens.words(f"word{'x' * i}")
        assert len(tokenize.cache) <= 12
    tokens._remembered.cache_clear()
    assert tokens.words("word17 <end_of_text>") == expected
