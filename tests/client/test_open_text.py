from pathlib import Path

import numpy as np
import pytest

from craft_client.exceptions import DataError
from craft_client.open_text import beside, common_nouns, read_vocabulary, spanning_texts
from craft_shared.head import log_softmax
from craft_shared.wire.messages import LONGEST_CLASS_NAME

RNG = np.random.default_rng(0)
PICTURES, WIDTH, CLASSES = 40, 12, 3
FEATURES = RNG.normal(size=(PICTURES, WIDTH))


def scores(*directions: np.ndarray) -> np.ndarray:
    """Log-probabilities of texts that lie in these directions of the embedding."""
    texts = np.concatenate([direction.reshape(-1, WIDTH) for direction in directions])
    return log_softmax((FEATURES @ texts.T).astype(np.float32))


def test_texts_that_say_nothing_new_are_chosen_last() -> None:
    names = RNG.normal(size=(CLASSES, WIDTH))
    mixed = RNG.dirichlet(np.ones(CLASSES), size=4) @ names  # within the classes' own span
    new = RNG.normal(size=(5, WIDTH))
    chosen = spanning_texts(scores(names, mixed, new), CLASSES, keep=5)
    assert set(chosen.tolist()) == {4, 5, 6, 7, 8}


def test_a_text_is_not_chosen_beside_its_twin() -> None:
    names = RNG.normal(size=(CLASSES, WIDTH))
    far = 3 * RNG.normal(size=WIDTH)
    near = RNG.normal(size=WIDTH)
    chosen = spanning_texts(scores(names, far, far, near), CLASSES, keep=2)
    assert 2 in chosen.tolist()


@pytest.mark.parametrize("keep", [1, 4, 99])
def test_as_many_texts_as_asked_for_are_chosen_once_each(keep: int) -> None:
    log_probs = scores(RNG.normal(size=(CLASSES + 20, WIDTH)))  # more texts than dimensions
    chosen = spanning_texts(log_probs, CLASSES, keep)
    assert len(chosen) == len(set(chosen.tolist())) == min(keep, 20)


def test_a_constant_added_to_a_pictures_logits_changes_no_choice() -> None:
    log_probs = scores(RNG.normal(size=(CLASSES + 20, WIDTH)))
    moved = log_probs + RNG.normal(size=(PICTURES, 1)).astype(np.float32)
    np.testing.assert_array_equal(
        spanning_texts(moved, CLASSES, 8), spanning_texts(log_probs, CLASSES, 8)
    )


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
