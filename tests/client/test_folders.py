"""Which files below a folder are images, and what is said of the others."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from craft_client import folders
from craft_client.exceptions import DataError
from craft_client.folders import Found, folders_in, images_below
from craft_client.layouts import load_dataset


def touch(*files: Path) -> None:
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
    touch(tmp_path / "a.jpg", *(tmp_path / name for name in junk.split()), tmp_path / "Icon\r")
    touch(tmp_path / "Network Trash Folder/a.jpg")
    found = images_below(tmp_path)
    assert names(tmp_path, found) == ["a.jpg"]
    assert (found.left_out, found.about, found.note) == ((), 0, "")


def test_images_lie_at_any_depth_and_have_any_readable_suffix(tmp_path: Path) -> None:
    files = ["2021/05/c.TIFF", "a.JPG", "a.jpe", "b.jfif", "d.webp", "e.bmp", "f.gif", "g.PNG"]
    touch(*(tmp_path / name for name in files))
    found = images_below(tmp_path)
    assert names(tmp_path, found) == sorted(files)
    assert found.deeper == 1


def test_what_may_have_been_meant_is_left_out_in_one_line_with_the_reason(tmp_path: Path) -> None:
    touch(
        *(tmp_path / name for name in ("a.jpg", "IMG_1.HEIC", "b.jp2", "noext", "c.xyz", "d.heif"))
    )
    (tmp_path / "dead.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "itself.jpg").symlink_to(tmp_path / "itself.jpg")
    touch(*(tmp_path / name for name in ("a.xmp", "README.md", "labels.csv", "a.aae", "LICENSE")))
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
    touch(tmp_path / "real/glass/1.jpg", tmp_path / "real/2.jpg")
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
    touch(root / "cat/1.jpg", root / "cat/deep/2.jpg", root / "dog/3.jpg")
    link(root)
    found = images_below(root / "cat")
    assert names(root, found) == ["cat/1.jpg", "cat/deep/2.jpg"]
    assert list(reasons(root, found).values()) == [AGAIN]
    data = load_dataset(root)
    assert (data.classes, len(data.train)) == (("cat", "dog"), 3)
    assert any(AGAIN in note for note in data.notes)


def test_links_between_folders_that_name_each_other_end(tmp_path: Path) -> None:
    for one in "abcdefgh":
        touch(tmp_path / one / f"{one}.jpg")
        for other in "abcdefgh":
            (tmp_path / one / f"to {other}").symlink_to(tmp_path / other)
    assert names(tmp_path, images_below(tmp_path)) == [f"{one}/{one}.jpg" for one in "abcdefgh"]


def test_a_class_is_no_link_to_the_data_themselves(tmp_path: Path) -> None:
    touch(tmp_path / "cat/1.jpg", tmp_path / "dog/1.jpg")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "up").symlink_to("..")
    data = load_dataset(tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.notes == (f"Left out: {AGAIN} (2).",)


def test_a_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "cat/1.jpg", tmp_path / "cat/locked/2.jpg")
    plain = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return plain(path)

    monkeypatch.setattr(folders.os, "scandir", scandir)
    for read in (images_below, load_dataset):
        with pytest.raises(DataError, match=r"cat/locked' cannot be listed: Permission denied"):
            read(tmp_path)


def test_images_that_are_in_no_class_or_split_are_said(tmp_path: Path) -> None:
    touch(tmp_path / "train/cat/1.jpg", tmp_path / "train/loose.jpg", tmp_path / "extra/2.jpg")
    touch(tmp_path / "train/cat/2021/2.jpg", tmp_path / "train/cat/notes.txt")
    data = load_dataset(tmp_path)
    assert [sample.path.name for sample in data.train] == ["1.jpg", "2.jpg"]
    assert data.notes == (
        "1 pictures lie in folders below their class's, and are taken as the class's own.",
        "Left out: beside the splits (1), in no class folder (1), lists and other files (1).",
    )


def test_a_split_whose_images_are_in_no_class_folders_is_said(tmp_path: Path) -> None:
    touch(tmp_path / "train/cat/1.jpg", tmp_path / "test/2.jpg")
    assert load_dataset(tmp_path).notes == ("Left out: a split without class folders (1).",)


def test_folders_are_sorted_and_hidden_ones_are_none(tmp_path: Path) -> None:
    touch(tmp_path / "b/1.jpg", tmp_path / "a/1.jpg", tmp_path / ".c/1.jpg", tmp_path / "d.jpg")
    assert [path.name for path in folders_in(tmp_path)] == ["a", "b"]
