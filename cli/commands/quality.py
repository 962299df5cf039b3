"""samdeblur-prep quality: what can be said of a store's masks before anything is trained with them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from samdeblur.cli.commands.stores import image_bar
from samdeblur.cli.support.commands import Command
from samdeblur.cli.support.paths import FILE, PLACE

ROWS = (
    ("masks", "masks per image", "{:.0f}"),
    ("covered", "of the pixels lie under a mask", "{:.0%}"),
    ("overlap", "masks over such a pixel", "{:.2f}"),
    ("on_edges", "of the places near a border change less than it (0.50: it lies anywhere)", "{:.2f}"),
    ("iou", "IoU of a mask of the reference with the best of these", "{:.2f}"),
    ("recall", "of the reference's masks are found at IoU 0.5", "{:.0%}"),
    ("precision", "of these masks are in the reference at IoU 0.5", "{:.0%}"),
    ("border_error", "px from a border of the reference to these", "{:.2f}"),
    ("border_surplus", "px from a border of these to the reference", "{:.2f}"),
)


@click.command(cls=Command)
@click.argument("stores", nargs=-1, required=True, type=PLACE)
@click.option("--reference", type=PLACE, help="A store with other masks of the same images, to compare with.")
@click.option(
    "--most", default=50, show_default=True, type=click.IntRange(0), help="Images of each, evenly chosen; 0: all."
)
@click.option("--out", type=FILE, help="Also write the figures of every image, as JSON.")
def quality(stores: tuple[str, ...], reference: str | None, most: int, out: Path | None) -> None:
    """Say how good the masks of STORES look: what they cover, and whether borders lie on the image's edges.

    With --reference (the true masks of worlds, masks of the sharp images, those of another segmenter) also how many of
    its masks are found and how far borders are apart. docs/which-masks.md says what to make of it.
    """
    from samdeblur.evaluation.masks.quality import expected_share, mean, store_quality
    from samdeblur.storage import open_store
    from samdeblur.storage.files import write_durably

    beside = open_store(reference) if reference else None
    opened = {place: open_store(place) for place in stores}
    found = {}
    for place, store in opened.items():
        keys = store.ready_keys
        if beside:
            keys = [key for key in keys if key in set(beside.ready_keys)]
            if not keys:
                raise click.UsageError(f"{place}: none of its images is in {reference}")
        if not keys:
            raise click.UsageError(f"{place}: no image is prepared")
        if most and len(keys) > most:
            keys = [keys[number * len(keys) // most] for number in range(most)]
        with image_bar(len(keys), store.path.name) as progress:
            found[place] = store_quality(store, keys, beside, progress)
    means = {place: mean(list(images.values())) for place, images in found.items()}
    for place, images in found.items():
        click.echo(f"{opened[place].path}: mean of {len(images)} images")
        for name, words, form in ROWS:
            value = getattr(means[place], name)
            if value == value:
                click.echo(f"  {form.format(value):>6}  {words}")
        if (share := expected_share(means[place])) == share:
            click.echo(f"  {share:>6.0%}  of what true masks bring MAP is to be expected, were the reference true")
    if out:
        content = {
            str(opened[place].path): {key: asdict(one) for key, one in images.items()}
            for place, images in found.items()
        }
        write_durably(out, json.dumps(_without_nan(content), indent=1).encode())
        click.echo(f"{out}: every image")


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    return None if value != value else value
