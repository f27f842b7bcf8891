"""What is fuzzed: parsers of bytes that strangers send, and the one error that each may raise.

It knows seeds, made by code, and what a good result looks like; it does not know how inputs are
mutated.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from craft_server.decoding.pixels import ImageError, decode
from craft_server.engine.hosted import preprocessing_of
from craft_shared import codec
from craft_shared.adapter import Adapter, AdapterConfig, AdapterError
from craft_shared.head import LinearHead, ResidualMLPHead, Unrefined
from craft_shared.image_formats import FORMATS
from craft_shared.wire import Context

MAX_PIXELS = 1_000_000
SIDE = 32


@dataclass(frozen=True)
class Target:
    """A parser under test.

    Attributes:
        run: gets the bytes; whatever it raises is a finding.
        seeds: valid inputs to begin with.
    """

    run: Callable[[bytes], None]
    seeds: Sequence[bytes]


_view, _to_tensor = preprocessing_of(
    {"size": SIDE, "interpolation": "bicubic", "resize_mode": "shortest"}
)


def _image(data: bytes) -> None:
    try:
        image = decode(data, max_pixels=MAX_PIXELS)
    except ImageError:
        return
    tensor = _to_tensor(np.array(_view.of(image)))
    assert tensor.shape == (3, SIDE, SIDE)
    assert tensor.dtype == torch.float32
    assert torch.isfinite(tensor).all()


def _codec(data: bytes) -> None:
    try:
        document, tensors = codec.decode(data)
    except codec.CodecError:
        return
    assert isinstance(document, dict)
    try:
        files = codec.unpack_files(tensors)
    except codec.CodecError:
        return
    assert sum(map(len, files)) == tensors["files"].size


def _adapter(data: bytes) -> None:
    try:
        adapter = Adapter.from_bytes(data)
    except AdapterError:
        return
    config = adapter.config
    scores = np.zeros((config.prompts, 1, len(config.scored)), np.float32)
    if scores.size < 2**16:
        assert adapter.head(scores).shape == (1, len(config.classes))


def _pictures() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 4), dtype=np.uint8)
    colour = Image.fromarray(pixels, "RGBA")
    files = []
    for file_format in FORMATS:
        modes = ("RGB", "L", "P", "RGBA", "I;16") if file_format in ("PNG", "TIFF") else ("RGB",)
        for mode in modes:
            grey = np.arange(480, dtype=np.uint16).reshape(20, 24)
            image = Image.fromarray(grey) if mode == "I;16" else colour.convert("RGB").convert(mode)
            file = io.BytesIO()
            image.save(file, file_format)
            files.append(file.getvalue())
    turned = Image.Exif()
    turned[0x0112] = 6
    file = io.BytesIO()
    colour.convert("RGB").save(file, "JPEG", exif=turned, progressive=True)
    return [*files, file.getvalue()]


def _adapters() -> list[bytes]:
    config = AdapterConfig(
        model="pocket",
        revision="0" * 16,
        classes=["zero", "one"],
        templates=["a photo of a {}."],
        context=Context(dim=3),
        codes=1,
        head="ridge",
    )
    codes = np.ones((1, 3), np.float32)
    bias, unit = np.zeros(2, np.float32), np.eye(2, dtype=np.float32)
    ridge = LinearHead(np.ones((4, 2), np.float32), bias, 1.0, 1.0)
    return [
        Adapter(config, codes, ridge).to_bytes(),
        Adapter(
            config.model_copy(update={"head": "mlp"}),
            codes,
            ResidualMLPHead(unit, bias, unit, bias),
        ).to_bytes(),
        Adapter(config.model_copy(update={"head": "none"}), codes, Unrefined()).to_bytes(),
    ]


def _messages() -> list[bytes]:
    tensors = {"codes": np.ones((2, 3), np.float32), "half": np.zeros((1, 2, 2), np.float16)}
    files = codec.pack_files([b"one", b"", b"three"])
    return [
        codec.encode({}, {}),
        codec.encode({"model": "pocket", "classes": ["cat", "dög"]}, tensors),
        codec.encode({"first_row": 0}, files),
        codec.encode({"n": [1, 2.5, None, True]}, {**tensors, **files}),
    ]


TARGETS = {
    "image": Target(_image, _pictures()),
    "codec": Target(_codec, _messages()),
    "adapter": Target(_adapter, _adapters()),
}


def resident_kib() -> int:
    """Memory of this process now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
