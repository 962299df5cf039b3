"""Sums over masks and their adjoint with plain tensor operations, for any device: what `pool_runs` is checked against.

Shapes: B images, H W pixels, S channels, M masks, K atoms and P (atom, mask) pairs of the whole batch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def accumulator(device: torch.device) -> torch.dtype:
    """What sums over pixels are added up in, one after the other: a flat sky of a megapixel has a sum of which float32
    loses the third digit. Apple's GPUs have nothing wider.
    """
    return torch.float32 if device.type == "mps" else torch.float64


class IndexPlan:
    """The linear maps between the pixels and the masks of a batch; masks M.. M + B - 1 are the backgrounds.

    Args:
        atoms: (B, H, W) int32.
        pairs: (P, 2) int64 rows (atom, mask).
        atom_image: (K,) int64.
        n_masks: M.
    """

    def __init__(self, atoms: Tensor, pairs: Tensor, atom_image: Tensor, n_masks: int) -> None:
        self.shape = atoms.shape
        self.pixels = atoms.flatten().long()
        self.atom_of_pair, self.mask_of_pair = pairs.unbind(1)
        self.n_atoms, self.n_masks = len(atom_image), n_masks
        self.background = n_masks + atom_image
        covered = torch.zeros(self.n_atoms, dtype=torch.bool, device=atoms.device)
        self.bare = ~covered.index_fill_(0, self.atom_of_pair, True)

    def mask_areas(self) -> Tensor:
        """(M + B,) float64, pixels of each mask."""
        ones = torch.ones_like(self.pixels).unsqueeze(0)
        return self._to_masks(_total(ones, self.pixels, self.n_atoms).double(), None)[:, 0]

    def sums(self, features: Tensor, weights: Tensor | None) -> Tensor:
        """Sums of (B, S, H, W) over the pixels of each mask, (M + B, S), of `accumulator`."""
        values = features.to(accumulator(features.device)).transpose(0, 1).reshape(features.shape[1], -1)
        return self._to_masks(_total(values, self.pixels, self.n_atoms), weights)

    def spread(self, values: Tensor, weights: Tensor | None, dtype: torch.dtype, channels_last: bool = False) -> Tensor:
        """The adjoint of `sums`: (M + B, S) -> (B, S, H, W), in this memory format."""
        values = values.T
        parts = values[:, self.mask_of_pair]
        if weights is not None:
            parts = parts * weights.to(parts.dtype)
        atoms = _total(parts, self.atom_of_pair, self.n_atoms) + self.bare * values[:, self.background]
        layout = torch.channels_last if channels_last else torch.contiguous_format
        pooled = atoms.to(dtype).index_select(1, self.pixels)
        return pooled.view(-1, *self.shape).transpose(0, 1).contiguous(memory_format=layout)

    def _to_masks(self, atoms: Tensor, weights: Tensor | None) -> Tensor:
        """(S, K) -> (M + B, S)."""
        parts = atoms[:, self.atom_of_pair]
        if weights is not None:
            parts = parts * weights.to(parts.dtype)
        n_all = self.n_masks + self.shape[0]
        return (_total(parts, self.mask_of_pair, n_all) + _total(atoms * self.bare, self.background, n_all)).T


def _total(values: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """(S, n) values added up by group: (S, n_groups)."""
    return values.new_zeros(len(values), n_groups).index_add_(1, groups, values)
