"""The training-time tower computes what open_clip computes from the exported weights."""

from __future__ import annotations

import open_clip
import pytest
import torch
from open_clip.model import CLIP

from export import model_config, text_tensors
from tower import Shape, Tower
from train import embed_names

NAMES = ["cat", "grand piano", "Yorkshire terrier", "hs1", "cat"]
SHAPE = Shape(width=64, layers=3, heads=2, rank=16, embed_dim=32)


@pytest.fixture(scope="module")
def tower() -> Tower:
    torch.manual_seed(0)
    return Tower(SHAPE).eval()


@pytest.fixture(scope="module")
def exported(tower: Tower) -> CLIP:
    config = model_config(SHAPE)
    config["vision_cfg"] = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    model = CLIP(**config).eval()
    state = {name: t.float() for name, t in text_tensors(tower.state_dict(), 20.0).items()}
    factor, mix = state.pop("token_embedding.factor"), state.pop("token_embedding.mix")
    state["token_embedding.weight"] = factor @ mix
    unused = model.load_state_dict(state, strict=False).missing_keys
    assert all(name.startswith("visual.") for name in unused)
    return model


@pytest.mark.parametrize("template", ["a photo of a {}.", "{}", "{} in a video game."])
@torch.inference_mode()
def test_embeddings_are_open_clips(tower: Tower, exported: CLIP, template: str) -> None:
    tokenizer = open_clip.SimpleTokenizer()
    ours = embed_names(tower, tokenizer, NAMES, template)
    theirs = exported.encode_text(
        tokenizer([template.format(name) for name in NAMES]), normalize=True
    )
    # The export is in half precision.
    torch.testing.assert_close(ours, theirs, atol=5e-3, rtol=0)


def test_the_whole_tower_learns(tower: Tower) -> None:
    out = embed_names.__wrapped__(tower, open_clip.SimpleTokenizer(), NAMES)
    out[:, 0].sum().backward()
    assert [name for name, p in tower.named_parameters() if p.grad is None] == []


def test_weights_beyond_half_precision_are_refused() -> None:
    with pytest.raises(ValueError, match=r"not finite in half precision: ln_final\.weight"):
        text_tensors({"ln_final.weight": torch.tensor([1e6])}, 20.0)
