"""Which files below a folder are images, and what is said of the others."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from craft_client import layouts
from craft_client.data import Sample
from craft_client.exceptions import DataError
from craft_client.layouts import Found, folders_in, images_below, load_dataset
from doc_pages import blocks


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def coop(folder: Path, document: Any, name: str = "split_zhou_Pets.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(document))
    return folder


def aircraft(folder: Path, *, variants: list[str], **lists: list[str]) -> Path:
    """FGVC Aircraft with these lists; all the pictures that they name are there."""
    folder.mkdir(parents=True)
    (folder / "variants.txt").write_text("".join(f"{variant}\n" for variant in variants))
    for split, lines in lists.items():
        (folder / f"images_variant_{split}.txt").write_text("".join(f"{one}\n" for one in lines))
        for line in lines:
            touch(folder / "images" / f"{line.split()[0]}.jpg")
    return folder


NAMES = {"n00000003": "cat", "n00000001": "sea_lion", "n00000002": "Band Aid"}


def imagenet(folder: Path, *files: str, names: dict[str, str] = NAMES) -> Path:
    """ImageNet or a data set of its classes: these files, and the list of class names."""
    for file in files:
        touch(folder / file)
    (folder / "classnames.txt").write_text("".join(f"{n} {name}\n" for n, name in names.items()))
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


def test_fgvc_aircraft_has_the_classes_and_the_order_of_its_list_of_variants(
    tmp_path: Path,
) -> None:
    folder = aircraft(
        tmp_path / "fgvc_aircraft",
        variants=["F/A-18", "A300B4", "Cessna 172"],
        train=["0000002 F/A-18", "0000001 Cessna 172"],
        val=["0000003 A300B4"],
        test=["0000004 Cessna 172"],
    )
    data = load_dataset(folder)
    assert data.classes == ("F/A-18", "A300B4", "Cessna 172")
    assert data.train == (
        Sample(folder / "images/0000001.jpg", 2),
        Sample(folder / "images/0000002.jpg", 0),
    )
    assert data.validation == (Sample(folder / "images/0000003.jpg", 1),)
    assert data.test == (Sample(folder / "images/0000004.jpg", 2),)


def test_imagenet_has_classes_by_number_and_its_validation_pictures_as_the_test_split(
    tmp_path: Path,
) -> None:
    folder = imagenet(
        tmp_path / "imagenet",
        "images/train/n00000003/n00000003_7.JPEG",
        "images/train/n00000001/n00000001_10.JPEG",
        "images/train/n00000001/n00000001_1.JPEG",
        "images/train/n00000002/n00000002_5.JPEG",
        "images/val/n00000002/ILSVRC2012_val_00000001.JPEG",
    )
    data = load_dataset(folder)
    assert data.classes == ("sea lion", "Band Aid", "cat")
    assert data.train == (
        Sample(folder / "images/train/n00000001/n00000001_1.JPEG", 0),
        Sample(folder / "images/train/n00000001/n00000001_10.JPEG", 0),
        Sample(folder / "images/train/n00000002/n00000002_5.JPEG", 1),
        Sample(folder / "images/train/n00000003/n00000003_7.JPEG", 2),
    )
    assert data.validation == ()
    assert data.test == (Sample(folder / "images/val/n00000002/ILSVRC2012_val_00000001.JPEG", 1),)


@pytest.mark.parametrize("below", ["images", "imagenet-a", "imagenet-r"])
def test_a_shift_of_imagenet_has_a_test_split_alone_of_the_classes_with_pictures(
    tmp_path: Path, below: str
) -> None:
    folder = imagenet(
        tmp_path / "shift",
        f"{below}/n00000003/sketch_0.JPEG",
        f"{below}/n00000001/art_3.jpg",
        f"{below}/README.txt",
    )
    data = load_dataset(folder)
    assert data.classes == ("sea lion", "cat")
    assert data.train == data.validation == ()
    assert data.test == (
        Sample(folder / below / "n00000001/art_3.jpg", 0),
        Sample(folder / below / "n00000003/sketch_0.JPEG", 1),
    )


def test_the_folders_of_imagenetv2_count_the_classes_as_numbers_not_as_words(
    tmp_path: Path,
) -> None:
    below = "imagenetv2-matched-frequency-format-val"
    names = {f"n{number:08}": f"class {number}" for number in reversed(range(12))}
    files = [f"{below}/{number}/{number}.jpeg" for number in (2, 10, 11)]
    data = load_dataset(imagenet(tmp_path / "imagenetv2", *files, names=names))
    assert data.classes == ("class 2", "class 10", "class 11")
    assert [(sample.path.name, sample.label) for sample in data.test] == [
        ("2.jpeg", 0),
        ("10.jpeg", 1),
        ("11.jpeg", 2),
    ]


def test_the_two_pairs_of_classes_with_one_name_in_clips_list_are_told_apart(
    tmp_path: Path,
) -> None:
    names = {
        "n03773504": "missile",
        "n04008634": "missile",
        "n04355933": "sunglasses",
        "n04356056": "sunglasses",
    }
    files = [f"images/train/{number}/1.JPEG" for number in names]
    data = load_dataset(imagenet(tmp_path / "imagenet", *files, names=names))
    assert data.classes == ("missile", "projectile", "sunglass", "sunglasses")
    # Another list's names are left alone.
    names |= {"n04008634": "shell", "n04355933": "burning glass"}
    data = load_dataset(imagenet(tmp_path / "imagenet", names=names))
    assert data.classes == ("missile", "shell", "burning glass", "sunglasses")


def test_a_folder_goes_by_the_name_of_the_link_to_it(tmp_path: Path) -> None:
    touch(tmp_path / "ILSVRC/train/cat/1.jpg")
    (tmp_path / "imagenet").symlink_to(tmp_path / "ILSVRC")
    assert load_dataset(tmp_path / "imagenet").name == "imagenet"


def test_no_picture_is_asked_about_and_no_folder_of_pictures_listed_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = [f"n{number:08}" for number in range(20)]
    files = [f"images/train/{number}/{name}.JPEG" for number in numbers for name in range(30)]
    names = {number: f"class {number}" for number in numbers}
    folder = imagenet(tmp_path / "imagenet", *files, names=names)
    asked: list[tuple[str, str]] = []

    def watched(name: str) -> Any:
        plain = getattr(os, name)

        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            asked.append((name, os.fspath(path)))
            return plain(path, *arguments, **options)

        return call

    for name in ("stat", "lstat", "scandir", "listdir"):
        monkeypatch.setattr(os, name, watched(name))
    data = load_dataset(folder)
    assert len(data.train) == 600
    assert not [path for _, path in asked if path.endswith(".JPEG")]
    listed = [path for call, path in asked if call in ("scandir", "listdir")]
    assert [listed.count(str(folder / "images/train" / number)) for number in numbers] == [1] * 20


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
        (["cat/1.jpg", "dog/a.heic"], ["dog' holds no pictures. Left out: HEIC (1)", "Convert"]),
        (["big_cat/1.jpg", "big cat/1.jpg"], ["big_cat'", "big cat'", "'big cat'", "Rename"]),
        (["Cat/1.jpg", "cat/1.jpg", "dog/1.jpg"], ["'Cat'", "'cat'"]),
        (["train/cat/1.jpg", "test/owl/1.jpg"], ["test/owl'", "does not have"]),
        (["train/cat/1.jpg", "val/cat/1.jpg", "validation/cat/1.jpg"], ["val'", "validation'"]),
        (["train/1.jpg", "test/2.jpg"], ["test'", "train'", "no class folders"]),
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


def test_fgvc_aircraft_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    folder = aircraft(
        tmp_path / "planes",
        variants=["707-320", "A340"],
        train=["1 707-320", "2 A340"],
        val=["3 A340"],
    )
    with pytest.raises(DataError, match=r"images_variant_test.txt' cannot be read.*No such file"):
        load_dataset(folder)
    (folder / "images_variant_test.txt").write_text("\n4 A340\n5 A380\n")
    touch(folder / "images/4.jpg")
    with pytest.raises(DataError, match=r"test.txt', line 3: 'A380' is no line of 'variants.txt'"):
        load_dataset(folder)
    (folder / "images_variant_test.txt").write_text("4 A340\n")
    (folder / "images/2.jpg").unlink()
    with pytest.raises(DataError, match=r"(?s)1 of the 2 .*_train.txt' lists.*'2.jpg': is missing"):
        load_dataset(folder)
    (folder / "variants.txt").write_text("707-320\nA340\na340\n")
    with pytest.raises(DataError, match=r"(?s)same name.*variants.txt', line 2: is class 'A340'"):
        load_dataset(folder)


TRAIN = ["images/train/n00000001/1.JPEG", "images/train/n00000003/1.JPEG"]


@pytest.mark.parametrize(
    ("files", "names", "words"),
    [
        (TRAIN, {"n00000001": "cat"}, r"n00000003' is no class that 'classnames.txt' names"),
        (
            TRAIN,
            {"n00000001": "crane", "n00000002": "dog", "n00000003": "crane"},
            r"(?s)same name.*names.txt', line 1: is class 'crane'.*names.txt', line 3: is class",
        ),
        (TRAIN, NAMES | {"n00000002": ""}, r"classnames.txt', line 3: .* has 0 characters"),
        (
            [*TRAIN, "images/val/n00000002/1.JPEG"],
            NAMES,
            "val/n00000002' is a class that the train split does not have",
        ),
        (
            ["imagenetv2-matched-frequency-format-val/3/1.jpeg"],
            NAMES,
            "format-val/3' is no class that",
        ),
    ],
)
def test_an_imagenet_that_cannot_be_used_is_told(
    tmp_path: Path, files: list[str], names: dict[str, str], words: str
) -> None:
    folder = imagenet(tmp_path / "imagenet", *files, names=names)
    with pytest.raises(DataError, match=words):
        load_dataset(folder)


def test_a_list_of_class_names_that_is_missing_or_names_a_class_twice_is_told(
    tmp_path: Path,
) -> None:
    folder = imagenet(tmp_path / "imagenet", *TRAIN)
    (folder / "classnames.txt").write_text("n00000001 cat\nn00000003 dog\nn00000001 owl\n")
    with pytest.raises(DataError, match=r"line 3: 'n00000001' is named a second time"):
        load_dataset(folder)
    (folder / "classnames.txt").unlink()
    with pytest.raises(DataError, match=r"classnames.txt' cannot be read.*No such file"):
        load_dataset(folder)


def test_a_missing_split_is_told_with_those_that_are_there(tmp_path: Path) -> None:
    touch(tmp_path / "cat/1.jpg")
    data = load_dataset(tmp_path)
    assert data.split("train") == data.train
    with pytest.raises(DataError, match=r"(?s)no test split.*--split: 'train'"):
        data.split("test")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_may_be_windows(tmp_path: Path, encoding: str) -> None:
    pets = coop(tmp_path / "pets", {"train": [CAT, ["2.jpg", 1, "dog"]]})
    planes = aircraft(tmp_path / "planes", variants=["A340"], train=["1 A340"], val=[], test=[])
    net = imagenet(tmp_path / "net", *TRAIN)
    for name in ("1.jpg", "2.jpg"):
        touch(pets / name)
    for folder in (pets, planes, net):
        for file in folder.iterdir():
            if file.suffix in (".json", ".txt"):
                text = file.read_text().replace("\n", "\r\n")
                file.write_bytes(text.encode(encoding))
    assert load_dataset(pets).classes == ("cat", "dog")
    assert load_dataset(planes).classes == ("A340",)
    assert load_dataset(net).classes == ("sea lion", "cat")


def test_a_list_that_is_no_text_is_named(tmp_path: Path) -> None:
    folder = imagenet(tmp_path / "net", *TRAIN)
    (folder / "classnames.txt").write_bytes("n00000001 café".encode("latin-1"))
    with pytest.raises(DataError, match=r"classnames.txt' cannot be read: it is not UTF-8"):
        load_dataset(folder)


# --- lists ----------------------------------------------------------------------------------------


def listed(folder: Path, *rows: str, head: str = "path,label,split") -> Path:
    """A list; all the pictures that it names are there."""
    folder.mkdir(exist_ok=True)
    for row in filter(None, rows):
        touch(folder / row.partition(",")[0])
    (folder / "list.csv").write_text("".join(f"{row}\n" for row in (head, *rows)))
    return folder / "list.csv"


def test_a_list_gives_classes_and_splits(tmp_path: Path) -> None:
    folder = tmp_path / "pets"
    file = listed(
        folder, "b/2.jpg,sea_lion,train", "a/1,cat,train", "3.png,cat,val", "4.jpg,cat,TEST", ""
    )
    data = load_dataset(file)
    assert (data.name, data.classes, data.root) == ("pets", ("cat", "sea lion"), folder)
    assert data.train == (Sample(folder / "a/1", 0), Sample(folder / "b/2.jpg", 1))
    assert data.validation == (Sample(folder / "3.png", 0),)
    assert data.test == (Sample(folder / "4.jpg", 0),)
    assert data.notes == ()


def test_a_list_may_have_its_columns_in_another_order_and_no_split(tmp_path: Path) -> None:
    file = listed(tmp_path, head="Label,Path")
    file.write_bytes(b"\xef\xbb\xbfLabel,Path\r\ncat,1.jpg\r\n,2.jpg\r\n")
    touch(tmp_path / "1.jpg")
    data = load_dataset(file)
    assert data.train == (Sample(tmp_path / "1.jpg", 0),)
    assert data.notes == ("1 pictures without a label are left out.",)


@pytest.mark.parametrize(
    ("head", "rows", "words"),
    [
        ("file,class", ["1.jpg,cat"], "does not name the columns path and label"),
        ("path,label,path", ["1.jpg,cat,1.jpg"], "does not name the columns"),
        ("path,label,split", ["1.jpg,cat"], r"row 2 is no path, label and split, but: 1.jpg, cat"),
        ("path,label,split", ["1.jpg,cat,train", "2.jpg,cat,eval"], r"(?s)row 3.*splits are train"),
        ("path,label", [], "lists no picture with a label"),
        ("path,label", ["1.jpg,cat", "2.jpg,Cat"], "same name"),
        ("path,label", ["1.jpg,\x1b[2Jcat"], "class name"),
    ],
)
def test_a_list_that_cannot_be_used_is_told(
    tmp_path: Path, head: str, rows: list[str], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        load_dataset(listed(tmp_path, *rows, head=head))


@pytest.mark.parametrize("path", ["../secret.jpg", "/etc/secret.jpg", "a/../../secret.jpg"])
def test_a_list_leads_to_no_picture_outside_its_folder(tmp_path: Path, path: str) -> None:
    file = listed(tmp_path / "pets")
    file.write_text(f"path,label\n{path},cat\n")
    with pytest.raises(DataError, match=r"row 2: .* leads out of the folder"):
        load_dataset(file)


def test_what_a_list_names_and_is_not_there_is_counted(tmp_path: Path) -> None:
    file = listed(tmp_path, "1.jpg,cat,train", "2.jpg,cat,train")
    (tmp_path / "2.jpg").unlink()
    with pytest.raises(DataError, match=r"(?s)1 of the 2 pictures.*'2.jpg': is missing"):
        load_dataset(file)


def test_the_documented_line_makes_a_list_of_a_draw_of_coops(tmp_path: Path) -> None:
    """Pickled as CoOp pickles its draws, with Dassl's class of a picture."""
    (line,) = [block.text for block in blocks("text") if block.text.startswith("python > ")]
    (tmp_path / "dassl.py").write_text(
        "class Datum:\n"
        "    def __init__(self, impath, classname):\n"
        "        self._impath, self._label, self._classname = impath, 0, classname\n"
        "    impath = property(lambda self: self._impath)\n"
        "    classname = property(lambda self: self._classname)\n"
    )
    data = tmp_path / "pets"
    for name in ("train/1.jpg", "2.jpg", "split_fewshot/x"):
        touch(data / name)
    write = (
        "import os, pickle; from dassl import Datum; "
        "draw = {'train': [Datum(os.path.abspath('train/1.jpg'), 'sea_lion')], "
        "'val': [Datum(os.path.abspath('2.jpg'), 'cat')]}; "
        "pickle.dump(draw, open('split_fewshot/shot_16-seed_1.pkl', 'wb'))"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    python = shlex.quote(sys.executable)
    subprocess.run([sys.executable, "-c", write], cwd=data, env=env, check=True)
    subprocess.run(line.replace("python", python, 1), shell=True, cwd=data, env=env, check=True)
    found = load_dataset(data / "shot_16-seed_1.csv")
    assert found.classes == ("cat", "sea lion")
    assert found.train == (Sample(data / "train/1.jpg", 1),)
    assert found.validation == (Sample(data / "2.jpg", 0),)


# --- broken copies --------------------------------------------------------------------------------


def test_a_folder_of_links_that_lead_nowhere_says_where_they_led(tmp_path: Path) -> None:
    (tmp_path / "data/cat").mkdir(parents=True)
    (tmp_path / "data/cat/1.jpg").symlink_to("../../blobs/1f2e")
    with pytest.raises(DataError, match=r"(?s)1.jpg' is a link .* '../../blobs/1f2e'.*cp -rL"):
        load_dataset(tmp_path / "data")


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_split_that_is_a_link_to_nowhere_is_told(tmp_path: Path, name: str) -> None:
    for split in {"train", "test"} - {name}:
        touch(tmp_path / split / "cat/1.jpg")
    (tmp_path / name).symlink_to("/gone")
    with pytest.raises(DataError, match=rf"(?s)A split .*{name}' is a link .*'/gone'"):
        load_dataset(tmp_path)


def test_a_class_that_is_a_link_to_nowhere_is_told(tmp_path: Path) -> None:
    touch(tmp_path / "train/cat/1.jpg")
    (tmp_path / "train/dog").symlink_to("/gone")
    assert load_dataset(tmp_path).notes == ("Left out: link that leads nowhere (1).",)


@pytest.mark.parametrize("dead", ["images/1.jpg", "images"])
def test_a_coop_split_whose_pictures_are_links_to_nowhere_says_so(
    tmp_path: Path, dead: str
) -> None:
    folder = coop(tmp_path / "pets", {"train": [["1.jpg", 0, "cat"]]})
    (folder / dead).parent.mkdir(exist_ok=True)
    (folder / dead).symlink_to("/gone")
    with pytest.raises(DataError, match=rf"(?s){dead}' is a link .*'/gone'"):
        load_dataset(folder)


@pytest.mark.parametrize("place", ["cars-train/00001.jpg", "again/stanford/cars_train/00001.jpg"])
def test_a_folder_of_coop_that_was_renamed_or_moved_is_found(tmp_path: Path, place: str) -> None:
    folder = coop(tmp_path / "cars", {"train": [["cars_train/00001.jpg", 0, "a car"]]})
    touch(folder / place)
    wanted = folder / "cars_train/00001.jpg"
    with pytest.raises(
        DataError, match=rf"(?s)'{folder / place}' seems .* so that it is '{wanted}'"
    ):
        load_dataset(folder)


def test_a_coop_folder_without_its_list_is_not_read_as_one_class(tmp_path: Path) -> None:
    for name in ("accordion", "airplanes"):
        touch(tmp_path / "caltech-101/101_ObjectCategories" / name / "image_0001.jpg")
    with pytest.raises(DataError, match=r"(?s)one folder, '101_ObjectCat.*split_zhou_\*.json"):
        load_dataset(tmp_path / "caltech-101")
    assert len(load_dataset(tmp_path / "caltech-101/101_ObjectCategories").classes) == 2


# --- names that are read as one -------------------------------------------------------------------

CAFE, CAFE_OF_A_MAC = "caf\u00e9", "cafe\u0301"
FORMS = [
    (CAFE, CAFE_OF_A_MAC),
    ("cat", "\uff43\uff41\uff54"),
    ("cat", "Cat"),
    ("cat's eye", "cat\u2019s eye"),
    ("salt & pepper", "salt &amp; pepper"),
    ("tabby cat", "tabby\u00a0cat"),
    ("tabby cat", "tabby__cat"),
]


@pytest.mark.parametrize(("one", "other"), FORMS)
def test_two_class_folders_that_a_model_reads_as_one_are_refused_as_twins(
    tmp_path: Path, one: str, other: str
) -> None:
    for name in (one, other, "dog"):
        touch(tmp_path / name / "1.jpg")
    with pytest.raises(DataError, match="Two classes have the same name to a model") as error:
        load_dataset(tmp_path)
    assert {field.field for field in error.value.errors} == {
        f"'{tmp_path / one}'",
        f"'{tmp_path / other}'",
    }


@pytest.mark.parametrize(("one", "other"), FORMS)
def test_a_class_is_the_same_in_a_split_that_another_system_has_packed(
    tmp_path: Path, one: str, other: str
) -> None:
    for path in (f"train/{one}/1.jpg", "train/dog/1.jpg", f"test/{other}/2.jpg"):
        touch(tmp_path / path)
    dataset = load_dataset(tmp_path)
    assert dataset.test == (
        Sample(tmp_path / "test" / other / "2.jpg", dataset.classes.index(one)),
    )


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("x\x1b[31mred", r"U\+001B, a control character, as character 2"),
        ("\ufeffcat", r"U\+FEFF"),
        ("a\u202eb", r"U\+202E"),
        ("-1", "begins with '-'"),
        ("=1+1", "begins with '='"),
        (os.fsdecode(b"caf\xe9"), "the byte 0xE9, which is not UTF-8"),
    ],
)
def test_a_class_folder_whose_name_misleads_is_refused(
    tmp_path: Path, name: str, told: str
) -> None:
    for folder in (name, "dog"):
        touch(tmp_path / folder / "1.jpg")
    with pytest.raises(DataError, match=told) as error:
        load_dataset(tmp_path)
    assert "Rename it" in str(error.value)


