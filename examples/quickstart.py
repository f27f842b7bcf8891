"""The whole path once: serve the pocket model, tune it over HTTP, publish, predict, stop.

Every step is a command that you could type; each is printed before it runs. The pictures are
scikit-learn's handwritten digits (1,797 real scans, UCI ML repository, CC BY 4.0), written as PNG
files into image folders.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATE = "a photo of the number {}."
console = Console(highlight=False)


def write_digits(folder: Path) -> None:
    """Writes the digits as `folder/train/NAME/*.png` and `folder/test/NAME/*.png`."""
    digits = load_digits()
    seen = dict.fromkeys(range(10), 0)
    for number, (picture, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        # Every fourth picture of a class, since the file is ordered by writer.
        split = "test" if seen[int(label)] % 4 == 0 else "train"
        seen[int(label)] += 1
        target = folder / split / NAMES[label] / f"{number:04d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        pixels = (picture * (255 / 16)).astype("uint8")
        Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(target)


def say(command: list[str]) -> list[str]:
    """Prints a command as one would type it."""
    console.print(f"\n[bold]$ {shlex.join(command)}[/bold]", soft_wrap=True)
    return [str(Path(sys.executable).with_name(command[0])), *command[1:]]


def run(command: list[str], env: dict[str, str]) -> None:
    """Runs a command and shows what it prints."""
    subprocess.run(say(command), check=True, env=env)


def run_json(command: list[str], env: dict[str, str]) -> dict[str, Any]:
    """Runs a command with `--json` and returns its document."""
    done = subprocess.run(
        say([*command, "--json"]), check=True, env=env, stdout=subprocess.PIPE, text=True
    )
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def wait_until_ready(url: str, server: subprocess.Popen[bytes], seconds: float = 120) -> None:
    """Polls `/readyz` until the server answers, it dies, or the time is up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(f"craft-server ended with exit status {server.returncode}")
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise SystemExit("craft-server did not become ready")


def free_port() -> int:
    """A TCP port on 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    """Runs the steps and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("quickstart-out"))
    args = parser.parse_args()
    started = time.monotonic()

    shutil.rmtree(args.out, ignore_errors=True)
    data = args.out / "digits"
    write_digits(data)

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = {**os.environ, "CRAFT_DATA_DIR": str(args.out / "server"), "CRAFT_URL": url}
    key = run_json(
        ["craft-server", "keys", "create", "--owner", "quickstart", "--queries", "8000"], env
    )
    env["CRAFT_API_KEY"] = key["key"]

    log = (args.out / "server.log").open("wb")
    server = subprocess.Popen(
        say(["craft-server", "serve", "--model", "pocket", "--port", str(port)]),
        env=env,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        wait_until_ready(url, server)
        tuned = ["--data", str(data), "--template", TEMPLATE]
        before = run_json(["craft", "zero-shot", *tuned], env)
        run_dir = str(args.out / "run")
        run(["craft", "tune", *tuned, "--shots", "16", "--seed", "1", "--run", run_dir], env)
        run(["craft", "publish", run_dir, "--name", "digits"], env)
        after = run_json(["craft", "evaluate", "--adapter", "digits", "--data", str(data)], env)
        pictures = [str(sorted((data / "test" / name).glob("*.png"))[0]) for name in NAMES[:3]]
        run(["craft", "predict", *pictures, "--adapter", "digits"], env)
        usage = run_json(["craft", "usage"], env)
    finally:
        server.terminate()
        server.wait(30)
        log.close()

    table = Table(title=f"Handwritten digits, 16 shots, {after['pictures']} test pictures")
    for column in ("", "test accuracy"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("before (zero-shot)", f"{before['accuracy']:.1f} %")
    table.add_row("after (published adapter)", f"{after['accuracy_after']:.1f} %")
    console.print(table)
    total = usage["total"]
    cost = ", ".join(f"{amount:,} {unit}" for unit, amount in total.items())
    console.print(f"The whole of it cost {cost}, and {time.monotonic() - started:.0f} seconds.")


if __name__ == "__main__":
    main()
