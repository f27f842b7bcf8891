from __future__ import annotations

import json
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craft_client.data import Sample, check_pictures, few_shot, load_dataset
from craft_client.exceptions import DataError
from craft_shared.wire import Limits

from .pictures import write_picture

LIMITS = Limits(
    body_bytes=2**20,
    images_per_call=8,
    image_bytes=2**16,
    image_pixels=10_000,
    images_per_set=100,
    prompts_per_call=8,
    classes=10,
    dim=16,
    answer_bytes=2**20,
)


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def coop(folder: Path, document: Any, name: str = "split_zhou_Pets.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(document))
    return folder


# --- layouts ------------------------------------------------------------------------------------


def test_split_folders_give_classes_by_folder_name(tmp_path: Path) -> None:
    for path in (
        "train/big_cat/2.jpg",
        "train/big_cat/1.PNG",
        "train/dog/1.jpg",
        "val/dog/3.webp",
        "test/big_cat/9.jpeg",
    ):
        touch(tmp_path / "pets" / path)
    data = load_dataset(tmp_path / "pets")
    root = tmp_path / "pets"
    assert data.name == "pets"
    assert data.classes == ("big cat", "dog")
    assert data.train == (
        Sample(root / "train/big_cat/1.PNG", 0),
        Sample(root / "train/big_cat/2.jpg", 0),
        Sample(root / "train/dog/1.jpg", 1),
    )
    assert data.validation == (Sample(root / "val/dog/3.webp", 1),)
    assert data.test == (Sample(root / "test/big_cat/9.jpeg", 0),)


def test_flat_folders_are_all_training_pictures(tmp_path: Path) -> None:
    touch(tmp_path / "dog/1.jpg")
    touch(tmp_path / "cat/1.jpg")
    data = load_dataset(tmp_path)
    assert data.classes == ("cat", "dog")
    assert [sample.label for sample in data.train] == [0, 1]
    assert data.test == data.validation == ()


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    touch(tmp_path / "train/1.jpg")
    touch(tmp_path / "plane/1.jpg")
    assert load_dataset(tmp_path).classes == ("plane", "train")


def test_a_test_split_alone_is_enough(tmp_path: Path) -> None:
    touch(tmp_path / "test/cat/1.jpg")
    data = load_dataset(tmp_path)
    assert (data.classes, len(data.test), data.train) == (("cat",), 1, ())


@pytest.mark.parametrize("root", ["", "images"])
def test_a_coop_split_is_read_and_its_pictures_are_found(tmp_path: Path, root: str) -> None:
    split = {
        "train": [["b/2.jpg", 1, "sea_lion"], ["a/1.jpg", 0, "cat"], ["b/1.jpg", 1, "sea_lion"]],
        "val": [],
        "test": [["a/9.jpg", 0, "cat"]],
    }
    folder = coop(tmp_path / "pets", split)
    for path in ("a/1.jpg", "a/9.jpg", "b/1.jpg", "b/2.jpg"):
        touch(folder / root / path)
    data = load_dataset(folder)
    assert data.classes == ("cat", "sea lion")
    assert data.train == (
        Sample(folder / root / "a/1.jpg", 0),
        Sample(folder / root / "b/1.jpg", 1),
        Sample(folder / root / "b/2.jpg", 1),
    )
    assert data.validation == ()
    assert data.test == (Sample(folder / root / "a/9.jpg", 0),)


def test_hidden_files_and_known_junk_are_skipped(tmp_path: Path) -> None:
    for name in ("1.jpg", ".DS_Store", "Thumbs.db", "README.txt", "desktop.ini", ".cache/x.jpg"):
        touch(tmp_path / "cat" / name)
    touch(tmp_path / "__MACOSX/1.jpg")
    touch(tmp_path / ".git/1.jpg")
    touch(tmp_path / "labels.csv")
    data = load_dataset(tmp_path)
    assert data.train == (Sample(tmp_path / "cat/1.jpg", 0),)


# --- what is wrong is named ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], ["has no class folders"]),
        (["train/cat/1.jpg", "train/dog/.DS_Store"], ["train/dog' holds no pictures"]),
        (["cat/1.jpg", "cat/notes.csv"], ["cat/notes.csv' is not a picture", "remove it"]),
        (["cat/1.jpg", "cat/more/2.jpg"], ["cat/more' is a folder"]),
        (["big_cat/1.jpg", "big cat/1.jpg"], ["big_cat'", "big cat'", "'big cat'", "Rename"]),
        (["Cat/1.jpg", "cat/1.jpg", "dog/1.jpg"], ["'Cat'", "'cat'"]),
        (["train/cat/1.jpg", "test/owl/1.jpg"], ["test/owl'", "does not have"]),
        (["train/cat/1.jpg", "val/cat/1.jpg", "validation/cat/1.jpg"], ["val'", "validation'"]),
        (["___/1.jpg"], ["___'", "0 characters"]),
        ([f"{'x' * 201}/1.jpg"], ["201 characters"]),
    ],
)
def test_folders_that_cannot_be_used_are_named(
    tmp_path: Path, files: list[str], words: list[str]
) -> None:
    for file in files:
        touch(tmp_path / file)
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path)
    for word in words:
        assert word in str(caught.value)
    assert len(str(caught.value).splitlines()) > 1, "there is a remedy"


