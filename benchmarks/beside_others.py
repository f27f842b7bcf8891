"""One image a request: craftbox with metering and an adapter beside LitServe and Infinity.

One server runs after the other, each in a process of its own. LitServe and Infinity live in an
environment of their own (`--others`, a folder made by `python -m venv`, with litserve,
infinity-emb[torch,server,vision], aiohttp and open_clip_torch). They get the same JPEG files,
decode them and run the same architecture, ViT-B-32 with random weights, as documented:
LitServe open_clip's model behind `LitAPI`, batches of eight; Infinity Hugging Face's CLIP of the
same shapes. Both answer with an embedding; craftbox classifies with an adapter of 32 prompts and
102 classes, counts and charges. Requests a second, and the processor time of a server with its
children for a request.

    python benchmarks/beside_others.py --others ../others \\
        --json benchmarks/results/beside_others.json
"""

from __future__ import annotations

import argparse
import base64
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from adapter_serving import Pictures
from image_speed import HERE, cpu_seconds_of, serving
from options import save
from serving import free_port

CALLERS = (1, 8, 32)
SECONDS = 12.0
FILES = 64

LITSERVE = """
import base64, io, sys
import litserve, open_clip, torch
from PIL import Image

class Tower(litserve.LitAPI):
    def setup(self, device):
        torch.manual_seed(0)
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(sys.argv[1])
        self.model.eval()

    def decode_request(self, request):
        image = Image.open(io.BytesIO(base64.b64decode(request["image"]))).convert("RGB")
        return self.preprocess(image)

    def batch(self, inputs):
        return torch.stack(inputs)

    @torch.inference_mode()
    def predict(self, pixels):
        return torch.nn.functional.normalize(self.model.encode_image(pixels), dim=-1)

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return {"embedding": output.tolist()}

if __name__ == "__main__":
    api = Tower(max_batch_size=8, batch_timeout=0.005)
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False)
"""

# A folder of Hugging Face's with the architecture of open_clip's ViT-B-32.
INFINITY_MODEL = """
import gzip, json, sys
from pathlib import Path
import open_clip
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer
from open_clip.tokenizer import bytes_to_unicode

folder = Path(sys.argv[1])
merges = gzip.open(Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz").read()
merges = merges.decode().split("\\n")[1 : 49152 - 256 - 2 + 1]
units = list(bytes_to_unicode().values())
words = units + [u + "</w>" for u in units] + ["".join(m.split()) for m in merges]
words += ["<|startoftext|>", "<|endoftext|>"]
(folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
(folder / "merges.txt").write_text("#version: 0.2\\n" + "\\n".join(merges))
tokenizer = CLIPTokenizer(folder / "vocab.json", folder / "merges.txt")
CLIPModel(CLIPConfig()).save_pretrained(folder)
CLIPProcessor(CLIPImageProcessor(), tokenizer).save_pretrained(folder)
"""

Ask = Callable[[bytes], None]


@contextmanager
def craftbox(model: str, others: Path) -> Iterator[tuple[int, Ask]]:
    """With metering and an adapter."""
    with serving(HERE, model) as server:
        yield (
            server.pid,
            lambda file: discard(server.client.adapter_predict("random", images=[file])),
        )


@contextmanager
def litserve(model: str, others: Path) -> Iterator[tuple[int, Ask]]:
    """Without either."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "program.py"
        program.write_text(LITSERVE)
        with process([others / "bin" / "python", program, model, port]) as pid:
            yield pid, asking(port, "/predict", lambda image: {"image": image})


@contextmanager
def infinity(model: str, others: Path) -> Iterator[tuple[int, Ask]]:
    """Without either; `model` is ViT-B-32's shape."""
    port, bin_folder = free_port(), others / "bin"
    with tempfile.TemporaryDirectory() as folder:
        make = [bin_folder / "python", "-c", INFINITY_MODEL, folder]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        options = ["--model-id", folder, "--served-model-name", "clip", "--device", "cpu"]
        options += ["--engine", "torch", "--host", "127.0.0.1", "--port", str(port)]
        with process([bin_folder / "infinity_emb", "v2", *options]) as pid:
            yield (
                pid,
                asking(
                    port,
                    "/embeddings",
                    lambda image: {
                        "model": "clip",
                        "input": [f"data:image/jpeg;base64,{image}"],
                        "modality": "image",
                    },
                ),
            )


def discard(_: object) -> None:
    """Answers are not looked at."""


@contextmanager
def process(arguments: Sequence[object]) -> Iterator[int]:
    """A server, which must not look for anything on the internet."""
    env = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    }
    server = subprocess.Popen(
        [str(argument) for argument in arguments],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield server.pid
    finally:
        server.terminate()
        server.wait()


def asking(port: int, path: str, body: Callable[[str], dict[str, Any]]) -> Ask:
    """Waits for the first answer; a caller's connections stay open."""
    client = httpx.Client(
        base_url=f"http://127.0.0.1:{port}",
        timeout=120,
        limits=httpx.Limits(max_keepalive_connections=64),
    )

    def ask(file: bytes) -> None:
        image = base64.b64encode(file).decode()
        client.post(path, json=body(image)).raise_for_status()

    first, deadline = Pictures().take(1)[0], time.monotonic() + 240
    while True:
        try:
            ask(first)
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return ask


def measure(pid: int, ask: Ask, callers: int, files: Sequence[bytes]) -> dict[str, Any]:
    """Requests a second and core milliseconds a request."""
    counts = [0] * callers
    cpu, began = cpu_seconds_of(pid), time.perf_counter()
    end = began + SECONDS

    def call(number: int) -> None:
        while time.perf_counter() < end:
            ask(files[(number + counts[number] * callers) % len(files)])
            counts[number] += 1

    threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took, cpu = time.perf_counter() - began, cpu_seconds_of(pid) - cpu
    return {
        "callers": callers,
        "requests_a_second": sum(counts) / took,
        "core_ms": 1000 * cpu / sum(counts),
    }


def main() -> None:
    """Measures the three, one after the other, twice."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--others", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    files, lines = Pictures().take(FILES), []
    print("| server | callers | requests a second | core ms a request |")
    print("|" + "---|" * 4)
    for number in range(arguments.rounds):
        for start in (craftbox, litserve, infinity):
            with start("ViT-B-32", arguments.others) as (pid, ask):
                for file in files[:8]:
                    ask(file)
                for callers in CALLERS:
                    line = measure(pid, ask, callers, files)
                    lines.append({"server": start.__name__, "round": number, **line})
                    print(
                        f"| {start.__name__} | {callers} | {line['requests_a_second']:.1f} "
                        f"| {line['core_ms']:.1f} |",
                        flush=True,
                    )
    save(lines, arguments.json)


if __name__ == "__main__":
    main()
