"""Attacks by a key with budget 0, or by nobody, beside an honest key on the same server.

Each attack meets a server process of its own with pocket. A victim asks for one image after the
other, first alone and then during the attack, which is repeated until its time is up; another
thread asks `/livez` over new connections. Attackers come from other loopback addresses than the
victim. Memory is the sum of all the server's processes (PSS), every 50 ms, and once more when the
server has had time to give it back.

    python benchmarks/abuse.py --json benchmarks/results/abuse.json
    python benchmarks/abuse.py --server OTHER/.venv/bin/craft-server --only bodies
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import multiprocessing
import os
import random
import re
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from options import save

MEBIBYTE = 2**20
SPARE_SECONDS = 20
BODY_BYTES = 64 * MEBIBYTE - 200
"""Just below the default bound of bodies."""


@dataclass(frozen=True)
class Target:
    """What an attacker knows: the server's port, a key with budget 0, when to stop."""

    port: int
    key: str
    until: float
    scratch: Path

    @property
    def late(self) -> bool:
        return time.monotonic() > self.until

    def post(
        self,
        path: str,
        body: bytes,
        content_type: str = "application/json",
        *,
        source: str = "127.0.0.2",
        hang_up: bool = False,
        key: bool = True,
    ) -> str:
        """The answer's status, or why there is none."""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n"
            + (f"Authorization: Bearer {self.key}\r\n" if key else "")
            + "\r\n"
        )
        return self.send([head.encode(), body], source=source, hang_up=hang_up)

    def send(
        self, pieces: Any, *, source: str = "127.0.0.2", hang_up: bool = False, slowly: bool = False
    ) -> str:
        """Sends the pieces over a connection of its own; the status answered, or what happened."""
        try:
            with connected(self.port, source) as connection:
                connection.settimeout(max(1.0, self.until + SPARE_SECONDS - time.monotonic()))
                with suppress(BrokenPipeError, ConnectionResetError):
                    for piece in pieces:
                        connection.sendall(piece)
                        if slowly:
                            time.sleep(0.2)
                        if self.late:
                            break
                if hang_up:
                    time.sleep(0.2)
                    return "hung up"
                return status_of(connection)
        except TimeoutError:
            return "no answer in time"
        except OSError as error:
            return type(error).__name__


@contextmanager
def connected(port: int, source: str) -> Iterator[socket.socket]:
    """A connection to the server from another loopback address."""
    with socket.socket() as connection:
        connection.bind((source, 0))
        connection.settimeout(20)
        connection.connect(("127.0.0.1", port))
        yield connection


def status_of(connection: socket.socket) -> str:
    """The status of what the server answers, `cut off` where it ended the connection."""
    try:
        head = connection.recv(65536)
    except ConnectionResetError:
        return "cut off"
    found = re.match(rb"HTTP/1\.1 (\d{3})", head)
    return found.group(1).decode() if found else "cut off"


# What is sent.


def json_body(**fields: Any) -> bytes:
    document = {"model": "pocket", "classes": ["a", "b"], "templates": ["a {}"], **fields}
    return json.dumps(document).encode()


def images(*files: bytes) -> bytes:
    return json_body(images=[base64.b64encode(file).decode() for file in files])


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *extra: bytes) -> bytes:
    """A grey PNG that is small and unpacks to width x height."""
    packer = zlib.compressobj(9)
    row = b"\0" + b"\x7f" * (3 * width)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            *extra,
            chunk(b"IDAT", packed),
            chunk(b"IEND", b""),
        ]
    )


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    buffer = io.BytesIO()
    Image.new("RGB", (3000, 3000), (9, 9, 9)).save(buffer, "JPEG", progressive=True)
    plain = buffer.getvalue()
    last = plain[plain.rfind(b"\xff\xda") : -2]
    return plain[:-2] + last * count + b"\xff\xd9"


def tiff_floats() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((7000, 7000), np.float32)).save(
        buffer, "TIFF", compression="tiff_adobe_deflate"
    )
    return buffer.getvalue()


