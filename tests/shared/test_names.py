"""Which names may be made, and which of them a tokenizer reads as one."""

# ruff: noqa: RUF001 - letters that look alike are what it is about

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from craft_shared.names import fault, made_sound, same_text, twins
from craft_shared.wire import KeyCreate, PredictionRequest

TOKENIZER = SimpleTokenizer()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("x\x1b[31mred", "U+001B, a control character, as character 2"),
        ("tab\there", "U+0009"),
        ("line\rhere", "U+000D"),
        ("\x85next", "U+0085"),
        ("fs\x1c", "U+001C"),
        ("vt\x0b", "U+000B"),
        ("nul\x00", "U+0000"),
        ("abc\u202etxt", "U+202E, an invisible formatting character, as character 4"),
        ("isolate\u2066", "U+2066"),
        ("mark\u200f", "U+200F"),
        ("\ufeffbom", "U+FEFF"),
        ("zero\u200bwidth", "U+200B"),
        ("join\u200der", "U+200D"),
        ("word\u2060joiner", "U+2060"),
        ("soft\u00adhyphen", "U+00AD"),
        ("tag\U000e0041", "U+E0041"),
        ("line\u2028", "U+2028, a line separator"),
        ("paragraph\u2029", "U+2029"),
        ("filler\u3164", "U+3164"),
        ("variation\ufe0f", "U+FE0F"),
        ("half\ud800", "U+D800, half of a surrogate pair"),
        ("caf\udce9", "the byte 0xE9, which is not UTF-8"),
        ("private\ue000", "U+E000"),
        ("none\u0378", "U+0378"),
        ("=1+1", "begins with '=' (U+003D)"),
        ("+1", "U+002B"),
        ("-40 degrees", "U+002D"),
        ("@SUM(1)", "U+0040"),
        ("  =1", "U+003D"),
        ("\uff1d1+1", "U+FF1D"),
    ],
)
def test_a_name_that_misleads_or_runs_is_told_by_its_code_point(name: str, told: str) -> None:
    assert told in (fault(name) or "")
    assert fault(made_sound(name)) is None


@pytest.mark.parametrize(
    "name",
    [
        "tabby cat",
        "AT&T",
        "T-shirt",
        "a = b",
        "naïve café",
        "e\u0301clair",
        "日本語",
        "한국어",
        "עברית",
        "العربية",
        "می\u200cخواهم",  # Persian writes a joiner within words
        "क्\u200dष",  # and Hindi
        "👩\u200d🚒 heart ❤\ufe0f",
        "3\ufe0f\u20e3",
        "no\u00a0break",
        "737-800",
        "(-1)",
        "'quoted'",
    ],
)
def test_a_name_that_people_read_is_sound(name: str) -> None:
    assert fault(name) is None
    assert made_sound(name) == name


@pytest.mark.parametrize("field", ["owner", "name", "team"])
def test_a_key_is_not_made_for_such_a_name(field: str) -> None:
    with pytest.raises(ValueError, match=r"U\+202E"):
        KeyCreate(**{"owner": "alice", field: "evil\u202e"})


def test_a_prediction_names_no_such_class() -> None:
    with pytest.raises(ValueError, match=r"begins with '='"):
        PredictionRequest(model="pocket", classes=["=1+1"])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("café", "cafe\u0301"),
        ("cat", "ｃａｔ"),
        ("cat's tail", "cat\u2019s tail"),
        ("salt & pepper", "salt &amp; pepper"),
        ("salt & pepper", "salt &amp;amp; pepper"),
        ("tabby cat", "tabby\u00a0cat"),
        ("tabby cat", "tabby  cat"),
        ("tabby cat", " tabby cat\n"),
        ("Tabby Cat", "tabby cat"),
        ("coffee", "co\ufb00ee"),
        ("naïve", "naÃ¯ve"),
        ("Boeing 737", "Boeing 7 3 7"),
        ("T-shirt", "T - shirt"),
    ],
)
def test_names_that_the_tokenizer_reads_as_one_are_twins(one: str, other: str) -> None:
    assert same_text(one) == same_text(other)
    assert list(twins(["dog", one, other])) == [(2, 1)]


def test_names_that_it_tells_apart_are_none() -> None:
    assert not list(twins(["cat", "cats", "c at", "cat.", "strasse", "straße", "a\u200bb", "ab"]))


_PIECES = st.sampled_from(
    [
        *"aAeé'’\"“ .-&;1２² ﬁß\u0301\u00a0ＣsS_tlm<>#İ³ςΣſKｱ\u0660\u200d\ufeff\n",
        *("&amp;", "&amp;amp;", "'s", "'ll", "Ã©", "&#39;", "&lt;"),
    ]
)
_TEXTS = st.lists(_PIECES, max_size=4).map("".join) | st.text(max_size=6)


@given(_TEXTS, _TEXTS)
@example("'s a", "'sa")
@example("' s", "'s")
def test_two_texts_are_one_exactly_where_their_tokens_are(one: str, other: str) -> None:
    alike = TOKENIZER.encode(one) == TOKENIZER.encode(other)
    assert (same_text(one) == same_text(other)) == alike


@given(_TEXTS)
def test_a_text_in_another_form_stays_one(text: str) -> None:
    for form in (text.upper().lower(), text.replace(" ", "\u00a0"), f" {text}  "):
        alike = TOKENIZER.encode(text) == TOKENIZER.encode(form)
        assert (same_text(text) == same_text(form)) == alike


@given(st.text(max_size=20))
def test_what_is_made_sound_is_sound(text: str) -> None:
    assert fault(made_sound(text)) is None
