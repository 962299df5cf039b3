"""Aligned random crops of blurred, sharp and masks, streamed from a store.

A crop, and the masks its dropout takes, are a function of the seed and its global sample number alone, so training can
stop and go on anywhere, with any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from samdeblur.models import AtomBatch, drop_masks
from samdeblur.storage import AtomMap, MaskStore, StoreError
from samdeblur.storage.store import Window
from samdeblur.train.data.cache import ImageCache
from samdeblur.train.data.phases import Phases


class Crop(NamedTuple):
    """A training sample: images (h, w, 3) uint8 RGB and the masks of the same window, None when not asked for."""

    blurred: NDArray[np.uint8]
    sharp: NDArray[np.uint8]
    atoms: AtomMap | None
    dropout_seed: int


class Batch(NamedTuple):
    """Samples of one size: images (B, 3, h, w) uint8, masks numbered through."""

    blurred: Tensor
    sharp: Tensor
    atoms: AtomBatch | None

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Batch:
        """On a device, with images as `dtype` in [0, 1]."""
        blurred, sharp = (image.to(device, non_blocking=True).to(dtype) / 255 for image in (self.blurred, self.sharp))
        return Batch(blurred, sharp, self.atoms.to(device, non_blocking=True) if self.atoms is not None else None)


@dataclass(frozen=True)
class Cutting:
    """How crops are cut.

    Attributes:
        size: side of the square crops, pixels; at the end of the run, where phases have others. Smaller images are
            continued by reflection, below and at the right.
        subimage: windows lie in one of the tiles of this side that start half a side apart, the last where the image
            ends; 0: anywhere.
        per_image: samples in a row that are of one image.
        misrotated: transpose images but rotate their masks, as the released code does.
        shift: most pixels that a mask is moved by, each in a direction of its own.
    """

    size: int
    subimage: int = 0
    per_image: int = 1
    misrotated: bool = False
    phases: Phases | None = None
    shift: float = 0.0

    def size_of(self, sample: int) -> int:
        return self.phases.at_sample(sample).crop_size if self.phases is not None else self.size

    @property
    def largest(self) -> int:
        return max((phase.crop_size for phase in self.phases.phases), default=0) if self.phases else self.size


class CropDataset(Dataset[Crop]):
    """Random crops by global sample number: every image gives one (or `per_image`) before any gives another.

    Args:
        store: a mask store with images.
        keys: images to draw from, all ready.
        cutting: how crops are cut.
        seed: of the order, the windows, the flips and the mask dropout.
        with_atoms: whether masks are read.
        cache_bytes: memory for decoded images, see `ImageCache`.

    Raises:
        StoreError: no images to draw from, or every one is smaller than the crop.
    """

    def __init__(
        self,
        store: MaskStore,
        keys: Sequence[str],
        cutting: Cutting,
        seed: int,
        with_atoms: bool,
        cache_bytes: int = 0,
    ) -> None:
        if not keys:
            raise StoreError(f"{store.path}: no image is ready to train on")
        self.store, self.keys, self.cutting, self.seed, self.with_atoms = store, list(keys), cutting, seed, with_atoms
        shapes = store.shapes[[store.position(key) for key in self.keys]]
        sides = shapes.min(axis=1)
        if sides.max() < cutting.largest:
            height, width = (int(side) for side in shapes[sides.argmax()])
            raise StoreError(
                f"{store.path}: all images are smaller than the crop of {cutting.largest} (the largest has "
                f"{width}x{height}); set crop_size to at most {sides.max()}"
            )
        self.n_small = int((sides < cutting.largest).sum())
        self.cache = ImageCache(store, self.keys, cache_bytes)

    def __getitem__(self, sample: int) -> Crop:
        return self.crop(sample, self.cutting.size_of(sample))

    def crop(self, sample: int, size: int) -> Crop:
        """The crop of a number, of a size."""
        epoch, place = divmod(sample // self.cutting.per_image, len(self.keys))
        key = self.keys[_order(self.seed, epoch, len(self.keys))[place]]
        rng = np.random.default_rng((self.seed, 1, sample))
        window = self._window(self.store.shape(key), rng, size)
        turn = int(rng.integers(8))
        blurred, sharp = (
            orient(_reflected(self.cache.image(name, key, window), size), turn) for name in ("blurred", "sharp")
        )
        atoms = None
        if self.with_atoms:
            atoms = self.store.atoms(key, window)
            if self.cutting.shift:
                atoms = shifted_masks(atoms, self.cutting.shift, np.random.default_rng((self.seed, 2, sample)))
            atoms = AtomMap(_reflected(atoms.atoms, size), atoms.pairs, atoms.mask_ids)
            atoms = misrotate_atoms(atoms, turn) if self.cutting.misrotated else orient_atoms(atoms, turn)
        return Crop(blurred, sharp, atoms, int(rng.integers(-(1 << 63), (1 << 63) - 1)))

    def _window(self, shape: tuple[int, int], rng: np.random.Generator, size: int) -> Window:
        """A random window, as large as the crop where the image is."""
        starts, lengths = [], []
        for side in shape:
            first, room = 0, side
            if self.cutting.subimage:
                tiles = tile_starts(side, self.cutting.subimage)
                first, room = int(rng.choice(tiles)), min(side, self.cutting.subimage)
            length = min(size, room)
            starts.append(first + int(rng.integers(room - length + 1)))
            lengths.append(length)
        return starts[0], starts[1], lengths[0], lengths[1]


def _reflected(plane: NDArray[Any], size: int) -> NDArray[Any]:
    """Continued by reflection to the size of a crop."""
    missing = [(0, size - side) for side in plane.shape[:2]]
    if missing == [(0, 0), (0, 0)]:
        return plane
    return np.pad(plane, [*missing, *[(0, 0)] * (plane.ndim - 2)], mode="reflect")


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, n_images: int) -> NDArray[np.int64]:
    """The order of the images in an epoch."""
    return np.random.default_rng((seed, 0, epoch)).permutation(n_images)


def tile_starts(side: int, tile: int) -> list[int]:
    """Where tiles start along a side: every half tile, and so that one ends where the side does."""
    last = max(side - tile, 0)
    starts = list(range(0, last + 1, max(tile // 2, 1)))
    return starts if starts[-1] == last else [*starts, last]


def orient(plane: NDArray[Any], turn: int) -> NDArray[Any]:
    """One of the eight flips and rotations of (H, W, ...): bits of `turn` flip rows, flip columns, transpose.

    OpenCV copies pixels several times faster than numpy when they do not lie in a row.
    """
    if plane.dtype not in (np.uint8, np.uint16) or turn < 2:
        plane = plane[::-1] if turn & 1 else plane
        plane = plane[:, ::-1] if turn & 2 else plane
        return plane.swapaxes(0, 1) if turn & 4 else plane
    if turn & 3:
        plane = cv2.flip(plane, _FLIPS[turn & 3])
    return cv2.transpose(plane) if turn & 4 else plane


_FLIPS = {1: 0, 2: 1, 3: -1}  # as OpenCV calls them


def orient_atoms(atoms: AtomMap, turn: int) -> AtomMap:
    """The masks flipped and rotated like the images; only the label plane moves, so atoms keep their numbers."""
    return AtomMap(orient(atoms.atoms, turn), atoms.pairs, atoms.mask_ids)


def misrotate_atoms(atoms: AtomMap, turn: int) -> AtomMap:
    """The mistake of the released code: where images are transposed, masks are rotated by 90 degrees."""
    plane = orient(atoms.atoms, turn & 3)
    return AtomMap(np.rot90(plane) if turn & 4 else plane, atoms.pairs, atoms.mask_ids)


def shifted_masks(atoms: AtomMap, most: float, rng: np.random.Generator) -> AtomMap:
    """Each mask moved by 0 to `most` pixels in a direction of its own; where it left an edge, its edge is repeated.

    Fractions of a pixel are rounded up or down at random, so that the mean is right. Masks that leave the window are
    left out.
    """
    height, width = atoms.shape
    reach = int(np.ceil(most)) + 1
    padded = np.pad(atoms.to_masks(), [(0, 0), (reach, reach), (reach, reach)], mode="edge")
    angles, lengths = rng.uniform(0, 2 * np.pi, len(padded)), rng.uniform(0, most, len(padded))
    exact = np.stack([np.sin(angles), np.cos(angles)], axis=1) * lengths[:, None]
    starts = reach - np.floor(exact + rng.random(exact.shape)).astype(int)
    moved = [
        mask[top : top + height, left : left + width] for mask, (top, left) in zip(padded, starts.tolist(), strict=True)
    ]
    kept = [number for number, mask in enumerate(moved) if mask.any()]
    found = AtomMap.from_masks([moved[number] for number in kept], atoms.shape)
    return AtomMap(found.atoms, found.pairs, atoms.mask_ids[kept])


def collate(crops: Sequence[Crop], dropout: float = 0.0) -> Batch:
    """Join samples of one size; masks may be any number per sample.

    Args:
        dropout: share of the masks of each that leave here, where no device waits for their number.
    """

    def images(arrays: Sequence[NDArray[np.uint8]]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)

    maps = [crop.atoms for crop in crops if crop.atoms is not None]
    atoms = AtomBatch.collate(maps, [crop.dropout_seed for crop in crops]) if maps else None
    if atoms is not None and dropout:
        atoms = drop_masks(atoms, dropout)._replace(dropped=torch.tensor([dropout]))
    return Batch(
        images([crop.blurred for crop in crops]),
        images([crop.sharp for crop in crops]),
        atoms,
    )


@dataclass(frozen=True)
class Share(Sampler[list[int]]):
    """The sample numbers of one process, a list for each part of each step.

    Step n has the samples from (n - 1) * batch_size on, parts are consecutive stretches of it, and process r of W takes
    every W-th sample of each.
    """

    batch_size: int
    first_step: int  # steps are counted from 1
    last_step: int
    parts: int = 1
    rank: int = 0
    world: int = 1
    phases: Phases | None = None  # whose batches count then

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first_step, self.last_step + 1):
            batch, first = self.batch_size, (step - 1) * self.batch_size
            if self.phases is not None:
                batch, first = self.phases.at_step(step).batch_size, self.phases.first_sample(step)
            size = batch // self.parts
            for part in range(self.parts):
                start = first + part * size
                yield list(range(start + self.rank, start + size, self.world))

    def __len__(self) -> int:
        return max(0, self.last_step + 1 - self.first_step) * self.parts
