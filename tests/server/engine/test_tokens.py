from __future__ import annotations

import open_clip
import pytest
from hypothesis import given
from hypothesis import strategies as st

from craft_server.engine import tokens as module
from craft_server.engine.tokens import Tokenizer

TOKENS = Tokenizer(open_clip.SimpleTokenizer(), 77).of()


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
    monkeypatch.setattr(module, "MAX_REMEMBERED_WORDS", 10)
    tokenize = open_clip.SimpleTokenizer()
    tokens = Tokenizer(tokenize, 77).of()
    expected = TOKENS.words("word17 <end_of_text>")
    for i in range(100):
        tokens.words(f"word{'x' * i}")
        assert len(tokenize.cache) <= 13
    assert tokens.words("word17 <end_of_text>") == expected


class Counted(open_clip.SimpleTokenizer):
    """Notes the texts and the words that it has to work on."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.worked_on: list[str] = []

    def encode(self, text: str) -> list[int]:
        self.texts.append(text)
        return list(super().encode(text))

    def bpe(self, token: str) -> str:
        if token not in self.cache:
            self.worked_on.append(token)
        return str(super().bpe(token))


def test_a_tenants_texts_and_words_are_remembered() -> None:
    tokenize = Counted()
    tokenizer = Tokenizer(tokenize, 77)
    for text in ("gallus gallus", "gallus gallus", "my gallus"):
        tokenizer.of("ann").words(text)
    assert tokenize.texts == ["gallus gallus", "my gallus"]
    assert tokenize.worked_on == ["gallus", "my"]


def test_another_tenants_texts_and_words_are_work_like_new_ones() -> None:
    tokenize = Counted()
    tokenizer = Tokenizer(tokenize, 77)
    read = [tokenizer.of(tenant).words("gallus gallus") for tenant in ("ann", "bob", "")]
    assert len(set(read)) == 1
    assert tokenize.texts == ["gallus gallus"] * 3
    assert tokenize.worked_on == ["gallus"] * 3


def test_the_tenant_that_was_silent_for_longest_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED_TENANTS", 2)
    tokenize = Counted()
    tokenizer = Tokenizer(tokenize, 77)
    for tenant in ("ann", "bob", "ann", "cat", "ann", "bob"):
        tokenizer.of(tenant).words("gallus")
    assert len(tokenize.texts) == 4
