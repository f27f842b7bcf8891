"""Names: what one may hold where it is made, and which of them a tokenizer reads as one.

Classes, owners, teams, keys, runs and their titles are shown on terminals, on pages and in
spreadsheets, by people who did not choose them. So a new name is printable text that no spreadsheet
takes for a formula. What was stored before is not asked again: it is made harmless where it is
shown.

Sources: Unicode Standard, sections 4.5 (general categories) and 23.2 (joiners); RFC 5892, appendix
A (where joiners belong to a word); OWASP, "CSV Injection"; Radford et al. (2021), CLIP's
`simple_tokenizer.py`, whose cleaning open_clip's tokenizer shares.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Iterator

from pydantic_core import PydanticCustomError

from craft_shared.printing import INVISIBLE

FAULT = "unusable_name"  # pydantic's type of the error
REMEDY = "Rename it: use printable text that begins with none of = + - @."

# What spreadsheets take for the beginning of a formula; some of them the wide forms too.
FORMULA_SIGNS = "=+-@\uff1d\uff0b\uff0d\uff20"

_UNPRINTABLE = {
    "Cc": "a control character",
    "Cf": "an invisible formatting character",
    "Cs": "half of a surrogate pair",
    "Co": "a private character, which each font shows otherwise",
    "Cn": "a character that Unicode does not know",
    "Zl": "a line separator",
    "Zp": "a paragraph separator",
}
_JOINERS = "\u200c\u200d"
_EMOJI_STYLES = "\ufe0e\ufe0f"
_UNDECODED = range(0xDC80, 0xDD00)  # how Python writes a byte that is not UTF-8
_ENDING = re.compile("'(?:s|t|re|ve|m|ll|d)")
_RUN = re.compile("L+|N| +")
_VIRAMA = 9  # its canonical combining class


def fault(name: str) -> str | None:
    """What a new name may not hold and this one does, and where; None where it is sound."""
    # Nearly all names are plain ASCII, and a call may have thousands.
    plain = name.isascii() and name.isprintable()
    for position, character in enumerate("" if plain else name):
        what = _unprintable(name, position)
        if what:
            return f"holds {_code_point(character)}, {what}, as character {position + 1}"
    first = name.lstrip()[:1]
    if first and first in FORMULA_SIGNS:
        return f"begins with '{first}' ({_code_point(first)}), as formulas of spreadsheets do"
    return None


def sound(name: str) -> str:
    """The name; of pydantic's kind of error where it is none that may be made."""
    found = fault(name)
    if found:
        raise PydanticCustomError(FAULT, "the name {fault}", {"fault": found})
    return name


def made_sound(text: str) -> str:
    """What a name may hold of a text that somebody else chose, such as a folder's name."""
    kept = (sign for place, sign in enumerate(text) if not _unprintable(text, place))
    return "".join(kept).lstrip(f"{FORMULA_SIGNS} ").strip()


def same_text(text: str) -> str:
    """What CLIP's tokenizer reads of a text: two texts are one to it where this is the same.

    It repairs broken encodings, widths and quotes, resolves HTML entities, counts neither case nor
    white space, and cuts words at digits and signs. Other models' tokenizers tell other texts
    apart: a server asks its own.
    """
    # What holds of any text holds at once of nearly all: plain ASCII.
    if not text.isascii() or not text.isprintable() or "&" in text:
        # Slow to import.
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(_words(text.lower()))


def twins(names: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Each name that a tokenizer reads as an earlier one: its place, and the first such one's."""
    first: dict[str, int] = {}
    for place, name in enumerate(names):
        holder = first.setdefault(same_text(name), place)
        if holder != place:
            yield place, holder


def _words(text: str) -> Iterator[str]:
    """English endings, runs of letters, single digits, runs of signs: how the pattern cuts."""
    for word in text.split():
        kinds = "".join(map(_kind, word))
        place = 0
        while place < len(word):
            found = _ENDING.match(word, place) or _RUN.match(kinds, place)
            end = found.end() if found else len(word)
            yield word[place:end]
            place = end


def _kind(sign: str) -> str:
    category = unicodedata.category(sign)[0]
    return category if category in "LN" else " "


def _unprintable(text: str, place: int) -> str | None:
    character = text[place]
    if character in _JOINERS:
        return None if _joins(text, place) else _UNPRINTABLE["Cf"]
    if character in _EMOJI_STYLES:
        styled = place and unicodedata.category(text[place - 1]) in ("So", "Sm", "Po", "Nd")
        return None if styled else "a character that nothing is seen of"
    if character in INVISIBLE:
        return "a character that nothing is seen of"
    if ord(character) in _UNDECODED:
        return f"the byte 0x{ord(character) - 0xDC00:02X}, which is not UTF-8"
    return _UNPRINTABLE.get(unicodedata.category(character))


def _joins(text: str, place: int) -> bool:
    """Whether a joiner is a part of a word: in Arabic and Indic scripts, and of an emoji."""
    if not 0 < place < len(text) - 1:
        return False
    before, after = text[place - 1], text[place + 1]
    if unicodedata.combining(before) == _VIRAMA:
        return True
    if unicodedata.bidirectional(before) == unicodedata.bidirectional(after) == "AL":
        return True
    emoji = before in _EMOJI_STYLES or unicodedata.category(before) in ("So", "Sk")
    return emoji and text[place] == "\u200d" and unicodedata.category(after) == "So"


def _code_point(character: str) -> str:
    return f"U+{ord(character):04X}"
