"""A results file that was cut, edited or full goes on: a row a picture, nothing paid for twice."""

from __future__ import annotations

import codecs
import csv
import os
import random
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from craft_client.exceptions import DataError, InUse, ProblemError
from craft_client.remote import RemoteAdapter
from craft_client.results import Results, classify_files, to_ask
from craft_shared.units import Units

from .batches import CLASSES, classify
from .pictures import write_picture
from .wire_server import WireServer


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.csv"


@pytest.fixture
def lost(remote: RemoteAdapter, files: list[Path], out: Path) -> list[Path]:
    """Pictures of a call whose answer was paid for, and lost before it was written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Results, "end", interrupt)
        with pytest.raises(KeyboardInterrupt):
            classify(remote, files[:4], out)
    return files[:4]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def rows(out: Path) -> dict[str, list[str]]:
    """By picture, each of which has one."""
    with out.open(newline="", errors="surrogateescape") as text:
        _, *found = csv.reader(text)
    assert len({row[0] for row in found}) == len(found)
    return {row[0]: row for row in found}


@contextmanager
def full_at(size: int) -> Iterator[None]:
    """No file may grow past so many bytes, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_whatever_is_cut_is_written_again_for_free(
    connected: WireServer, remote: RemoteAdapter, files: list[Path], out: Path
) -> None:
    classify(remote, files, out)
    whole, expected, charged = out.read_bytes(), rows(out), connected.charged
    connected.made.clear()  # the server has forgotten its answers, as after a day
    at = random.Random(17)
    lines = whole.splitlines(keepends=True)
    removed = [b"".join(line for line in lines if at.random() < 0.6) for _ in range(4)]
    cuts = [whole[: at.randrange(len(whole))] for _ in range(8)]
    torn = [whole.replace(b"\n", b"", number) for number in (3, 5)]
    for content in (*cuts, *(lines[0] + rest.replace(lines[0], b"") for rest in removed)):
        out.write_bytes(content)
        classify(remote, at.sample(files, len(files)), out)
        assert rows(out) == expected
    for content in torn:
        out.write_bytes(lines[0] + content.removeprefix(lines[0].strip()).lstrip(b"\n"))
        classify(remote, files, out)
        assert rows(out) == expected
    assert connected.charged == charged


def test_a_header_that_a_spreadsheet_saved_may_be_cut_anywhere(tmp_path: Path, out: Path) -> None:
    (tmp_path / "link.csv").symlink_to(out)
    with Results.opened(out, 2):
        header = out.read_bytes()
    saved = codecs.BOM_UTF8 + header.replace(b"\n", b"\r\n")
    for length in range(len(codecs.BOM_UTF8), len(saved)):
        out.write_bytes(saved[:length])
        with Results.opened(tmp_path / "link.csv", 2):
            assert out.read_bytes() == header
    assert (tmp_path / "link.csv").is_symlink()


@pytest.mark.parametrize("answered", [0, 1, 2])
def test_pictures_that_came_in_between_move_no_call_that_was_paid_for(
    connected: WireServer,
    remote: RemoteAdapter,
    files: list[Path],
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    answered: int,
) -> None:
    """The answer to call `answered` was paid for, and lost before it was written."""
    old, calls = files[::2], 0
    end = Results.end

    def die(results: Results, *given: object) -> None:
        nonlocal calls
        if calls == answered:
            raise KeyboardInterrupt
        calls += 1
        end(results, *given)  # type: ignore[arg-type] # passes on what it gets

    connected.limits = connected.limits.model_copy(update={"images_per_call": 2})
    with monkeypatch.context() as patch:
        patch.setattr(Results, "end", die)
        with pytest.raises(KeyboardInterrupt):
            classify(remote, old, out)
    paid = connected.charged
    assert paid.images == min(5, 2 * answered + 2)
    classify(remote, list(reversed(files)), out)
    assert rows(out).keys() == {str(file) for file in files}
    assert connected.charged.images == 10
    # What was left is asked for in calls as full as they may be.
    left = 10 - paid.images
    assert connected.charged.queries == paid.queries + -(-left // 2)


def test_a_full_disk_names_the_file_and_goes_on_when_there_is_room(
    connected: WireServer, remote: RemoteAdapter, files: list[Path], out: Path, tmp_path: Path
) -> None:
    classify(remote, files, tmp_path / "whole.csv")
    charged, expected = connected.charged, rows(tmp_path / "whole.csv")
    connected.made.clear()
    record = (tmp_path / "whole.csv.calls").stat().st_size
    at = random.Random(3)
    for _ in range(8):
        for file in tmp_path.glob("out.csv*"):
            file.unlink()
        spent = connected.charged
        with full_at(at.randrange(100, record)), pytest.raises((OSError, DataError)) as failed:  # noqa: PT012
            classify(remote, files, out)
            raise OSError(27, "large enough after all", "out.csv")
        assert "out.csv" in str(failed.value)
        classify(remote, files, out)
        assert rows(out) == expected
        once = {unit: getattr(charged, unit) for unit in ("queries", "predictions", "images")}
        for unit, number in once.items():
            assert getattr(connected.charged, unit) - getattr(spent, unit) <= number
        connected.made.clear()


def test_a_picture_that_has_changed_is_asked_for_anew(
    connected: WireServer, remote: RemoteAdapter, files: list[Path], out: Path
) -> None:
    classify(remote, files[:4], out)
    charged = connected.charged
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:1] + lines[3:]))
    write_picture(files[0], 99)
    done = classify(remote, files[:4], out)
    assert rows(out).keys() == {str(file) for file in files[:4]}
    assert done.charged.images == 1
    assert connected.charged.images == charged.images + 1


