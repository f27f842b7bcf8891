from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from craft_client.api import Client
from craft_client.exceptions import DataError
from craft_client.pictures import file, files, pixels
from craft_shared.image_view import View
from craft_shared.wire import PredictionRequest

from .wire_server import WireServer

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def read(encoded: bytes) -> NDArray[Any]:
    return np.asarray(Image.open(io.BytesIO(encoded)))


def png(pixels: NDArray[Any] = PIXELS) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [bytes, bytearray, memoryview])
def test_an_encoded_file_travels_byte_for_byte(form: type) -> None:
    assert file(form(b"\xff\xd8 a JPEG")) == b"\xff\xd8 a JPEG"


@pytest.mark.parametrize(
    ("mode", "edges"),
    [("shortest", (128, 128)), ("squash", (0, 255)), ("longest", (7, 7))],
)
def test_pixels_are_those_that_the_model_sees(mode: Any, edges: tuple[int, int]) -> None:
    """Of a wide image from black to white: cropped, whole, or whole between bars."""
    wide = np.repeat(np.repeat([[0, 128, 128, 255]], 16, 1), 16, 0).astype(np.uint8)
    seen = pixels(png(wide), View(16, 16, mode, fill=7))
    assert seen.shape == (16, 16, 3)
    corners = (int(seen[0, 0, 0]), int(seen[-1, -1, 0]))
    assert np.abs(np.subtract(corners, edges)).max() <= 12
    same = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    np.testing.assert_array_equal(pixels(png(same), View(16, 16, mode)), same)


@pytest.mark.parametrize("form", [str, Path])
def test_a_path_is_read(form: type, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a JPEG")
    assert file(form(tmp_path / "a.jpg")) == b"a JPEG"


def test_a_row_of_a_data_set_gives_its_bytes_or_what_its_path_names(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"from the path")
    path = str(tmp_path / "a.png")
    assert file({"bytes": b"from the row", "path": path}) == b"from the row"
    assert file({"bytes": None, "path": path}) == b"from the path"
    with pytest.raises(DataError, match=r"images\[1\]: is a dict with neither"):
        list(files([{"bytes": b"x"}, {"label": 3}]))


# --- PIL images -----------------------------------------------------------------------------------


def test_a_pil_image_keeps_its_pixels() -> None:
    np.testing.assert_array_equal(read(file(Image.fromarray(PIXELS))), PIXELS)
    deep = np.arange(35, dtype=np.uint16).reshape(5, 7) * 1000
    np.testing.assert_array_equal(read(file(Image.fromarray(deep))), deep)


def test_a_pil_image_is_turned_upright_as_a_file_would_be() -> None:
    image = Image.fromarray(PIXELS)
    image.getexif()[0x0112] = 6  # taken with the camera on its side
    np.testing.assert_array_equal(read(file(image)), np.rot90(PIXELS, -1))


def test_other_colour_spaces_become_rgb_and_grey_without_white_is_refused() -> None:
    grey_blue = Image.new("CMYK", (4, 4), (255, 0, 0, 0))
    assert read(file(grey_blue)).shape == (4, 4, 3)
    with pytest.raises(DataError, match="mode 'F', whose white is not known"):
        file(Image.new("F", (4, 4)))


# --- arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_arrays_have_their_channels_last(channels: int | None) -> None:
    shape = (5, 7) if channels is None else (5, 7, channels)
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(read(file(pixels)), pixels[..., 0] if channels == 1 else pixels)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_go_from_0_to_1_and_are_rounded(dtype: str) -> None:
    scaled = (PIXELS / 255).astype(dtype)
    np.testing.assert_array_equal(read(file(scaled)), PIXELS)
    assert read(file(np.full((2, 2), 0.502, dtype))).max() == 128


def test_truth_values_are_black_and_white() -> None:
    assert read(file(np.array([[True, False]]))).tolist() == [[255, 0]]


def test_views_in_any_order_of_memory_are_read_as_they_look() -> None:
    np.testing.assert_array_equal(read(file(PIXELS[::-1, ::2])), PIXELS[::-1, ::2])


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.zeros((3, 5, 7), np.uint8), r"shape \[3, 5, 7\].*channels come last"),
        (np.zeros((5, 7, 2), np.uint8), r"shape \[5, 7, 2\]"),
        (np.zeros((0, 7), np.uint8), r"shape \[0, 7\]"),
        (np.zeros((2, 5, 7, 3), np.uint8), r"shape \[2, 5, 7, 3\]"),
        (np.zeros((5, 7), np.int64), "type int64.*uint8 from 0 to 255"),
        (np.zeros((5, 7), np.uint16), "type uint16"),
        (np.full((5, 7), -0.1), "from -0.1 to -0.1.*normalisation"),
        (np.full((5, 7), 255.0), "from 255 to 255.*divide by 255"),
        (np.full((5, 7), np.nan), "from nan to nan"),
        (np.array([["a"]]), "type <U1"),
    ],
)
def test_arrays_that_would_have_to_be_guessed_are_refused(pixels: Any, words: str) -> None:
    with pytest.raises(DataError, match=rf"image: .*{words}"):
        file(pixels)


