"""A real model on noise: what is reported as held out is chance, whatever copies there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from e2e.conftest import Server


def test_noise_with_copies_in_other_files_is_reported_near_chance(
    server: Server, tmp_path: Path
) -> None:
    """Each image is there as two kinds of file, whose bytes differ and whose pixels do not."""
    generator = np.random.default_rng(0)
    for name in ("alpha", "beta", "gamma"):
        folder = tmp_path / "noise/train" / name
        folder.mkdir(parents=True)
        for number in range(6):
            blocks = generator.integers(0, 255, (8, 8, 3))
            pixels = np.kron(blocks, np.ones((16, 16, 1))).astype(np.uint8)
            for suffix in ("png", "bmp"):
                Image.fromarray(pixels).save(folder / f"{number}.{suffix}")
    task = ("tune", "--data", tmp_path / "noise", "--shots", "12", "--run", tmp_path / "run")
    tuned = server.craft_json(server.key(owner="noise"), *task)
    assert tuned["pictures"] == 36
    # 18 images of three classes: chance and three standard errors.
    assert tuned["accuracy_after"] < 67
