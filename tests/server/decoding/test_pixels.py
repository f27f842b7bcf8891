from __future__ import annotations

import contextlib
import errno
import io
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from craft_server.decoding import pixels as pixels_module
from craft_server.decoding.pixels import ImageError, decode
from craft_server.decoding.process import Bounds
from craft_server.engine.hosted import preprocessing_of
from craft_shared.image_formats import FORMATS
from craft_shared.image_view import View
from hostile_images import EXCESSIVE, SOUND, jpeg_with_scans

MAX_PIXELS = 50_000_000


def decoded(data: bytes, max_pixels: int = MAX_PIXELS) -> torch.Tensor:
    image = decode(data, max_pixels=max_pixels)
    assert image.mode == "RGB"
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=file_format, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds almost nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checked = kind + body
        return struct.pack(">I", len(body)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("file_format", FORMATS)
def test_each_format_is_read(file_format: str) -> None:
    red = Image.new("RGB", (12, 10), (250, 10, 10))
    result = decoded(encoded(red, file_format))
    assert result.shape == (3, 10, 12)
    assert torch.allclose(result.mean((1, 2)), torch.tensor([250.0, 10.0, 10.0]), atol=6)


@pytest.mark.parametrize("data", [b"", b"no picture", b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_bytes_that_are_no_picture(data: bytes) -> None:
    with pytest.raises(ImageError, match="not a picture in a supported format") as error:
        decoded(data)
    assert error.value.remedy


def test_format_outside_the_list_is_refused() -> None:
    with pytest.raises(ImageError, match="supported format"):
        decoded(encoded(Image.new("RGB", (4, 4)), "ICO", sizes=[(4, 4)]))


def test_a_format_that_people_have_is_refused_by_its_name_and_with_the_conversion() -> None:
    heic = struct.pack(">I4s4s", 24, b"ftyp", b"heic") + b"\0" * 100
    with pytest.raises(ImageError, match="it is HEIC; these are read: JPEG, PNG") as error:
        decoded(heic)
    assert "magick photo.heic photo.jpg" in error.value.remedy


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_truncated_picture(picture: Callable[..., bytes], file_format: str) -> None:
    data = picture(1, size=(60, 50), file_format=file_format)
    with pytest.raises(ImageError, match="cut short or damaged"):
        decoded(data[: len(data) * 2 // 3])


def test_pixels_are_counted_before_decoding() -> None:
    with pytest.raises(ImageError, match="it has 400000000 pixels; at most 50000000 are accepted"):
        decoded(png_header(20_000, 20_000))


def test_bound_on_pixels_is_exact(picture: Callable[..., bytes]) -> None:
    data = picture(2, size=(20, 10))
    assert decoded(data, max_pixels=200).shape == (3, 10, 20)
    with pytest.raises(ImageError, match="it has 200 pixels; at most 199 are accepted"):
        decoded(data, max_pixels=199)


def test_sliver_whose_resized_whole_would_be_enormous(picture: Callable[..., bytes]) -> None:
    with pytest.raises(ImageError, match="it is 101 x 1 pixels; a side may be"):
        decoded(picture(3, size=(101, 1)))
    assert decoded(picture(3, size=(1, 100))).shape == (3, 100, 1)


def test_exif_orientation_is_honoured() -> None:
    image = Image.new("RGB", (20, 10), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise shows it upright
    result = decoded(encoded(image, exif=exif))
    assert result.shape == (3, 20, 10)
    assert result[:, :10].min() == 255
    assert result[:, 10:].max() == 0


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 90, (90, 90, 90)),
        ("LA", (90, 255), (90, 90, 90)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("I;16", 0x8000, (128, 128, 128)),
    ],
)
def test_modes_become_rgb(mode: str, colour: object, expected: tuple[int, int, int]) -> None:
    result = decoded(encoded(Image.new(mode, (9, 9), colour)))  # type: ignore[arg-type] # one of Pillow's modes
    assert result.mean((1, 2)).tolist() == list(expected)


def test_palette_with_transparency_becomes_rgb() -> None:
    image = Image.new("RGB", (9, 9), (10, 200, 30)).quantize(4)
    data = encoded(image, transparency=b"\xff\x80")
    assert decoded(data).mean((1, 2)).tolist() == [10, 200, 30]


def test_cmyk_becomes_rgb() -> None:
    image = Image.new("RGB", (16, 16), (200, 40, 90)).convert("CMYK")
    result = decoded(encoded(image, "JPEG", quality=95)).mean((1, 2))
    assert torch.allclose(result, torch.tensor([200.0, 40.0, 90.0]), atol=4)


def test_grey_of_32_bits_spreads_its_own_range() -> None:
    values = np.linspace(-5, 5, 64, dtype=np.float32).reshape(8, 8)
    result = decoded(encoded(Image.fromarray(values), "TIFF"))
    assert (result.min(), result.max()) == (0, 255)


@given(st.binary(max_size=300))
def test_random_bytes_raise_nothing_but_image_error(data: bytes) -> None:
    with pytest.raises(ImageError):
        decoded(data)


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(
    file_format=st.sampled_from(FORMATS),
    damage=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=20),
)
def test_damaged_pictures_raise_nothing_but_image_error(
    file_format: str, damage: list[tuple[int, int]]
) -> None:
    data = bytearray(encoded(Image.new("RGB", (10, 10), (1, 2, 3)), file_format))
    for place, value in damage:
        data[place % len(data)] = value
    with contextlib.suppress(ImageError):
        decoded(bytes(data), max_pixels=10_000)


@pytest.mark.parametrize("failure", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
@pytest.mark.parametrize("step", ["open", "load", "getexif"])
def test_what_the_machine_lacks_is_no_fault_of_the_picture(
    monkeypatch: pytest.MonkeyPatch, picture: Any, failure: Exception, step: str
) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise failure

    owner = {"open": Image, "load": ImageFile.ImageFile, "getexif": Image.Image}[step]
    monkeypatch.setattr(owner, step, fail)
    with pytest.raises(type(failure)):
        decode(picture(), max_pixels=10**6)


@given(
    side=st.sampled_from([8, 15, 32]),
    width=st.sampled_from([15, 32]),
    square=st.booleans(),
    resize_mode=st.sampled_from(["shortest", "longest", "squash"]),
    interpolation=st.sampled_from(["bicubic", "bilinear", "random"]),
    fill=st.integers(0, 255),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    seed=st.integers(0, 99),
)
def test_what_a_model_sees_is_bit_for_bit_open_clips(
    side: int,
    width: int,
    square: bool,
    resize_mode: str,
    interpolation: str,
    fill: int,
    size: tuple[int, int],
    seed: int,
) -> None:
    cfg = {
        "size": side if square else (side, width),
        "resize_mode": resize_mode,
        "interpolation": interpolation,
        "fill_color": fill,
        "mean": (0.48, 0.45, 0.40),
        "std": (0.26, 0.27, 0.28),
    }
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    view, to_tensor = preprocessing_of(cfg)
    try:
        expected = image_transform_v2(PreprocessCfg(**cfg), is_train=False)(image)
    except ValueError:
        # A sliver whose other side would have no pixel at all.
        with pytest.raises(ValueError, match="must be"):
            view.of(image)
        return
    seen = view.of(image)
    assert seen.size == (view.width, view.height)
    assert torch.equal(to_tensor(np.array(seen)), expected)


def test_a_view_goes_to_a_process_and_comes_back() -> None:
    bounds = Bounds(View(24, 32, "longest", bilinear=True, fill=7), 10**6)
    assert Bounds.from_json(bounds.to_json()) == bounds


def test_orientation_that_stands_in_a_text_of_a_png_is_honoured() -> None:
    image = Image.new("RGB", (20, 10))
    xmp = PngImagePlugin.PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>' + " " * 5000, zip=True)
    assert decoded(encoded(image, pnginfo=xmp)).shape == (3, 20, 10)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_honoured_as_pillow_does(file_format: str, orientation: int) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(noise), file_format, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(np.asarray(decode(data, max_pixels=100)), expected)


def test_wide_grey_is_stretched_as_a_whole_though_in_strips(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = np.random.default_rng(3).normal(size=(40, 30)).astype(np.float32) * 1e6
    values[3, 4], values[5, 6] = np.nan, np.inf
    data = encoded(Image.fromarray(values), "TIFF")
    whole = decoded(data)
    monkeypatch.setattr(pixels_module, "_PIXELS_AT_ONCE", 70)
    assert torch.equal(decoded(data), whole)
    finite = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    expected = (finite - finite.min()) * (255.0 / (finite.max() - finite.min()))
    assert np.array_equal(whole[0].numpy(), expected.astype(np.uint8))


# --- what a file asks of its decoder ------------------------------------------------------------


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_image_is_decoded_whatever_lies_beside_its_pixels(name: str) -> None:
    """A PNG with 2 MB of compressed text was called damaged."""
    plain, with_extras = SOUND[name]()
    began = time.process_time()
    assert torch.equal(decoded(with_extras), decoded(plain))
    assert time.process_time() - began < 5


@pytest.mark.parametrize("name", EXCESSIVE)
def test_a_file_that_asks_for_far_more_than_its_pixels_is_refused_at_once(name: str) -> None:
    data = EXCESSIVE[name]()
    began = time.process_time()
    with pytest.raises(ImageError, match="far more than an image needs") as error:
        decoded(data)
    assert error.value.remedy == "Save it again as a plain JPEG."
    assert time.process_time() - began < 0.5


def test_a_jpeg_with_as_many_scans_as_may_be_is_decoded() -> None:
    assert decoded(jpeg_with_scans(80, side=64)).shape == (3, 64, 64)