def test_no_such_folder_and_a_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere' does not exist"):
        load_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"a.jpg' is not a folder"):
        load_dataset(touch(tmp_path / "a.jpg"))


CAT = ["1.jpg", 0, "cat"]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "has no list 'train'"),
        ({"train": {}}, "has no list 'train'"),
        ({"train": [CAT], "test": [["2.jpg", "0", "cat"]]}, r"test\[0\] is not \[path, label"),
        ({"train": [CAT, ["2.jpg", 0]]}, r"train\[1\] is not \[path, label"),
        ({"train": [CAT, ["2.jpg", 0, "dog"]]}, "label 0 two names: 'cat' and 'dog'"),
        ({"train": [CAT, ["2.jpg", 2, "dog"]]}, "without a gap"),
        ({"train": []}, "without a gap"),
        ({"train": [CAT, ["2.jpg", 1, "Cat"]]}, "same name"),
        ({"train": [CAT, ["../secret.jpg", 1, "dog"]]}, r"train\[1\]: '../secret.jpg' leads out"),
        ({"train": [CAT, ["/etc/secret.jpg", 1, "dog"]]}, "leads out"),
        ({"train": [CAT, ["2.jpg", 1, "dog"], ["3.jpg", 1, "dog"]]}, r"(?s)1 of the 3.*'3.jpg'"),
        ({"train": [["8.jpg", 0, "cat"], ["9.jpg", 0, "cat"]]}, r"(?s)None of the 2.*'8.jpg'"),
    ],
)
def test_a_coop_split_that_cannot_be_used_is_told(
    tmp_path: Path, document: Any, words: str
) -> None:
    folder = coop(tmp_path / "pets", document)
    touch(folder / "images/1.jpg")
    touch(folder / "images/2.jpg")
    touch(tmp_path / "secret.jpg")
    with pytest.raises(DataError, match=words):
        load_dataset(folder)


