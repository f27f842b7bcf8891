from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
import torch
from torch import Tensor

from craft_server.engine import Engine, ModelSpec, precision, towers, vision
from craft_server.engine.hosted import tokenizer_of
from craft_server.engine.models import LoadedModel, ModelLoadError, load_model
from craft_server.engine.precision import Reference, dtypes_to_try, probe_images
from craft_server.engine.tokens import Tokenizer
from craft_server.engine.towers import Towers
from craft_server.engine.vision import BATCH, CompiledVision, EagerVision, converted_graph
from e2e.programs import run

CPU = torch.device("cpu")


@pytest.fixture
def model(tiny_engine: Engine) -> LoadedModel:
    return load_model(ModelSpec(tiny_engine.name, device="cpu"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "craftbox"


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets the processor have these units and no others, and be faster in half precision or not."""

    def have(*names: str, faster: bool = True) -> None:
        for module in (precision, vision):
            monkeypatch.setattr(module, "cpu_units", lambda: frozenset(names))
        monkeypatch.setattr(precision, "multiplies_faster", lambda dtype: faster)

    return have


def towers_of(model: LoadedModel, asked: Any, cores: int) -> Towers:
    tokenizer = Tokenizer(tokenizer_of(model.name), model.context_length)
    return towers.towers_of(model, asked, cores, tokenizer)


def images(count: int) -> Tensor:
    each = [torch.Generator().manual_seed(i) for i in range(count)]
    return torch.stack([torch.randn(3, 32, 32, generator=generator) for generator in each])


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


# --- which precision ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("has", "order"),
    [
        ((), ["float32"]),
        (("avx512_bf16",), ["bfloat16", "float32"]),
        (("amx_bf16", "avx512_fp16"), ["bfloat16", "float16", "float32"]),
        (("amx_bf16", "avx512_fp16", "amx_fp16"), ["float16", "bfloat16", "float32"]),
    ],
)
def test_half_precision_is_tried_where_the_processor_has_units_for_it(
    units: Callable[..., None], has: tuple[str, ...], order: list[str]
) -> None:
    units(*has)
    assert [str(dtype) for dtype in dtypes_to_try("auto", CPU)] == [f"torch.{one}" for one in order]
    assert dtypes_to_try("bfloat16", CPU) == [torch.bfloat16]


def test_units_that_are_no_faster_are_left_alone(units: Callable[..., None]) -> None:
    units("avx512_bf16", "avx512_fp16", faster=False)
    for asked in ("auto", "fastest"):
        assert dtypes_to_try(asked, CPU) == [torch.float32]


def test_a_product_that_takes_as_long_is_not_called_faster() -> None:
    assert not precision.multiplies_faster(torch.float32)
    # Half as many of them fit a register, on every processor.
    assert not precision.multiplies_faster(torch.float64)


def reference(scale: float = 20.0) -> Reference:
    x, t = np.random.default_rng(1).standard_normal((2, 8, 64)).astype(np.float32)
    unit = [torch.from_numpy(a / np.linalg.norm(a, axis=1, keepdims=True)) for a in (x, t)]
    return Reference(unit[0], unit[1], scale)


@pytest.mark.parametrize(("noise", "agrees"), [(0.0, True), (1e-4, True), (0.01, False)])
def test_log_probabilities_decide(noise: float, agrees: bool) -> None:
    expected = reference()
    change = noise * torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    assert expected.agrees(images=expected.images + change) is agrees
    assert expected.agrees(texts=expected.texts + change) is agrees


def test_one_wrong_image_among_many_is_seen() -> None:
    expected = reference()
    found = expected.images.clone()
    found[3] += 0.02 * torch.randn(64, generator=torch.Generator().manual_seed(1))
    mean = 8 * 0.01  # of which one image in eight stays below the bound of the mean
    assert not expected.agrees(images=found, most=mean / 8)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_never_agree(value: float) -> None:
    expected = reference()
    found = expected.images.clone()
    found[0, 0] = value
    assert not expected.agrees(images=found)


@pytest.mark.parametrize("asked", ["auto", "fastest"])
def test_half_precision_that_is_too_far_off_is_refused_and_said(
    model: LoadedModel,
    cache: Path,
    units: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    asked: Any,
) -> None:
    units("avx512_bf16")
    monkeypatch.setattr(
        Reference.agrees, "__kwdefaults__", {"images": None, "texts": None, "most": 0.0}
    )
    with structlog.testing.capture_logs() as lines:
        found = towers_of(model, asked, cores=1)
    events = [(line["event"].partition(":")[0], line["of"], line["precision"]) for line in lines]
    chosen = "float32" if asked == "auto" else "bfloat16"
    assert ("precision chosen", "images", chosen) in events
    assert ("precision chosen", "texts", chosen) in events
    assert (("precision refused", "images", "bfloat16") in events) is (asked == "auto")
    assert found.texts._tower.transformer.resblocks[0].attn.in_proj_weight.dtype == getattr(
        torch, chosen
    )  # type: ignore[union-attr] # it is causal


def test_half_precision_adds_up_and_normalises_in_single(
    model: LoadedModel, cache: Path, units: Callable[..., None]
) -> None:
    units("avx512_bf16")
    texts = towers_of(model, "bfloat16", cores=1).texts
    assert texts.embed(torch.tensor([1])).dtype == torch.float32
    assert texts._tower.ln_final.weight.dtype == torch.float32  # type: ignore[union-attr] # it is causal


@pytest.mark.parametrize("asked", ["auto", "bfloat16"])
def test_processor_that_does_not_compute_in_half_precision(
    model: LoadedModel,
    cache: Path,
    units: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
) -> None:
    class Refusing(CompiledVision):
        def in_precision(self, dtype: torch.dtype) -> Any:
            if dtype != torch.float32:
                raise RuntimeError("no primitive")
            return self

    units("avx512_bf16")
    monkeypatch.setattr(towers, "CompiledVision", Refusing)
    if asked == "auto":
        assert isinstance(towers_of(model, asked, cores=1).vision, Refusing)
    else:
        with pytest.raises(ModelLoadError, match="cannot compute images in bfloat16"):
            towers_of(model, asked, cores=1)


# --- compiled -------------------------------------------------------------------------------------


def test_compiled_features_are_pytorchs(model: LoadedModel, cache: Path) -> None:
    some = images(5)
    expected = EagerVision(model).encode(some)
    compiled = towers_of(model, "float32", cores=2).vision
    assert isinstance(compiled, CompiledVision)
    assert distance(compiled.encode(some), expected) < 1e-6


def test_compiled_features_depend_on_the_image_alone(model: LoadedModel, cache: Path) -> None:
    some = images(9)
    tower = towers_of(model, "float32", cores=2).vision
    together = tower.encode(some)
    assert all(
        np.array_equal(tower.encode(one[None])[0], row)
        for one, row in zip(some, together, strict=True)
    )


def test_images_are_read_in_batches_where_arithmetic_is_cheap_without_a_change_of_any_bit(
    model: LoadedModel, tmp_path: Path, units: Callable[..., None]
) -> None:
    graph = converted_graph(model, tmp_path)
    units("avx512_bf16")
    alone = CompiledVision(graph, 1, torch.bfloat16)
    units("amx_bf16")
    batched = CompiledVision(graph, 1, torch.bfloat16)
    assert not alone.merges
    assert batched.merges
    assert batched.images_per_task == BATCH
    some = images(BATCH + 3)
    assert np.array_equal(batched.encode(some), alone.encode(some))


def test_batches_that_change_a_bit_are_not_used(
    model: LoadedModel, tmp_path: Path, units: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, run = converted_graph(model, tmp_path), vision._Compiled.__call__

    def off_in_batches(self: Any, pixels: np.ndarray) -> np.ndarray:
        return run(self, pixels) + (1e-7 if len(pixels) > 1 else 0.0)

    monkeypatch.setattr(vision._Compiled, "__call__", off_in_batches)
    units("amx_bf16")
    assert not CompiledVision(graph, 1, torch.bfloat16).merges


def test_compiled_tower_is_kept_for_the_next_start(
    model: LoadedModel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = towers_of(model, "float32", cores=1).vision.encode(images(1))
    (folder,) = cache.iterdir()
    assert model.revision in folder.name
    assert folder.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(towers, "converted_graph", None)  # whoever calls it fails
    again = load_model(ModelSpec(model.name, device="cpu"))
    assert np.array_equal(towers_of(again, "float32", cores=1).vision.encode(images(1)), first)


@pytest.mark.parametrize("which", [".", ".."])
def test_what_others_can_write_is_not_read(
    model: LoadedModel, cache: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    towers_of(model, "float32", cores=1)
    (folder,) = cache.iterdir()
    (folder / which).chmod(0o777)
    assert vision.kept_graph(model) is None


def test_damaged_file_is_made_anew(model: LoadedModel, cache: Path) -> None:
    towers_of(model, "float32", cores=1)
    (folder,) = cache.iterdir()
    (folder / "tower.xml").write_text("<net")
    again = load_model(ModelSpec(model.name, device="cpu"))
    assert isinstance(towers_of(again, "float32", cores=1).vision, CompiledVision)
    assert vision.kept_graph(again) is not None


def test_tower_that_cannot_be_kept_serves(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert isinstance(towers_of(model, "float32", cores=1).vision, CompiledVision)


@pytest.mark.parametrize("fault", ["raises", "differs"])
def test_tower_that_does_not_compile_runs_in_pytorch_and_it_is_said(
    model: LoadedModel, cache: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def convert(of: LoadedModel, folder: Path) -> Any:
        if fault == "raises":
            raise RuntimeError("no such layer\nand more")
        other = load_model(ModelSpec(of.name, device="cpu"))
        for weights in other.module.visual.parameters():
            weights.data *= 1.1
        return converted_graph(other, folder)

    monkeypatch.setattr(towers, "converted_graph", convert)
    with structlog.testing.capture_logs() as lines:
        assert isinstance(towers_of(model, "float32", cores=1).vision, EagerVision)
    (line,) = [line for line in lines if "SLOW IMAGES" in line["event"]]
    assert line["reason"] == (
        "no such layer" if fault == "raises" else "its features differ from PyTorch's"
    )
    assert not cache.exists()


def test_without_openvino_pytorch_serves(
    model: LoadedModel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert isinstance(towers_of(model, "float32", cores=1).vision, EagerVision)


def convert_pocket() -> None:
    """What a server does where no compiled tower is kept."""
    towers_of(load_model(ModelSpec("pocket", device="cpu")), "float32", cores=1)


def test_nothing_is_reported_to_openvinos_makers(tmp_path: Path) -> None:
    """By default a process's first import of OpenVINO is, under a number kept in ~/intel."""
    env = {name: value for name, value in os.environ.items() if name != "CI"}
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = run("server.engine.test_towers:convert_pocket", [], env | home)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "cache/craftbox").iterdir()), "OpenVINO was not used"
    assert [file.name for file in tmp_path.iterdir()] == ["cache"]


def test_probe_images_look_like_images() -> None:
    found = probe_images(224, 224)
    assert found.shape == (8, 3, 224, 224)
    assert 0.3 < float(found.std()) < 1.5
