"""Where phrases should lie in the image embedding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from craft_server.pocket import load_vision_weights
from teacher import EMBED_DIM, Teacher, normalised, relu6_mean, vision_projection


def test_relu6_mean_is_that_of_samples() -> None:
    mean, std = torch.tensor([-1.0, 0.5, 5.0, 8.0]), torch.tensor([0.5, 2.0, 3.0, 1.0])
    generator = torch.Generator().manual_seed(0)
    samples = mean + std * torch.randn(400_000, 4, generator=generator)
    torch.testing.assert_close(
        relu6_mean(mean, std), samples.clamp(0, 6).mean(0), atol=0.01, rtol=0
    )


@pytest.mark.parametrize("known", [3, 40])
def test_an_anchor_lies_near_its_own_row(known: int) -> None:
    generator = np.random.default_rng(0)
    anchors = normalised(generator.standard_normal((50, 384)).astype(np.float32))
    rows = normalised(generator.standard_normal((50, EMBED_DIM)).astype(np.float32))
    similarity = Teacher(anchors, rows)(anchors[[known]]) @ rows.T
    assert similarity.argmax() == known


def test_projection_keeps_class_rows_apart() -> None:
    projection = vision_projection(load_vision_weights())
    assert projection.weight.shape == (EMBED_DIM, 1280)
    np.testing.assert_allclose(projection.weight @ projection.weight.T, np.eye(512), atol=1e-4)
    nearest = np.argsort(projection.class_rows @ projection.class_rows.T, axis=1)[:, -1]
    assert (nearest == np.arange(1000)).all()
