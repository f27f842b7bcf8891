"""A plan beside what happens: time, units, bytes and memory of real tuning runs over HTTP.

The constants are measured first; each run's model is measured once more right before and right
after the run, since the machine's speed changes with what else it does. A run after which the model
is a fifth faster or slower than before is repeated. Each has a fresh craft-server process, which
the craft command reaches through a relay that counts bytes. Times are the command's, memory is the
processes' own peak.

    python benchmarks/plan_check.py --json benchmarks/results/plan_check.json
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel

from craft_client.presets import beside, common_nouns
from craft_client.settings import RANDOM_CODES
from craft_server.plan.costs import Architecture, Constants
from craft_server.plan.measure import measure_machine, measure_model, memory, picture
from craft_server.plan.runs import Recipe, Texts, Workload, plan_run
from craft_server.settings import Settings
from options import save
from plan_constants import measure, tuned
from serving import server_process
from tuning_run import DTD

CHUNK = 2**16
# The vision tower may be this much faster before a run than after it, or the other way round.
CALM = 1.2

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Case:
    """A run: model, class names, pictures a class, their side in pixels, recipe and budget."""

    name: str
    model: str
    classes: Sequence[str]
    shots: int
    side: int
    recipe: Recipe
    budget: int


def cases() -> list[Case]:
    """Runs of different shape."""
    nouns = list(common_nouns())
    return [
        Case("many pictures", "pocket", nouns[:102], 16, 400, "craftbox", 128),
        Case("a large model, a short search", "RN50", DTD, 4, 256, "paper", 206),
        Case("900 classes, one picture each", "pocket", nouns[:900], 1, 256, "craftbox", 128),
        Case("a long search", "pocket", DTD, 4, 256, "paper", 2051),
    ]


@dataclass
class Relay:
    """Passes TCP connections on to a server, and counts bytes of either way."""

    host: str
    port: int
    up: int = 0
    down: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def listening(self) -> Iterator[str]:
        """Its address while it listens."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=self._accept, args=[listener], daemon=True).start()
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection((self.host, self.port))
            for source, target, way in ((client, server, "up"), (server, client, "down")):
                threading.Thread(target=self._pass, args=[source, target, way], daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, way: str) -> None:
        while data := source.recv(CHUNK):
            with self._lock:
                setattr(self, way, getattr(self, way) + len(data))
            target.sendall(data)
        # Not `close`, which tells the other side nothing while a thread waits for what it sends.
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def make_pictures(folder: Path, case: Case) -> int:
    """Folders of classes; the mean bytes of a picture."""
    sizes = []
    for label, name in enumerate(case.classes):
        of_class = folder / "train" / name
        of_class.mkdir(parents=True)
        for shot in range(case.shots):
            data = picture(case.side, seed=label * case.shots + shot)
            (of_class / f"{shot}.jpg").write_bytes(data)
            sizes.append(len(data))
    return sum(sizes) // len(sizes)


def planned(constants: Constants, case: Case, picture_bytes: int) -> dict[str, Any]:
    """What the plan says."""
    settings = Settings()
    texts = Texts.of_names(case.model, case.classes)
    if case.recipe == "craftbox":
        texts = texts.beside(len(beside(case.classes, common_nouns())))
    workload = Workload(
        texts=texts,
        images=case.shots * len(case.classes),
        image_bytes=picture_bytes,
        image_pixels=case.side**2,
        budget=case.budget,
        recipe=case.recipe,
        population=40,
        random_codes=RANDOM_CODES,
        dim=512,
        limits=settings.limits,
    )
    plan = plan_run(constants, Architecture.of(case.model), workload, settings)
    return {
        "seconds": plan.run.seconds,
        **plan.run.units.model_dump(),
        "bytes_up": plan.run.bytes_up,
        "bytes_down": plan.run.bytes_down,
        "server_memory": plan.run.server_memory_bytes,
        "client_memory": plan.client_memory_bytes,
        "parts": plan.seconds_of_run.model_dump(),
    }


