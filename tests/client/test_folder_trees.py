"""Folders as people have them: every command sees the same images and classes, or says the same."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from craft_client.cli import app, bench, evaluate, predict, tune
from craft_client.data import Dataset, Sample

EXAMPLES = 400 if os.environ.get("CRAFT_TEST_FULL") else 10

CLASS_NAMES = r"cat dog owl train Cat sea_lion a&b =x .hidden __MACOSX lost+found"
FILE_NAMES = (
    "1.jpg 2.JPG 3.png 4.tif 5.avif a.heic b.jp2 noext c.xyz d.txt README.md a.xmp ._1.jpg .a.jpg "
    "Thumbs.db desktop.ini .jpg a..jpg 1.jpg~ 1.jpg.part -.bmp"
)
CLASSES = st.sampled_from(
    [
        *CLASS_NAMES.split(),
        *("caf\u00e9", "cafe\u0301", "caf\udce9", "\uff43at", "sea lion", "sea\u00a0lion"),
        *("\ufeffdog", "x" * 120),
    ]
)
NAMES = st.sampled_from(
    [
        *FILE_NAMES.split(),
        *("\u00e9.jpg", "e\u0301.jpg", "u\udce9.jpg", "a\u2028b.jpg", "c\nd.jpg", "e f.gif"),
    ]
)
# Where links lead, from the folder that they are in.
TARGETS = st.sampled_from(
    [".", "..", "../..", "../../..", "nowhere", "link", "../cat", "deeper", "1.jpg", "/dev/null"]
)
Entry = st.one_of(
    NAMES.map(lambda name: ("file", name)),
    st.tuples(st.just("link"), st.sampled_from(["link", "link.jpg", "deep.png"]), TARGETS),
    st.tuples(
        st.sampled_from(["deeper", "2021", ".thumbnails", "@eaDir", "x.jpg"]),
        st.lists(NAMES.map(lambda name: ("file", name)), max_size=3),
    ),
)
ONE = [("file", "1.jpg")]
Folder = st.builds(
    lambda first, others: first + others,
    st.sampled_from([ONE, ONE, ONE, []]),
    st.lists(Entry, min_size=1, max_size=5),
)
PLAIN = st.sampled_from(["cat", "dog", "owl", "train", "x" * 120])
Trees = st.dictionaries(PLAIN | PLAIN | PLAIN | CLASSES, Folder, min_size=2, max_size=4)


def plant(folder: Path, entries: list[Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for entry in entries:
        match entry:
            case ("file", name):
                if not os.path.lexists(folder / name):
                    (folder / name).touch()
            case ("link", name, target):
                if not os.path.lexists(folder / name):
                    (folder / name).symlink_to(target)
            case (name, inner) if not os.path.lexists(folder / name) or (folder / name).is_dir():
                plant(folder / name, inner)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The images and classes that the last command has found, which ends there."""
    found: list[tuple[str, str]] = []

    def end(classes: Sequence[str], samples: Sequence[Sample]) -> NoReturn:
        found.extend((str(path), classes[label]) for path, label in samples)
        raise SystemExit(0)

    def tune_task(made: tune.Task, *_: Any, **__: Any) -> NoReturn:
        end(made.classes, made.samples)

    pictures = evaluate._pictures
    monkeypatch.setattr(tune, "tune_task", tune_task)
    monkeypatch.setattr(bench, "tune_task", tune_task)
    monkeypatch.setattr(bench, "_check", lambda *about: None)  # asks a server
    monkeypatch.setattr(evaluate, "_pictures", lambda *about: end(*split(*pictures(*about))))
    return found


def split(dataset: Dataset, samples: Sequence[Sample]) -> tuple[Sequence[str], Sequence[Sample]]:
    return dataset.classes, samples


def outcome(seen: list[tuple[str, str]], *arguments: object) -> list[tuple[str, str]] | str:
    """The images that a command has found, with their classes; or its first sentence."""
    seen.clear()
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert isinstance(done.exception, SystemExit) or not done.exit_code, done.stderr
    assert "nobody foresaw" not in done.stderr
    if not done.exit_code:
        return sorted(seen)
    sentence = re.search(r"^(?:Skipped data: |Error: )(.*)", done.stderr, re.MULTILINE)
    assert sentence, done.stderr
    return sentence[1]


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(train=Trees, test=st.none() | Folder)
def test_every_command_sees_the_same_images_and_classes_or_says_the_same(
    place: Path,
    seen: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    train: dict[str, Any],
    test: Any,
) -> None:
    monkeypatch.chdir(place)
    for left in place.iterdir():
        shutil.rmtree(left)
    for name, entries in train.items():
        plant(place / "data/train" / name, entries)
    if test is not None:
        plant(place / "data/test" / next(iter(train)), test)
    shots = ("--shots", 99, "--budget", 8000)
    tuned = outcome(seen, "tune", "--data", place / "data", *shots, "--run", place / "run")
    measured = outcome(seen, "zero-shot", "--data", place / "data", "--split", "train")
    assert tuned == measured
    benched = outcome(
        seen,
        "bench",
        "--data",
        place,
        "--dataset",
        "data",
        *shots,
        "--seed",
        1,
        "--out",
        place / "out",
    )
    if isinstance(tuned, str):
        event("refused")
        assert benched == tuned
        return
    event("read")
    if not isinstance(benched, str):
        assert benched == tuned
    else:
        assert "has no test split" in benched
    # One class after the other, as folders of images that have none.
    classes = {Path(path).relative_to(place / "data/train").parts[0] for path, _ in tuned}
    assert len({label for _, label in tuned}) == len(classes)
    for name in classes:
        files, _ = predict._image_files([place / "data/train" / name])
        own = place / "data/train" / name
        assert sorted(map(str, files)) == [path for path, _ in tuned if own in Path(path).parents]
