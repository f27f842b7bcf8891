"""`craft predict`: pictures classified with a published adapter, on screen or into a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from craft_client.cli.completion import adapter_names
from craft_client.cli.options import AsJson, Key, Url, examples
from craft_client.cli.progress import counting
from craft_client.cli.session import check_budgets, check_files, connect, naming_files
from craft_client.cli.show import document, percent, say, table, units_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from craft_client.api import Client
    from craft_client.folders import LeftOut
    from craft_client.remote_adapter import Classified, RemoteAdapter
    from craft_shared.wire import Output

Reference = Annotated[
    str,
    typer.Option(
        "--adapter",
        metavar="ADAPTER",
        show_default=False,
        help="NAME or OWNER/NAME, its newest version; or with @VERSION or @ALIAS.",
        autocompletion=adapter_names,
    ),
]


def predict(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE...", show_default=False, help="Picture files, or folders of them."
        ),
    ],
    adapter: Reference,
    top: Annotated[int, typer.Option("--top", min=1, help="How many classes to name.")] = 3,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            dir_okay=False,
            show_default=False,
            help="A CSV file for the predictions; one that was cut off is gone on with.",
        ),
    ] = None,
    abstain_below: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            show_default="the adapter's own",
            help="Least probability of a picture's best class.",
        ),
    ] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Classify pictures with a published adapter."""
    from craft_client.remote_adapter import RemoteAdapter

    files, left_out = _picture_files(images)
    with connect(url, key) as client:
        if out is not None:
            _predict_into(client, adapter, files, left_out, out, top, abstain_below, as_json)
            return
        remote = RemoteAdapter(client, client.adapter(adapter))
        found = _predict_now(remote, files, abstain_below)
    card = remote.card
    answers = [_best(row, card.classes, top, found.output) for row in found.log_probs]
    if as_json:
        document(
            {
                "adapter": card.name,
                "version": card.version,
                "images": [
                    {
                        "image": str(path),
                        "classes": [
                            {"class": name, "probability": probability}
                            for name, probability in best
                        ],
                        **({} if found.abstained is None else {"abstained": bool(abstained)}),
                    }
                    for path, best, abstained in zip(
                        files, answers, _flags(found.abstained, len(files)), strict=True
                    )
                ],
                "left_out": [{"image": str(path), "reason": reason} for path, reason in left_out],
                "charged": found.charged.model_dump(),
            }
        )
        return
    table(
        ["picture", "class", "probability"],
        [
            [
                str(path) if rank == 0 else "",
                f"({name}?)" if abstained else name,
                "not shown" if probability is None else percent(100 * probability),
            ]
            for path, best, abstained in zip(
                files, answers, _flags(found.abstained, len(files)), strict=True
            )
            for rank, (name, probability) in enumerate(best)
        ],
    )
    if found.abstained is not None:
        say(f"Abstained from {int(found.abstained.sum())} of {len(files)} pictures.")
    say(f"Charged: {units_line(found.charged)}.")


def _predict_now(
    remote: RemoteAdapter, files: Sequence[Path], abstain_below: float | None
) -> Classified:
    from craft_client.data import Sample

    check_files([Sample(path, 0) for path in files], remote.limits)
    pictures = [path.read_bytes() for path in files]
    _check_need(remote, len(remote.picture_calls(pictures)), len(pictures))
    with naming_files(files):
        return remote.classify_pictures(pictures, abstain_below=abstain_below)


def _predict_into(
    client: Client,
    adapter: str,
    files: Sequence[Path],
    left_out: Sequence[LeftOut],
    out: Path,
    top: int,
    abstain_below: float | None,
    as_json: bool,
) -> None:
    from craft_client.batch import BatchProgress, Results, calls_of, classify_files
    from craft_client.exceptions import CraftError
    from craft_client.remote_adapter import RemoteAdapter

    results = Results(out, top)
    card = client.adapter(adapter)
    remote = RemoteAdapter(client, card)
    if results.adapter not in (None, remote.reference):
        remote = RemoteAdapter(client, client.adapter(results.adapter or adapter))
        same = (remote.card.owner, remote.card.name) == (card.owner, card.name)
        if not same:
            raise CraftError(
                f"'{out}' holds predictions of {results.adapter}.",
                remedy="Name another file with --out.",
            )
        say(f"Going on with {remote.reference}, as '{out}' began.")
    if top > len(remote.card.classes):
        raise CraftError(
            f"The adapter has {len(remote.card.classes)} classes.", remedy="Lower --top."
        )
    left = [path for path in files if str(path) not in results.images]
    _check_need(remote, calls_of(remote, left), len(left))
    results.append_left_out(left_out, remote.reference)
    with counting("Classifying pictures", len(files)) as on_classified:

        def on_progress(progress: BatchProgress) -> None:
            on_classified(progress.done)

        done = classify_files(
            remote, files, results, top=top, abstain_below=abstain_below, on_progress=on_progress
        )
    if as_json:
        document(
            {
                "adapter": remote.card.name,
                "version": remote.card.version,
                "out": str(out),
                "classified": len(left) - done.failed,
                "failed": done.failed,
                "left_out": len(left_out),
                "before": len(files) - len(left),
                "charged": done.charged.model_dump(),
            }
        )
        return
    before = f" {len(files) - len(left):,} were there before." if len(left) < len(files) else ""
    failed = f" {done.failed:,} cannot be used; '{out}' says why." if done.failed else ""
    say(f"Classified {len(left) - done.failed:,} pictures into '{out}'.{failed}{before}")
    if left_out:
        say(f"'{out}' has a row for each of the {len(left_out):,} that were left out.")
    say(f"Charged: {units_line(done.charged)}.")


def _check_need(remote: RemoteAdapter, calls: int, pictures: int) -> None:
    from craft_shared.units import Units

    if remote.card.pays == "publisher":
        return
    prompts = remote.card.prompts
    check_budgets(
        remote.client,
        Units(
            queries=calls * prompts,
            predictions=pictures * prompts,
            images=pictures,
            requests=calls,
        ),
        remedy="Ask for fewer pictures, or ask the provider for a top-up.",
    )


def _picture_files(images: Sequence[Path]) -> tuple[list[Path], list[LeftOut]]:
    """The images that are named, by themselves or by their folder, and what is left out."""
    from craft_client.folders import Found, images_below, no_images

    everything = Found()
    for image in images:
        found = images_below(image) if image.is_dir() else Found((image,))
        if not found.images:
            raise no_images(image, found)
        everything += found
    if everything.note:
        say(everything.note)
    files = dict.fromkeys(everything.images)
    return list(files), [one for one in dict.fromkeys(everything.left_out) if one.path not in files]


def _flags(abstained: NDArray[np.bool_] | None, count: int) -> list[bool]:
    return [False] * count if abstained is None else abstained.tolist()


def _best(
    log_probs: NDArray[np.float32], classes: list[str], top: int, output: Output
) -> list[tuple[str, float | None]]:
    """The most probable classes of one picture and their probabilities, best first.

    Only those that the answer names; without a probability where it shows none.
    """
    import numpy as np

    if output.level == "label":
        return [(classes[int(log_probs.argmax())], None)]
    order = np.argsort(-log_probs, kind="stable")[: min(top, output.k or top)]
    return [(classes[index], float(np.exp(log_probs[index]))) for index in order]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        epilog=examples(
            "craft predict one.jpg two.jpg --adapter digits",
            "craft predict pictures --adapter alice/digits@stable --out predictions.csv",
            "craft predict one.jpg --adapter digits --top 1 --json",
        ),
        rich_help_panel="Adapters",
    )(predict)
