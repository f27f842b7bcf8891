"""Bad input to the craft command: one message with field and remedy, no traceback, no charge."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from craft_client.api import Client
from craft_client.exceptions import ImageSetNotFound
from craft_shared.wire import PredictionRequest
from e2e.conftest import Server

Spoil = Callable[[Path], None]


def a_file_that_is_no_picture(data: Path) -> None:
    for path in (data / "train/zero").iterdir():
        path.write_text("not a picture")


def a_truncated_picture(data: Path) -> None:
    for path in (data / "train/one").iterdir():
        path.write_bytes(path.read_bytes()[:-30])


def an_absurdly_large_picture(data: Path) -> None:
    for path in (data / "train/two").iterdir():
        path.unlink()
    for number in range(2):
        Image.new("1", (20_000, 20_000)).save(data / f"train/two/{number}.png")


def an_empty_class_folder(data: Path) -> None:
    (data / "train/ten").mkdir()


def too_few_pictures(data: Path) -> None:
    for path in sorted((data / "train/three").iterdir())[1:]:
        path.unlink()


def duplicate_class_names(data: Path) -> None:
    shutil.copytree(data / "train/four", data / "train/four_")


def a_name_too_long_for_the_context(data: Path) -> None:
    for split in ("train", "test"):
        (data / split / "five").rename(data / split / " ".join("5" * 99))


def nothing(data: Path) -> None:
    """The data is good; the arguments are not."""


CASES: list[tuple[Spoil, list[str], list[str]]] = [
    (a_file_that_is_no_picture, [], ["train/zero/", "is not a picture", "Remove it"]),
    (a_truncated_picture, [], ["train/one", "truncated", "replace or remove it"]),
    (an_absurdly_large_picture, [], ["train/two/", "absurdly large|20000 x 20000", "real|small"]),
    (an_empty_class_folder, [], ["'?ten'?", "no picture", "remove|Remove"]),
    (too_few_pictures, ["--shots-strict"], ["three", "1 ", "--shots|shots"]),
    (duplicate_class_names, [], ["four", "four_", "[Rr]ename"]),
    (a_name_too_long_for_the_context, [], ["5 5 5", "tokens", "[Ss]horten|[Ss]horter"]),
    (nothing, ["--model", "RN50"], ["RN50", "pocket"]),
    (nothing, ["--recipe", "paper", "--budget", "41"], ["budget", "41", "42"]),
    (nothing, ["--shots", "0"], ["shots"]),
    (nothing, ["--template", "a photo"], ["template", "{}"]),
]


@pytest.fixture
def spoilt(digits: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits, tmp_path / "data"))


def check_refused(done: subprocess.CompletedProcess[str], words: list[str]) -> None:
    """The command failed, on purpose, and its message has each of the words."""
    assert done.returncode in (1, 2, 3), (done.returncode, done.stdout)
    assert "Traceback" not in done.stderr
    text = " ".join(done.stderr.split())
    for word in words:
        assert re.search(word, text), (word, text)


def check_not_charged(server: Server, key: str) -> None:
    assert set(server.craft_json(key, "usage")["total"].values()) == {0}


@pytest.mark.parametrize(
    ("spoil", "arguments", "words"),
    CASES,
    ids=[" ".join([spoil.__name__, *arguments]) for spoil, arguments, _ in CASES],
)
def test_tuning_is_refused_before_it_costs_anything(
    server: Server,
    spoilt: Path,
    tmp_path: Path,
    spoil: Spoil,
    arguments: list[str],
    words: list[str],
) -> None:
    spoil(spoilt)
    key = server.key("--queries", "100", owner="careless")
    run = tmp_path / "run"
    command = ["tune", "--data", spoilt, "--shots", "2", "--run", run]
    check_refused(server.craft(key, *command, *arguments), words)
    check_not_charged(server, key)
    assert not run.exists()


def test_a_keys_budget_that_does_not_cover_a_generation(
    server: Server, digits: Path, tmp_path: Path
) -> None:
    key = server.key("--queries", "41", owner="poor")
    run = tmp_path / "run"
    task = ("tune", "--data", digits, "--shots", "2", "--run", run)
    done = server.craft(key, *task, "--recipe", "paper")
    check_refused(done, ["key's queries budget", "41", "at least 42"])
    check_not_charged(server, key)
    assert not run.exists()


@pytest.mark.parametrize("key", ["", "craft_0000000000_wrong", "Bearer x"])
def test_a_missing_or_wrong_key(server: Server, digits: Path, key: str) -> None:
    check_refused(server.craft(key, "zero-shot", "--data", digits), ["key", "CRAFT_API_KEY|valid"])


def test_another_owners_image_set_is_not_there(server: Server, digits: Path) -> None:
    picture = next((digits / "test/zero").iterdir()).read_bytes()
    stranger = server.key("--queries", "10", owner="stranger")
    with Client(server.url, server.key(owner="holder")) as client:
        images = client.create_image_set("pocket")
        client.upload_images(images, [picture])
    request = PredictionRequest(
        model="pocket", classes=["a", "b"], templates=["{}"], image_set=images.id
    )
    with Client(server.url, stranger) as client, pytest.raises(ImageSetNotFound):
        client.predict(request)
    check_not_charged(server, stranger)


def test_an_unknown_adapter(server: Server, digits: Path) -> None:
    key = server.key(owner="lost")
    picture = next((digits / "test/zero").iterdir())
    check_refused(server.craft(key, "predict", picture, "--adapter", "nobodys"), ["adapter"])
    check_not_charged(server, key)
