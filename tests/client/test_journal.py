import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from craft_client.journal import LINES_FILE, RUN_FILE, TENSOR_FOLDER, Journal, JournalError
from craft_shared.adapter import Adapter, AdapterConfig
from craft_shared.head import Unrefined

DOCUMENT = {"settings": {"budget": 10}, "classes": ["Füchse", "dog"]}
ADAPTER = Adapter(
    AdapterConfig(model="m", revision="0", classes=["a", "b"], templates=["a {}"], head="none"),
    np.zeros((0, 0), np.float32),
    Unrefined(),
)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal.create(tmp_path / "run", DOCUMENT)


def test_what_is_written_is_read_in_order(journal: Journal) -> None:
    codes = np.arange(6, dtype=np.float32).reshape(2, 3)
    journal.append({"generation": 0}, {"000000": {"codes": codes}})
    journal.append({"generation": 1})
    again = Journal.open(journal.folder)
    assert again.document == DOCUMENT
    assert list(again.lines()) == [
        {"generation": 0, "tensors": ["000000"]},
        {"generation": 1, "tensors": []},
    ]
    np.testing.assert_array_equal(again.tensors("000000")["codes"], codes)


def test_the_end_of_a_run_is_kept(journal: Journal) -> None:
    assert not journal.finished
    journal.finish(ADAPTER, {"accuracy_after": 90.0})
    again = Journal.open(journal.folder)
    assert again.finished
    assert again.adapter().digest == ADAPTER.digest
    assert again.summary() == {"accuracy_after": 90.0}


def test_an_existing_run_is_refused_and_left_alone(journal: Journal) -> None:
    journal.append({"generation": 0})
    with pytest.raises(JournalError, match=r"(?s)already holds.*Name another run"):
        Journal.create(journal.folder, {})
    assert Journal.open(journal.folder).document == DOCUMENT
    assert len(list(journal.lines())) == 1


def test_an_empty_directory_is_used_and_a_missing_one_made(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "runs" / "of today"):
        Journal.create(folder, DOCUMENT)
        assert Journal.open(folder).document == DOCUMENT
        shutil.rmtree(folder)


def test_a_line_that_a_crash_cut_short_is_left_out(journal: Journal) -> None:
    journal.append({"generation": 0})
    with (journal.folder / LINES_FILE).open("ab") as file:
        file.write(b'{"generation": 1, "los')
    assert [line["generation"] for line in journal.lines()] == [0]


@pytest.mark.parametrize("cut", [b"", b"{", b'{"generation": 1, "los'])
def test_after_a_crash_lines_go_on_where_whole_ones_end(journal: Journal, cut: bytes) -> None:
    journal.append({"generation": 0})
    with (journal.folder / LINES_FILE).open("ab") as file:
        file.write(cut)
    assert [line["generation"] for line in journal.resume()] == [0]
    journal.append({"generation": 1})
    assert [line["generation"] for line in journal.lines()] == [0, 1]


