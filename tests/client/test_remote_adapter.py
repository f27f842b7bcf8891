from __future__ import annotations

import codecs
import csv
from pathlib import Path

import numpy as np
import pytest

from craft_client.exceptions import DataError
from craft_client.remote_adapter import RemoteAdapter, classify_files
from craft_client.results import Results
from craft_shared.units import Units

from .batches import CLASSES, classify
from .pictures import write_picture
from .wire_server import WireServer


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def images_of(out: Path) -> set[str]:
    with Results.opened(out, 2) as results:
        return results.images


def test_each_picture_gets_its_row_in_order(
    remote: RemoteAdapter, files: list[Path], tmp_path: Path
) -> None:
    done = classify(remote, files, tmp_path / "out.csv")
    found = rows(tmp_path / "out.csv")
    assert [row["image"] for row in found] == [str(file) for file in files]
    assert {row["adapter"] for row in found} == {"animals@1"}
    images = [file.read_bytes() for file in files]
    whole = [remote.client.adapter_predict("animals", images=[image]) for image in images]
    for row, answer in zip(found, whole, strict=True):
        assert row["class_1"] == CLASSES[answer.log_probs.argmax()]
        most = np.exp(answer.log_probs.max())
        assert float(row["probability_1"]) == pytest.approx(most, abs=1e-6)
        assert float(row["probability_1"]) >= float(row["probability_2"])
        assert (row["error"], row["abstained"]) == ("", "")
    assert done.charged == Units(queries=3, predictions=10, images=10, requests=3)
    assert (done.done, done.total, done.failed) == (10, 10, 0)


@pytest.mark.parametrize("calls", [0, 1, 2, 3])
def test_what_was_cut_off_goes_on_and_pays_once(
    connected: WireServer, remote: RemoteAdapter, files: list[Path], tmp_path: Path, calls: int
) -> None:
    before = connected.charged
    with pytest.raises(KeyboardInterrupt):
        classify(remote, files, tmp_path / "out.csv", stop_after=calls)
    classify(remote, files, tmp_path / "out.csv")
    classify(remote, files, tmp_path / "whole.csv")
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    # Even a new file: the same calls under the same keys.
    spent = Units(queries=3, predictions=10, images=10, requests=3)
    assert connected.charged == before + spent


def test_an_answer_that_was_paid_but_not_written_is_not_paid_again(
    connected: WireServer,
    remote: RemoteAdapter,
    files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = connected.charged

    def die(_self: Results, _rows: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Results, "add", die)
        with pytest.raises(KeyboardInterrupt):
            classify(remote, files[:4], tmp_path / "out.csv")
    paid = connected.charged
    assert paid.queries == before.queries + 1
    classify(remote, files[:4], tmp_path / "out.csv")
    assert connected.charged == paid
    assert len(rows(tmp_path / "out.csv")) == 4


def test_a_line_that_is_not_whole_is_written_anew(
    remote: RemoteAdapter, files: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    classify(remote, files, out)
    whole = out.read_bytes()
    for length in (len(whole) - 1, len(whole) - 30, 10, 0):
        out.write_bytes(whole[:length])
        classify(remote, files, out)
        assert out.read_bytes() == whole


def test_a_picture_that_cannot_be_used_has_a_row_that_says_why(
    connected: WireServer, remote: RemoteAdapter, files: list[Path], tmp_path: Path
) -> None:
    connected.refused_pictures = {files[1].read_bytes(), files[9].read_bytes()}
    files[5].unlink()
    large = connected.limits.image_bytes + 1
    files[6].write_bytes(b"0" * large)
    done = classify(remote, files, tmp_path / "out.csv")
    found = rows(tmp_path / "out.csv")
    assert [row["image"] for row in found] == [str(file) for file in files]
    errors = {index: row["error"] for index, row in enumerate(found) if row["error"]}
    assert errors == {
        1: "cannot be used.",
        5: "No such file or directory",
        6: f"{large} bytes; the server accepts {large - 1}",
        9: "cannot be used.",
    }
    assert all(bool(row["class_1"]) != bool(row["error"]) for row in found)
    assert done.failed == 4
    assert done.charged.images == 6


def test_nothing_is_asked_where_nothing_can_be(
    connected: WireServer, remote: RemoteAdapter, files: list[Path], tmp_path: Path
) -> None:
    connected.refused_pictures = {file.read_bytes() for file in files[:2]}
    done = classify(remote, files[:2], tmp_path / "out.csv")
    assert (done.failed, done.charged) == (2, Units())


def test_the_threshold_is_told_of_each_picture(
    remote: RemoteAdapter, files: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    with Results.opened(out, 1) as results:
        classify_files(remote, files, results, top=1, abstain_below=0.8)
    found = rows(out)
    assert {row["abstained"] for row in found} == {"0", "1"}
    for row in found:
        assert (row["abstained"] == "1") == (float(row["probability_1"]) < 0.8)


@pytest.mark.parametrize(
    "content",
    [
        "something,else\n1,2\n",
        "image,adapter,error,abstained,class_1,probability_1\n",
        "image,adapter,error,abstained,class_1,probability_1,class_2,probability_2\n"
        "a,x@1,,,dog,1,owl,0\nb,x@2,,,dog,1,owl,0\n",
    ],
)
def test_another_file_is_left_as_it_is(tmp_path: Path, content: str) -> None:
    out = tmp_path / "out.csv"
    out.write_text(content)
    with pytest.raises(DataError), Results.opened(out, 2):
        pass
    assert out.read_text() == content


@pytest.mark.parametrize(
    "name", ["a\u2028b", "c\x85d", "e\x0bf", "g\nh", "i\rj", 'k",\nl', "caf\udce9"]
)
def test_a_results_file_goes_on_whatever_its_files_are_called(
    remote: RemoteAdapter, tmp_path: Path, name: str
) -> None:
    named = [write_picture(tmp_path / f"pictures/{number}{name}.png", number) for number in (1, 2)]
    out = tmp_path / "out.csv"
    classify(remote, named, out)
    whole = out.read_bytes()
    out.write_bytes(whole[: whole.index(b"2" + name.encode(errors="surrogateescape")[:1]) + 3])
    classify(remote, named, out)
    assert out.read_bytes() == whole
    assert images_of(out) == {str(path) for path in named}


def test_a_results_file_that_a_spreadsheet_saved_goes_on(
    remote: RemoteAdapter, files: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    classify(remote, files[:4], out)
    out.write_bytes(codecs.BOM_UTF8 + out.read_bytes().replace(b"\n", b"\r\n"))
    assert classify(remote, files, out).charged.images == 6
    assert images_of(out) == {str(path) for path in files}
