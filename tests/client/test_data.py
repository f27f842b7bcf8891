"""Copies of one image: which they are, and what is said of them."""

from __future__ import annotations

import random
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from craft_client.data import (
    Sample,
    check_images,
    digest_of,
    few_shot,
    fewer_note,
    groups_of,
    in_common,
    notes,
    twins_of,
    with_equal_answers,
)
from craft_client.exceptions import DataError
from craft_shared.wire import Limits
from hostile_images import jpeg_with_scans

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
        few_shot(samples([5, 3, 9, 4]), 5, 1, ["cat", "dog", "owl", "pig"], strict=True)
    assert str(caught.value).splitlines() == [
        "2 of 4 classes have fewer training pictures than the 5 shots.",
        "  class 'dog': has 3.",
        "  class 'pig': has 4.",
        "  Add pictures to these classes, or use --shots 3 at most.",
    ]
    assert few_shot(samples([5, 3, 9, 4]), 3, 1, ["cat", "dog", "owl", "pig"], strict=True)


def test_of_a_class_with_fewer_pictures_than_shots_all_are_taken_and_it_is_said() -> None:
    every = samples([5, 3, 9, 1])
    found = few_shot(every, 4, 1, ["cat", "dog", "owl", "pig"])
    assert [sample.label for sample in found] == [0] * 4 + [1] * 3 + [2] * 4 + [3]
    assert len(set(found)) == len(found)
    assert fewer_note(found, 4, ["cat", "dog", "owl", "pig"]) == (
        "2 of 4 classes have fewer pictures than the 4 shots; all that there are, are taken: "
        "'dog' 3, 'pig' 1."
    )
    assert fewer_note(found, 1, ["cat", "dog", "owl", "pig"]) == ""
    with pytest.raises(
        DataError, match=r"(?s)1 of 2 classes have no training picture.*'dog': has 0"
    ):
        few_shot(samples([5, 0]), 4, 1, ["cat", "dog"])


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
        write_picture(tmp_path / f"{number}.{suffix}", number)
        for number, suffix in enumerate(["png", "jpg", "webp", "gif", "bmp"])
    ]
    check_images(good, LIMITS, on_checked=checked.append)
    assert checked == [5]


def test_a_sound_picture_with_odd_metadata_is_taken_without_a_word(tmp_path: Path) -> None:
    path, exif = tmp_path / "odd.jpg", Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (16, 16)).save(path, exif=exif)
    data = bytearray(path.read_bytes())
    begin = data.index(b"Exif\0\0") + 10  # where the first directory is said to be
    data[begin : begin + 8] = b"\xff" * 8
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_images([path], LIMITS)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_a_truncated_picture_is_told(tmp_path: Path, suffix: str, kept: float) -> None:
    path = write_picture(tmp_path / f"a.{suffix}", 1, size=(60, 50))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(DataError, match=r"(?s)a\.\w+': cannot be read.*truncated"):
        check_images([path], LIMITS)


def test_files_that_are_no_pictures_are_counted_and_named(tmp_path: Path) -> None:
    bad = []
    for number in range(7):
        path = tmp_path / f"{number}.jpg"
        path.write_text("no picture")
        bad.append(path)
    bad.insert(2, write_picture(tmp_path / "good.jpg", 1))
    with pytest.raises(DataError) as caught:
        check_images(bad, LIMITS)
    lines = str(caught.value).splitlines()
    assert lines[0] == "7 of 8 pictures cannot be used."
    assert [line.split("/")[-1] for line in lines[1:6]] == [
        f"{number}.jpg': is not a picture that a server reads. Remove it, or convert it to one of "
        "JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF."
        for number in range(5)
    ]
    assert lines[6] == "  ...: and 2 more."


def test_a_format_of_another_name_is_named_with_the_conversion(tmp_path: Path) -> None:
    path = tmp_path / "IMG_1.jpg"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(DataError, match=r"IMG_1.jpg': is HEIC, which no server reads. Convert it"):
        check_images([path], LIMITS)


@pytest.mark.parametrize(("width", "height"), [(200, 51), (20_000, 20_000), (100_000, 100_000)])
@pytest.mark.filterwarnings("error")
def test_too_many_pixels_are_told_from_the_header(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_header_of(width, height))
    with pytest.raises(DataError, match=r"pixels; the server accepts 10000|absurdly large"):
        check_images([path], LIMITS)


def test_a_sliver_is_told_from_the_header(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_header_of(1, 101))
    with pytest.raises(DataError, match=r"1 x 101 pixels; a side may be 100 times the other"):
        check_images([path], LIMITS)


