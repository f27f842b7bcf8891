"""Images through a server of this commit beside one of another, by turns.

Two craft-server processes from two checkouts, whose clients' images no server has seen: added to an
image set, or classified with an adapter of 32 prompts and 102 classes. What is compared is the
processor time of a server and its decoders for an image, since the machine may have other work; the
ratio is the median of the pairs' ratios. With `--data`, also whole default runs of pocket, from the
upload to the adapter.

    git worktree add ../before COMMIT
    python benchmarks/image_speed.py --against ../before --json benchmarks/results/image_speed.json
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter_serving import Pictures, adapter_of
from craft_client.api import Client
from options import save
from serving import BIN, command, free_port, wait_until_ready

HERE = Path(__file__).parent.parent
ROUNDS, WARM_UP = 3, 1
IMAGES = 32
PROMPTS, CLASSES = 32, 102


@dataclass
class Server:
    """A running server and a client of it."""

    pid: int
    client: Client
    url: str
    key: str

    def cpu_seconds(self) -> float:
        """Of it and its decoders, which end with it."""
        return cpu_seconds_of(self.pid)


def cpu_seconds_of(pid: int) -> float:
    """Of a process and those that it has started, while they live."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return own + sum(
        cpu_seconds_of(int(child)) for file in lists for child in file.read_text().split()
    )


@contextmanager
def serving(checkout: Path, model: str, *options: str) -> Iterator[Server]:
    """A server of that checkout, which has the libraries of this environment."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        port = free_port()
        paths = [str(checkout / part) for part in ("server", "shared", "client")]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CRAFT_DATA_DIR": folder}
        key = command(env, "craft-server", "keys", "create", "--owner", "benchmark")["key"]
        log = stack.enter_context(Path(folder, "server.log").open("wb"))
        server = subprocess.Popen(
            [BIN / "craft-server", "serve", "--model", model, "--port", str(port), *options],
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        stack.callback(server.wait)
        stack.callback(server.terminate)
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, server)
        client = stack.enter_context(Client(url, key))
        (card,) = client.models()
        client.publish("random", adapter_of(card.name, card.revision, PROMPTS, CLASSES))
        yield Server(server.pid, client, url, key)


def milliseconds(server: Server, way: str, files: list[bytes]) -> tuple[float, float]:
    """Of a core, and of the clock, for an image."""
    client = server.client
    (card,) = client.models()
    cpu, began = server.cpu_seconds(), time.perf_counter()
    if way == "image set":
        image_set = client.create_image_set(card.name)
        client.upload_images(image_set, files)
    else:
        client.adapter_predict("random", images=files)
    took, cpu = time.perf_counter() - began, server.cpu_seconds() - cpu
    return 1000 * cpu / len(files), 1000 * took / len(files)


def measure(model: str, against: Path, options: list[str]) -> Iterator[dict[str, Any]]:
    """A line for each way of asking."""
    pictures = Pictures()
    with serving(HERE, model, *options) as after, serving(against, model) as before:
        for way in ("image set", "adapter"):
            pairs = []
            for number in range(WARM_UP + ROUNDS):
                files = pictures.take(IMAGES)
                order = (before, after) if number % 2 else (after, before)
                found = {id(server): milliseconds(server, way, files) for server in order}
                if number >= WARM_UP:
                    pairs.append((found[id(before)], found[id(after)]))
            yield {
                "model": model,
                "way": way,
                "options": options,
                "before_cpu_ms": statistics.median(b[0] for b, _ in pairs),
                "after_cpu_ms": statistics.median(a[0] for _, a in pairs),
                "cpu_ratio": statistics.median(b[0] / a[0] for b, a in pairs),
                "before_ms": statistics.median(b[1] for b, _ in pairs),
                "after_ms": statistics.median(a[1] for _, a in pairs),
                "ratio": statistics.median(b[1] / a[1] for b, a in pairs),
            }


def whole_runs(data: Path, against: Path, seeds: int) -> dict[str, Any]:
    """Seconds of `craft tune`, and of the server's cores, on either server."""
    pairs = []
    with serving(HERE, "pocket") as after, serving(against, "pocket") as before:
        for seed in range(1, seeds + 1):
            order = (before, after) if seed % 2 else (after, before)
            found = {id(server): run_seconds(server, data, seed) for server in order}
            pairs.append((found[id(before)], found[id(after)]))
    return {
        "data": data.name,
        "before_s": statistics.median(b[0] for b, _ in pairs),
        "after_s": statistics.median(a[0] for _, a in pairs),
        "share": statistics.median(a[0] / b[0] for b, a in pairs),
        "server_cpu_share": statistics.median(a[1] / b[1] for b, a in pairs),
    }


def run_seconds(server: Server, data: Path, seed: int) -> tuple[float, float]:
    """Of the clock, and of the server's cores; the client is this commit's."""
    env = {**os.environ, "CRAFT_URL": server.url, "CRAFT_API_KEY": server.key}
    with tempfile.TemporaryDirectory() as folder:
        run = [BIN / "craft", "tune", "--data", data, "--shots", "16", "--seed", str(seed)]
        cpu, began = server.cpu_seconds(), time.perf_counter()
        subprocess.run(
            [*run, "--run", Path(folder) / "run"], env=env, check=True, stdout=subprocess.DEVNULL
        )
        return time.perf_counter() - began, server.cpu_seconds() - cpu


def main() -> None:
    """Measures each model in the default precision, and in float32."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--against", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=["pocket", "RN50", "ViT-B-32"])
    parser.add_argument("--data", type=Path, help="for whole runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    against, lines = arguments.against.resolve(), []
    runs = whole_runs(arguments.data, against, arguments.seeds) if arguments.data else None
    print(runs)
    print("| model | precision | way | before, core ms | after, core ms | ratio | by the clock |")
    print("|" + "---|" * 7)
    for model in arguments.models:
        for options in ([], ["--precision", "float32"]):
            for line in measure(model, against, options):
                lines.append(line)
                print(
                    f"| {model} | {options[-1] if options else 'auto'} | {line['way']} "
                    f"| {line['before_cpu_ms']:.1f} | {line['after_cpu_ms']:.1f} "
                    f"| {line['cpu_ratio']:.2f} | {line['ratio']:.2f} |",
                    flush=True,
                )
    save({"images": lines, "whole_runs": runs}, arguments.json)


if __name__ == "__main__":
    main()
