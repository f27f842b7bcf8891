"""Every architecture of open_clip, with random weights: does it load and answer, exactly, how fast?

Each is hosted in a process of its own, in float32 on one core, smallest first. The same texts and
images go through craftbox and through the model's own `encode_text` and `encode_image`: texts as
open_clip's tokenizer fills them up. What an architecture takes from Hugging Face is replaced by
stand-ins of the same classes and shapes (tools/hub_stand_ins.py). Times are CPU seconds, the least
of the rounds. An architecture that is in the JSON file already is not measured again.

    OMP_NUM_THREADS=1 python benchmarks/architectures.py \\
        --json benchmarks/results/architectures.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import open_clip
import torch

from options import save

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

import hub_stand_ins
from craft_server.engine import Engine, ModelSpec, Prompts
from craft_server.engine.hosted import tokenizer_of
from craft_server.engine.models import load_model
from craft_server.engine.text import TextTower

MOST_BYTES = 20 * 2**30
SPARE_BYTES = 2 * 2**30  # of the machine's memory, beside what a model takes
# Larger models read fewer texts and images, and fewer times.
LARGE = 250_000_000
TEMPLATE = "a photo of a {}."
NAMES = ("cat", "golden retriever", "hot air balloon", "dog", "the dog", "air", "a golden cat", "x")
SECONDS = 900  # that one may take
ERROR, SLOWER = 1e-4, 1.3  # what the issue allows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="architectures; without any, all")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin none after so long")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    if options.json and options.json.exists():
        rows = {row["architecture"]: row for row in json.loads(options.json.read_text())["rows"]}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        huggingface_hub.constants.HF_HUB_CACHE = folder
        huggingface_hub.constants.ENDPOINT = "http://127.0.0.1:9"
        sizes = {
            name: size(name, Path(folder)) for name in options.names or open_clip.list_models()
        }
        for name in sorted(sizes, key=lambda name: sizes[name]["bytes"]):
            if "text_error" in rows.get(name, {}) and name not in options.names:
                continue
            if time.monotonic() - began > 60 * options.minutes:
                rows.setdefault(name, {**sizes[name], "not_run": "no time was left"})
                continue
            rows[name] = {**sizes[name], **measured(name, sizes[name])}
            print(line(rows[name]), flush=True)
            save(report(rows), options.json)
    save(report(rows), options.json)
    print(table(rows))


def report(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    ordered = sorted(rows.values(), key=lambda row: row["bytes"])
    run = [row for row in ordered if "text_error" in row]
    return {
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "template": TEMPLATE,
        "architectures": len(open_clip.list_models()),
        "fit": sum(row["bytes"] <= MOST_BYTES for row in ordered),
        "run": len(run),
        "exact": sum(max(row["text_error"], row["image_error"]) <= ERROR for row in run),
        "text_time_within_bound": sum(row["text_ratio"] <= SLOWER for row in run),
        "largest_text_error": max((row["text_error"] for row in run), default=None),
        "largest_image_error": max((row["image_error"] for row in run), default=None),
        "largest_text_ratio": max((row["text_ratio"] for row in run), default=None),
        "rows": ordered,
    }


def size(name: str, cache: Path) -> dict[str, Any]:
    """Parameters of an architecture, and bytes of what is made of it; writes its stand-ins."""
    config = open_clip.get_model_config(name)
    text = config["text_cfg"]
    stand_ins = []
    if repository := text.get("hf_tokenizer_name"):
        hub_stand_ins.tokenizer(cache, repository)
        stand_ins.append(f"tokenizer {repository}")
    whole = 0
    if repository := text.get("hf_model_name"):
        hub_stand_ins.tower(cache, repository)
        stand_ins.append(f"text tower {repository}")
        files = str(hub_stand_ins.repository(cache, repository))
        text |= {"hf_model_name": files, "hf_model_pretrained": False}
        with torch.device("meta"):  # open_clip makes the decoder too, and drops it
            tower = open_clip.hf_model.AutoModel.from_config(
                open_clip.hf_model.AutoConfig.from_pretrained(files)
            )
            whole = count(tower) - count(getattr(tower, "encoder", tower))
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    custom = config.pop("custom_text", False) or "hf_model_name" in text
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    with torch.device("meta"):
        parameters = count((kind if custom else open_clip.CLIP)(**config))
    return {
        "architecture": name,
        "parameters": parameters,
        "bytes": 4 * parameters,
        "bytes_to_load": 4 * (parameters + whole),
        "stand_ins": stand_ins,
    }


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def measured(name: str, of: dict[str, Any]) -> dict[str, Any]:
    if of["bytes"] > MOST_BYTES:
        return {"not_run": "it takes more than 20 GiB"}
    needed = 1.15 * of["bytes_to_load"] + SPARE_BYTES
    if available() < needed:
        return {
            "not_run": f"it needs {needed / 2**30:.0f} GiB, and {available() / 2**30:.0f} were free"
        }
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=answer, args=(name, of["parameters"] > LARGE, there))
    process.start()
    there.close()
    try:
        if not here.poll(SECONDS):
            return {"failed": f"no answer after {SECONDS} s"}
        found: dict[str, Any] = here.recv()
        return found
    except EOFError:
        return {"failed": "the process died"}
    finally:
        process.kill()
        process.join()


def answer(name: str, large: bool, to: Connection) -> None:
    try:
        to.send(measure(name, large))
    except BaseException as error:
        traceback.print_exc()
        to.send({"failed": f"{type(error).__name__}: {error}".partition("\n")[0]})


def measure(name: str, large: bool) -> dict[str, Any]:
    """Whether it answers, and how exactly and fast beside the model's own code."""
    began = time.process_time()
    engine = Engine.load(ModelSpec(name, device="cpu", precision="float32"))
    loaded = time.process_time() - began
    module: Any = load_model(ModelSpec(name, device="cpu")).module
    names = NAMES[: 4 if large else len(NAMES)]
    rounds = 2 if large else 3
    prompts = Prompts((TEMPLATE,), None, np.zeros((0, 0), np.float32))
    tokenize = tokenizer_of(name)
    with asyncio.Runner() as runner, torch.inference_mode():
        problems = runner.run(engine.check_prompts(prompts, names))
        if problems:
            raise ValueError(problems)
        # Another tenant each time, of whom nothing is remembered.
        tenants = iter(map(str, range(100)))
        text, text_seconds = least(
            rounds,
            lambda: runner.run(engine.encode_prompts(prompts, names, tenant=next(tenants)))[0],
        )
        own_text, own_text_seconds = least(
            rounds,
            lambda: unit(
                module.encode_text(tokenize([TEMPLATE.replace("{}", one) for one in names]))
            ),
        )
        generator = torch.Generator().manual_seed(1)
        pixels = torch.randn(
            1 if large else 2, 3, engine.image_size, engine.image_size, generator=generator
        )
        rounds = 1 if large else 2
        image, image_seconds = least(rounds, lambda: runner.run(engine.encode_images(list(pixels))))
        own_image, own_image_seconds = least(rounds, lambda: unit(module.encode_image(pixels)))
        scores = runner.run(engine.score(image, text[None]))
    if not np.allclose(np.exp(scores).sum(-1), 1, atol=1e-4):
        raise ValueError("its probabilities do not add up to 1")
    tower = engine._tower
    kind = "causal" if isinstance(tower, TextTower) else "padded"
    return {
        "text_tower": "masked" if getattr(tower, "sees_no_padding", False) else kind,
        "texts": len(names),
        "images": len(pixels),
        "load_s": round(loaded, 1),
        "text_error": relative_error(text, own_text),
        "image_error": relative_error(image, own_image),
        "text_s": round(text_seconds, 4),
        "own_text_s": round(own_text_seconds, 4),
        "text_ratio": round(text_seconds / own_text_seconds, 3),
        "image_s": round(image_seconds, 4),
        "own_image_s": round(own_image_seconds, 4),
        "image_ratio": round(image_seconds / own_image_seconds, 3),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def least(rounds: int, work: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and the CPU seconds of the fastest time."""
    took = []
    for _ in range(rounds):
        began = time.process_time()
        found = work()
        took.append(time.process_time() - began)
    return found, min(took)


def unit(features: torch.Tensor) -> np.ndarray:
    normalised: np.ndarray = torch.nn.functional.normalize(features.float(), dim=-1).numpy()
    return normalised


def relative_error(value: np.ndarray, expected: np.ndarray) -> float:
    error = float(np.linalg.norm(value - expected) / np.linalg.norm(expected))
    return float(f"{error:.2g}")


def available() -> int:
    """Bytes of memory that are free."""
    (found,) = (
        row.split()[1]
        for row in Path("/proc/meminfo").read_text().splitlines()
        if row.startswith("MemAvailable:")
    )
    return 1024 * int(found)


HEAD = (
    "| architecture | million parameters | text tower | text error | texts: s, own s, ratio "
    "| image error | images: s, own s, ratio |\n|---|---|---|---|---|---|---|"
)


def table(rows: dict[str, dict[str, Any]]) -> str:
    ordered = sorted(rows.values(), key=lambda row: row["bytes"])
    return "\n".join([HEAD, *(line(row) for row in ordered)])


def line(row: dict[str, Any]) -> str:
    first = f"| {row['architecture']} | {row['parameters'] / 1e6:.0f} |"
    if "text_error" not in row:
        return f"{first} {row.get('failed') or row.get('not_run')} | | | | |"
    return (
        f"{first} {row['text_tower']} | {row['text_error']:.1e} "
        f"| {row['text_s']:.2f}, {row['own_text_s']:.2f}, {row['text_ratio']:.2f} "
        f"| {row['image_error']:.1e} "
        f"| {row['image_s']:.2f}, {row['own_image_s']:.2f}, {row['image_ratio']:.2f} |"
    )


if __name__ == "__main__":
    main()