def test_an_object_that_is_no_picture_is_named() -> None:
    with pytest.raises(DataError, match=r"images\[1\]: is a int"):
        list(files([b"file", 7]))


# --- many -----------------------------------------------------------------------------------------


def test_an_array_of_pictures_is_many_pictures() -> None:
    assert list(files(np.stack([PIXELS, PIXELS]))) == [png(), png()]
    assert len(list(files(np.zeros((6, 5, 7), np.uint8)))) == 6


@pytest.mark.parametrize(
    "one", ["a.png", b"file", Path("a.png"), {"bytes": b""}, PIXELS, PIXELS[:, :, 0]], ids=repr
)
def test_one_picture_is_not_taken_for_many(one: Any) -> None:
    with pytest.raises(DataError, match="one picture"):
        files(one)


def test_pictures_are_read_one_at_a_time() -> None:
    def endless() -> Any:
        while True:
            yield PIXELS

    assert next(files(endless())) == png()


# --- torch ----------------------------------------------------------------------------------------


def test_tensors_have_their_channels_first() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(PIXELS).permute(2, 0, 1)
    for same in (tensor, (tensor / 255).requires_grad_(), (tensor / 255).double()):
        np.testing.assert_array_equal(read(file(same)), PIXELS)
    assert read(file((tensor / 255).bfloat16())).shape == PIXELS.shape
    assert list(files(torch.stack([tensor, tensor]))) == [png(), png()]
    np.testing.assert_array_equal(read(file(tensor[0])), PIXELS[..., 0])
    with pytest.raises(DataError, match=r"tensor of shape \[5, 7, 3\].*channels come first"):
        file(tensor.permute(1, 2, 0))
    with pytest.raises(DataError, match="as one picture has"):
        files(tensor)
    with pytest.raises(DataError, match="normalisation"):
        file(tensor / 255 - 0.5)


def test_torch_is_not_imported_for_what_is_no_tensor() -> None:
    code = (
        "import sys, numpy as np; from craft_client.pictures import file; "
        "file(np.zeros((2, 2), np.uint8)); assert not {'torch', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- Hugging Face datasets ------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["decoded", "encoded", "numpy", "torch"])
def test_an_image_column_gives_its_pixels_in_every_format(form: str) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict(
        {"image": [Image.fromarray(PIXELS), Image.fromarray(PIXELS[::-1])]},
        features=datasets.Features({"image": datasets.Image()}),
    )
    if form == "encoded":
        data = data.cast_column("image", datasets.Image(decode=False))
    elif form != "decoded":
        data = data.with_format(form)
    for pictures in (data["image"], [row["image"] for row in data]):
        first, second = files(pictures)
        np.testing.assert_array_equal(read(first), PIXELS)
        np.testing.assert_array_equal(read(second), PIXELS[::-1])


# --- over the client ------------------------------------------------------------------------------


def test_a_client_takes_pictures_in_every_form(connected: WireServer, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    forms = [PIXELS, path, {"bytes": None, "path": str(path)}, Image.fromarray(PIXELS), png()]
    request = PredictionRequest(model="fake", classes=["a", "b"], templates=["{}"])
    with Client() as client:
        image_set = client.upload_images(client.create_image_set("fake"), forms)
        assert len(set(connected.image_sets[image_set.id])) == 1
        scores = client.predict(request, images=forms).log_probs[0]
    np.testing.assert_array_equal(scores, np.broadcast_to(scores[0], scores.shape))


def test_a_picture_that_cannot_be_used_is_told_before_it_is_paid(connected: WireServer) -> None:
    request = PredictionRequest(model="fake", classes=["a", "b"], templates=["{}"])
    with Client() as client, pytest.raises(DataError, match=r"images\[1\]"):
        client.predict(request, images=[PIXELS, PIXELS.astype(int)])
    assert connected.calls == []