def test_a_label_of_a_coop_split_has_one_name_however_it_is_written(tmp_path: Path) -> None:
    split = {"train": [["1.jpg", 0, CAFE], ["2.jpg", 0, CAFE_OF_A_MAC]]}
    folder = coop(tmp_path / "coop", split)
    touch(folder / "1.jpg")
    touch(folder / "2.jpg")
    assert load_dataset(folder).classes == (CAFE,)


def touch_all(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def names(root: Path, found: Found) -> list[str]:
    return [path.relative_to(root).as_posix() for path in found.images]


def reasons(root: Path, found: Found) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): reason for path, reason in found.left_out}


def test_what_programs_leave_behind_is_passed_over_in_silence(tmp_path: Path) -> None:
    junk = (
        "._a.jpg .DS_Store .thumbnails/a.jpg __MACOSX/._a.jpg __MACOSX/b.jpg Thumbs.db THUMBS.DB "
        "desktop.ini @eaDir/a.jpg/SYNOPHOTO_THUMB.jpg $RECYCLE.BIN/a.jpg lost+found/a.jpg "
        "@__thumb/a.jpg #snapshot/a.jpg a.jpg:Zone.Identifier"
    )
    touch_all(tmp_path / "a.jpg", *(tmp_path / name for name in junk.split()), tmp_path / "Icon\r")
    touch_all(tmp_path / "Network Trash Folder/a.jpg")
    found = images_below(tmp_path)
    assert names(tmp_path, found) == ["a.jpg"]
    assert (found.left_out, found.about, found.note) == ((), 0, "")


