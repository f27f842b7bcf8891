"""Methods that nobody here wrote, against a real server: charged, killed, resumed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from craft_client import Client
from craft_client.arena import Outcome, Question, Run, run_method
from craft_client.data import few_shot
from craft_client.exceptions import InvalidRequest
from craft_client.layouts import load_dataset
from craft_client.pictures import pixels
from craft_shared.adapter import Adapter, AdapterConfig, prompted
from craft_shared.head import Unrefined
from craft_shared.image_view import View
from craft_shared.units import Units
from craft_shared.wire import ModelCard
from e2e.conftest import Server
from e2e.programs import CRAFT, Program
from waiting import until

OPTUNA = Path(__file__).parents[2] / "examples/optuna_method.py"
OPTIONS = ("--shots", "2", "--dim", "8", "--budget", "predictions=6000", "--scale", "3")


def test_a_strangers_optimiser_is_killed_and_resumed_to_the_same_adapter(
    server: Server, digits: Path, tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    tune = ("tune", "--data", digits, "--recipe", f"{OPTUNA}:tune", *OPTIONS)
    whole = server.craft_json(server.key(owner="optuna"), *tune, "--run", tmp_path / "whole")
    assert 6000 - 20 < whole["charged"]["predictions"] <= 6000
    assert whole["history"][-1]["best_loss"] < whole["history"][0]["best_loss"]

    key, run = server.key(owner="optuna-killed"), tmp_path / "run"
    env = {**os.environ, "CRAFT_URL": server.url, "CRAFT_API_KEY": key}
    command = [*map(str, tune), "--run", str(run)]
    process = Program(
        CRAFT, command, env=env, stdout=tmp_path / "stdout", stderr=tmp_path / "stderr"
    )
    lines = run / "journal.jsonl"
    until(lambda: lines.exists() and lines.read_bytes().count(b"\n") > 8)
    process.kill()
    process.wait(30)
    assert not (run / "summary.json").exists(), "it was killed too late"
    # A run directory is data: what it names is not run for that alone.
    refused = server.craft(key, "tune", "--resume", run)
    assert refused.returncode == 1
    assert f"craft tune --resume {run} --recipe {OPTUNA}:tune" in refused.stderr
    done = server.craft(key, "tune", "--resume", run, "--recipe", f"{OPTUNA}:tune")
    assert done.returncode == 0, done.stderr
    assert Adapter.load(run / "adapter").digest == Adapter.load(tmp_path / "whole/adapter").digest
    charged = server.craft_json(key, "usage")["total"]
    assert charged["predictions"] == whole["charged"]["predictions"]
    assert charged["queries"] == whole["charged"]["queries"]


def test_what_a_method_asks_is_what_the_ledger_has(
    server: Server, digits: Path, tmp_path: Path
) -> None:
    """Rows, texts in the place of class names, and images that the method makes."""
    dataset = load_dataset(digits)
    samples = few_shot(dataset.split("train"), 3, 1, dataset.classes)
    names = list(dataset.classes)
    labels = [sample.label for sample in samples]
    announced = []

    def method(run: Run) -> Outcome:
        run.plain()
        for question, asked in (
            (Question(2, images=5), {"templates": ["a {}.", "the {}."], "rows": [4, 8, 9, 11, 3]}),
            (Question(1, images=4, sent=True), {"templates": ["a {}."], "images": run.images[:4]}),
        ):
            announced.append(run.units(question))
            rows = asked.get("rows", range(4))
            run.ask(**{"rows": rows, **asked})
        return Outcome("the plain prompt")

    key = server.key(owner="arena")
    with Client(server.url, key) as client:
        files, endless = [sample.path for sample in samples], f"{'a ' * 100}{{}}"
        with pytest.raises(InvalidRequest, match="77 are allowed"):
            run_method(method, files, labels, names, client=client, template=endless)
        assert client.usage().total == Units()
        result = run_method(
            method,
            [sample.path for sample in samples],
            labels,
            names,
            client=client,
            run_dir=tmp_path / "run",
            budget=100,
        )
        journal = [json.loads(line) for line in (tmp_path / "run/journal.jsonl").open()]
        assert [line["charged"] for line in journal[1:]] == [one.model_dump() for one in announced]
        total = client.usage().total
        assert total.queries == result.units.queries == 1 + 2 + 1
        assert total.images == len(samples) + 4
        # What the method makes of nothing is what was uploaded.
        again = run_method(
            method, [one.path for one in samples], labels, names, client=client,
            run_dir=tmp_path / "other", budget=100,
        )  # fmt: skip
        assert again.adapter.digest == result.adapter.digest
    assert np.isfinite(result.accuracy_before)


def test_a_map_of_generic_texts_beats_the_plain_prompt_where_it_is_served(
    server: Server, digits: Path, tmp_path: Path
) -> None:
    key, run = server.key(owner="sim"), tmp_path / "sim"
    found = server.craft_json(
        key, "tune", "--data", digits, "--shots", "8", "--recipe", "sim", "--run", run
    )
    assert found["accuracy_after"] > found["accuracy_before"] + 10
    assert found["charged"]["queries"] == 2
    config = Adapter.load(run / "adapter").config
    assert not set(config.texts) & set(config.classes)
    server.craft_json(key, "publish", run, "--name", "sim")
    measured = server.craft_json(key, "evaluate", run, "--data", digits, "--split", "test")
    assert measured["accuracy_after"] > measured["accuracy_before"] + 10


def plain_adapter(card: ModelCard) -> AdapterConfig:
    """Of an adapter of one template, without a head."""
    return AdapterConfig(
        model=card.name,
        revision=card.revision,
        classes=["one", "two"],
        templates=["a {}."],
        head="none",
    )


def test_a_visual_prompt_is_applied_by_the_server_to_the_last_bit(
    server: Server, digits: Path, tmp_path: Path
) -> None:
    files = sorted((digits / "test" / "two").iterdir())[:3]
    with Client(server.url, server.key(owner="visual")) as client:
        card = client.model()
        size = card.image_size
        config = plain_adapter(card)
        none = np.zeros((0, 0), np.float32)
        levels = np.random.default_rng(0).uniform(-60, 60, (size, size, 3)).astype(np.float32)
        with_prompt = config.model_copy(update={"visual": size})
        client.publish("plain", Adapter(config, none, Unrefined()))
        client.publish("prompted", Adapter(with_prompt, none, Unrefined(), levels))
        made = [prompted(pixels(file, View(size, size)), levels) for file in files]
        expected = client.adapter_predict("plain", images=made).log_probs
        before = client.adapter_predict("plain", images=files).log_probs
        found = client.adapter_predict("prompted", images=files)
        np.testing.assert_array_equal(found.log_probs, expected)
        assert not np.array_equal(found.log_probs, before)
        assert found.cost.charged.images == 3

        image_set = client.upload_images(client.create_image_set(card.name), files)
        spent = client.usage().total
        with pytest.raises(InvalidRequest, match="which an image set does not keep"):
            client.adapter_predict("prompted", image_set=image_set.id)
        wrong = config.model_copy(update={"visual": 7})
        with pytest.raises(InvalidRequest, match=f"7 pixels a side; the model reads {size}"):
            client.publish("wrong", Adapter(wrong, none, Unrefined(), levels[:7, :7]))
        assert client.usage().total == spent


def test_an_image_with_another_visual_prompt_has_noise_of_its_own(
    server: Server, tmp_path: Path
) -> None:
    """Otherwise any image could be read as a visual prompt on one file, under one noise."""
    white = tmp_path / "white.png"
    Image.new("RGB", (64, 64), "white").save(white)
    with Client(server.url, server.key("--noise", "0.5", owner="noisy")) as client:
        card = client.model()
        size = card.image_size
        config = plain_adapter(card).model_copy(update={"visual": size})

        def answer(name: str, levels: float) -> Any:
            visual = np.full((size, size, 3), levels, np.float32)
            client.publish(name, Adapter(config, np.zeros((0, 0), np.float32), Unrefined(), visual))
            return client.adapter_predict(name, images=[white]).log_probs

        # Pixels are whole numbers of at most 255, so that these are one and the same image.
        none, hardly, more = answer("none", 0), answer("hardly", 0.2), answer("more", 50)
        np.testing.assert_array_equal(hardly, none)
        assert np.abs(more - none).max() > 0.05


def test_a_visual_prompt_is_tuned_measured_and_published(
    server: Server, digits: Path, tmp_path: Path
) -> None:
    key, run = server.key(owner="blackvip"), tmp_path / "run"
    tuned = server.craft_json(
        key, "tune", "--data", digits, "--shots", "1", "--recipe", "blackvip", "--run", run,
        "--set", "batch=8", "--set", "directions=1", "--budget", "images=33",
    )  # fmt: skip
    assert tuned["charged"]["images"] == 10 + 32
    assert Adapter.load(run / "adapter").visual is not None
    measured = server.craft_json(key, "evaluate", run, "--data", digits, "--split", "test")
    test = measured["pictures"]
    assert measured["charged"]["images"] == 2 * test, "as they are, and with the prompt"
    # What is made with the prompt is encoded whatever is known: refused before anything is charged.
    short = server.key("--images", str(test - 1), owner="blackvip")
    refused = server.craft(short, "evaluate", run, "--data", digits, "--split", "test")
    assert refused.returncode == 3, refused.stderr
    assert server.craft_json(short, "usage")["total"]["requests"] == 0
    server.craft_json(key, "publish", run, "--name", "prompted")
    served = server.craft_json(key, "evaluate", "--adapter", "prompted", "--data", digits)
    assert served["accuracy_after"] == pytest.approx(measured["accuracy_after"], abs=1)
    assert served["charged"]["images"] == test, "sent once, with the calls"
    assert served["image_set"] is None
