"""The vision tower: decoded images in, unit features out.

On a CPU it is compiled by OpenVINO, where that is installed and agrees with PyTorch. The compiled
tower reads each image by itself, which takes no longer than several together, so that features
depend on the image alone. Only processors with AMX gain by eight together; there they are read so
if every bit stays the same.

Shapes: N images, H x W pixels.
"""

from __future__ import annotations

import copy
import importlib.metadata
import os
import queue
import shutil
import stat
import sys
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from open_clip.transform import PreprocessCfg
from open_clip.utils import to_2tuple
from torch import Tensor, nn
from torch.nn import functional

from craft_server.engine.models import LoadedModel
from craft_server.engine.precision import cpu_units, probe_images, with_modules
from craft_server.engine.prompts import Array

# A task's images: on a CPU few, so that what they become stays in its caches.
EAGER_IMAGES = {"cpu": 8, "cuda": 128}
COMPILED_IMAGES = 4
BATCH = 8

_GRAPH = "tower.xml"
_HINTS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}

log = structlog.get_logger(__name__)


class Normalisation:
    """Makes of decoded images what a model sees, on its device.

    Args:
        preprocess_cfg: open_clip's description of how images are preprocessed.
        device: where the model is.
    """

    def __init__(self, preprocess_cfg: dict[str, Any], device: torch.device) -> None:
        described = PreprocessCfg(**preprocess_cfg)
        self._mean, self._std = (
            torch.tensor(values, device=device).view(3, 1, 1)
            for values in (described.mean, described.std)
        )

    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        """Float32 [N, 3, H, W] of images uint8 [H, W, 3] on the CPU; N > 0.

        Those that are float32 [3, H, W] are normalised already.
        """
        device = self._mean.device
        # From memory that stays where it is the device fetches by itself; bytes, not floats.
        pinned = device.type == "cuda"
        shape = (len(images), *images[0].shape)
        pixels = torch.empty(shape, dtype=images[0].dtype, pin_memory=pinned)
        pixels = torch.stack(list(images), out=pixels).to(device, non_blocking=pinned)
        if pixels.dtype != torch.uint8:
            return pixels
        # As torchvision does it, bit for bit.
        planes = pixels.permute(0, 3, 1, 2).contiguous().float()
        return planes.div_(255).sub_(self._mean).div_(self._std)


class VisionTower(ABC):
    """One vision tower; thread-safe."""

    images_per_task: int  # as many at most are to be read at a time
    merges = False  # whether images of several callers are read together, which changes no bit

    @abstractmethod
    def encode(self, images: Tensor) -> Array:
        """Unit features, float32 [N, width], of normalised images float32 [N, 3, H, W]; N > 0."""

    @abstractmethod
    def in_precision(self, dtype: torch.dtype) -> VisionTower:
        """The same tower with arithmetic in `dtype`; itself for float32."""


class EagerVision(VisionTower):
    """In PyTorch, as the model's own code does it."""

    def __init__(self, model: LoadedModel, dtype: torch.dtype = torch.float32) -> None:
        self._model, self._dtype = model, dtype
        # Attributes of modules that share no type.
        module: Any = model.module
        if dtype != torch.float32:
            module = with_modules(module, visual=copy.deepcopy(module.visual).to(dtype))
        self._module = module
        self.images_per_task = EAGER_IMAGES[model.device.type]

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Array:
        """See `VisionTower`."""
        torch.set_num_threads(1)
        # Convolutions are faster with a pixel's channels side by side.
        pixels = images.to(self._model.device, self._dtype, memory_format=torch.channels_last)
        features = functional.normalize(self._module.encode_image(pixels).float(), dim=-1)
        return features.cpu().numpy()

    def in_precision(self, dtype: torch.dtype) -> VisionTower:
        """See `VisionTower`."""
        return self if dtype == torch.float32 else EagerVision(self._model, dtype)


