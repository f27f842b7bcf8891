from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from structlog.testing import capture_logs

from craft_server.engine import Engine, ModelLoadError, ModelSpec
from craft_server.engine.hosted import preprocessing_of
from craft_server.engine.models import _needs_quick_gelu, load_model, revision

pytestmark = pytest.mark.usefixtures("tiny_engine")  # registers the tiny architecture
TINY = ModelSpec("craft-tiny", device="cpu")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[[float], str]:
    """Writes the tiny model's weights, its text projection scaled, and gives the path."""

    def write(factor: float) -> str:
        state = dict(load_model(TINY).module.state_dict())
        state["text_projection"] = state["text_projection"] * factor
        path = tmp_path / f"{factor}.pt"
        torch.save(state, path)
        return str(path)

    return write


def message(spec: ModelSpec) -> str:
    with pytest.raises(ModelLoadError) as error:
        load_model(spec)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_unknown_model_lists_near_matches() -> None:
    text = message(ModelSpec("ViT-B32"))
    assert "unknown model 'ViT-B32'" in text
    assert "ViT-B-32" in text


def test_name_in_other_case_is_a_near_match() -> None:
    assert "RN50" in message(ModelSpec("rn50"))


def test_unknown_tag_lists_the_tags() -> None:
    text = message(ModelSpec("RN50", "opena"))
    assert "'opena' is neither" in text
    assert "openai" in text


def test_weights_that_cannot_be_downloaded_fail_fast_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Nothing listens there, and nothing is cached.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    began = time.monotonic()
    text = message(ModelSpec("RN50", "openai"))
    assert time.monotonic() - began < 10
    assert "'openai' of 'RN50' cannot be downloaded" in text
    assert "local checkpoint" in text


def test_failure_of_open_clips_own_download_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError("no space left on device\nand more lines")

    monkeypatch.setattr("craft_server.engine.models._check_obtainable", lambda *_: None)
    monkeypatch.setattr("open_clip.factory.download_pretrained", fail)
    text = message(ModelSpec("RN50", "openai"))
    assert "no space left on device" in text
    assert "local checkpoint" in text


def test_openai_weights_get_the_activation_they_were_trained_with() -> None:
    assert _needs_quick_gelu(ModelSpec("RN50", "openai"))
    assert not _needs_quick_gelu(ModelSpec("RN50", "missing"))
    assert not _needs_quick_gelu(ModelSpec("ViT-B-32", "laion2b_s34b_b79k"))


def test_pocket_takes_no_other_weights() -> None:
    assert "brings its own weights" in message(ModelSpec(pretrained="openai"))


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "mps"])
def test_missing_device(device: str) -> None:
    assert f"device '{device}'" in message(ModelSpec("RN50", device=device))


def test_random_weights_are_said_loudly_and_are_the_same_each_time() -> None:
    state = torch.random.get_rng_state()
    with capture_logs() as logs:
        first, second = load_model(TINY), load_model(TINY)
    assert logs[0]["log_level"] == "warning"
    assert "RANDOM WEIGHTS" in logs[0]["event"]
    assert first.random_weights
    assert first.revision == second.revision
    assert torch.equal(torch.random.get_rng_state(), state)


def test_loading_leaves_the_root_logger_alone() -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    load_model(TINY)
    assert (root.level, list(root.handlers)) == before


def test_local_checkpoint_is_loaded(checkpoint: Callable[[float], str]) -> None:
    random = load_model(TINY)
    same = load_model(ModelSpec(TINY.name, checkpoint(1.0), device="cpu"))
    other = load_model(ModelSpec(TINY.name, checkpoint(1.001), device="cpu"))
    assert not same.random_weights
    assert same.revision == random.revision
    assert other.revision != random.revision


def test_revision_tells_architectures_apart_that_have_no_weights_of_their_own() -> None:
    module = load_model(TINY).module
    assert revision(module, "a") != revision(module, "b")


def test_checkpoint_of_another_model(checkpoint: Callable[[float], str]) -> None:
    assert "not a checkpoint of 'RN50'" in message(ModelSpec("RN50", checkpoint(1.0)))


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return Path.write_text, (Path("exploded"), "x")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_checkpoint_is_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bomb.pt"
    path.write_bytes(pickle.dumps(_Bomb()))
    assert "loads safely" in message(ModelSpec("RN50", str(path)))
    torch.save({"state_dict": _Bomb()}, path)
    assert "loads safely" in message(ModelSpec("RN50", str(path)))
    assert not Path("exploded").exists()


def test_pocket_is_an_engine_like_any_other() -> None:
    engine = Engine.load(ModelSpec(device="cpu"))
    try:
        assert (engine.name, engine.image_size, engine.random_weights) == ("pocket", 224, False)
        assert engine.alive
    finally:
        engine.close()
    assert not engine.alive


def test_preprocessing_is_the_models_own() -> None:
    _, _, reference = open_clip.create_model_and_transforms(TINY.name)
    view, to_tensor = preprocessing_of(load_model(TINY).preprocess_cfg)
    noise = np.random.default_rng(1).integers(0, 256, (300, 500, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    assert torch.equal(to_tensor(np.array(view.of(image))), reference(image))
