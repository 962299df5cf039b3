"""The commands of samdeblur-prep that work on stores that are there: checking, sharing, exchange, parts and sums."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from samdeblur.cli.messages import FAILED, QUARANTINED, progress_bar
from samdeblur.cli.support.choices import EXPORTS, IMPORTS
from samdeblur.cli.support.commands import Command
from samdeblur.cli.support.paths import EITHER, FILE, PLACE, READ, STORE
from samdeblur.storage.access.location import without_secrets
from samdeblur.storage.files import decode_text, naming
from samdeblur.storage.format import layout
from samdeblur.storage.names import select
from samdeblur.storage.plurals import counted

if TYPE_CHECKING:
    from samdeblur.storage import MaskStore

DIFFERENT = 1
SIZES = 10  # of images, named by info
BAR = 40  # characters of the longest bar of a histogram

overwrite_option = click.option("--overwrite", is_flag=True, help="Replace TARGET when it is there.")


store_target = click.argument("target", type=STORE)


def check_file(target: Path, overwrite: bool) -> None:
    """Raise UsageError for a file that must not be written."""
    if target.is_dir():
        raise click.UsageError(f"{target}: a folder; name a file")
    if target.exists() and not target.is_file():
        raise click.UsageError(f"{target}: a pipe, a device or a socket, which no file replaces; choose another name")
    if target.exists() and not overwrite:
        raise click.UsageError(f"{target}: is there already; choose another name, or --overwrite it")


@contextmanager
def image_bar(total: int | None, name: str) -> Iterator[Callable[[int], None]]:
    """A progress bar that is told how many images more are done."""
    with progress_bar(total=total, unit="img", desc=name) as bar:

        def progress(images: int) -> None:
            bar.update(images)

        yield progress


@click.command(cls=Command)
@click.argument("store", type=PLACE)
@click.option("--deep", metavar="SOURCE", help="Also compare the digests with the images of this dataset.")
@click.option("--layout", default="auto", show_default=True, help="Layout of SOURCE, as in run.")
@click.option("--skip-unpaired", is_flag=True, help="Leave out images of SOURCE without a counterpart.")
def verify(store: str, deep: str | None, layout: str, skip_unpaired: bool) -> int:
    """Check every file, table and checksum of STORE. Exit code 1 and one line per problem if anything is wrong."""

    from samdeblur.pipeline import status
    from samdeblur.storage import open_store
    from samdeblur.storage.sharing.verify import verify_store

    problems = 0
    if "://" not in store and not Path(store).exists():
        raise FileNotFoundError(f"{store}: no such store")
    for problem in verify_store(store):
        problems += 1
        click.echo(problem)
    if deep and not problems:
        from samdeblur.pipeline import open_source
        from samdeblur.pipeline.sources.dataset import source_problems

        opened = open_store(store)
        source = open_source(deep, opened.header.split, layout, skip_unpaired=skip_unpaired)
        with image_bar(len(opened), "digests") as progress:
            for problem in source_problems(opened, source, progress):
                problems += 1
                click.echo(problem)
    if problems:
        click.echo(f"{counted(problems, 'problem')} found")
        return FAILED
    found = status(store)
    click.echo(f"{without_secrets(store)}: sound; {found.done} of {counted(len(found.store), 'image')} done")
    return 0


@click.command(cls=Command)
@click.argument("store", type=PLACE)
@click.argument("target", type=EITHER, required=False)
@overwrite_option
@click.option("--push", metavar="hf://...", help="zip: publish it there on the Hugging Face Hub, with a dataset card.")
@click.option("--private", is_flag=True, help="--push: make a new repository private.")
@click.option("--format", "form", type=click.Choice(["zip", "hdf5", *EXPORTS]), help="Format.  [default: by TARGET]")
@click.option("--with-images", is_flag=True, help="zip, hdf5: let the images go along; masks alone by default.")
@click.option("--licence", default="not stated", help="zip, hdf5, coco-instances: licence of the masks.")
@click.option("--images", type=READ, help="coco-instances: folder of the images, for the names of their files.")
@click.option("--suffix", default="", metavar=".png", help="coco-instances: suffix added to the names of images.")
@click.option("--ome", is_flag=True, help="The same as --format ome-zarr.")
@click.option("--codec", type=click.Choice(["gzip", "zstd"]), help="hdf5: zstd needs hdf5plugin.  [default: gzip]")
def export(
    store: str,
    target: Path | None,
    overwrite: bool,
    push: str | None,
    private: bool,
    form: str | None,
    with_images: bool,
    licence: str,
    images: Path | None,
    suffix: str,
    ome: bool,
    codec: Any,
) -> int:
    """Write STORE as one file to share (zip, hdf5), or in a format of others.

    A zip (.zip) or HDF5 file (.h5, .hdf5) opens with open_store and trains without unpacking; its SHA-256 goes to
    TARGET.sha256. --push hf://datasets/USER/REPOSITORY/NAME.zip puts the zip on the Hugging Face Hub, where everything
    here reads it by that address (pip install 'samdeblur[hub]', HF_TOKEN). coco-instances and coco-results are one JSON
    file, parquet has a row per mask, sa-1b is a folder with a file per image, ome-zarr one with a group per image; a
    note says what such a format cannot hold.
    """

    from samdeblur.storage import open_store
    from samdeblur.storage.exchange.convert import export_masks
    from samdeblur.storage.sharing.export import export_hdf5, export_zip

    form = "ome-zarr" if ome else form
    if push:
        from samdeblur.storage.sharing.push import push_store

        if form not in (None, "zip") or (target and target.suffix != ".zip"):
            raise click.UsageError("--push is for zip")
        if target:
            check_file(target, overwrite)
        address = push_store(Path(store), push, target, with_images, licence, _may_replace(overwrite), private)
        _say_left_behind(open_store(store))
        click.echo(f"{address}: pushed")
        return 0
    if target is None:
        raise click.UsageError("name TARGET, the file to write, or --push it")
    form = form or {".zip": "zip", ".h5": "hdf5", ".hdf5": "hdf5", ".parquet": "parquet"}.get(target.suffix)
    if form is None:
        raise click.UsageError(f"{target}: name it .zip, .h5 or .hdf5, or give --format")
    if (images or suffix) and form != "coco-instances":
        raise click.UsageError("--images and --suffix are for coco-instances")
    if codec and form != "hdf5":
        raise click.UsageError("--codec is for HDF5")
    if form not in ("sa-1b", "ome-zarr"):
        check_file(target, overwrite)
    if form in EXPORTS:
        coco = form == "coco-instances"
        if with_images or (licence != "not stated" and not coco):
            raise click.UsageError(f"--with-images and --licence are not for {form}")
        opened = open_store(store)
        about: dict[str, Any] = {"licence": "" if licence == "not stated" else licence} if coco else {}
        if coco and (images or suffix):
            from samdeblur.storage.exchange.originals import image_names

            about["file_name"] = image_names(opened.ready_keys, images, suffix)
        with image_bar(len(opened), form) as progress, naming(target):
            lost = export_masks(opened, target, form, progress, **about)
        _say_lost(lost)
        click.echo(f"{target}: {counted(len(opened.ready_keys), 'image')} as {form}")
        return 0
    source = READ.convert(store, None, None)
    if form == "hdf5":
        export_hdf5(source, target, with_images, licence, codec or "gzip")
    else:
        export_zip(source, target, with_images, licence)
    _say_left_behind(open_store(store))
    click.echo(f"{target}: {target.stat().st_size / 1e6:.1f} MB; checksum in {target.name}.sha256")
    return 0


@click.command("import", cls=Command)
@click.argument("source", type=READ)
@store_target
@click.option("--format", "form", type=click.Choice(IMPORTS), help="Format of SOURCE.  [default: recognised]")
@click.option("--split", required=True, help="Split the masks are of: train, test, ...")
@click.option("--dataset", help="Name written into the store.  [default: SOURCE's]")
@click.option("--images", type=READ, help="Folder of the images, for sizes and digests.")
@click.option("--categories", metavar="NAME,...", help="COCO: read the annotations of these alone, by name or id.")
@click.option("--strict", is_flag=True, help="Refuse a file with unusable entries instead of leaving them out.")
def import_command(
    source: Path,
    target: Path,
    form: str | None,
    split: str,
    dataset: str | None,
    images: Path | None,
    categories: str | None,
    strict: bool,
) -> int:
    """Make a store TARGET of masks in other files.

    SOURCE is a COCO file (instances or results), a Parquet file as export writes it, the output folder of Segment
    Anything's scripts/amg.py, a folder of SA-1B JSON files, or a folder of the grey PNG or grouped npz files of the
    released SAM-Deblur. Notes say what the format does not hold. Entries that cannot be used are left out and named
    (exit code 3), unless --strict.
    """
    from samdeblur.storage import open_store
    from samdeblur.storage.exchange.annotations import LEFT_OUT
    from samdeblur.storage.exchange.convert import import_masks

    wanted = [name.strip() for name in (categories or "").split(",") if name.strip()]
    with image_bar(None, "import") as progress:
        lost = import_masks(source, target, form, dataset or source.stem, split, images, progress, strict, wanted)
    _say_lost(lost)
    code = _say_made(open_store(target))
    return QUARANTINED if any(line.startswith(LEFT_OUT) for line in lost) else code


@click.command("subset", cls=Command)
@click.argument("store", type=PLACE)
@store_target
@click.option("--keys", "patterns", multiple=True, metavar="GLOB", help="Names to take, as 'GOPR0384*'; repeatable.")
@click.option("--keys-from", type=click.File("rb"), help="File with a name per line; - for standard input.")
def subset_command(store: str, target: Path, patterns: tuple[str, ...], keys_from: Any) -> int:
    """Write the images of STORE whose names match into a store TARGET."""

    from samdeblur.storage import open_store
    from samdeblur.storage.writing.combine import subset

    if not patterns and keys_from is None:
        raise click.UsageError("say which images: --keys or --keys-from")
    opened = open_store(store)
    keys = []
    for pattern in patterns:
        if not (found := select(opened.keys, pattern)):
            raise click.UsageError(f"{opened.path}: no name matches {pattern!r} (the first is {opened.keys[0]!r})")
        keys += found
    for line in _lines(keys_from) if keys_from is not None else ():
        if line not in opened:
            raise click.UsageError(f"{keys_from.name}: {opened.path} has no image {line!r}")
        keys.append(line)
    if not keys:
        raise click.UsageError(f"{keys_from.name}: no names in it")
    with image_bar(len(keys), "subset") as progress:
        return _say_made(subset(opened, target, keys, progress), opened)


def _lines(file: IO[bytes]) -> list[str]:
    """The lines of a text file that are not empty. Raises UsageError."""
    try:
        return [line.strip() for line in re.split(r"[\r\n]+", decode_text(file.read())) if line.strip()]
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{file.name}: not text in UTF-8 or UTF-16 ({error.reason})") from error


@click.command("merge", cls=Command)
@click.argument("stores", nargs=-1, required=True, type=PLACE)
@store_target
def merge_command(stores: tuple[str, ...], target: Path) -> int:
    """Write several partial STORES of one dataset and recipe into one store TARGET.

    Of an image in several stores the one that is done is taken; two that are done must be equal.
    """

    from samdeblur.storage import open_store
    from samdeblur.storage.writing.combine import merge

    opened = [open_store(store) for store in stores]
    if len(opened) < 2:
        raise click.UsageError("name two stores or more, then the one to write")
    with image_bar(sum(map(len, opened)), "merge") as progress:
        return _say_made(merge(opened, target, progress), *opened)


@click.command("append", cls=Command)
@click.argument("store", type=PLACE)
@click.argument("more", type=PLACE)
@store_target
def append_command(store: str, more: str, target: Path) -> int:
    """Write the images of STORE, then the new ones of the store MORE, into a store TARGET.

    MORE is what `samdeblur-prep run` made of the new images, with the same recipe.
    """

    from samdeblur.storage import open_store
    from samdeblur.storage.writing.combine import append

    opened, other = open_store(store), open_store(more)
    with image_bar(len(opened) + len(other), "append") as progress:
        return _say_made(append(opened, other, target, progress), opened, other)


@click.command("diff", cls=Command)
@click.argument("first", type=PLACE)
@click.argument("second", type=PLACE)
@click.option("--with-images/--without-images", default=True, show_default=True, help="Compare the images too.")
def diff_command(first: str, second: str, with_images: bool) -> int:
    """Say what two stores differ in, however their files lie. Exit code 1 if anything."""

    from samdeblur.storage import open_store
    from samdeblur.storage.writing.compare import store_differences

    differences = 0
    for line in store_differences(open_store(first), open_store(second), with_images):
        differences += 1
        click.echo(line)
    click.echo(f"{counted(differences, 'difference')}" if differences else "no differences")
    return DIFFERENT if differences else 0


@click.command("info", cls=Command)
@click.argument("store", type=PLACE)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def info_command(store: str, as_json: bool) -> int:
    """Say what STORE holds: counts, sizes, bytes, masks per image, recipe."""

    from samdeblur.storage import open_store
    from samdeblur.storage.sharing.info import describe

    found = describe(open_store(store))
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return 0
    states = ", ".join(f"{n} {state}" for state, n in found["images"].items())
    click.echo(f"{found['dataset']} {found['split']}: {states}")
    sizes = [f"{size} ({n})" for size, n in found["sizes"].items()]
    more = f" and {counted(len(sizes) - SIZES, 'size')} more" if len(sizes) > SIZES else ""
    click.echo(f"sizes: {', '.join(sizes[:SIZES])}{more}" if sizes else "sizes: none known yet")
    for name, column in found["per_image"].items():
        if column:
            click.echo(f"{name} per image: {column['mean']:.0f}, at most {column['most']}")
    if found["bytes"]:
        done = max(1, found["images"]["done"])
        click.echo(
            "bytes: "
            + ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in found["bytes"].items())
            + f"; {found['bytes']['all'] / done / 1e3:.1f} kB per image"
        )
    highest = max(1, *found["masks_per_image"].values())
    click.echo("masks per image:")
    for label, n in found["masks_per_image"].items():
        click.echo(f"  {label:>9} {n:>8} {'#' * round(BAR * n / highest)}".rstrip())
    click.echo(f"recipe {found['fingerprint'][:12]}:")
    click.echo(json.dumps(found["recipe"], indent=1))
    return 0


@click.command("view", cls=Command)
@click.argument("store", type=PLACE)
@click.argument("target", type=FILE)
@overwrite_option
@click.option("--keys", metavar="GLOB", help="Images to show, by name.")
@click.option("--count", type=click.IntRange(1), default=48, show_default=True, help="Images to show, spread evenly.")
@click.option("--images", type=READ, help="Folder of the images, for a store without.")
@click.option("--width", type=click.IntRange(32, 4096), default=480, show_default=True, help="Width of an image.")
def view_command(
    store: str, target: Path, overwrite: bool, keys: str | None, count: int, images: Path | None, width: int
) -> int:
    """Write a contact sheet of STORE, TARGET.html: one file that works offline; hover over a mask to see its record."""

    from samdeblur.storage import open_store
    from samdeblur.storage.sharing.view import contact_keys, write_view

    check_file(target, overwrite)
    opened = open_store(store)
    shown = contact_keys(opened, keys, count)
    with image_bar(len(shown), "view") as progress:
        write_view(opened, target, shown, images, width, progress)
    click.echo(f"{target}: {len(shown)} of {counted(len(opened), 'image')}, {target.stat().st_size / 1e6:.1f} MB")
    return 0


@click.command("add-images", cls=Command)
@click.argument("store", type=PLACE)
@click.argument("source", type=PLACE)
@store_target
@click.option("--layout", default="auto", show_default=True, help="Layout of SOURCE, as in run.")
@click.option("--skip-unpaired", is_flag=True, help="Leave out images of SOURCE without a counterpart.")
def add_images_command(store: str, source: str, target: Path, layout: str, skip_unpaired: bool) -> int:
    """Write the masks of STORE, a share without images, with those of your copy of the dataset, SOURCE, into TARGET.

    TARGET is then as good to train on as if you had made the masks. Images are compared by their digests; an image
    that is missing or another one is quarantined.
    """

    from samdeblur.pipeline import open_source
    from samdeblur.pipeline.sources.dataset import add_images
    from samdeblur.storage import open_store

    opened = open_store(store)
    pairs = open_source(source, opened.header.split, layout, skip_unpaired=skip_unpaired)
    with image_bar(len(opened), "add-images") as progress:
        return _say_made(add_images(opened, pairs, target, progress), opened)


COMMANDS = (
    add_images_command,
    verify,
    export,
    import_command,
    info_command,
    view_command,
    diff_command,
    subset_command,
    merge_command,
    append_command,
)


def _may_replace(overwrite: bool) -> Callable[[str], bool]:
    """Asks before what is published is replaced; where nobody can answer the answer is no."""

    def ask(what: str) -> bool:
        return overwrite or (sys.stdin.isatty() and click.confirm(f"{what}. Replace it?", err=True))

    return ask


def _say_left_behind(*made_of: MaskStore) -> None:
    for store in made_of:
        if store.header.embeddings:
            click.echo(f"note: embeddings stay in {store.path}", err=True)


def _say_lost(lost: list[str]) -> None:
    for line in lost:
        click.echo(f"note: {line}", err=True)


def _say_made(store: MaskStore, *made_of: MaskStore) -> int:
    import numpy as np

    _say_left_behind(*made_of)
    quarantined = [store.keys[i] for i in np.flatnonzero(store.states == layout.QUARANTINED)]
    click.echo(
        f"{store.path}: {len(store.ready_keys)} of {counted(len(store), 'image')} done, {len(quarantined)} quarantined"
    )
    for key in quarantined:
        click.echo(f"  quarantined {key}: {store.error(key)}")
    return QUARANTINED if quarantined else 0
