"""What local checkpoints were trained with is read from beside them, or asked; never guessed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.torch
import torch
from open_clip.transformer import QuickGELU
from structlog.testing import capture_logs

from craft_server.engine import ModelLoadError, ModelSpec
from craft_server.engine.models import LoadedModel, load_model

BOTH, QUICK, PLAIN = "tiny-both", "tiny-both-quickgelu", "tiny-both-gelu"
ONE = "tiny-one"
TEXT = {"width": 32, "heads": 2, "layers": 1}
VISION = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}


@pytest.fixture(scope="module", autouse=True)
def _architectures(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("model_configs")
    config: dict[str, Any] = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}
    for name in (BOTH, ONE):
        (folder / f"{name}.json").write_text(json.dumps(config))
    (folder / f"{QUICK}.json").write_text(json.dumps({**config, "quick_gelu": True}))
    open_clip.add_model_config(folder)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pt"
    torch.save(load_model(ModelSpec(ONE, device="cpu")).module.state_dict(), path)
    return path


Beside = Callable[[str, object], None]


@pytest.fixture
def beside(checkpoint: Path) -> Beside:
    def write(name: str, content: object) -> None:
        text = content if isinstance(content, str) else json.dumps(content)
        (checkpoint.parent / name).write_text(text)

    return write


def load(name: str, checkpoint: Path) -> LoadedModel:
    return load_model(ModelSpec(name, str(checkpoint), device="cpu"))


def is_quick(model: LoadedModel) -> bool:
    module: Any = model.module
    found = {
        isinstance(block.mlp.gelu, QuickGELU)
        for tower in (module, module.visual)
        for block in tower.transformer.resblocks
    }
    (quick,) = found
    return quick


def refusal(name: str, checkpoint: Path) -> str:
    with pytest.raises(ModelLoadError) as error:
        load(name, checkpoint)
    assert "\n" not in str(error.value)
    return str(error.value)


def clip(text: dict[str, object], vision: dict[str, object]) -> dict[str, object]:
    return {"model_type": "clip", "text_config": text, "vision_config": vision}


def test_where_nothing_says_it_the_question_names_both_answers(checkpoint: Path) -> None:
    text = refusal(BOTH, checkpoint)
    assert "was it QuickGELU" in text
    assert f"'{QUICK}'" in text
    assert f"'{PLAIN}'" in text
    assert "open_clip_config.json" in text


def test_the_models_name_answers(checkpoint: Path) -> None:
    quick, plain = load(QUICK, checkpoint), load(PLAIN, checkpoint)
    assert (is_quick(quick), is_quick(plain)) == (True, False)
    assert (quick.name, plain.name) == (QUICK, BOTH)
    assert quick.revision != plain.revision


def test_an_architecture_with_one_activation_is_not_asked_about(checkpoint: Path) -> None:
    assert not is_quick(load(ONE, checkpoint))


def test_gelu_ends_no_name_of_an_architecture_with_one_activation(checkpoint: Path) -> None:
    assert "unknown model 'tiny-one-gelu'" in refusal(f"{ONE}-gelu", checkpoint)


@pytest.mark.parametrize(
    ("name", "content", "quick"),
    [
        ("open_clip_config.json", {"model_cfg": {"quick_gelu": True}}, True),
        ("open_clip_config.json", {"model_cfg": {"quick_gelu": False}}, False),
        ("open_clip_config.json", {"model_cfg": {"embed_dim": 16}}, False),
        ("config.json", clip({"hidden_act": "quick_gelu"}, {"hidden_act": "quick_gelu"}), True),
        ("config.json", clip({"hidden_act": "gelu"}, {"hidden_act": "gelu"}), False),
        ("config.json", clip({}, {}), True),  # transformers' default, which it leaves out
    ],
)
def test_the_checkpoints_own_configuration_is_followed(
    checkpoint: Path, beside: Beside, name: str, content: object, quick: bool
) -> None:
    beside(name, content)
    model = load(BOTH, checkpoint)
    assert is_quick(model) is quick


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("open_clip_config.json", "{"),
        ("open_clip_config.json", []),
        ("open_clip_config.json", {"preprocess_cfg": {"mean": [0, 0, 0]}}),
        ("config.json", clip({"hidden_act": "gelu"}, {"hidden_act": "quick_gelu"})),
        ("config.json", clip({"hidden_act": "relu"}, {"hidden_act": "relu"})),
        ("config.json", {"architecture": "vit_base_patch32_clip_224"}),
    ],
)
def test_what_does_not_say_it_is_no_answer(
    checkpoint: Path, beside: Beside, name: str, content: object
) -> None:
    beside(name, content)
    assert "was it QuickGELU" in refusal(BOTH, checkpoint)


@pytest.mark.parametrize(("said", "quick"), [("true", True), ("false", False)])
def test_a_safetensors_file_may_say_it_itself(checkpoint: Path, said: str, quick: bool) -> None:
    state = torch.load(checkpoint, weights_only=True)
    path = checkpoint.with_suffix(".safetensors")
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    safetensors.torch.save_file(tensors, path, metadata={"quick_gelu": said})
    assert is_quick(load(BOTH, path)) is quick


@pytest.mark.parametrize(("name", "said"), [(QUICK, False), (PLAIN, True)])
def test_a_name_that_contradicts_the_checkpoint_is_refused(
    checkpoint: Path, beside: Beside, name: str, said: bool
) -> None:
    beside("open_clip_config.json", {"model_cfg": {"quick_gelu": said}})
    text = refusal(name, checkpoint)
    assert "as open_clip_config.json says" in text
    assert text.endswith(f"name the model '{BOTH}'")


def test_images_are_preprocessed_as_the_checkpoint_says(checkpoint: Path, beside: Beside) -> None:
    usual = load(ONE, checkpoint)
    said = {"mean": [0.5, 0.5, 0.5], "std": [0.4, 0.4, 0.4], "resize_mode": "squash", "size": 99}
    beside("open_clip_config.json", {"preprocess_cfg": said, "model_cfg": {}})
    model = load(ONE, checkpoint)
    found = {key: model.preprocess_cfg[key] for key in ("mean", "std", "resize_mode")}
    assert found == {"mean": (0.5,) * 3, "std": (0.4,) * 3, "resize_mode": "squash"}
    assert model.image_size == 32
    assert model.preprocess_cfg["size"] == usual.preprocess_cfg["size"]
    assert model.revision != usual.revision


def test_images_are_preprocessed_as_for_all_tags_of_the_architecture(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags = {"a": {"mean": (0.5,) * 3, "url": "x"}, "b": {"mean": (0.5,) * 3, "url": "y"}}
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda _: list(tags))
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda _, tag: tags[tag])
    with capture_logs() as logs:
        assert load(ONE, checkpoint).preprocess_cfg["mean"] == (0.5,) * 3
    assert not [line for line in logs if "PREPROCESSING" in line["event"]]


def test_images_of_which_nothing_says_how_they_were_preprocessed_are_warned_of(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags = {"a": {"mean": (0.5,) * 3}, "b": {"mean": (0.4,) * 3}}
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda _: list(tags))
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda _, tag: tags[tag])
    with capture_logs() as logs:
        model = load(ONE, checkpoint)
    assert model.preprocess_cfg["mean"] == open_clip.OPENAI_DATASET_MEAN
    assert [line for line in logs if "PREPROCESSING" in line["event"]]
