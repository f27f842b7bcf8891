"""Data sets of Hugging Face, from folders as their library writes them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from craft_client.cli import app
from craft_client.exceptions import DataError, MissingPackage
from craft_client.layouts import images_named, load_dataset

from .pictures import write_picture
from .wire_server import WireServer

datasets = pytest.importorskip("datasets")

NAMES = ["sea_lion", "cat"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/craftbox/data"


def picture(folder: Path, number: int) -> str:
    return str(write_picture(folder / f"{number}.jpg", number))


def rows(folder: Path, labels: Sequence[Any], **more: Any) -> Any:
    """A data set of a picture a label, of the feature ClassLabel where labels are numbers."""
    pictures = [picture(folder, number) for number in range(len(labels))]
    text = any(isinstance(label, str) for label in labels)
    kind = datasets.Value("string") if text else datasets.ClassLabel(names=NAMES)
    features = {"image": datasets.Image(), "label": kind}
    found = datasets.Dataset.from_dict(
        {"image": pictures, "label": labels}, features=datasets.Features(features)
    )
    for name, values in more.items():
        found = found.add_column(name, values)
    return found


def saved(folder: Path, **splits: Any) -> Path:
    datasets.DatasetDict(splits).save_to_disk(folder)
    return folder


def test_a_saved_data_set_has_classes_by_feature_and_splits_by_name(
    tmp_path: Path, cache: Path
) -> None:
    train = rows(tmp_path / "pictures", [0, 1, 1, -1])
    folder = saved(tmp_path / "pets", train=train, valid=train.select([1]), extra=train)
    data = load_dataset(folder)
    assert (data.name, data.classes) == ("pets", ("cat", "sea lion"))
    assert [data.classes[sample.label] for sample in data.train] == ["sea lion", "cat", "cat"]
    assert (len(data.validation), data.test) == (1, ())
    # The files are those that were put in, byte for byte.
    for number, sample in enumerate(data.train):
        assert sample.path.read_bytes() == Path(picture(tmp_path / "pictures", number)).read_bytes()
        assert sample.path.suffix == ".jpg"
    assert data.root.is_relative_to(cache)
    assert [path.name for path in data.root.parent.iterdir()] == ["pets"]
    assert data.notes == ("1 pictures without a label are left out.",)
    assert len(images_named(folder).images) == 5


def test_it_is_unpacked_once(tmp_path: Path) -> None:
    folder = saved(tmp_path / "pets", train=rows(tmp_path / "pictures", [0, 1]))
    first = load_dataset(folder)
    written = [sample.path.stat().st_mtime_ns for sample in first.train]
    again = load_dataset(Path(f"hf:{folder}"))
    assert again == first
    assert [sample.path.stat().st_mtime_ns for sample in again.train] == written


def test_one_split_alone_text_labels_and_parquet_are_read(tmp_path: Path) -> None:
    pictures = rows(tmp_path / "pictures", ["dog", "a cat"])
    pictures.save_to_disk(tmp_path / "alone")
    (tmp_path / "files/data").mkdir(parents=True)
    pictures.to_parquet(tmp_path / "files/data/test-00000-of-00001.parquet")
    alone, files = load_dataset(tmp_path / "alone"), load_dataset(tmp_path / "files")
    assert alone.classes == files.classes == ("a cat", "dog")
    assert [len(alone.train), len(files.test)] == [2, 2]


def test_which_column_holds_the_labels_is_asked_where_it_cannot_be_told(tmp_path: Path) -> None:
    pictures = rows(tmp_path / "pictures", [0, 1], coarse=["pet", "animal"])
    folder = saved(tmp_path / "pets", train=pictures.rename_column("label", "fine"))
    assert load_dataset(folder).classes == ("cat", "sea lion")
    assert load_dataset(Path(f"hf:{folder}#coarse")).classes == ("animal", "pet")
    two = pictures.rename_column("label", "fine").cast_column(
        "coarse", datasets.ClassLabel(names=["pet", "animal"])
    )
    with pytest.raises(DataError, match=r"(?s)2 columns hold some.*'coarse'.*hf:NAME#COLUMN"):
        load_dataset(saved(tmp_path / "two", train=two))
    with pytest.raises(DataError, match="'nothing' holds none"):
        load_dataset(Path(f"hf:{folder}#nothing"))


def test_what_cannot_be_used_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = rows(tmp_path / "pictures", [0, 1])
    with pytest.raises(DataError, match="0 image columns: 'label'"):
        load_dataset(saved(tmp_path / "a", train=pictures.remove_columns("image")))
    with pytest.raises(DataError, match="no split of a known name: 'everything'"):
        load_dataset(saved(tmp_path / "b", everything=pictures))
    (saved(tmp_path / "c", train=pictures) / "train/state.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as a data set of Hugging Face"):
        load_dataset(tmp_path / "c")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=r"(?s)'nobody/nothing' cannot be read.*Check its name"):
        load_dataset(Path("hf:nobody/nothing"))


def test_splits_whose_columns_differ_are_told(tmp_path: Path) -> None:
    train = rows(tmp_path / "pictures", [0, 1])
    test = train.rename_column("label", "kind")
    with pytest.raises(DataError, match="columns of different names"):
        load_dataset(saved(tmp_path / "pets", train=train, test=test))


def test_a_table_among_class_folders_makes_no_other_data_set_of_them(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        picture(tmp_path / "pets" / name, 1)
    rows(tmp_path / "pictures", [0, 1]).to_parquet(tmp_path / "pets" / "metadata.parquet")
    assert load_dataset(tmp_path / "pets").classes == ("cat", "dog")


def test_commands_take_it(connected: WireServer, tmp_path: Path) -> None:
    train = rows(tmp_path / "pictures", [0, 1] * 3)
    folder, run = saved(tmp_path / "pets", train=train, test=train), tmp_path / "run"
    craft = CliRunner().invoke
    tuned = craft(app, ["tune", "--data", str(folder), "--shots", "2", "--run", str(run)])
    assert tuned.exit_code == 0, tuned.stderr
    measured = craft(app, ["evaluate", str(run), "--data", f"hf:{folder}", "--json"])
    assert measured.exit_code == 0, measured.stderr
    document = json.loads(measured.stdout)
    assert (document["data"], document["pictures"]) == ("pets", 6)
    assert "Copies of one picture that were tuned on too (4)" in measured.stderr


def test_without_the_library_its_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingPackage, match=r"(?s)hf:pets.*craftbox\[datasets\]"):
        load_dataset(Path("hf:pets"))


def test_other_layouts_do_without_the_library(tmp_path: Path) -> None:
    picture(tmp_path / "cat", 1)
    code = (
        "import sys; from pathlib import Path; from craft_client.layouts import load_dataset; "
        f"load_dataset(Path({str(tmp_path)!r})); assert 'datasets' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
