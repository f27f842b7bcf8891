"""Each output level from tuning to serving: real processes, real sockets, the real client."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from craft_client.api import Client
from craft_client.exceptions import PromptLimitReached
from craft_client.layouts import load_dataset
from craft_client.remote import RemoteAdapter, RemoteBlackBox, classify_here
from craft_shared.adapter import Adapter
from craft_shared.wire import Output
from e2e.conftest import Server

LEVELS = {
    "label": ("--level", "label"),
    "top_k": ("--level", "top_k", "--k", "3"),
    "probs": ("--level", "probs", "--decimals", "2"),
    "log_probs": ("--level", "log_probs", "--decimals", "1"),
    "noisy": ("--level", "log_probs", "--noise", "0.3"),
}


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_is_tuned_served_and_applied_here_alike(
    server: Server, digits: Path, tmp_path: Path, level: str
) -> None:
    owner = f"{level}-owner"
    key, run = server.key(*LEVELS[level], owner=owner), tmp_path / "run"
    options = ("--shots", "8", "--random-codes", "31")
    tuned = server.craft(key, "tune", "--data", digits, *options, "--run", run, "--json")
    assert tuned.returncode == 0, tuned.stderr
    assert "The key sees" in tuned.stderr
    output = Output.model_validate(json.loads(tuned.stdout)["output"])
    assert output == Output.model_validate(json.loads((run / "run.json").read_text())["output"])
    measured = server.craft_json(key, "evaluate", run, "--data", digits)
    # Labels say least of pictures that the plain prompt takes for two or three of ten classes; how
    # processors round decides over some of these sixty.
    assert measured["accuracy_after"] > 2 * measured["accuracy_before"]

    server.craft_json(key, "publish", run, "--name", "digits")
    pictures = [sample.path.read_bytes() for sample in load_dataset(digits).split("test")[:60]]
    adapter = Adapter.load(run / "adapter")
    assert adapter.config.output == output
    with Client(server.url, key) as client, Client(server.url, server.key(owner=owner)) as whole:
        image_set = client.upload_images(client.create_image_set(client.model().name), pictures)
        here = classify_here(
            adapter, RemoteBlackBox(client, image_set, adapter.config.scored, dtype="float32")
        )[1]
        served = RemoteAdapter(client, client.adapter("digits")).classify_image_set(image_set)
        assert served.output == output
        # Rounded numbers may be equal; none is greater than the one that is greatest here.
        best = np.take_along_axis(served.log_probs, here.argmax(1)[:, None], 1)[:, 0]
        np.testing.assert_array_equal(best, served.log_probs.max(1))
        if level == "noisy":
            np.testing.assert_allclose(served.log_probs, here, atol=1e-4)
        else:
            # A key that sees everything is shown the same head's numbers on the same scores.
            shown = RemoteAdapter(whole, whole.adapter("digits")).classify_image_set(image_set)
            np.testing.assert_allclose(shown.log_probs, here, atol=1e-4)

    check_that_one_number_is_shown(server, key, digits, tmp_path)


def check_that_one_number_is_shown(server: Server, key: str, digits: Path, place: Path) -> None:
    """What the server answers is on the screen, in JSON and in the file, digit by digit."""
    files = [sample.path for sample in load_dataset(digits).split("test")[:3]]
    command = ("predict", *files, "--adapter", "digits", "--top", "3")
    found = server.craft_json(key, *command)["images"]
    with Client(server.url, key) as client:
        answer = client.adapter_predict("digits", images=files, top_k=3)
    server.craft(key, *command, "--out", place / "out.csv").check_returncode()
    with (place / "out.csv").open(newline="") as text:
        rows = list(csv.DictReader(text))
    screen = server.craft(key, *command).stdout.splitlines()
    shown = [re.split(r" {2,}", line)[-2:] for line in screen[1:]]
    numbers = answer.probabilities
    for index, (entry, row) in enumerate(zip(found, rows, strict=True)):
        for rank, one in enumerate(entry["classes"]):
            probability = one["probability"]
            if numbers is None:
                assert probability is None
            else:
                assert probability == round(float(numbers[index, rank]), 6)
            number = "" if probability is None else f"{probability:.6f}"
            assert (row[f"class_{rank + 1}"], row[f"probability_{rank + 1}"]) == (
                one["class"],
                number,
            )
            percent = "not shown" if probability is None else f"{100 * probability:.1f} %"
            assert shown.pop(0) == [one["class"], percent]
    assert not shown


def test_a_bound_on_prompts_is_kept_by_tuning_and_refuses_more(
    server: Server, digits: Path, tmp_path: Path
) -> None:
    key = server.key("--prompts-per-image-set", "12", owner="bounded")
    tuned = server.craft_json(
        key, "tune", "--data", digits, "--recipe", "random", "--population", "11",
        "--shots", "4", "--run", tmp_path / "run",
    )  # fmt: skip
    assert tuned["charged"]["queries"] == 12
    with Client(server.url, key) as client:
        black_box = RemoteBlackBox(
            client, client.image_set(tuned["image_set"]), load_dataset(digits).classes
        )
        with pytest.raises(PromptLimitReached, match="12 of 12"):
            black_box.score(templates=["one more {}"])
    assert server.craft_json(key, "usage")["total"]["queries"] == 12


def test_predict_names_the_label_where_no_probability_is_shown(
    server: Server, digits: Path, digits_adapter: str
) -> None:
    key = server.key("--level", "label")
    picture = load_dataset(digits).split("test")[0].path
    done = server.craft(key, "predict", picture, "--adapter", digits_adapter)
    assert done.returncode == 0, done.stderr
    assert "not shown" in done.stdout
    found = server.craft_json(key, "predict", picture, "--adapter", digits_adapter, "--top", "3")
    (image,) = found["images"]
    assert [one["probability"] for one in image["classes"]] == [None]