class CompiledVision(VisionTower):
    """Compiled by OpenVINO for one image, and for eight if that leaves every bit as it is.

    `cores` threads may use it at a time.
    """

    def __init__(self, graph: Any, cores: int, dtype: torch.dtype = torch.float32) -> None:
        self._graph, self._cores = graph, cores
        self._run = _Compiled(graph, 1, dtype, cores)
        self.images_per_task = COMPILED_IMAGES
        self._run_batch: _Compiled | None = None
        # Where arithmetic is so fast, reading all weights for each image anew takes longer.
        if cpu_units() & {"amx_bf16", "amx_fp16"} and dtype != torch.float32:
            batch = _Compiled(graph, BATCH, dtype, cores)
            images = probe_images(*self._run.size)
            if np.array_equal(batch(images.numpy()), self.encode(images)):
                self._run_batch, self.images_per_task, self.merges = batch, BATCH, True

    def in_precision(self, dtype: torch.dtype) -> VisionTower:
        """See `VisionTower`."""
        return self if dtype == torch.float32 else CompiledVision(self._graph, self._cores, dtype)

    def encode(self, images: Tensor) -> Array:
        """See `VisionTower`."""
        pixels = images.contiguous().numpy()
        features, rest = [], 0
        if self._run_batch is not None:
            rest = len(pixels) - len(pixels) % BATCH
            features += [self._run_batch(pixels[i : i + BATCH]) for i in range(0, rest, BATCH)]
        features += [self._run(pixels[i : i + 1]) for i in range(rest, len(pixels))]
        return np.concatenate(features)


class _Compiled:
    """A graph compiled for one shape; as many threads as there are cores may run it at a time."""

    def __init__(self, graph: Any, images: int, dtype: torch.dtype, cores: int) -> None:
        shape = graph.input(0).get_partial_shape()
        self.size: tuple[int, int] = (shape[2].get_length(), shape[3].get_length())
        graph = graph.clone()
        graph.reshape([images, 3, *self.size])
        options = {
            "INFERENCE_PRECISION_HINT": _HINTS[dtype],
            # A run takes one core, as all tasks do; the threads of other libraries share the cores.
            "NUM_STREAMS": cores,
            "INFERENCE_NUM_THREADS": cores,
            "ENABLE_CPU_PINNING": False,
        }
        compiled = _openvino().Core().compile_model(graph, "CPU", options)
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(cores):
            self._idle.put(compiled.create_infer_request())

    def __call__(self, pixels: Array) -> Array:
        request = self._idle.get()
        try:
            (features,) = request.infer([pixels], share_inputs=True).values()
            return np.array(features, np.float32)
        finally:
            self._idle.put(request)


def kept_graph(model: LoadedModel) -> Any | None:
    """What `keep_graph` has kept of these weights, with these versions of the libraries."""
    folder = _folder(model)
    if folder is None or not _is_ours(folder):
        return None
    try:
        return _read(folder)
    except RuntimeError:  # it is damaged
        return None


def converted_graph(model: LoadedModel, folder: Path) -> Any:
    """The model's vision tower as an OpenVINO graph, read from a folder that it was written to.

    A graph that was not read rounds in another order, and every start has to give the same bits.

    Raises:
        Exception: whatever the converter raises on a layer that it does not know.
    """
    openvino = _openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    module: Any = model.module
    shape = [1, 3, *to_2tuple(module.visual.image_size)]
    frontend = FrontEndManager().load_by_framework("pytorch")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what tracing fixes: shapes, which are fixed here
        decoder = TorchScriptPythonDecoder(_ImageTower(module), example_input=torch.zeros(shape))
        graph = frontend.convert(frontend.load(decoder))
    graph.reshape(shape)
    openvino.save_model(graph, folder / _GRAPH, compress_to_fp16=False)
    return _read(folder)


def keep_graph(model: LoadedModel, written: Path) -> None:
    """Keeps a folder that a graph was written to for the next start, if the user has a home."""
    folder = _folder(model)
    if folder is None:
        return
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
            whole = shutil.copytree(written, Path(unfinished) / folder.name)
            whole.chmod(0o700)
            shutil.rmtree(folder, ignore_errors=True)
            whole.rename(folder)
    except OSError as error:
        log.info("the compiled vision tower is not kept", reason=str(error))


def _openvino() -> Any:
    """The library; nothing is reported to its makers, which by default its import is."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment] # is as not installed
    import openvino

    return openvino


def _read(folder: Path) -> Any:
    return _openvino().Core().read_model(folder / _GRAPH)


class _ImageTower(nn.Module):
    """Unit features of images."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return functional.normalize(self.model.encode_image(pixels), dim=-1)


def _folder(model: LoadedModel) -> Path | None:
    """Where this tower is kept; None where the user has no home."""
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    versions = [importlib.metadata.version(name) for name in ("openvino", "torch", "timm")]
    return caches / "craftbox" / "-".join(["vision", model.revision, *versions])


def _is_ours(folder: Path) -> bool:
    """Whether it is there and nobody else can write in it."""
    try:
        of = [folder.parent.lstat(), folder.lstat()]
    except OSError:
        return False
    return all(
        one.st_uid == os.geteuid() and not one.st_mode & (stat.S_IWGRP | stat.S_IWOTH) for one in of
    )
