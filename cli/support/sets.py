"""What `samdeblur-eval run` is given to evaluate on: stores, folders of pairs, folders of blurred pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray

from samdeblur.cli.support.images import with_all_images
from samdeblur.evaluation.sets import ImageSet, LooseSet, Sample, StoreSet, UnusableImage
from samdeblur.pipeline import BUNDLED_SETTINGS, BadImage, PrepSettings, Source, Weights, open_source
from samdeblur.pipeline.job.recipe import load_stages
from samdeblur.pipeline.sources.base import SourceError
from samdeblur.pipeline.sources.listing import images_in, unread_forms
from samdeblur.pipeline.sources.opening import embedded
from samdeblur.storage import AtomMap, MaskStore, open_store
from samdeblur.storage.decode import read_image
from samdeblur.storage.format.layout import fingerprint
from samdeblur.storage.listing import is_image, is_unread


@dataclass(frozen=True)
class Loose:
    """How folders without a store are read, and how their masks are found."""

    split: str
    layout: str
    sam: str | None
    with_masks: bool  # whether the network looks at masks
    device: torch.device  # of this process


def open_sets(
    locations: Sequence[str], loose: Loose, images: Sequence[str], images_layout: str | None
) -> list[ImageSet]:
    """The sets at some places; `images` are the folders of pictures for the stores among them.

    Raises:
        UsageError: masks are needed and no segmenter is named, or one is named and nothing needs it.
        FileNotFoundError, StoreError, SourceError: nothing there that can be evaluated.
    """
    is_store = [_is_store(location) for location in locations]
    stores = [open_store(location) for location, known in zip(locations, is_store, strict=True) if known]
    if loose.sam is not None and all(is_store):
        raise click.UsageError("--sam is for folders of pictures; the masks of a store are in it")
    ready = iter(with_all_images(stores, images, images_layout))
    sources = [None if known else _open_source(place, loose) for place, known in zip(locations, is_store, strict=True)]
    segmenter = _Segmenter(loose) if loose.with_masks and not all(is_store) else None
    return [_of_store(next(ready)) if source is None else source.with_masks(segmenter) for source in sources]


def _of_store(store: MaskStore) -> StoreSet:
    found = StoreSet(store)
    if found.unready:
        click.echo(f"{store.path}: {found.unready} of {len(store)} images are not ready and are left out", err=True)
    return found


def _is_store(location: str) -> bool:
    path = Path(location)
    if not path.is_dir():
        return path.exists() or not embedded(location)
    return (path / "zarr.json").exists()


class _Segmenter:
    """Segment Anything for blurred pictures."""

    def __init__(self, loose: Loose) -> None:
        if loose.sam is None:
            raise click.UsageError(
                "the network looks at masks, and a folder of pictures has none: give --sam bundled (or a checkpoint), "
                "or prepare a store with samdeblur-prep run"
            )
        settings = BUNDLED_SETTINGS if loose.sam == "bundled" else {}
        self.settings = PrepSettings(sam=Weights.of_sam(loose.sam), sam_settings=settings, device=loose.device.type)
        self.recipe = fingerprint(self.settings.recipe())
        self._stages = load_stages(self.settings, loose.device)

    def __call__(self, blurred: NDArray[np.uint8]) -> tuple[AtomMap, dict[str, NDArray[np.float64]]]:
        assert self._stages.segmenter is not None
        return self._stages.segmenter.segment(blurred)


@dataclass(frozen=True)
class _Pictures:
    """The images of a folder."""

    dataset: str
    split: str
    keys: Sequence[str]
    read: Callable[[str], Sample]

    def with_masks(self, segmenter: _Segmenter | None) -> LooseSet:
        recipe = segmenter.recipe if segmenter is not None else ""
        return LooseSet(self.dataset, self.split, recipe, self.keys, self.read, segmenter)


def _open_source(location: str, loose: Loose) -> _Pictures:
    folder = Path(location)
    if folder.is_dir() and any(is_image(name) for name in os.listdir(folder)):
        files = _readable(folder)
        return _Pictures(folder.resolve().name, "blurred", list(files), lambda key: _read_alone(files[key]))
    try:
        source = open_source(location, loose.split, loose.layout)
    except SourceError as error:
        raise SourceError(f"{location}: not a mask store, and not pictures: {error}") from error
    for note in source.notes:
        click.echo(f"note: {note}", err=True)
    return _Pictures(source.dataset, source.split, source.keys, lambda key: _read_pair(source, key))


def _readable(folder: Path) -> dict[str, Path]:
    """The pictures of a folder; says which are in forms that are not read. Raises SourceError when all are."""
    found = images_in(folder)
    files = {key: path for key, path in found.items() if not is_unread(path)}
    if len(files) < len(found):
        line = f"left out in forms that are not read: {unread_forms([found.values()])}"
        if not files:
            raise SourceError(f"{folder}: no picture that can be read, {line}")
        click.echo(f"note: {folder}: {line}", err=True)
    return files


def _read_alone(path: Path) -> Sample:
    try:
        return Sample(read_image(path), None)
    except BadImage as error:
        raise UnusableImage(str(error)) from error


def _read_pair(source: Source, key: str) -> Sample:
    try:
        pair = source.read(key)
    except BadImage as error:
        raise UnusableImage(str(error)) from error
    return Sample(pair.blurred, pair.sharp)
