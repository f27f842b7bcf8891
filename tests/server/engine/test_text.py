from __future__ import annotations

import open_clip
import pytest
import torch
from torch import Tensor, nn

from craft_server.engine import Engine
from craft_server.engine.text import TextTower, UnsupportedTowerError

NAMES = ["cat", "golden retriever", "hot-air balloon"]


def relative_error(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm())


def features(tower: TextTower, sentence: str, cut: int) -> Tensor:
    """One text whose first `cut` tokens are read as the prefix."""
    ids = open_clip.tokenize([sentence])[0]
    ids = ids[: int(ids.argmax()) + 1]
    prefix = tower.read_prefix(tower.embed(ids[None, :cut]))
    return tower.encode(prefix, tower.embed(ids[None, cut:]))[0, 0]


def custom_text(**text: object) -> nn.Module:
    config = {"width": 32, "heads": 2, "layers": 2, **text}
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    model = open_clip.CustomTextCLIP(embed_dim=16, vision_cfg=vision, text_cfg=config)
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def test_where_the_prefix_ends_does_not_matter(tiny_engine: Engine) -> None:
    sentence = "a photo of a golden retriever."
    reference = tiny_engine._model.module.encode_text(open_clip.tokenize([sentence]), True)[0]
    for cut in range(1, 8):
        assert relative_error(features(tiny_engine._tower, sentence, cut), reference) < 1e-5


@torch.inference_mode()
def test_each_prompt_and_text_meet_where_they_should(tiny_engine: Engine) -> None:
    tower = tiny_engine._tower
    generator = torch.Generator().manual_seed(1)
    prefixes = torch.randn(3, 5, tower.width, generator=generator) * 0.02
    texts = torch.randn(4, 2, tower.width, generator=generator) * 0.02
    together = tower.encode(tower.read_prefix(prefixes), texts)
    for p in range(3):
        for c in range(4):
            alone = tower.encode(tower.read_prefix(prefixes[p : p + 1]), texts[c : c + 1])
            assert relative_error(together[p, c], alone[0, 0]) < 1e-5


@pytest.mark.parametrize(
    "text",
    [{}, {"pool_type": "eos", "eos_id": 49407}, {"proj_bias": True}, {"ls_init_value": 0.5}],
    ids=["argmax", "eos", "projection with bias", "layer scale"],
)
@torch.inference_mode()
def test_custom_text_towers_agree_with_open_clip(text: dict[str, object]) -> None:
    model = custom_text(**text)
    for name in NAMES:
        sentence = f"a photo of a {name}."
        reference = model.encode_text(open_clip.tokenize([sentence]), normalize=True)[0]
        assert relative_error(features(TextTower(model), sentence, 4), reference) < 1e-5


@pytest.mark.parametrize(
    "text",
    [
        {"no_causal_mask": True},
        {"embed_cls": True},
        {"pool_type": "last"},
        {"qk_norm": True, "norm_kwargs": {}},
    ],
    ids=["not causal", "class token", "last token", "other blocks"],
)
def test_other_towers_are_refused(text: dict[str, object]) -> None:
    with pytest.raises(UnsupportedTowerError):
        TextTower(custom_text(**text))
