"""`craft data check`: what a data set is, and what would be refused of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from craft_client.cli.options import AsJson, argument
from craft_client.cli.root import ExitCode, app
from craft_client.cli.show import counting, document, print_lines, table
from craft_shared.commands import Typer, examples

if TYPE_CHECKING:
    from collections.abc import Mapping

    from craft_client.data import Dataset, Sample, Split

    Digests = dict[Split, dict[Sample, str]]

_data = Typer(
    no_args_is_help=True,
    help="Look at a data set before anything is sent.",
    epilog=examples("craft data check DIR"),
)
app.add_typer(_data, name="data", rich_help_panel="Tune and measure")


@_data.callback()
def data() -> None:
    """Makes `check` a command of its own, although it is the only one."""


@_data.command(epilog=examples("craft data check DIR", "craft data check list.csv --json"))
def check(
    data: Annotated[Path, argument("DATA", "What --data takes: a folder, a list, hf:NAME.")],
    as_json: AsJson = False,
) -> None:
    """Say what a data set is: classes, counts, copies, leaks between splits, what is refused.

    Opens every picture and asks no server: the bounds are those of a server whose operator has set
    no others. Ends with exit code 1 where a picture would be refused.
    """
    from craft_client.data import digests_or_errors
    from craft_client.layouts import load_dataset
    from craft_shared.image_formats import MOST_BYTES, MOST_PIXELS
    from craft_shared.problems import FieldError

    dataset = load_dataset(data)
    every = [(split, one) for split, samples in dataset.splits.items() for one in samples]
    with counting("Checking pictures", len(every)) as on_checked:
        files = [sample.path for _, sample in every]
        found = digests_or_errors(files, MOST_BYTES, MOST_PIXELS, on_checked=on_checked)
    digests: Digests = {split: {} for split in dataset.splits}
    refused = []
    for (split, sample), result in zip(every, found, strict=True):
        if isinstance(result, FieldError):
            refused.append(result)
        else:
            digests[split][sample] = result
    counts, copies = _counts(dataset), _copies(digests)
    if as_json:
        document(
            {
                "data": str(data),
                "layout": dataset.layout,
                "classes": list(dataset.classes),
                "splits": counts,
                "notes": list(dataset.notes),
                "copies": copies,
                "refused": [error.model_dump() for error in refused],
            }
        )
    else:
        head = f"{dataset.layout}: {len(dataset.classes):,} classes"
        names = list(next(iter(counts.values())))
        rows = [[split, *numbers.values()] for split, numbers in counts.items()]
        table([head, *names], rows, spare=names[:0:-1])
        print_lines([*dataset.notes, *copies, f"Would be refused: {len(refused):,} pictures."])
        if refused:
            faults = [[error.field, error.message, error.remedy] for error in refused]
            table(["picture", "what is wrong", "what to do"], faults)
    if refused:
        raise typer.Exit(ExitCode.FAILED)


def _counts(dataset: Dataset) -> Mapping[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for split, samples in dataset.splits.items():
        of_class = Counter(sample.label for sample in samples)
        numbers = [of_class[label] for label in range(len(dataset.classes))]
        counts[split] = {
            "pictures": len(samples),
            "classes": len(of_class),
            "fewest of a class": min(numbers),
            "most of a class": max(numbers),
        }
    return counts


def _copies(digests: Digests) -> list[str]:
    """A line for copies in a split, in two classes of it, and in each split after it."""
    from craft_client.data import notes

    lines, splits = [], list(digests)
    for place, split in enumerate(splits):
        others = [
            (later, sample, digest)
            for later in splits[place + 1 :]
            for sample, digest in digests[later].items()
        ]
        of_split = digests[split]
        lines += [
            f"{split}: {note}" for note in notes(list(of_split), list(of_split.values()), others)
        ]
    return lines
