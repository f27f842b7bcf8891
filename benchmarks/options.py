"""What every benchmark on pictures is told: data sets, model, shots, seeds, where results go."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def parser_for(doc: str | None) -> argparse.ArgumentParser:
    """A parser of the options that all have; `doc` is the script's."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--json", type=Path)
    return parser


def present(folders: list[Path]) -> list[Path]:
    """The folders that are there; the others are named on stderr."""
    for absent in [folder for folder in folders if not folder.is_dir()]:
        print(f"skipped: there is no folder {absent}", file=sys.stderr)
    return [folder for folder in folders if folder.is_dir()]


def print_ratios(results: Sequence[Mapping[str, Any]], small: str, large: str) -> None:
    """A Markdown table of what two sizes take."""
    print(f"| store | what | {small}, ms | {large}, ms | ratio |")
    print("|" + "---|" * 5)
    for line in results:
        print(
            f"| {line['store']} | {line['what']} | {line['small_ms']:.2f} "
            f"| {line['large_ms']:.2f} | {line['ratio']:.2f} |"
        )


def save(results: Any, file: Path | None) -> None:
    """Writes the results as JSON, where a file was named."""
    if file:
        file.write_text(json.dumps(results, indent=1) + "\n")
