"""How often a GPU is told to do something for the texts of a call: counted, without one.

Tensors are fake, and on a GPU that is not there where PyTorch is built for one: they have shapes,
dtypes and devices, and no data, so that any size costs nothing. Counted are operators that compute
or copy, each as one, however many kernels a library makes of it; views launch nothing. `Launches`
counts on a real GPU, too.

The first call of a class list lays it out, those after it find that done. Small packs are recorded
as CUDA graphs from the second time on, and then are one launch and two copies; this is not counted.

    python benchmarks/launches.py --json benchmarks/results/launches.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from craft_client.presets import common_nouns
from craft_server.engine.engine import TOKENS_PER_TASK
from craft_server.engine.hosted import tokenizer_of
from craft_server.engine.models import ModelSpec, load_model
from craft_server.engine.text import Moved, TextTower
from craft_server.engine.tokens import Tokenizer
from options import save
from tuning_run import DTD

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

import fake_gpu

WORDS = 4  # that a code moves
_LAUNCHES_NOTHING = {"empty", "empty_like", "empty_strided", "new_empty", "detach_"}


class Launches(TorchDispatchMode):
    """Counts what is launched while it is entered.

    Attributes:
        count: of operators that compute or copy.
    """

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Counts one operator, and does it."""
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and func._opname not in _LAUNCHES_NOTHING:
            given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
            memory = found.untyped_storage()._cdata
            is_view = any(one.untyped_storage()._cdata == memory for one in given)
            self.count += func._schema.is_mutable or not is_view
        return found


@torch.inference_mode()
def of_texts(tower: TextTower, tokenizer: Tokenizer, prompts: int, classes: Sequence[str]) -> int:
    """Launches for so many codes with these classes."""
    sequences = [tokenizer.of().context("a photo of a", name) for name in classes]
    with Launches() as launches:
        for pack in tower.packs(sequences, prompts=prompts, max_tokens=TOKENS_PER_TASK["cuda"]):
            words = torch.zeros(len(pack.prompts), WORDS, tower.width, device=tower.device)
            tower.encode(Moved(pack, words))
    return launches.count


def main() -> None:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="RN50")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.backends.cuda.is_built() else "cpu")
    nouns, results = list(common_nouns()), []
    model, mode = load_model(ModelSpec(args.model)), FakeTensorMode(allow_non_fake_inputs=True)
    tokenizer = Tokenizer(tokenizer_of(args.model), model.context_length)
    print("| classes | prompts | launches, first | again |\n|---|---|---|---|")
    with mode:
        fake_gpu.move(mode, model.module, device)
        for classes in (DTD, nouns):
            for prompts in (1, 16, 41, 256):
                tower = TextTower(model.module)
                tower._recordings = None  # which need a GPU
                first, again = (of_texts(tower, tokenizer, prompts, classes) for _ in range(2))
                print(f"| {len(classes):,} | {prompts} | {first:,} | {again:,} |")
                results.append(
                    {
                        "model": args.model,
                        "classes": len(classes),
                        "prompts": prompts,
                        "first": first,
                        "again": again,
                    }
                )
    save(results, args.json)


if __name__ == "__main__":
    main()