def test_two_coop_splits_and_a_damaged_one_are_told(tmp_path: Path) -> None:
    (tmp_path / "split_zhou_A.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        load_dataset(tmp_path)
    coop(tmp_path, {}, "split_zhou_B.json")
    with pytest.raises(DataError, match=r"split_zhou_A.json', 'split_zhou_B.json"):
        load_dataset(tmp_path)


def test_a_missing_split_is_told_with_those_that_are_there(tmp_path: Path) -> None:
    touch(tmp_path / "cat/1.jpg")
    data = load_dataset(tmp_path)
    assert data.split("train") == data.train
    with pytest.raises(DataError, match=r"(?s)no test split.*--split: 'train'"):
        data.split("test")


# --- few-shot sampling --------------------------------------------------------------------------


def samples(counts: list[int]) -> list[Sample]:
    return [
        Sample(Path(f"/data/{label}/{index:03}.jpg"), label)
        for label, count in enumerate(counts)
        for index in range(count)
    ]


def test_the_draw_is_the_documented_one() -> None:
    draw = random.Random(7)
    expected = []
    for label, count in enumerate([5, 9]):
        paths = [f"/data/{label}/{index:03}.jpg" for index in range(count)]
        expected += [(path, label) for path in draw.sample(paths, 3)]
    found = few_shot(samples([5, 9]), 3, 7, ["cat", "dog"])
    assert [(str(sample.path), sample.label) for sample in found] == expected


@given(st.randoms(use_true_random=False), st.integers(0, 2**32))
def test_the_draw_does_not_depend_on_the_order_of_the_files(
    shuffler: random.Random, seed: int
) -> None:
    ordered = samples([4, 6, 5])
    shuffled = ordered.copy()
    shuffler.shuffle(shuffled)
    classes = ["cat", "dog", "owl"]
    assert few_shot(shuffled, 3, seed, classes) == few_shot(ordered, 3, seed, classes)


def test_another_seed_draws_other_pictures_and_none_twice() -> None:
    first, second = (few_shot(samples([50, 50]), 16, seed, ["cat", "dog"]) for seed in (1, 2))
    assert set(first) != set(second)
    assert len(set(first)) == 32
    assert [sample.label for sample in first] == [0] * 16 + [1] * 16


def test_all_classes_with_too_few_pictures_are_named_with_the_shots_that_work() -> None:
    with pytest.raises(DataError) as caught:
        few_shot(samples([5, 3, 9, 4]), 5, 1, ["cat", "dog", "owl", "pig"])
    assert str(caught.value).splitlines() == [
        "2 of 4 classes have fewer training pictures than the 5 shots.",
        "  class 'dog': has 3.",
        "  class 'pig': has 4.",
        "  Add pictures to these classes, or use --shots 3 at most.",
    ]
    assert few_shot(samples([5, 3, 9, 4]), 3, 1, ["cat", "dog", "owl", "pig"])


# --- pictures -----------------------------------------------------------------------------------


def png_header_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds almost nothing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 10)
    chunks = b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (header, data, b"IEND")
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_good_pictures_pass(tmp_path: Path) -> None:
    checked: list[int] = []
    good = [
        Sample(write_picture(tmp_path / f"{number}.{suffix}", number), 0)
        for number, suffix in enumerate(["png", "jpg", "webp", "gif", "bmp"])
    ]
    check_pictures(good, LIMITS, on_checked=checked.append)
    assert checked == [5]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_a_truncated_picture_is_told(tmp_path: Path, suffix: str, kept: float) -> None:
    path = write_picture(tmp_path / f"a.{suffix}", 1, size=(60, 50))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(DataError, match=r"(?s)a\.\w+': cannot be read.*truncated"):
        check_pictures([Sample(path, 0)], LIMITS)


def test_files_that_are_no_pictures_are_counted_and_named(tmp_path: Path) -> None:
    bad = []
    for number in range(7):
        path = tmp_path / f"{number}.jpg"
        path.write_text("no picture")
        bad.append(Sample(path, 0))
    bad.insert(2, Sample(write_picture(tmp_path / "good.jpg", 1), 0))
    with pytest.raises(DataError) as caught:
        check_pictures(bad, LIMITS)
    lines = str(caught.value).splitlines()
    assert lines[0] == "7 of 8 pictures cannot be used."
    assert [line.split("/")[-1] for line in lines[1:6]] == [
        f"{number}.jpg': is not a picture that a server reads. Remove it, or convert it to one of "
        "JPEG, PNG, WEBP, BMP, GIF, TIFF."
        for number in range(5)
    ]
    assert lines[6] == "  ...: and 2 more."


@pytest.mark.parametrize(("width", "height"), [(200, 51), (20_000, 20_000), (100_000, 100_000)])
@pytest.mark.filterwarnings("error")
def test_too_many_pixels_are_told_from_the_header(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_header_of(width, height))
    with pytest.raises(DataError, match=r"pixels; the server accepts 10000|absurdly large"):
        check_pictures([Sample(path, 0)], LIMITS)


def test_a_sliver_is_told_from_the_header(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_header_of(1, 101))
    with pytest.raises(DataError, match=r"1 x 101 pixels; a side may be 100 times the other"):
        check_pictures([Sample(path, 0)], LIMITS)


def test_too_many_bytes_are_told(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png", 1)
    path.write_bytes(path.read_bytes() + b"\0" * 2**16)
    with pytest.raises(DataError, match=r"bytes; the server accepts 65536"):
        check_pictures([Sample(path, 0)], LIMITS)


def test_a_picture_that_has_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png"):
        check_pictures([Sample(tmp_path / "gone.png", 0)], LIMITS)
