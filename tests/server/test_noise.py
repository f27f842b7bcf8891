"""Noise that stays: the generator, and what it is and is not a function of."""

from __future__ import annotations

import numpy as np
import pytest

from craft_server.database import Database
from craft_server.noise import Noise, philox, read_secret

PICTURES = [f"picture {n}".encode() for n in range(40)]
TEXTS = [[f"prompt {p} of class {c}".encode() for c in range(30)] for p in range(4)]
EVERY = slice(None)


def drawn(
    owner: str = "ann",
    secret: bytes = b"secret",
    images: list[bytes] = PICTURES,
    texts: list[list[bytes]] = TEXTS,
) -> np.ndarray:
    return Noise.of(secret, owner, 0.5, images=images, texts=texts).at(EVERY, EVERY)


# Of the authors' Random123 library, kat_vectors.
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_generator_gives_its_authors_numbers(
    counter: tuple[int, int, int, int], key: int, words: tuple[int, ...]
) -> None:
    a, b, c, d = (np.array([word], np.uint64) for word in counter)
    assert tuple(int(word[0]) for word in philox((a, b, c, d), key)) == words


def test_it_is_normal_with_the_deviation_asked_for() -> None:
    noise = np.sort(drawn().ravel()) / 0.5
    assert noise.dtype == np.float32
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05
    inside = [(np.abs(noise) < bound).mean() for bound in (1, 2, 3)]
    np.testing.assert_allclose(inside, [0.683, 0.954, 0.997], atol=0.02)


def test_it_depends_on_picture_and_text_alone_not_on_their_company() -> None:
    whole = drawn()
    pictures, texts = [5, 3, 17], [2, 0]
    classes = [4, 29, 1]
    some = drawn(
        images=[PICTURES[n] for n in pictures],
        texts=[[TEXTS[p][c] for c in classes] for p in texts],
    )
    np.testing.assert_array_equal(some, whole[np.ix_(texts, pictures, classes)])
    noise = Noise.of(b"secret", "ann", 0.5, images=PICTURES, texts=TEXTS)
    np.testing.assert_array_equal(noise.at(slice(1, 3), slice(8, 20)), whole[1:3, 8:20])


def test_other_owners_secrets_pictures_and_texts_have_other_noise() -> None:
    noise = drawn().ravel()
    others = {
        "owner": drawn(owner="bob"),
        "secret": drawn(secret=b"another"),
        "pictures": drawn(images=[b"x" + picture for picture in PICTURES]),
        "texts": drawn(texts=[[b"x" + text for text in prompt] for prompt in TEXTS]),
    }
    for what, other in others.items():
        assert abs(np.corrcoef(noise, other.ravel())[0, 1]) < 0.06, what
    assert len(np.unique(drawn())) > 0.99 * noise.size


def test_the_secret_is_made_once_and_is_another_on_each_database(
    store: Database, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with store.reading() as connection:
        secret = read_secret(connection)
        assert read_secret(connection) == secret
    assert len(secret) == 32
    other = Database.open(None, tmp_path_factory.mktemp("other"))
    with other.reading() as connection:
        assert read_secret(connection) != secret
    other.close()
