"""--images: a dataset's own images, for stores that hold masks alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from samdeblur.cli.support.paths import PLACE
from samdeblur.storage.format.layout import PENDING, QUARANTINED
from samdeblur.storage.plurals import counted

if TYPE_CHECKING:
    from samdeblur.storage import MaskStore

NAMED = 8  # images named in a message


def images_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--images and --images-layout, as the parameters `images`, a tuple of folders, and `images_layout`."""
    images = click.option(
        "--images", multiple=True, type=PLACE, metavar="FOLDER",
        help="Dataset to take the images from, for a store without; one for each STORE, in their order.",
    )  # fmt: skip
    layout = click.option(
        "--images-layout", metavar="LAYOUT", help="Layout of --images, as for samdeblur-prep run.  [default: auto]"
    )
    return images(layout(command))


def with_all_images(stores: Sequence[MaskStore], folders: Sequence[str], layout: str | None = None) -> list[MaskStore]:
    """Each store with the images of the folder at its place; the stores as they are when there are no folders.

    Raises:
        UsageError: other than one folder per store, or a layout of no folder.
        FileNotFoundError, SourceError, StoreError: as `with_images`.
    """
    if not folders:
        if layout is not None:
            raise click.UsageError("--images-layout is for --images")
        return list(stores)
    if len(folders) != len(stores):
        raise click.UsageError(
            f"--images: one folder for each store, in the same order; {len(folders)} given for {len(stores)}"
        )
    return [with_images(store, folder, layout or "auto") for store, folder in zip(stores, folders, strict=True)]


def with_images(store: MaskStore, folder: str, layout: str = "auto") -> MaskStore:
    """The store with the images of a dataset in place of any of its own; says on stderr which are not there.

    Args:
        folder: anything that `samdeblur-prep run` takes as SOURCE; of it the split that the store is of.

    Raises:
        FileNotFoundError, SourceError: no such folder, or no such split of a dataset in it.
        StoreError: no image of the store in it, or digests of another kind.
    """

    from samdeblur.pipeline import open_source
    from samdeblur.pipeline.sources.external_images import with_dataset

    source = open_source(folder, store.header.split, layout, skip_unpaired=True)
    joined = with_dataset(store, source, folder)
    ready, there = store.ready_keys, set(joined.ready_keys)
    missing = [key for key in ready if key not in there]
    if missing:
        click.echo(
            f"{folder}: {len(missing):,} of the {counted(len(ready), 'image')} ready in {store.path} are not "
            f"there, such as {missing[0]}; left out",
            err=True,
        )
    return joined


def say_left_out(store: MaskStore) -> None:
    """Name on stderr the images of a store that have no masks, and why."""
    waiting = [key for key, state in zip(store.keys, store.states, strict=True) if state == PENDING]
    bad = [key for key, state in zip(store.keys, store.states, strict=True) if state == QUARANTINED]
    done = len(store) - len(waiting) - len(bad)
    if not done or done == len(store):  # where none is ready, the error says so
        return
    parts = (
        [f"{len(bad)} quarantined ({some([f'{key}: {store.error(key)}' for key in bad[:NAMED]], len(bad))})"]
        if bad
        else []
    )
    parts += [f"{len(waiting)} not prepared yet ({some(waiting)})"] if waiting else []
    click.echo(f"{store.path}: {done} of {counted(len(store), 'image')}; {'; '.join(parts)}", err=True)


def some(names: Sequence[str], count: int = 0) -> str:
    """The first of some names, and how many more there are."""
    more = max(count, len(names)) - len(names[:NAMED])
    return ", ".join(names[:NAMED]) + (f" and {more:,} more" if more else "")
