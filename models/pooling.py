"""Mask average pooling (Algorithm 1 of arXiv 2309.02270) on atoms, for batches of images with any number of masks.

Shapes: B images, H W pixels, S channels, M masks, K atoms and P (atom, mask) pairs of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from samdeblur.storage import AtomMap


class AtomBatch(NamedTuple):
    """The atom maps of a batch, numbered through. A tuple of tensors, so that pinning, DDP and compile traverse it.

    Every image brings one atom of its own for the pixels no mask covers, so atoms of different images never meet.
    """

    atoms: Tensor  # (B, H, W) int32, atom of each pixel, 0..K-1
    pairs: Tensor  # (P, 2) int64 rows (atom, mask)
    atom_image: Tensor  # (K,) int64, image of each atom
    mask_image: Tensor  # (M,) int64, image of each mask, ascending
    mask_ids: Tensor  # (M,) int64, number of each mask in its full image

    @classmethod
    def collate(cls, maps: Sequence[AtomMap]) -> AtomBatch:
        """Join the maps of B images of one size.

        Raises:
            ValueError: no map, or sizes differ.
        """
        shapes = {atom_map.shape for atom_map in maps}
        if len(shapes) != 1:
            raise ValueError(f"a batch needs maps of one size, got {sorted(shapes)}")
        n_atoms = np.array([atom_map.n_atoms + 1 for atom_map in maps])
        n_masks = np.array([atom_map.n_masks for atom_map in maps])
        first_atom, first_mask = np.cumsum(n_atoms) - n_atoms, np.cumsum(n_masks) - n_masks
        atoms = np.stack([m.atoms for m in maps]).astype(np.int32) + first_atom[:, None, None].astype(np.int32)
        pairs = np.concatenate(
            [m.pairs.astype(np.int64) + shift for m, *shift in zip(maps, first_atom, first_mask, strict=True)]
        )
        images = np.arange(len(maps))
        return cls(
            torch.from_numpy(atoms),
            torch.from_numpy(pairs),
            torch.from_numpy(np.repeat(images, n_atoms)),
            torch.from_numpy(np.repeat(images, n_masks)),
            torch.from_numpy(np.concatenate([m.mask_ids for m in maps]).astype(np.int64)),
        )

    @classmethod
    def background(cls, batch: int, height: int, width: int) -> AtomBatch:
        """B images that no mask covers."""
        return cls.collate([AtomMap.empty((height, width))] * batch)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> AtomBatch:
        return AtomBatch(*(tensor.to(device, non_blocking=non_blocking) for tensor in self))

    @property
    def batch_size(self) -> int:
        return self.atoms.shape[0]


def drop_masks(batch: AtomBatch, rate: float, generator: torch.Generator | None = None) -> AtomBatch:
    """Mask dropout: of the M masks of each image, int(rate * M) chosen at random leave; no pixel is touched.

    Atoms left with no mask join the background of their image when pooled.
    """
    masks, device = batch.mask_image, batch.mask_image.device
    counts = torch.bincount(masks, minlength=batch.batch_size)
    draws = torch.rand(len(masks), dtype=torch.float64, generator=generator, device=device)
    order = torch.argsort(masks + draws)  # shuffles the masks within each image
    rank = torch.empty_like(masks)
    rank[order] = torch.arange(len(masks), device=device)
    rank -= (counts.cumsum(0) - counts)[masks]
    kept = rank >= (rate * counts.double()).long()[masks]
    return batch._replace(pairs=batch.pairs[kept[batch.pairs[:, 1]]])


def mask_average_pool(features: Tensor, batch: AtomBatch) -> Tensor:
    """Algorithm 1: every pixel gets the sum of the mean features of the masks over it.

    The pixels of an image that no mask covers form one more mask (the algorithm's appended background).

    Args:
        features: (B, S, H, W), any floating type.
        batch: the masks, on the same device; masks without a pair take no part.

    Returns:
        (B, S, H, W), of the type of `features`. Sums are accumulated in float64 on a CPU and in at least float32
        elsewhere, outside autocast. Differentiable, twice too.

    Raises:
        ValueError: the sizes differ.
    """
    if features.shape[:1] + features.shape[2:] != batch.atoms.shape:
        raise ValueError(f"features {tuple(features.shape)} do not fit atoms {tuple(batch.atoms.shape)}")
    with torch.autocast(features.device.type, enabled=False):
        return _Pool.apply(features, *batch)


class _Pool(torch.autograd.Function):
    """The pooling is sum over masks m of 1_m 1_m^T / |m|: a symmetric matrix, so its gradient is itself."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return _pool(features, AtomBatch(*tensors))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        return _Pool.apply(grads[0], *tensors), *[None] * len(tensors)


def _pool(features: Tensor, batch: AtomBatch) -> Tensor:
    channels = features.shape[1]
    atom_of_pair, mask_of_pair = batch.pairs.unbind(1)
    n_atoms, n_masks = len(batch.atom_image), len(batch.mask_image)
    wide = torch.float64 if features.device.type == "cpu" else torch.promote_types(features.dtype, torch.float32)

    def total(values: Tensor, groups: Tensor, n_groups: int) -> Tensor:
        """(S + 1, n) values added up by group: (S + 1, n_groups)."""
        return values.new_zeros(len(values), n_groups).index_add_(1, groups, values)

    # Line "average the encoding inside each mask", atoms first: sums and, in the last row, pixel counts.
    pixels = batch.atoms.flatten().long()
    values = features.new_ones((channels + 1, pixels.numel()), dtype=wide)
    values[:-1] = features.transpose(0, 1).reshape(channels, -1)
    atom_sums = total(values, pixels, n_atoms)

    # Masks 0..M-1 through the table, then the appended background of each image: its atoms without a mask.
    covered = atom_sums.new_zeros(n_atoms, dtype=torch.bool).index_fill_(0, atom_of_pair, True)
    bare = atom_sums * ~covered
    mask_sums = torch.cat(
        [total(atom_sums[:, atom_of_pair], mask_of_pair, n_masks), total(bare, batch.atom_image, batch.batch_size)],
        dim=1,
    )
    means = mask_sums[:-1] / mask_sums[-1].clamp(min=1)

    # Line "add that average to every pixel of the mask": into atoms through the table, then one gather.
    atom_means = (
        total(means[:, mask_of_pair], atom_of_pair, n_atoms) + ~covered * means[:, n_masks:][:, batch.atom_image]
    )
    pooled = atom_means.to(features.dtype).index_select(1, pixels)
    return pooled.view(channels, *batch.atoms.shape).transpose(0, 1)
