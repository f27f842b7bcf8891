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
    assert TOKENS.context("a photo of a", name) == TOKENS.template("a photo of a {}.")(name)


@pytest.mark.parametrize("name", ["golden retriever", "'s", "7-up", "crème brûlée", "A.B.", "_x_"])
def test_template_is_what_open_clip_reads(name: str) -> None:
    ids = TOKENS.template("a photo of a {}.")(name)
    row = open_clip.tokenize([f"a photo of a {name}."])[0].tolist()
    assert row == [*ids, *[0] * (77 - len(ids))]


def test_long_text_is_not_truncated() -> None:
    assert len(TOKENS.template("{}")("cat " * 200)) == 202


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


PIECES = st.text(st.sampled_from(" abSE019'-.!&<>_{ré​"), max_size=12)


@given(PIECES, PIECES, PIECES)
def test_template_and_name_are_read_apart_only_where_that_is_the_same(
    before: str, name: str, after: str
) -> None:
    whole = TOKENS.words(before + name + after)
    start, *ids, end = TOKENS.template(before.replace("{", "") + "{}" + after.replace("{", ""))(
        name
    )
    if "{" not in before + after:
        assert tuple(ids) == whole
    assert (start, end) == tuple(TOKENS._tokenizer.reserved)


@pytest.mark.parametrize("template", ["a {}", "{}'s house", "re{}", "a '{}", "x.{}!", "7{}8", "{}"])
@pytest.mark.parametrize("name", ["cat", "s", "'s", "cat 7", ".", "re", "7", "a&amp;b"])
def test_names_are_read_in_their_templates_as_open_clip_reads_them(
    template: str, name: str
) -> None:
    row = open_clip.tokenize([template.replace("{}", name)])[0].tolist()
    ids = TOKENS.template(template)(name)
    assert row == [*ids, *[0] * (77 - len(ids))]


def test_many_names_in_many_templates_are_each_read_once() -> None:
    """2,000 names under 256 templates took 36 seconds."""
    tokenize = Counted()
    tokens = Tokenizer(tokenize, 77).of("ann")
    names = [f"class {i}" for i in range(30)]
    for i in range(20):
        sequence = tokens.template(f"a photo {i} of a {{}}.")
        for name in names:
            sequence(name)
    assert len(tokenize.texts) == 20 + 1 + 30


def test_reading_lets_others_take_their_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TURN_SECONDS", 0.0)
    steps = module.in_steps(str.upper, ["a", "b", "c"])
    assert [next(steps) for _ in range(3)] == [None] * 3
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert end.value.value == ["A", "B", "C"]
