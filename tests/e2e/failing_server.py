"""`craft-server`, whose model fails as the file says that `FAILURE` names: `KIND WHERE`.

Where the file is empty nothing fails. The product does not know of this. The model's process of
several imports this module, too.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from craft_server.cli import app

FLAG = Path(os.environ["FAILURE"])
ONCE = "once-"  # before a kind: the failure is over when it has happened


def install() -> None:
    """Puts the failures before what the towers do."""
    from craft_server.engine.text import TextTower
    from craft_server.engine.vision import CompiledVision, EagerVision

    for where, tower in (
        ("texts", TextTower),
        ("images", CompiledVision),
        ("images", EagerVision),
    ):
        _install(where, tower)


def _install(where: str, tower: Any) -> None:
    encode = tower.encode

    def failing(self: Any, batch: Any) -> Any:
        kind, _, at = (FLAG.read_text() if FLAG.exists() else "").partition(" ")
        if at != where:
            return encode(self, batch)
        if kind.startswith(ONCE):
            FLAG.write_text("")
        kind = kind.removeprefix(ONCE)
        if kind == "not-finite":
            return encode(self, batch) * np.float32("nan")
        raise _error(kind)

    tower.encode = failing


def _error(kind: str) -> BaseException:
    import torch

    errors: dict[str, BaseException] = {
        "out-of-memory": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        "lost": torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        "ended": SystemExit("a worker's thread has ended"),
    }
    return errors[kind]


# The first process of several has no model, and starts without a model's libraries.
if __name__ == "__main__":
    app()
else:
    install()