def test_a_cut_line_that_cannot_be_removed_is_a_journal_error(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    (journal.folder / LINES_FILE).write_bytes(b"{")
    monkeypatch.setattr(os, "truncate", fail)
    with pytest.raises(JournalError, match=r"Cannot write .*: Read-only file system\."):
        journal.resume()


def test_a_line_is_on_disk_before_append_returns(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: flushed.append(os.fstat(file).st_size))
    journal.append({"generation": 0})
    assert flushed == [(journal.folder / LINES_FILE).stat().st_size]


def test_a_damaged_line_in_the_middle_is_told_by_number(journal: Journal) -> None:
    journal.append({"generation": 0})
    with (journal.folder / LINES_FILE).open("ab") as file:
        file.write(b"{oops\n")
    journal.append({"generation": 2})
    with pytest.raises(JournalError, match="line 2"):
        list(journal.lines())


def test_tensors_are_on_disk_before_the_line_that_names_them(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    real_open = Path.open

    def watching(path: Path, *args: object, **kwargs: object) -> object:
        if path.name == LINES_FILE:
            seen.append((journal.folder / TENSOR_FOLDER / "000001.safetensors").exists())
        return real_open(path, *args, **kwargs)  # type: ignore[call-overload] # passes on whatever it gets

    monkeypatch.setattr(Path, "open", watching)
    journal.append({"generation": 1}, {"000001": {"losses": np.zeros(1, np.float32)}})
    assert seen == [True]


def test_numbers_that_are_not_json_are_refused_before_anything_is_written(
    journal: Journal,
) -> None:
    with pytest.raises(ValueError, match="JSON"):
        journal.append({"loss": float("nan")}, {"000000": {"x": np.zeros(1, np.float32)}})
    with pytest.raises(ValueError, match="JSON"):
        journal.finish(ADAPTER, {"loss": float("nan")})
    assert not journal.finished
    assert (journal.folder / LINES_FILE).read_bytes() == b""
    assert not list((journal.folder / TENSOR_FOLDER).iterdir())


def test_no_half_written_file_is_left_behind(journal: Journal) -> None:
    journal.append({"generation": 0}, {"000000": {"x": np.zeros(1, np.float32)}})
    journal.finish(ADAPTER, {})
    assert not list(journal.folder.rglob("*.partial"))


def test_a_run_that_did_not_end_has_neither_adapter_nor_summary(journal: Journal) -> None:
    with pytest.raises(JournalError, match="did not come to its end"):
        journal.summary()
    with pytest.raises(JournalError, match="did not come to its end"):
        journal.adapter()


def test_a_folder_that_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="Name the directory of a tuning run"):
        Journal.open(tmp_path / "nowhere")
    (tmp_path / RUN_FILE).write_text("[]")
    with pytest.raises(JournalError, match="not a JSON object"):
        Journal.open(tmp_path)
    (tmp_path / RUN_FILE).write_text("{")
    with pytest.raises(JournalError, match="not valid JSON"):
        Journal.open(tmp_path)


def test_damaged_tensors_are_told(journal: Journal) -> None:
    journal.append({}, {"000000": {"x": np.zeros(4, np.float32)}})
    path = journal.folder / TENSOR_FOLDER / "000000.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(JournalError, match="is damaged"):
        journal.tensors("000000")
    with pytest.raises(JournalError, match="Cannot read"):
        journal.tensors("000001")


def test_a_path_that_cannot_be_a_directory_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="Cannot write"):
        Journal.create(tmp_path / "file" / "run", {})


def test_documents_are_readable_by_people(journal: Journal) -> None:
    text = (journal.folder / RUN_FILE).read_text(encoding="utf-8")
    assert "Füchse" in text
    assert json.loads(text) == DOCUMENT


def test_the_last_checkpoint_is_what_is_read(journal: Journal) -> None:
    assert journal.checkpoint() is None
    for generation in (1, 2):
        journal.save_checkpoint({"generation": generation}, {"x": np.ones(1, np.float32)})
    document, tensors = Journal.open(journal.folder).checkpoint() or ({}, {})
    assert document == {"generation": 2}
    np.testing.assert_array_equal(tensors["x"], np.ones(1, np.float32))


def test_what_was_written_anew_is_read(journal: Journal) -> None:
    journal.append({}, {"000000": {"x": np.zeros(1, np.float32)}})
    journal.replace("000000", {"x": np.ones(1, np.float32)})
    np.testing.assert_array_equal(journal.tensors("000000")["x"], np.ones(1, np.float32))


@pytest.mark.parametrize(
    "write",
    [
        lambda journal: journal.append({}, {"000000": {}}),
        lambda journal: journal.replace("000000", {}),
        lambda journal: journal.save_checkpoint({}, {}),
        lambda journal: journal.finish(ADAPTER, {}),
        lambda journal: journal.resume(),
        lambda journal: journal.tensors("000000"),
        lambda journal: journal.summary(),
        lambda journal: Journal.create(journal.folder / "below", {}),
    ],
)
def test_a_disk_that_fails_is_a_journal_error(journal: Journal, write: Any) -> None:
    shutil.rmtree(journal.folder)
    journal.folder.write_bytes(b"a file in its place")
    with pytest.raises(JournalError, match=r"Cannot (read|write) "):
        write(journal)
