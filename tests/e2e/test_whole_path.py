"""Tune over HTTP, publish, and let another client predict: real processes, real sockets."""

import json
import shutil
from itertools import product
from pathlib import Path

import httpx
import numpy as np
import pytest

from craft_client.api import Client
from craft_client.layouts import load_dataset
from craft_shared.adapter import Adapter
from craft_shared.wire import PredictionRequest
from e2e.conftest import Server

STRICT = ("--strict", "--random-codes", "7")


@pytest.fixture(scope="module")
def key(server: Server) -> str:
    return server.key("--queries", "8000", owner="tuner")


@pytest.fixture(scope="module")
def strict(server: Server, key: str, digits: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("strict") / "digits"
    options = ("--shots", "8", *STRICT, "--run", folder)
    return folder, server.craft_json(key, "tune", "--data", digits, *options)


@pytest.fixture(scope="module")
def run(server: Server, key: str, digits: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    options = ("--shots", "8", "--run", folder)
    return folder, server.craft_json(key, "tune", "--data", digits, *options)


@pytest.mark.parametrize("mode", ["run", "strict"])
def test_tuning_beats_zero_shot_on_pictures_it_has_not_seen(
    server: Server, key: str, mode: str, digits: Path, request: pytest.FixtureRequest
) -> None:
    folder, _ = request.getfixturevalue(mode)
    before = server.craft_json(key, "zero-shot", "--data", digits)
    after = server.craft_json(key, "evaluate", folder, "--data", digits)
    assert after["accuracy_after"] > before["accuracy"] + 30


@pytest.mark.parametrize("options", [(), STRICT])
def test_ledger_agrees_with_the_client_to_the_last_unit(
    server: Server, digits: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    key = server.key("--queries", "1000", owner="counter")
    spent = [
        server.craft_json(key, "zero-shot", "--data", digits),
        server.craft_json(
            key, "tune", "--data", digits, "--shots", "4", *options, "--run", tmp_path / "r"
        ),
        server.craft_json(key, "evaluate", tmp_path / "r", "--data", digits),
    ]
    ledger = server.craft_json(key, "usage")["total"]
    for unit, amount in ledger.items():
        assert amount == sum(command["charged"][unit] for command in spent), unit
    assert ledger["queries"] == 1000 - server.craft_json(key, "budget")["budgets"][0]["remaining"]


@pytest.mark.parametrize("options", [(), ("--report",)], ids=["silent", "reported"])
def test_an_evaluation_is_reported_where_its_run_was(
    server: Server, digits: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    key = server.key(owner="reporter" if options else "silent")
    folder = tmp_path / "run"
    server.craft_json(key, "tune", "--data", digits, "--shots", "2", "--run", folder, *options)
    measured = server.craft(key, "evaluate", folder, "--data", digits, "--json")
    assert "console" not in measured.stderr
    answer = httpx.get(f"{server.url}/v1/runs", headers={"Authorization": f"Bearer {key}"})
    found = [run["evaluation"]["accuracy"] for run in answer.json()["runs"]]
    assert found == [json.loads(measured.stdout)["accuracy_after"]][: len(options)]


def test_of_two_classes_both_are_named(server: Server, digits: Path, tmp_path: Path) -> None:
    """Fewer than `--top` names where nobody asks for a number."""
    key = server.key(owner="two")
    for split, name in product(("train", "test"), ("zero", "one")):
        shutil.copytree(digits / split / name, tmp_path / "data" / split / name)
    data, run, out = tmp_path / "data", tmp_path / "run", tmp_path / "out.csv"
    server.craft_json(key, "tune", "--data", data, "--shots", "4", "--run", run)
    server.craft_json(key, "publish", run, "--name", "two")
    folder = data / "test" / "one"
    shown = server.craft_json(key, "predict", folder, "--adapter", "two")["images"]
    assert {len(image["classes"]) for image in shown} == {2}
    server.craft_json(key, "predict", folder, "--adapter", "two", "--out", out)
    assert out.read_text().splitlines()[0].endswith("class_2,probability_2")


def test_one_query_is_all_that_tuning_asks_and_all_that_a_prediction_costs(
    server: Server, key: str, run, digits: Path
) -> None:
    folder, tuned = run
    assert tuned["charged"]["queries"] == 1
    assert tuned["charged"]["texts"] == 10 + 1000
    assert 0 < len(tuned["texts"]) <= 1000
    measured = server.craft_json(key, "evaluate", folder, "--data", digits)
    assert measured["charged"]["queries"] == 1
    assert measured["charged"]["texts"] == 10 + len(tuned["texts"])


def test_strict_access_asks_about_nothing_but_the_class_names(strict) -> None:
    _, tuned = strict
    assert tuned["texts"] == []
    assert 4 <= tuned["charged"]["queries"] <= 8
    assert tuned["charged"]["texts"] == 10 * tuned["charged"]["queries"]


@pytest.mark.parametrize("mode", ["run", "strict"])
def test_published_adapter_gives_the_tuners_own_predictions_to_another_key(
    server: Server, key: str, mode: str, digits: Path, request: pytest.FixtureRequest
) -> None:
    folder, _ = request.getfixturevalue(mode)
    assert server.craft(key, "publish", folder, "--name", mode).returncode == 0
    pictures = [sample.path.read_bytes() for sample in load_dataset(digits).test[:20]]
    adapter = Adapter.load(folder / "adapter")

    with Client(server.url, key) as tuner:
        question = PredictionRequest(
            model="pocket",
            classes=adapter.config.scored,
            templates=adapter.config.templates,
            context=adapter.config.context,
        )
        codes = adapter.codes if adapter.config.codes else None
        local = adapter.head(tuner.predict(question, codes=codes, images=pictures).log_probs)
    with Client(server.url, server.key(owner="tuner")) as other:
        served = other.adapter_predict(mode, images=pictures)
        best = other.adapter_predict(mode, images=pictures, top_k=3)
    assert served.classes == adapter.config.classes
    np.testing.assert_allclose(served.log_probs, local, atol=1e-4)
    assert best.top_classes is not None
    np.testing.assert_array_equal(best.top_classes[:, 0], served.log_probs.argmax(axis=1))
    kept = np.take_along_axis(served.log_probs, best.top_classes, 1)
    np.testing.assert_array_equal(best.log_probs, kept)


def test_predict_command_names_the_classes(server: Server, key: str, run, digits: Path) -> None:
    folder, _ = run
    server.craft(key, "publish", folder, "--name", "digits-command")
    picture = sorted((digits / "test" / "zero").glob("*.png"))[0]
    done = server.craft(key, "predict", picture, "--adapter", "digits-command")
    assert done.returncode == 0, done.stderr
    assert "zero" in done.stdout


@pytest.mark.parametrize("options", [(), STRICT])
def test_same_seed_gives_the_same_adapter(
    server: Server, key: str, digits: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    digests = []
    for attempt in ("first", "second"):
        folder = tmp_path / attempt
        server.craft_json(key, "tune", "--data", digits, "--shots", "2", *options, "--run", folder)
        adapter = Adapter.load(folder / "adapter")
        weight = adapter.head.tensors()["head.weight"]
        digests.append((adapter.config.texts, adapter.codes.tobytes(), weight.tobytes()))
    assert digests[0] == digests[1]
