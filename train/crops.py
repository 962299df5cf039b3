"""Aligned random crops of blurred, sharp and masks, streamed from a store.

A crop is a function of the seed and its global sample number alone, so training can stop and go on anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from samdeblur.models import AtomBatch
from samdeblur.storage import AtomMap, MaskStore, StoreError


class Crop(NamedTuple):
    """A training sample: images (h, w, 3) uint8 RGB and the masks of the same window, None when not asked for."""

    blurred: NDArray[np.uint8]
    sharp: NDArray[np.uint8]
    atoms: AtomMap | None


class Batch(NamedTuple):
    """Samples of one size: images (B, 3, h, w) uint8, masks numbered through."""

    blurred: Tensor
    sharp: Tensor
    atoms: AtomBatch | None

    def to(self, device: torch.device) -> Batch:
        """On a device, with images as float32 in [0, 1]."""
        blurred, sharp = (image.to(device, non_blocking=True).float() / 255 for image in (self.blurred, self.sharp))
        return Batch(blurred, sharp, self.atoms.to(device, non_blocking=True) if self.atoms is not None else None)


class CropDataset(Dataset[Crop]):
    """Random crops by global sample number: sample n of epoch n // len(keys) takes the images in a random order.

    Args:
        store: a mask store with images.
        keys: images to draw from, all ready.
        size: side of the square crops, pixels.
        seed: of the order, the windows and the flips.
        with_atoms: whether masks are read.

    Raises:
        StoreError: no images to draw from, or images smaller than the crop.
    """

    def __init__(self, store: MaskStore, keys: Sequence[str], size: int, seed: int, with_atoms: bool) -> None:
        if not keys:
            raise StoreError(f"{store.path}: no image is ready to train on")
        smallest = min(keys, key=lambda key: min(store.shape(key)))
        if min(store.shape(smallest)) < size:
            height, width = store.shape(smallest)
            raise StoreError(
                f"{store.path}: {smallest} is {width}x{height}, smaller than the crop; set crop_size to at most "
                f"{min(height, width)}"
            )
        self.store, self.keys, self.size, self.seed, self.with_atoms = store, list(keys), size, seed, with_atoms

    def __getitem__(self, sample: int) -> Crop:
        epoch, place = divmod(sample, len(self.keys))
        key = self.keys[np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.keys))[place]]
        rng = np.random.default_rng((self.seed, 1, sample))
        height, width = self.store.shape(key)
        top, left = rng.integers(height - self.size + 1), rng.integers(width - self.size + 1)
        window = (int(top), int(left), self.size, self.size)
        turn = int(rng.integers(8))
        return Crop(
            orient(self.store.image("blurred", key, window), turn),
            orient(self.store.image("sharp", key, window), turn),
            orient_atoms(self.store.atoms(key, window), turn) if self.with_atoms else None,
        )


def orient(plane: NDArray[Any], turn: int) -> NDArray[Any]:
    """One of the eight flips and rotations of (H, W, ...): bits of `turn` flip rows, flip columns, transpose."""
    if turn & 1:
        plane = plane[::-1]
    if turn & 2:
        plane = plane[:, ::-1]
    return plane.swapaxes(0, 1) if turn & 4 else plane


def orient_atoms(atoms: AtomMap, turn: int) -> AtomMap:
    """The masks flipped and rotated like the pictures; only the label plane moves, so atoms keep their numbers."""
    return AtomMap(orient(atoms.atoms, turn), atoms.pairs, atoms.mask_ids)


def collate(crops: Sequence[Crop]) -> Batch:
    """Join samples of one size; masks may be any number per sample."""

    def images(arrays: Sequence[NDArray[np.uint8]]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)

    maps = [crop.atoms for crop in crops if crop.atoms is not None]
    return Batch(
        images([crop.blurred for crop in crops]),
        images([crop.sharp for crop in crops]),
        AtomBatch.collate(maps) if maps else None,
    )


def crop_loader(dataset: CropDataset, batch_size: int, first_sample: int, last_sample: int, workers: int) -> DataLoader:
    """Batches of consecutive samples; workers are started afresh, since TensorStore does not survive a fork."""
    return DataLoader(
        dataset,
        batch_size,
        sampler=range(first_sample, last_sample),
        collate_fn=collate,
        num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
