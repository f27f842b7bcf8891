from pathlib import Path

import pytest

from craft_client.exceptions import DataError
from craft_client.open_text import beside, common_nouns, read_vocabulary
from craft_shared.wire.messages import LONGEST_CLASS_NAME


def test_the_shipped_nouns_are_what_a_server_accepts() -> None:
    nouns = common_nouns()
    assert len(nouns) == len(set(nouns)) == 1000
    assert {"dog", "chair", "apple"} <= set(nouns)
    assert max(map(len, nouns)) <= LONGEST_CLASS_NAME


def test_class_names_are_left_out_of_a_vocabulary() -> None:
    assert beside(["Dog", "cat"], ["dog", "cow", "CAT"]) == ("cow",)


def test_a_vocabulary_is_read_a_line_a_text(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("zebra crossing\n\n  crêpe \nzebra crossing\n", encoding="utf-8")
    assert read_vocabulary(file) == ("zebra crossing", "crêpe")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"\n \n", "holds no text"),
        (b"caf\xe9", "is not UTF-8"),
        (b"x" * (LONGEST_CLASS_NAME + 1), "201 characters"),
        ("a\u2028b".encode(), r"holds U\+2028, a line separator, as character 2"),
        (b"wheel\n-1", "begins with '-'"),
    ],
)
def test_a_vocabulary_that_cannot_be_used_is_refused(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    file = tmp_path / "texts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=words) as error:
        read_vocabulary(file)
    assert error.value.remedy


def test_a_vocabulary_is_cut_at_line_ends_alone_and_may_be_windows(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_bytes("\ufeffwheel\r\na\u00a0b\r\nwheel\r\n".encode())
    assert read_vocabulary(file) == ("wheel", "a\u00a0b")
    file.write_bytes("a\u0085b\r\nwheel\r\n".encode())
    with pytest.raises(DataError, match="holds U\\+0085"):
        read_vocabulary(file)
