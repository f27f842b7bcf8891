"""Many tuning clients at once beside one alone: throughput, fairness, memory.

A craft-server process with pocket, and clients in processes of their own, each with its own key
of one owner, that run the paper's recipe on the same pictures. One alone comes first and last.
Rates count the queries answered in a window that begins when all clients have uploaded and asked
once. A client has one request in flight; populations and single prompts are told apart, since one
is 40 times the other's work. Memory is the server's, as it reports it.

    python benchmarks/concurrent_clients.py --seconds 600 \
        --json benchmarks/results/concurrent_clients.json
"""

from __future__ import annotations

import argparse
import multiprocessing
import queue
import statistics
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np

from craft_client.api import Client
from craft_client.blackbox import Scores
from craft_client.journal import Journal
from craft_client.presets import recipe_settings
from craft_client.remote import RemoteBlackBox
from craft_client.tune import run_document, tune
from options import save
from serving import command, serving
from tuning_run import DTD, make_pictures, metric

MEBIBYTE = 2**20
SHOTS = 16
SAMPLE_SECONDS = 5


class TimeIsUp(Exception):  # noqa: N818 - ends a client, and is no error
    """The window has ended."""


@dataclass
class Timed:
    """A black box that notes how long each question took."""

    black_box: RemoteBlackBox
    barrier: Barrier
    seconds: float
    ends: float | None = None
    answers: list[tuple[int, float]] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.black_box, name)

    def score(self, **question: Any) -> Scores:
        """As the black box; the first question, which waits for all clients, is not noted."""
        if self.ends is None:
            scores = self.black_box.score(**question)
            self.barrier.wait()
            self.ends = time.monotonic() + self.seconds
            return scores
        began = time.monotonic()
        if began > self.ends:
            raise TimeIsUp
        scores = self.black_box.score(**question)
        now = time.monotonic()
        if now <= self.ends:
            self.answers.append((scores.charged.queries, now - began))
        return scores


def client(
    url: str, key: str, folder: Path, seed: int, barrier: Barrier, seconds: float, answers: Any
) -> None:
    """One client's process: tunes until its time is up and tells what it was answered."""
    files = sorted(folder.glob("*/*.jpg"))
    labels = np.array([DTD.index(file.parent.name) for file in files], np.int64)
    with Client(url, key) as api, tempfile.TemporaryDirectory() as runs:
        image_set = api.create_image_set(api.model().name)
        image_set = api.upload_images(image_set, (file.read_bytes() for file in files))
        settings = recipe_settings("paper", "dtd", SHOTS, classes=DTD, seed=seed, budget=10**6)
        box = Timed(RemoteBlackBox(api, image_set, DTD), barrier, seconds)
        about = run_document(box.black_box, labels, settings, run=str(seed))
        with suppress(TimeIsUp):
            tune(box, labels, settings, Journal.create(Path(runs) / "run", about))
    answers.put(box.answers)


def measure(
    env: dict[str, str], admin: str, pictures: Path, clients: int, seconds: float
) -> dict[str, Any]:
    """So many clients for so long."""
    keys = [
        command(env, "craft-server", "keys", "create", "--owner", "laboratory")["key"]
        for _ in range(clients)
    ]
    spawn = multiprocessing.get_context("spawn")
    barrier, answers = spawn.Barrier(clients), spawn.Queue()
    processes = [
        spawn.Process(
            target=client,
            args=(env["CRAFT_URL"], key, pictures / "train", i, barrier, seconds, answers),
        )
        for i, key in enumerate(keys)
    ]
    for process in processes:
        process.start()
    memory: list[tuple[float, float]] = []
    found: list[list[tuple[int, float]]] = []
    began = time.monotonic()
    while len(found) < clients:
        try:
            found.append(answers.get(timeout=SAMPLE_SECONDS))
        except queue.Empty:
            memory.append((time.monotonic() - began, resident_mib(env, admin)))
            if any(process.exitcode for process in processes):
                raise SystemExit("a client failed") from None
    for process in processes:
        process.join()
    every = [answer for one in found for answer in one]
    return {
        "clients": clients,
        "seconds": seconds,
        "queries_a_second": sum(queries for queries, _ in every) / seconds,
        "queries_of_each": sorted(sum(queries for queries, _ in one) for one in found),
        "populations": percentiles([took for queries, took in every if queries > 1]),
        "single_prompts": percentiles([took for queries, took in every if queries == 1]),
        "resident_mib": memory,
    }


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Median and 99th percentile, in seconds."""
    return {"p50": statistics.median(seconds), "p99": float(np.percentile(seconds, 99))}


def resident_mib(env: dict[str, str], admin: str) -> float:
    """The server's memory."""
    return metric(env, admin, "process_resident_memory_bytes")[""] / MEBIBYTE


def print_table(results: list[dict[str, Any]]) -> None:
    """A Markdown table."""
    print(
        "| clients | queries a second | least and most of a client | populations p50, p99, s "
        "| single prompts p50, p99, s | MiB at a quarter, at the end |"
    )
    print("|" + "---|" * 6)
    for line in results:
        memory = [mib for _, mib in line["resident_mib"]] or [float("nan")]
        of_each = line["queries_of_each"]
        print(
            f"| {line['clients']} | {line['queries_a_second']:,.1f} "
            f"| {of_each[0]:,} to {of_each[-1]:,} "
            f"| {line['populations']['p50']:.2f}, {line['populations']['p99']:.2f} "
            f"| {line['single_prompts']['p50']:.2f}, {line['single_prompts']['p99']:.2f} "
            f"| {memory[len(memory) // 4]:,.0f}, {memory[-1]:,.0f} |"
        )


def main() -> None:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seconds-alone", type=float, default=60)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_pictures(folder / "pictures", DTD, SHOTS)
        (folder / "server").mkdir()
        with serving("pocket", folder / "server") as env:
            made = ("keys", "create", "--owner", "operator", "--scope", "admin")
            admin = command(env, "craft-server", *made)["key"]
            alone = (1, args.seconds_alone)
            for clients, seconds in (alone, (args.clients, args.seconds), alone):
                results.append(measure(env, admin, folder / "pictures", clients, seconds))
                save(results, args.json)
    print_table(results)
    by_one = statistics.mean(line["queries_a_second"] for line in (results[0], results[2]))
    print(f"\n{args.clients} clients: {results[1]['queries_a_second'] / by_one:.2f} times one's.")


if __name__ == "__main__":
    main()
