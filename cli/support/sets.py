"""What `samdeblur-eval run` is given to evaluate on: stores, folders of pairs, folders of blurred images."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import click

from samdeblur.cli.support.images import say_left_out, some, with_all_images
from samdeblur.cli.support.segmenting import MaskOptions, Segmenter
from samdeblur.storage.listing import image_files, is_image, is_unread

if TYPE_CHECKING:
    import torch

    from samdeblur.evaluation.sets import ImageSet, LooseSet, Sample, StoreSet
    from samdeblur.pipeline import Source
    from samdeblur.storage import MaskStore


@dataclass(frozen=True)
class Loose:
    """How folders without a store are read, and how their masks are found."""

    split: str | None  # None: test, where there are splits
    layout: str | None  # None: whatever it looks like
    masks: MaskOptions
    with_masks: bool  # whether the network looks at masks
    device: torch.device  # of this process
    unscored: bool = False  # whether images without sharp ones are of use


def open_sets(
    locations: Sequence[str], loose: Loose, images: Sequence[str], images_layout: str | None
) -> list[ImageSet]:
    """The sets at some places, each with a name of its own; `images` are the stores' image folders.

    Raises:
        UsageError: masks are needed and no segmenter is named, or one is named and nothing needs it; a set twice;
            images that have nothing to be scored by; folders that hold something else.
        FileNotFoundError, StoreError, SourceError: nothing there that can be evaluated.
    """

    from samdeblur.storage import open_store

    places = [os.path.realpath(location) if os.path.exists(location) else location for location in locations]
    if twice := next(
        (location for location, place in zip(locations, places, strict=True) if places.count(place) > 1), ""
    ):
        raise click.UsageError(f"{twice}: given twice")
    for location in locations:
        _refuse_others(location)
    is_store = [_is_store(location) for location in locations]
    stores = [open_store(location) for location, known in zip(locations, is_store, strict=True) if known]
    if loose.masks.given and all(is_store):
        raise click.UsageError(f"{loose.masks.given} is for folders of images; the masks of a store are in it")
    ready = iter(with_all_images(stores, images, images_layout))
    sources = [None if known else _open_source(place, loose) for place, known in zip(locations, is_store, strict=True)]
    segmenter = _segmenter(loose) if loose.with_masks and not all(is_store) else None
    opened: list[ImageSet] = [
        _of_store(next(ready)) if source is None else source.with_masks(segmenter) for source in sources
    ]
    for found, location in zip(opened, locations, strict=True):
        found.dataset = _dataset_name(found, location)
    _make_names_distinct(opened, locations)
    return opened


def _segmenter(loose: Loose) -> Segmenter:
    if not (loose.masks.sam or loose.masks.segmenter):
        raise click.UsageError(
            "the network uses masks, and a folder of images has none: give --sam bundled (or a checkpoint), "
            "or prepare a store with samdeblur-prep run"
        )
    return Segmenter(loose.masks, loose.device)


def _refuse_others(location: str) -> None:
    """Raise UsageError for what is no set: a run, results, an image."""

    from samdeblur.storage import folders

    path = Path(location)
    if path.is_file() and is_image(path.name):
        raise click.UsageError(
            f"{location}: one image, with nothing to score it by; restore it with samdeblur-eval restore RUN "
            f"{location} --out FOLDER"
        )
    kind = folders.kind_of(path) if path.is_dir() else None
    if kind not in (None, folders.STORE):
        swapped = "; swapped? It is samdeblur-eval run RUN STORE|FOLDER..." if kind == folders.RUN else ""
        raise click.UsageError(f"{location}: holds {folders.WORDS[kind]}, and no images to score{swapped}")


def _dataset_name(found: ImageSet, location: str) -> str:
    """The name of the dataset, if it has as many images as its authors count; else that of the folder or the file."""

    from samdeblur.pipeline.sources.layouts import LAYOUTS

    images = len(found.keys) + len(found.left_out)
    layout = next((of for of in LAYOUTS.values() if of.dataset and of.dataset.lower() == found.dataset.lower()), None)
    if layout is None or layout.dataset is None:
        return found.dataset
    published = layout.published.get(found.split)
    if published == images:
        return layout.dataset
    name = _name_of_place(location)
    counted = f"{published:,} images" if published else f"no split {found.split}"
    click.echo(f"note: {location}: named {name}: {layout.dataset} has {counted}, this has {images:,}", err=True)
    return name


def _name_of_place(location: str) -> str:
    """The last part of a path or an address, without the endings of stores."""
    path = location.split("?")[0] if "://" in location else os.path.abspath(location)
    name = path.rstrip("/").rsplit("/", 1)[-1]
    for ending in (".zip", ".hdf5", ".h5", ".zarr"):
        name = name.removesuffix(ending)
    return name or "images"


def _make_names_distinct(opened: Sequence[ImageSet], locations: Sequence[str]) -> None:
    """Sets of one name get as much of their places into it as makes them differ."""

    from samdeblur.evaluation.tables.arrangement import distinct_labels

    same: dict[tuple[str, str, str], list[int]] = {}
    for position, images in enumerate(opened):
        same.setdefault((images.dataset, images.split, images.recipe), []).append(position)
    for positions in same.values():
        if len(positions) > 1:
            names = [opened[position].dataset for position in positions]
            for position, name in zip(
                positions, distinct_labels(names, [locations[position] for position in positions]), strict=True
            ):
                opened[position].dataset = name


def _of_store(store: MaskStore) -> StoreSet:
    from samdeblur.evaluation.sets import StoreSet

    say_left_out(store)
    return StoreSet(store)


def _is_store(location: str) -> bool:
    from samdeblur.pipeline.sources.opening import embedded

    path = Path(location)
    if not path.is_dir():
        return path.exists() or not embedded(location)
    return (path / "zarr.json").exists()


@dataclass(frozen=True)
class _ImageList:
    """The images of a folder, or of a source of this package.

    Attributes:
        files: key -> the files that it is read from.
        made_by: what makes them, where no files do.
    """

    dataset: str
    split: str
    keys: Sequence[str]
    read: Callable[[str], Sample]
    files: Mapping[str, Sequence[Path]]
    made_by: str = ""

    def with_masks(self, segmenter: Segmenter | None) -> LooseSet:
        from samdeblur.evaluation.sets import LooseSet

        recipe, kind = (segmenter.recipe, segmenter.kind) if segmenter is not None else ("", "")
        return LooseSet(
            self.dataset, self.split, recipe, self.keys, self.read, segmenter, self.files, self.made_by, kind
        )


def _open_source(location: str, loose: Loose) -> _ImageList:
    """Pairs in a known layout, else blurred images alone."""

    from samdeblur.pipeline import open_source
    from samdeblur.pipeline.sources.base import SourceError
    from samdeblur.pipeline.sources.layouts import has_layout
    from samdeblur.pipeline.sources.opening import embedded

    root = Path(os.path.abspath(location))
    asked = loose.split is not None or loose.layout is not None
    if not asked and not embedded(location) and root.is_dir() and not has_layout(root) and image_files(root):
        if not loose.unscored:
            raise click.UsageError(
                f"{location}: images without sharp ones, which cannot be scored; restore them with samdeblur-eval "
                f"restore RUN {location} --out FOLDER. (--metric niqe and others of pyiqa need no sharp images)"
            )
        alone = _readable(root)
        files = {key: (path,) for key, path in alone.items()}
        return _ImageList(root.resolve().name, "blurred", list(alone), lambda key: _read_alone(alone[key]), files)
    try:
        source = open_source(location, loose.split or "test", loose.layout or "auto")
    except SourceError as error:
        raise SourceError(f"{location}: not a mask store, and not images: {error}") from error
    for note in source.notes:
        click.echo(f"note: {note}", err=True)
    if root.is_dir() and not embedded(location) and (strays := list(filter(is_image, os.listdir(root)))):
        click.echo(f"note: {location}: ignored, as they belong to no pair: {some(sorted(strays))}", err=True)
    made_by = "" if hasattr(source, "files") else f"{location} {source.split} samdeblur {metadata.version('samdeblur')}"
    return _ImageList(
        source.dataset,
        source.split,
        source.keys,
        lambda key: _read_pair(source, key),
        getattr(source, "files", {}),
        made_by,
    )


def _readable(folder: Path) -> dict[str, Path]:
    """The images of a folder; says which are in forms that are not read. Raises SourceError when all are."""

    from samdeblur.pipeline.sources.base import SourceError
    from samdeblur.pipeline.sources.listing import images_in, unread_forms

    found = images_in(folder)
    files = {key: path for key, path in found.items() if not is_unread(path)}
    if len(files) < len(found):
        line = f"left out in formats that are not read: {unread_forms([found.values()])}"
        if not files:
            raise SourceError(f"{folder}: no image that can be read, {line}")
        click.echo(f"note: {folder}: {line}", err=True)
    return files


def _read_alone(path: Path) -> Sample:
    from samdeblur.evaluation.sets import Sample, UnusableImage
    from samdeblur.pipeline import BadImage
    from samdeblur.storage.decode import read_image

    try:
        return Sample(read_image(path), None)
    except BadImage as error:
        raise UnusableImage(str(error)) from error


def _read_pair(source: Source, key: str) -> Sample:
    from samdeblur.evaluation.sets import Sample, UnusableImage
    from samdeblur.pipeline import BadImage

    try:
        pair = source.read(key)
    except BadImage as error:
        raise UnusableImage(str(error)) from error
    return Sample(pair.blurred, pair.sharp)