def gif_frames(count: int) -> bytes:
    frame = b"," + struct.pack("<HHHHB", 0, 0, 16, 16, 0) + b"\x02\x02L\x01\0"
    head = b"GIF89a" + struct.pack("<HHBBB", 16, 16, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return head + frame * count + b";"


def photo(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


# The attacks. Each makes what it sends at once, and then yields what became of each try.

Attack = Callable[[Target], Iterator[str]]


def predictions(make: Callable[[], bytes], *, hang_up: bool = False) -> Attack:
    """Sends one body to `POST /v1/predictions` again and again."""

    def attack(target: Target) -> Iterator[str]:
        body = make()
        yield "ready"
        while not target.late:
            yield target.post("/v1/predictions", body, hang_up=hang_up)

    return attack


def repeated(start: bytes, item: bytes, end: bytes) -> Callable[[], bytes]:
    """A JSON body of 64 MiB that is one short item over and over."""

    def make() -> bytes:
        count = (BODY_BYTES - len(start) - len(end)) // (len(item) + 1)
        return start + b",".join([item] * count) + end

    return make


def words() -> bytes:
    return json_body(
        classes=[f"class number {i} of many" for i in range(2000)],
        templates=[f"photo {i} of a {{}} in the wild" for i in range(256)],
        images=[base64.b64encode(photo(0)).decode()],
    )


def tensor_header(target: Target) -> Iterator[str]:
    body = struct.pack("<Q", BODY_BYTES - 8) + b"[" * (BODY_BYTES - 8)
    yield "ready"
    while not target.late:
        yield target.post("/v1/predictions", body, "application/x-safetensors")


def form(target: Target) -> Iterator[str]:
    body = b"&" * (60 * MEBIBYTE)
    yield "ready"
    while not target.late:
        yield target.post("/console/sign-in", body, "application/x-www-form-urlencoded", key=False)


def one_header(target: Target) -> Iterator[str]:
    piece = b"a" * 65536
    yield "ready"
    while not target.late:
        yield target.send(
            [b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: ", *([piece] * (108 * 16)), b"\r\n\r\n"]
        )


def many_headers(target: Target) -> Iterator[str]:
    yield "ready"
    while not target.late:
        lines = (b"X-A%06d: " % i + b"a" * 1000 + b"\r\n" for i in range(100_000))
        yield target.send(iter_with(b"GET /livez HTTP/1.1\r\nHost: x\r\n", lines))


def long_address(target: Target) -> Iterator[str]:
    piece = b"a" * 65536
    yield "ready"
    while not target.late:
        yield target.send([b"GET /", *([piece] * (60 * 16)), b" HTTP/1.1\r\nHost: x\r\n\r\n"])


def iter_with(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def connections(target: Target) -> Iterator[str]:
    """Idle ones, heads and bodies that never end: 2,000 from eight addresses."""
    open_ones: list[socket.socket] = []
    began = (
        b"",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX: ",
        b"POST /v1/predictions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Authorization: Bearer " + target.key.encode() + b"\r\nContent-Length: 1000\r\n\r\n{",
    )
    yield "ready"
    refused = 0
    for number in range(2000):
        connection = socket.socket()
        connection.bind((f"127.0.0.{2 + number % 8}", 0))
        connection.settimeout(2)
        try:
            connection.connect(("127.0.0.1", target.port))
            connection.sendall(began[number % 3])
            open_ones.append(connection)
        except OSError:
            refused += 1
    while not target.late:
        time.sleep(0.1)
    held = sum(map(still_open, open_ones))
    for connection in open_ones:
        connection.close()
    yield f"{held} of 2000 held to the end"


def still_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) != b"" and False
    except BlockingIOError:
        return True
    except OSError:
        return False


def bodies_in_flight(target: Target) -> Iterator[str]:
    """Sixteen bodies of 64 MiB that are nearly sent, and never end."""
    head = (
        f"POST /v1/predictions HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-safetensors\r\n"
        f"Authorization: Bearer {target.key}\r\nContent-Length: {BODY_BYTES}\r\n\r\n"
    ).encode()
    yield "ready"
    open_ones, sent = [], 0
    piece = b"\0" * MEBIBYTE
    for number in range(16):
        connection = socket.socket()
        connection.bind((f"127.0.0.{2 + number % 8}", 0))
        connection.settimeout(2)
        with suppress(OSError):
            connection.connect(("127.0.0.1", target.port))
            connection.sendall(head)
            open_ones.append(connection)
            for _ in range(62):
                if target.late:
                    break
                connection.sendall(piece)
                sent += 1
    while not target.late:
        time.sleep(0.1)
    held = sum(map(still_open, open_ones))
    for connection in open_ones:
        connection.close()
    yield f"{sent} MiB taken, {held} of 16 held to the end"


def run_reports(target: Target) -> Iterator[str]:
    """A run's curve, sent whole again and again."""
    title = json.dumps({"title": "a run"}).encode()
    points = [
        {"sequence": i, "generation": i, "queries": i, "loss": 1e308 * (-1) ** i}
        for i in range(500)
    ]
    curve = json.dumps({"points": points}).encode()
    yield "ready"
    with httpx.Client(
        base_url=f"http://127.0.0.1:{target.port}",
        headers={"Authorization": f"Bearer {target.key}", "Content-Type": "application/json"},
        timeout=60,
        transport=httpx.HTTPTransport(local_address="127.0.0.2"),
    ) as client:
        while not target.late:
            run = f"/v1/runs/{random.randrange(10**9)}"
            yield str(client.put(run, content=title).status_code)
            yield str(client.put(f"{run}/points", content=curve).status_code)


ATTACKS: dict[str, Attack] = {
    "32 images of 50 megapixels": predictions(lambda: images(*[png(7000, 7142)] * 32)),
    "the same, hanging up": predictions(lambda: images(*[png(7000, 7142)] * 32), hang_up=True),
    "2,000 classes x 256 templates": predictions(words),
    "JPEG of 3,000 scans, twice": predictions(lambda: images(*[scans(3000)] * 2)),
    "JPEG of 3,000 scans, hanging up": predictions(
        lambda: images(*[scans(3000)] * 2), hang_up=True
    ),
    "TIFF of 49 million floats": predictions(lambda: images(tiff_floats())),
    "GIF of 100,000 frames": predictions(lambda: images(gif_frames(100_000))),
    "PNG with 400 MiB of packed text": predictions(
        lambda: images(png(32, 32, chunk(b"zTXt", b"k\0\0" + zlib.compress(b"A" * (400 << 20), 9))))
    ),
    "JSON body of empty objects": predictions(repeated(b'{"x":[', b"{}", b"]}")),
    "JSON body of empty lists": predictions(repeated(b'{"codes":[', b"[]", b"]}")),
    "JSON body of ones": predictions(repeated(b'{"rows":[', b"1", b"]}")),
    "JSON body of empty images": predictions(repeated(b'{"images":[', b'""', b"]}")),
    "tensor header of 64 MiB": tensor_header,
    "16 bodies of 64 MiB that never end": bodies_in_flight,
    "sign-in form of 60 MiB of &": form,
    "one header of 108 MB": one_header,
    "100,000 headers": many_headers,
    "address of 60 MiB": long_address,
    "2,000 connections that say nothing": connections,
    "run reports without end": run_reports,
}


# The server, the victim, and what is measured.


class Served:
    """A craft-server process with a victim's and an attacker's key."""

    def __init__(self, program: str, folder: Path) -> None:
        self.folder = folder
        self.program = program
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CRAFT_")}
        self.environment = {**environment, "CRAFT_DATA_DIR": str(folder)}
        self.victim = self.key("victim")
        unit_options = ["--queries", "0", "--images", "0", "--requests", "0"]
        self.attacker = self.key("attacker", *unit_options)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = (folder / "server.log").open("wb")
        self.process = subprocess.Popen(
            [program, "serve", "--model", "pocket", "--port", str(self.port)],
            env=self.environment,
            stdout=self.log,
            stderr=self.log,
        )
        deadline = time.monotonic() + 120
        while True:
            with suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{self.port}/readyz", timeout=5).is_success:
                    return
            if time.monotonic() > deadline or self.process.poll() is not None:
                self.close()
                raise SystemExit((folder / "server.log").read_text()[-2000:])
            time.sleep(0.2)

    def key(self, owner: str, *options: str) -> str:
        answer = subprocess.run(
            [self.program, "keys", "create", "--owner", owner, "--json", *options],
            env=self.environment,
            check=True,
            capture_output=True,
        )
        return str(json.loads(answer.stdout)["key"])

    def memory(self) -> float:
        """MiB of all processes, shared pages counted once."""
        return sum(map(proportional_kib, family(self.process.pid))) / 1024

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def family(pid: int) -> Iterator[int]:
    """The process and all that it has started."""
    yield pid
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from family(int(child))


def proportional_kib(pid: int) -> int:
    """The process' memory; of pages that processes share, its share."""
    with suppress(OSError):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        if found := re.search(r"^Pss: +(\d+) kB", rollup, re.MULTILINE):
            return int(found.group(1))
    return 0


class Watch:
    """The victim, the probe of `/livez` and the gauge of memory, each a thread."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.calls: list[tuple[float, float, int]] = []
        self.live: list[tuple[float, float]] = []
        self.peak = 0.0
        self.ended = threading.Event()
        self.threads = [
            threading.Thread(target=target) for target in (self.ask, self.probe, self.gauge)
        ]

    def __enter__(self) -> Watch:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join()

    def ask(self) -> None:
        headers = {"Authorization": f"Bearer {self.served.victim}"}
        with httpx.Client(
            base_url=f"http://127.0.0.1:{self.served.port}", headers=headers, timeout=120
        ) as client:
            for seed in range(10**9):
                if self.ended.is_set():
                    return
                body = images(photo(seed))
                began = time.monotonic()
                try:
                    status = client.post(
                        "/v1/predictions",
                        content=body,
                        headers={"Content-Type": "application/json"},
                    ).status_code
                except httpx.HTTPError:
                    status = 0
                self.calls.append((began, time.monotonic() - began, status))
                self.ended.wait(0.05)

    def probe(self) -> None:
        while not self.ended.is_set():
            began = time.monotonic()
            # By hand: a client of httpx would spend longer on its own making.
            with suppress(OSError), connected(self.served.port, "127.0.0.1") as connection:
                connection.settimeout(60)
                connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                connection.recv(65536)
            self.live.append((began, time.monotonic() - began))
            self.ended.wait(0.05)

    def gauge(self) -> None:
        while not self.ended.wait(0.05):
            self.peak = max(self.peak, self.served.memory())


def percentile(values: list[float], share: float) -> float:
    """The smallest value that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, int(np.ceil(share * len(ordered))) - 1)]


def measure(program: str, name: str, seconds: float) -> dict[str, Any]:
    """One attack against a server of its own."""
    with tempfile.TemporaryDirectory() as folder:
        served = Served(program, Path(folder))
        try:
            return {"attack": name, **attacked(served, name, seconds)}
        finally:
            served.close()


def attacked(served: Served, name: str, seconds: float) -> dict[str, Any]:
    with Watch(served) as quiet:
        time.sleep(seconds)
    quiet_memory = served.memory()
    context = multiprocessing.get_context("fork")
    outcomes: Any = context.Queue()
    ready = context.Event()
    attacker = context.Process(target=run, args=(name, served, seconds, ready, outcomes))
    attacker.start()
    ready.wait()
    with Watch(served) as watch:
        became, longest = outcomes.get()
        attacker.join()
    deadline = time.monotonic() + SPARE_SECONDS
    while served.memory() > quiet_memory + 50 and time.monotonic() < deadline:
        time.sleep(0.5)
    quiet_times = [took for _, took, _ in quiet.calls[1:]]
    times = [took for _, took, _ in watch.calls]
    return {
        "attacker": dict(became),
        "attacker_longest_s": round(longest, 2),
        "victim_quiet_p50_s": round(statistics.median(quiet_times), 3),
        "victim_quiet_p99_s": round(percentile(quiet_times, 0.99), 3),
        "victim_p50_s": round(statistics.median(times), 3),
        "victim_p99_s": round(percentile(times, 0.99), 3),
        "victim_calls": len(times),
        "victim_failed": sum(status != 200 for _, _, status in watch.calls),
        "livez_max_s": round(max(took for _, took in watch.live), 3),
        "memory_quiet_mib": round(quiet_memory),
        "memory_above_quiet_mib": round(watch.peak - quiet_memory),
        "memory_after_mib": round(served.memory() - quiet_memory),
    }


def run(name: str, served: Served, seconds: float, ready: Any, outcomes: Any) -> None:
    """The attacker's process."""
    # What it sends is made before its time begins.
    target = Target(served.port, served.attacker, float("inf"), served.folder)
    became: Counter[str] = Counter()
    longest = 0.0
    tries = ATTACKS[name](target)
    next(tries)
    object.__setattr__(target, "until", time.monotonic() + seconds)
    ready.set()
    began = time.monotonic()
    for outcome in tries:
        longest = max(longest, time.monotonic() - began)
        became[outcome] += 1
        began = time.monotonic()
    outcomes.put((became, longest))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    beside = Path(sys.executable).with_name("craft-server")
    parser.add_argument("--server", default=str(beside), help="the craft-server to attack")
    parser.add_argument("--seconds", type=float, default=10, help="of quiet, and of each attack")
    parser.add_argument("--only", default="", help="attacks whose name holds this")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    print("| attack | attacker | victim p99, quiet | p99 | failed | `/livez` | memory | after |")
    print("|---|---|---|---|---|---|---|---|")
    for name in ATTACKS:
        if options.only not in name:
            continue
        row = measure(options.server, name, options.seconds)
        rows.append(row)
        became = ", ".join(f"{count} x {what}" for what, count in row["attacker"].items())
        print(
            f"| {name} | {became}; longest {row['attacker_longest_s']} s "
            f"| {row['victim_quiet_p99_s']} s | {row['victim_p99_s']} s "
            f"| {row['victim_failed']} of {row['victim_calls']} | {row['livez_max_s']} s "
            f"| {row['memory_above_quiet_mib']:+} MiB | {row['memory_after_mib']:+} MiB |",
            flush=True,
        )
    save({"seconds": options.seconds, "attacks": rows}, options.json)


if __name__ == "__main__":
    main()