def test_too_many_bytes_are_told(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png", 1)
    path.write_bytes(path.read_bytes() + b"\0" * 2**16)
    with pytest.raises(DataError, match=r"bytes; the server accepts 65536"):
        check_images([path], LIMITS)


def test_a_picture_that_has_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        check_images([tmp_path / "gone.png"], LIMITS)
    assert "gone.png': cannot be opened: No such file or directory." in str(caught.value)
    assert "damaged" not in str(caught.value)


def test_a_picture_is_sound_whatever_lies_beside_its_pixels(tmp_path: Path) -> None:
    """A PNG with 2 MB of compressed text was called damaged."""
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "x" * 3_000_000, zip=True)
    path = tmp_path / "long.png"
    Image.new("RGB", (9, 9)).save(path, pnginfo=text)
    check_images([path], LIMITS)


def test_a_picture_that_no_server_decodes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "scans.jpg"
    path.write_bytes(jpeg_with_scans(200, side=16))
    with pytest.raises(DataError, match="it has over 100 scans, far more than a picture needs"):
        check_images([path], LIMITS)


def test_files_with_one_digest_are_one_group_in_the_order_in_which_they_come() -> None:
    assert groups_of(["c", "a", "c", "b", "a"], 5).tolist() == [0, 1, 0, 2, 1]
    assert groups_of(None, 3).tolist() == [0, 1, 2]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_images_are_joined_by_files_and_answers_whichever_way_leads_from_one_to_the_other(
    images: list[tuple[int, int]],
) -> None:
    files, answers = zip(*images, strict=True)
    log_probs = np.array(answers, np.float32)[None, :, None] + np.zeros((4, 1, 8), np.float32)
    found = with_equal_answers(groups_of(list(map(str, files)), len(images)), log_probs)
    # By hand: joined until nothing changes.
    group = list(range(len(images)))
    for _ in images:
        for i, one in enumerate(images):
            for j, other in enumerate(images):
                if one[0] == other[0] or one[1] == other[1]:
                    group[i] = group[j] = min(group[i], group[j])
    assert [found[i] == found[0] for i in range(len(images))] == [g == group[0] for g in group]
    assert len(set(found.tolist())) == len(set(group))


def test_answers_of_few_numbers_say_nothing() -> None:
    equal = np.zeros((1, 3, 2), np.float32)
    assert with_equal_answers(np.arange(3), equal).tolist() == [0, 1, 2]


@pytest.fixture
def copied(tmp_path: Path) -> list[Sample]:
    """Two cats that are one picture, which is a dog too, and an owl."""
    contents = {"cat/1": b"one", "cat/2": b"one", "dog/3": b"one", "owl/4": b"four"}
    for name, content in contents.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
    labels = {"cat": 0, "dog": 1, "owl": 2}
    return [Sample(tmp_path / name, labels[name[:3]]) for name in contents]


def test_copies_are_said_in_a_line_each_with_both_paths(
    copied: list[Sample], tmp_path: Path
) -> None:
    digests = [digest_of(sample.path) for sample in copied]
    assert notes(copied, digests) == (
        "Copies of one picture in one class, which are held out together (1): "
        f"'{tmp_path}/cat/1' and '{tmp_path}/cat/2'.",
        f"Copies of one picture in two classes (1): '{tmp_path}/cat/1' and '{tmp_path}/dog/3'.",
    )
    assert notes(copied[2:], digests[2:]) == ()


def test_copies_in_other_splits_are_said_whatever_was_drawn(
    copied: list[Sample], tmp_path: Path
) -> None:
    drawn, digests = [copied[3]], [digest_of(copied[3].path)]
    for name in ("test", "rest", "same"):
        (tmp_path / name).write_bytes(b"four")
    others = [
        ("test", Sample(tmp_path / "test", 2)),
        (None, Sample(tmp_path / "rest", 0)),
        (None, Sample(tmp_path / "same", 2)),
        ("test", Sample(tmp_path / "gone", 2)),
    ]
    assert notes(drawn, digests, twins_of(drawn, others)) == (
        f"Copies of one picture in the test split too (1): '{tmp_path}/owl/4' and "
        f"'{tmp_path}/test'.",
        f"Copies of one picture in two classes (1): '{tmp_path}/owl/4' and '{tmp_path}/rest'.",
    )


def test_a_line_names_the_first_few(tmp_path: Path) -> None:
    many = [Sample(tmp_path / str(number), 0) for number in range(6)]
    (line,) = notes(many, ["same"] * 6)
    assert "together (5):" in line
    assert (line.count(" and "), line.endswith(", ...."), "\n" in line) == (3, True, False)


def test_pictures_that_were_tuned_on_are_said(copied: list[Sample], tmp_path: Path) -> None:
    digests = [digest_of(sample.path) for sample in copied]
    tuned = {digests[3]: "train/owl/4.jpg"}
    (line,) = in_common(tuned, copied, digests)
    assert line == (
        "Copies of one picture that were tuned on too (1): 'train/owl/4.jpg' and "
        f"'{tmp_path}/owl/4'."
    )
    assert in_common({}, copied, digests) == ()
