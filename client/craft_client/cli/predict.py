"""`craft predict`: images classified with a published adapter, on screen or into a file."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from craft_client.cli.options import AsJson, Key, Url, adapter_names, argument, option
from craft_client.cli.root import command
from craft_client.cli.session import check_files, connect
from craft_client.cli.show import counting, document, percent, say, table, units_line
from craft_shared.terminal_tables import rows_are_lines

if TYPE_CHECKING:
    from craft_client.layouts import LeftOut
    from craft_client.remote import RemoteAdapter
    from craft_client.results import Results, Rows
    from craft_shared.units import Units


@command(
    "Adapters",
    "craft predict one.jpg two.jpg --adapter digits",
    "craft predict pictures --adapter alice/digits@stable --out predictions.csv",
    "craft predict one.jpg --adapter digits --top 1 --json",
)
def predict(
    images: Annotated[list[Path], argument("IMAGE...", "Picture files, or folders of them.")],
    adapter: Annotated[
        str,
        typer.Option(
            "--adapter",
            metavar="ADAPTER",
            show_default=False,
            help="NAME or OWNER/NAME, its newest version; or with @VERSION or @ALIAS.",
            autocompletion=adapter_names,
        ),
    ],
    top: Annotated[
        int | None, option("How many classes to name.", "3, or as many as there are", min=1)
    ] = None,
    out: Annotated[
        Path | None,
        option(
            "A CSV file for the predictions; one that was cut off is continued.", dir_okay=False
        ),
    ] = None,
    abstain_below: Annotated[
        float | None,
        option("Least probability of a picture's best class.", "the adapter's own", min=0, max=1),
    ] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Classify pictures with a published adapter."""
    from craft_client.remote import RemoteAdapter
    from craft_client.results import BatchProgress, Results, Rows, classify_files, restore, to_ask

    files, left_out = _image_files(images)
    with ExitStack() as stack:
        client = stack.enter_context(connect(url, key))
        remote = RemoteAdapter(client, client.adapter(adapter))
        top = top or min(3, len(remote.card.classes))
        rows = Rows() if out is None else stack.enter_context(Results.opened(out, top))
        if isinstance(rows, Results):
            remote = _continued(rows, remote)
        before = sum(str(path) in rows.images for path in files)
        restored = 0
        if isinstance(rows, Results):
            restored = restore(remote, files, rows, abstain_below)
            left = to_ask(remote, files, rows)
            rows.check_room(left, remote.card.classes)
            calls = _calls_covered(remote, left, top)
            rows.add_left_out(left_out, remote.reference)
            on_classified = stack.enter_context(counting("Classifying pictures", len(files)))
        else:
            check_files(files, remote.limits)
            calls = _calls_covered(remote, files, top)
            on_classified = stack.enter_context(counting("", 0))

        def on_progress(progress: BatchProgress) -> None:
            on_classified(progress.done)

        done = classify_files(
            remote,
            files,
            rows,
            top=top,
            abstain_below=abstain_below,
            calls=calls,
            on_progress=on_progress,
        )
    if done.changed:
        say(
            f"{done.changed:,} pictures were asked for anew: the call that they were in may have "
            "been charged before, and cannot be made again, because its pictures have changed."
        )
    about = {"adapter": remote.card.name, "version": remote.card.version}
    if isinstance(rows, Results):
        counts = {
            "classified": len(files) - before - done.failed,
            "failed": done.failed,
            "left_out": len(left_out),
            "before": before,
            "restored": restored,
        }
        _show_file(rows, about, counts, done.charged, as_json=as_json)
    else:
        _show_rows(rows, about, left_out, done.charged, as_json=as_json)


def _show_rows(
    rows: Rows,
    about: dict[str, Any],
    left_out: Sequence[LeftOut],
    charged: Units,
    *,
    as_json: bool,
) -> None:
    if as_json:
        document(
            {
                **about,
                "images": [
                    {
                        "image": row.image,
                        "classes": [
                            {"class": name, "probability": probability}
                            for name, probability in row.best
                        ],
                        **({} if row.abstained is None else {"abstained": row.abstained}),
                    }
                    for row in rows.rows
                ],
                "left_out": [{"image": str(path), "reason": reason} for path, reason in left_out],
                "charged": charged.model_dump(),
            }
        )
        return
    each_line = rows_are_lines()
    table(
        ["picture", "class", "probability"],
        [
            [
                row.image if rank == 0 or each_line else "",
                f"({name}?)" if row.abstained else name,
                "not shown" if probability is None else percent(100 * probability),
            ]
            for row in rows.rows
            for rank, (name, probability) in enumerate(row.best)
        ],
    )
    if any(row.abstained is not None for row in rows.rows):
        abstained = sum(bool(row.abstained) for row in rows.rows)
        say(f"Abstained from {abstained} of {len(rows.rows)} pictures.")
    say(f"Charged: {units_line(charged)}.")


def _show_file(
    results: Results,
    about: dict[str, Any],
    counts: dict[str, int],
    charged: Units,
    *,
    as_json: bool,
) -> None:
    out = results.file
    if as_json:
        document({**about, "out": str(out), **counts, "charged": charged.model_dump()})
        return
    there = f" {counts['before']:,} were there before." if counts["before"] else ""
    again = (
        f" {counts['restored']:,} of them had been paid for and were lost."
        if counts["restored"]
        else ""
    )
    failed = f" {counts['failed']:,} cannot be used; '{out}' says why." if counts["failed"] else ""
    say(f"Classified {counts['classified']:,} pictures into '{out}'.{again}{failed}{there}")
    if counts["left_out"]:
        say(f"'{out}' has a row for each of the {counts['left_out']:,} that were left out.")
    say(f"Charged: {units_line(charged)}.")


def _continued(rows: Results, remote: RemoteAdapter) -> RemoteAdapter:
    """The version that a file began with, or the one that is asked for now."""
    from craft_client.exceptions import CraftError
    from craft_client.remote import RemoteAdapter

    if rows.adapter not in (None, remote.reference):
        card = remote.card
        remote = RemoteAdapter(remote.client, remote.client.adapter(rows.adapter or ""))
        if (remote.card.owner, remote.card.name) != (card.owner, card.name):
            raise CraftError(
                f"'{rows.file}' holds predictions of {rows.adapter}.",
                remedy="Name another file with --out.",
            )
        say(f"Continuing with {remote.reference}, as '{rows.file}' began.")
    if rows.top > len(remote.card.classes):
        raise CraftError(
            f"The adapter has {len(remote.card.classes)} classes.", remedy="Lower --top."
        )
    return remote


def _calls_covered(remote: RemoteAdapter, files: Sequence[Path], top: int) -> list[list[Path]]:
    """The files of each call; raises BudgetTooSmall where no budget covers them all."""
    from craft_client.blackbox import check_budgets

    calls = remote.file_calls(files, top)
    if remote.card.pays != "publisher":
        check_budgets(
            remote.client.budgets(),
            remote.units(len(calls), len(files), sent=len(files)),
            remedy="Ask for fewer pictures, or ask the provider for a top-up.",
        )
    return calls


def _image_files(images: Sequence[Path]) -> tuple[list[Path], list[LeftOut]]:
    """The images that are named, by themselves or by their folder, and what is left out."""
    from craft_client.layouts import Found, images_named

    everything = sum(map(images_named, images), Found())
    if everything.note:
        say(everything.note)
    files = dict.fromkeys(everything.images)
    return list(files), [one for one in dict.fromkeys(everything.left_out) if one.path not in files]