def measured(case: Case, folder: Path, pictures: Path) -> dict[str, Any]:
    """What happened."""
    data = folder / "server"
    data.mkdir()
    with server_process(case.model, data) as (env, process):
        address = urlsplit(env["CRAFT_URL"])
        relay = Relay(address.hostname or "", address.port or 0)
        with relay.listening() as url:
            options = ["--data", pictures, "--shots", case.shots, "--budget", case.budget]
            options += ["--recipe", case.recipe]
            document, seconds, client = tuned(
                {**env, "CRAFT_URL": url}, *options, "--run", folder / "run"
            )
        server = memory("VmHWM", str(process))
    return {
        "seconds": seconds,
        **document["charged"],
        "bytes_up": relay.up,
        "bytes_down": relay.down,
        "server_memory": server,
        "client_memory": client,
    }


def check(constants: Constants, case: Case) -> dict[str, Any]:
    """A case between two measurements of its model, whose mean the plan takes.

    What was not measured anew is scaled by the rate of a matrix product, as `--measure` does.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        size = make_pictures(folder / "pictures", case)
        load = os.getloadavg()[0]
        before = measure_machine(), measure_model(case.model, None, "float32")
        found = measured(case, folder, folder / "pictures")
        after = measure_machine(), measure_model(case.model, None, "float32")
    machine, cost = (mean_of(*pair) for pair in zip(before, after, strict=True))
    plan = planned(constants.moved_to(machine, case.model, cost), case, size)
    changed = after[1].image_core_seconds / before[1].image_core_seconds
    return {
        "name": case.name,
        "model": case.model,
        "classes": len(case.classes),
        "pictures": case.shots * len(case.classes),
        "side": case.side,
        "recipe": case.recipe,
        "budget": case.budget,
        "load_average_before": load,
        "machine_changed": max(changed, 1 / changed),
        "planned": plan,
        "measured": found,
    }


def mean_of(one: M, other: M) -> M:
    """The mean of all numbers of two measurements."""

    def mean(first: Any, second: Any) -> Any:
        if isinstance(first, dict):
            return {name: mean(value, second[name]) for name, value in first.items()}
        return (first + second) / 2 if isinstance(first, float) else first

    return type(one).model_validate(mean(one.model_dump(), other.model_dump()))


def print_table(results: list[dict[str, Any]]) -> None:
    """A Markdown table."""
    print("| run | what | planned | measured | planned / measured |\n|---|---|---|---|---|")
    for result in results:
        for name, found in result["measured"].items():
            plan = result["planned"][name]
            print(f"| {result['name']} | {name} | {plan:,.1f} | {found:,.1f} | ", end="")
            print(f"{plan / found:.2f} |" if found else "|")


def main() -> None:
    """Runs the check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--constants", type=Path, help="measured before; by default anew")
    parser.add_argument("--cases", type=int, nargs="+", help="some of them, from 0")
    parser.add_argument("--attempts", type=int, default=3, help="while the machine is not calm")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    constants = (
        Constants.load(args.constants)
        if args.constants
        else measure(["pocket", "RN50"], shared=False)
    )
    chosen = [case for i, case in enumerate(cases()) if args.cases is None or i in args.cases]
    results: list[dict[str, Any]] = []
    for case in chosen:
        attempts: list[dict[str, Any]] = []
        while len(attempts) < args.attempts and not any(map(is_calm, attempts)):
            attempts.append(check(constants, case))
            print(f"{case.name}: {attempts[-1]}", file=sys.stderr)
        calmest = min(attempts, key=lambda attempt: attempt["machine_changed"])
        results.append({**calmest, "attempts": len(attempts)})
        save({"constants": constants.model_dump(), "runs": results}, args.json)
    print_table(results)


def is_calm(attempt: dict[str, Any]) -> bool:
    """Whether the machine was about as fast after a run as before it."""
    calm: bool = attempt["machine_changed"] < CALM
    return calm


if __name__ == "__main__":
    main()
