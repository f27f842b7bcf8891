"""Tunes once and publishes: what a container or a job runs that is started beside a server.

Address and key come from the environment: CRAFT_URL, and CRAFT_API_KEY or CRAFT_API_KEY_FILE. The
pictures are image folders (train/CLASS/*, test/CLASS/*); where there are none, scikit-learn's
handwritten digits are written as such. Started again, it goes on where it was cut off, and does
nothing once its adapter is published.

    python tune_once.py --data PICTURES --work FOLDER --name ADAPTER
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

from quickstart import TEMPLATE, say, write_digits


def pictures_of(data: Path, work: Path) -> tuple[Path, str]:
    """The folder of pictures, and the plain prompt for their classes."""
    if data.is_dir() and any(data.iterdir()):
        return data, "a photo of a {}."
    digits = work / "digits"
    if not digits.exists():
        unfinished = work / "digits.unfinished"
        write_digits(unfinished)
        unfinished.rename(digits)
    return digits, TEMPLATE


def main() -> None:
    """Tunes, publishes, and tells what the adapter is worth on the test pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("pictures"))
    parser.add_argument("--work", type=Path, default=Path("work"), help="for what must outlive it")
    parser.add_argument("--name", default="once", help="of the adapter")
    parser.add_argument("--shots", type=int, default=16)
    args = parser.parse_args()

    published = args.work / "published"
    if published.exists():
        print(f"Published already: {args.name}")
        return
    args.work.mkdir(parents=True, exist_ok=True)
    data, template = pictures_of(args.data, args.work)
    run = args.work / "run"
    if (run / "summary.json").exists():
        pass
    elif (run / "run.json").exists():
        call("craft", "tune", "--resume", run)
    else:
        options = ("--shots", args.shots, "--template", template)
        call("craft", "tune", "--data", data, *options, "--run", run, "--report")
    call("craft", "publish", run, "--name", args.name)
    published.touch()
    if (data / "test").is_dir():
        call("craft", "evaluate", "--adapter", args.name, "--data", data)


def call(*words: object) -> None:
    """Runs a command and shows it and what it prints."""
    subprocess.run(say([str(word) for word in words]), check=True)


if __name__ == "__main__":
    main()
