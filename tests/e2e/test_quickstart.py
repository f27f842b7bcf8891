"""README's first command, less the installation."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_quickstart_runs_to_its_table(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "examples/quickstart.py", "--out", tmp_path]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "before (zero-shot)" in done.stdout
    assert "after (published adapter)" in done.stdout
    assert "The whole of it cost" in done.stdout
    assert (tmp_path / "run/adapter/adapter.safetensors").exists()