def test_a_call_whose_picture_is_gone_is_said_to_be_lost(
    remote: RemoteAdapter, lost: list[Path], out: Path
) -> None:
    lost[2].unlink()
    done = classify(remote, lost, out)
    assert (done.changed, done.failed) == (4, 1)
    assert rows(out)[str(lost[2])][2] == "No such file or directory"


def test_a_call_that_may_have_been_charged_needs_no_budget(
    connected: WireServer,
    remote: RemoteAdapter,
    files: list[Path],
    lost: list[Path],
    out: Path,
) -> None:
    with Results.opened(out, 2) as results:
        assert to_ask(remote, files, results) == files[4:]
    connected.budgets = {"images": connected.charged.images}
    with pytest.raises(ProblemError):
        classify(remote, files, out)
    assert rows(out).keys() == {str(file) for file in lost}


def test_a_file_that_was_removed_is_begun_with_the_version_of_now(
    connected: WireServer, remote: RemoteAdapter, files: list[Path], out: Path
) -> None:
    classify(remote, files[:4], out)
    with Results.opened(out, 2) as results:
        assert results.adapter == "animals@1"
    out.write_bytes(b"")
    with Results.opened(out, 2) as results:
        assert results.adapter == "animals@1", "it is still the file that was begun"
    out.unlink()
    with Results.opened(out, 2) as results:
        assert results.adapter is None
    charged = connected.charged
    assert classify(remote, files[:4], out).done == 4
    assert connected.charged == charged


def cannot_be_written(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe/out.csv")
    (tmp_path / "text").write_text("mine\n")
    (tmp_path / "begun").write_text("mine, without a line's end")
    return {
        "a folder that is not there": tmp_path / "nodir/out.csv",
        "a file as its folder": tmp_path / "text/out.csv",
        "a pipe": tmp_path / "pipe/out.csv",
        "a device": Path("/dev/full"),
        "another file": tmp_path / "text",
        "another file without a line's end": tmp_path / "begun",
    }


def test_what_cannot_be_written_is_named_before_anything_is_asked(tmp_path: Path) -> None:
    for what, file in cannot_be_written(tmp_path).items():
        before = file.read_bytes() if file.is_file() else b""
        with pytest.raises(DataError) as refused, Results.opened(file, 2):
            pass
        assert str(file) in str(refused.value), what
        assert "--out" in str(refused.value), what
        assert (file.read_bytes() if file.is_file() else b"") == before, what
    assert not (tmp_path / "nodir").exists()


def test_two_names_of_a_file_are_one_file(tmp_path: Path, out: Path) -> None:
    (tmp_path / "link.csv").symlink_to(out)
    with Results.opened(out, 2), pytest.raises(InUse), Results.opened(tmp_path / "link.csv", 2):
        pass
    assert not list(tmp_path.glob("*.lock"))


def test_a_disk_without_room_is_seen_before_anything_is_asked(
    files: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage: Callable[..., object] = lambda _: type("Usage", (), {"free": 1000})  # noqa: E731
    with Results.opened(out, 2) as results:
        results.check_room(files, ["cat", "dog"])
        monkeypatch.setattr("shutil.disk_usage", usage)
        with pytest.raises(OSError, match="bytes are needed, the disk has 1,000 left"):
            results.check_room(files, ["cat", "dog"])


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def images_of(out: Path) -> set[str]:
    with Results.opened(out, 2) as results:
        return results.images


def test_each_picture_gets_its_row_in_order(
    remote: RemoteAdapter, files: list[Path], tmp_path: Path
) -> None:
    done = classify(remote, files, tmp_path / "out.csv")
    found = rows_of(tmp_path / "out.csv")
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
    assert len(rows_of(tmp_path / "out.csv")) == 4


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
    found = rows_of(tmp_path / "out.csv")
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
    found = rows_of(out)
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