def test_images_lie_at_any_depth_and_have_any_readable_suffix(tmp_path: Path) -> None:
    files = ["2021/05/c.TIFF", "a.JPG", "a.jpe", "b.jfif", "d.webp", "e.bmp", "f.gif", "g.PNG"]
    touch_all(*(tmp_path / name for name in files))
    found = images_below(tmp_path)
    assert names(tmp_path, found) == sorted(files)
    assert found.deeper == 1


def test_what_may_have_been_meant_is_left_out_in_one_line_with_the_reason(tmp_path: Path) -> None:
    touch_all(
        *(tmp_path / name for name in ("a.jpg", "IMG_1.HEIC", "b.jp2", "noext", "c.xyz", "d.heif"))
    )
    (tmp_path / "dead.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "itself.jpg").symlink_to(tmp_path / "itself.jpg")
    touch_all(
        *(tmp_path / name for name in ("a.xmp", "README.md", "labels.csv", "a.aae", "LICENSE"))
    )
    found = images_below(tmp_path)
    assert names(tmp_path, found) == ["a.jpg"]
    assert reasons(tmp_path, found) == {
        "IMG_1.HEIC": "HEIC",
        "b.jp2": "JPEG 2000",
        "c.xyz": ".xyz",
        "d.heif": "HEIC",
        "dead.jpg": "link that leads nowhere",
        "itself.jpg": "link that leads nowhere",
        "noext": "no suffix",
    }
    assert found.note == (
        "Left out: .xyz (1), HEIC (2), JPEG 2000 (1), link that leads nowhere (2), no suffix (1), "
        "lists and other files (5). Convert pictures to JPEG or PNG, and name them so: .jpg, .png."
    )


def test_pipes_and_sockets_are_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("a.jpg")
    Path("b.jpg").symlink_to("a.jpg")
    Path("c.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("d.png")
        found = images_below(tmp_path)
    assert found.images == ()
    assert set(reasons(tmp_path, found).values()) == {"neither a file nor a folder"}


def test_links_are_followed_to_files_and_folders(tmp_path: Path) -> None:
    touch_all(tmp_path / "real/glass/1.jpg", tmp_path / "real/2.jpg")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/glass").symlink_to(tmp_path / "real/glass")
    (tmp_path / "data/two.jpg").symlink_to(tmp_path / "real/2.jpg")
    assert names(tmp_path, images_below(tmp_path / "data")) == ["data/glass/1.jpg", "data/two.jpg"]


AGAIN = "link to a folder around it, or read already"


@pytest.mark.parametrize(
    "link",
    [
        lambda root: (root / "cat/self").symlink_to(root / "cat"),
        lambda root: (root / "cat/deep/up").symlink_to(root / "cat"),
        # Around the folder that is read: everything else would be taken for cats.
        lambda root: (root / "cat/deep/up").symlink_to(root),
        lambda root: (root / "cat/deep/up").symlink_to("../../.."),
        lambda root: (root / "cat/again").symlink_to(root / "cat/deep"),
    ],
)
def test_circles_and_second_links_double_nothing(
    tmp_path: Path, link: Callable[[Path], None]
) -> None:
    root = tmp_path / "data"
    touch_all(root / "cat/1.jpg", root / "cat/deep/2.jpg", root / "dog/3.jpg")
    link(root)
    found = images_below(root / "cat")
    assert names(root, found) == ["cat/1.jpg", "cat/deep/2.jpg"]
    assert list(reasons(root, found).values()) == [AGAIN]
    data = load_dataset(root)
    assert (data.classes, len(data.train)) == (("cat", "dog"), 3)
    assert any(AGAIN in note for note in data.notes)


def test_links_between_folders_that_name_each_other_end(tmp_path: Path) -> None:
    for one in "abcdefgh":
        touch_all(tmp_path / one / f"{one}.jpg")
        for other in "abcdefgh":
            (tmp_path / one / f"to {other}").symlink_to(tmp_path / other)
    assert names(tmp_path, images_below(tmp_path)) == [f"{one}/{one}.jpg" for one in "abcdefgh"]


def test_a_class_is_no_link_to_the_data_themselves(tmp_path: Path) -> None:
    touch_all(tmp_path / "cat/1.jpg", tmp_path / "dog/1.jpg")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "up").symlink_to("..")
    data = load_dataset(tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.notes == (f"Left out: {AGAIN} (2).",)


def test_a_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch_all(tmp_path / "cat/1.jpg", tmp_path / "cat/locked/2.jpg")
    plain = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return plain(path)

    monkeypatch.setattr(layouts.os, "scandir", scandir)
    for read in (images_below, load_dataset):
        with pytest.raises(DataError, match=r"cat/locked' cannot be listed: Permission denied"):
            read(tmp_path)


def test_images_that_are_in_no_class_or_split_are_said(tmp_path: Path) -> None:
    touch_all(tmp_path / "train/cat/1.jpg", tmp_path / "train/loose.jpg", tmp_path / "extra/2.jpg")
    touch_all(tmp_path / "train/cat/2021/2.jpg", tmp_path / "train/cat/notes.txt")
    data = load_dataset(tmp_path)
    assert [sample.path.name for sample in data.train] == ["1.jpg", "2.jpg"]
    assert data.notes == (
        "1 pictures lie in folders below their class's, and are taken as the class's own.",
        "Left out: beside the splits (1), in no class folder (1), lists and other files (1).",
    )


def test_a_split_whose_images_are_in_no_class_folders_is_said(tmp_path: Path) -> None:
    touch_all(tmp_path / "train/cat/1.jpg", tmp_path / "test/2.jpg")
    assert load_dataset(tmp_path).notes == ("Left out: a split without class folders (1).",)


def test_folders_are_sorted_and_hidden_ones_are_none(tmp_path: Path) -> None:
    touch_all(tmp_path / "b/1.jpg", tmp_path / "a/1.jpg", tmp_path / ".c/1.jpg", tmp_path / "d.jpg")
    assert [path.name for path in folders_in(tmp_path)] == ["a", "b"]
