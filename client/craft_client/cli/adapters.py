"""`craft publish`, `craft adapters`, `craft retire` and `craft predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from craft_client.cli.options import AsJson, Key, Url
from craft_client.cli.session import check_budgets, check_files, connect, naming_files
from craft_client.cli.show import document, percent, say, table, units_line
from craft_shared.units import Units

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Run = Annotated[Path, typer.Argument(metavar="RUN", show_default=False, help="A run directory.")]
Name = Annotated[
    str, typer.Argument(metavar="NAME", show_default=False, help="NAME, or NAME@VERSION.")
]


def publish(
    run: Run,
    name: Annotated[str, typer.Option("--name", show_default=False, help="The adapter's name.")],
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Publish a run's adapter, so that the server classifies pictures with it."""
    from craft_client.journal import Journal

    adapter = Journal.open(run).adapter()
    with connect(url, key) as client:
        answer = client.publish(name, adapter)
    card, charged = answer.adapter, answer.cost.charged
    if as_json:
        document({"adapter": card.model_dump(), "charged": charged.model_dump()})
        return
    say(f"Published {card.name}, version {card.version}. Charged: {units_line(charged)}.")
    say(f"Next: craft predict IMAGE... --adapter {card.name}")


def adapters(url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """List the published adapters."""
    with connect(url, key) as client:
        cards = client.adapters()
    if as_json:
        document(
            {"adapters": [card.model_dump() for card in cards], "charged": Units().model_dump()}
        )
        return
    table(
        ["adapter", "version", "model", "classes", "prompts", "access", "published"],
        [
            [
                card.name,
                card.version,
                card.model,
                len(card.classes),
                card.prompts,
                card.access_mode,
                card.published_at,
            ]
            for card in cards
        ],
    )


def retire(name: Name, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Take a published adapter out of service."""
    with connect(url, key) as client:
        client.retire(name)
    if as_json:
        document({"retired": name, "charged": Units().model_dump()})
    else:
        say(f"Retired {name}.")


def predict(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", show_default=False, help="Picture files.")
    ],
    adapter: Annotated[
        str,
        typer.Option("--adapter", show_default=False, help="A published adapter's name."),
    ],
    top: Annotated[int, typer.Option("--top", min=1, help="How many classes to name.")] = 3,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Classify pictures with a published adapter."""
    from craft_client.data import Sample
    from craft_client.remote import RemoteAdapter

    with connect(url, key) as client:
        card = client.adapter(adapter)
        remote = RemoteAdapter(client, card)
        check_files([Sample(path, 0) for path in images], remote.limits)
        pictures = [path.read_bytes() for path in images]
        calls = len(remote.picture_calls(pictures))
        check_budgets(
            client,
            Units(
                queries=calls * card.prompts,
                predictions=len(pictures) * card.prompts,
                images=len(pictures),
                requests=calls,
            ),
            remedy="Ask for fewer pictures, or ask the provider for a top-up.",
        )
        with naming_files(images):
            found = remote.classify_pictures(pictures)
    answers = [_best(row, card.classes, top) for row in found.log_probs]
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
                    }
                    for path, best in zip(images, answers, strict=True)
                ],
                "charged": found.charged.model_dump(),
            }
        )
        return
    table(
        ["picture", "class", "probability"],
        [
            [str(path) if rank == 0 else "", name, percent(100 * probability)]
            for path, best in zip(images, answers, strict=True)
            for rank, (name, probability) in enumerate(best)
        ],
    )
    say(f"Charged: {units_line(found.charged)}.")


def _best(log_probs: NDArray[np.float32], classes: list[str], top: int) -> list[tuple[str, float]]:
    """The most probable classes of one picture and their probabilities, best first."""
    import numpy as np

    order = np.argsort(-log_probs, kind="stable")[:top]
    return [(classes[index], float(np.exp(log_probs[index]))) for index in order]


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command()(publish)
    app.command()(adapters)
    app.command()(retire)
    app.command()(predict)
