"""`craft data check`, without a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from craft_client.cli import app

from .pictures import write_picture
from .wire_server import WireServer


def check(data: Path, *options: str) -> Any:
    return CliRunner().invoke(app, ["data", "check", str(data), *options])


def test_a_sound_data_set_is_described(tmp_path: Path) -> None:
    for number in range(3):
        write_picture(tmp_path / f"train/cat/{number}.png", number)
    write_picture(tmp_path / "train/dog/9.png", 9)
    write_picture(tmp_path / "test/dog/8.png", 8)
    (tmp_path / "train/cat/notes.txt").touch()
    done = check(tmp_path, "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (
        0,
        {
            "data": str(tmp_path),
            "layout": "split folders",
            "classes": ["cat", "dog"],
            "splits": {
                "train": {
                    "pictures": 4,
                    "classes": 2,
                    "fewest of a class": 1,
                    "most of a class": 3,
                },
                "test": {
                    "pictures": 1,
                    "classes": 1,
                    "fewest of a class": 0,
                    "most of a class": 1,
                },
            },
            "notes": ["Left out: lists and other files (1)."],
            "copies": [],
            "refused": [],
        },
    )
    said = check(tmp_path)
    assert said.exit_code == 0
    assert "split folders: 2 classes" in said.stdout
    assert "Would be refused: 0 pictures." in said.stdout


def test_copies_and_leaks_are_named(tmp_path: Path) -> None:
    for place in ("train/cat/1", "train/cat/2", "train/dog/3", "val/cat/4", "test/cat/5"):
        write_picture(tmp_path / f"{place}.png", 1)
    found = json.loads(check(tmp_path, "--json").stdout)["copies"]
    where = [line.partition(" (")[0].replace("Copies of one picture ", "") for line in found]
    assert where == [
        "train: in one class, which are held out together",
        "train: in two classes",
        "train: in the validation split too",
        "train: in the test split too",
        "validation: in the test split too",
    ]
    assert str(tmp_path / "test/cat/5.png") in found[-1]


def test_what_would_be_refused_is_named_with_a_remedy(tmp_path: Path) -> None:
    write_picture(tmp_path / "cat/1.png", 1)
    whole = write_picture(tmp_path / "cat/2.png", 2).read_bytes()
    (tmp_path / "cat/2.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cat/3.jpg").write_text("<html>")
    done = check(tmp_path, "--json")
    refused = json.loads(done.stdout)["refused"]
    assert done.exit_code == 1
    assert [Path(one["field"].strip("'")).name for one in refused] == ["2.png", "3.jpg"]
    assert all(one["remedy"] for one in refused)
    said = check(tmp_path)
    assert (said.exit_code, "2 pictures" in said.stdout) == (1, True)


def test_what_is_no_data_set_is_told(tmp_path: Path) -> None:
    done = check(tmp_path / "nothing")
    assert done.exit_code == 1
    assert "does not exist" in done.stderr


def test_a_list_is_tuned_on_and_its_folder_measures(connected: WireServer, tmp_path: Path) -> None:
    folder, run = tmp_path / "pets", tmp_path / "run"
    for place in ("train/cat/1", "train/cat/2", "train/dog/3", "train/dog/4", "test/dog/5"):
        write_picture(folder / f"{place}.png", int(place[-1]))
    (folder / "draw.csv").write_text("path,label\ntrain/cat/2.png,cat\ntrain/dog/3.png,dog\n")
    craft = CliRunner().invoke
    words = ["tune", "--data", str(folder / "draw.csv"), "--shots", "1", "--run", str(run)]
    tuned = craft(app, words)
    assert tuned.exit_code == 0, tuned.stderr
    document = json.loads((run / "run.json").read_text())
    assert document["data"] == str(folder)
    assert document["pictures"] == ["train/cat/2.png", "train/dog/3.png"]
    measured = craft(app, ["evaluate", str(run), "--data", str(folder)])
    assert measured.exit_code == 0, measured.stderr
