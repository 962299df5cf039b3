"""Sums over masks and their adjoint on a CPU, by runs: stretches of one row of pixels that lie in one atom.

Shapes: B images, H W pixels, S channels, R runs per image; of the whole batch M masks, K atoms, P (atom, mask) pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array
from torch import Tensor


def cut_runs(atoms: NDArray[np.int32]) -> NDArray[np.int32]:
    """Where the runs of each image start, (B, R) pixels in raster order.

    Every image is cut into as many runs as the one that needs most, so that the table is rectangular: the others are
    cut at some more places, which changes no sum.

    Args:
        atoms: (B, H, W), the atom of each pixel.
    """
    batch, height, width = atoms.shape
    pixels = height * width
    flat = np.ascontiguousarray(atoms).reshape(batch, pixels)
    first = np.empty((batch, pixels), bool)
    np.not_equal(flat[:, 1:], flat[:, :-1], out=first[:, 1:])
    first[:, ::width] = True
    counts = np.count_nonzero(first, axis=1)
    n_runs = counts.max()
    missing = n_runs - counts  # among the first R pixels of an image at least so many start no run
    free = ~first[:, :n_runs]
    first[:, :n_runs] |= free & (np.cumsum(free, axis=1) <= missing[:, None])
    starts = np.flatnonzero(first).reshape(batch, n_runs)
    return (starts - pixels * np.arange(batch)[:, None]).astype(np.int32)


def lies_channels_last(features: Tensor) -> bool:
    """Whether (B, S, H, W) is in memory order B H W S, and not in its own as well."""
    return features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()


class RunPlan:
    """The linear maps between the pixels and the masks of a batch; masks M.. M + B - 1 are the backgrounds.

    Args:
        atoms: (B, H, W) int32.
        runs: (B, R) int32 from `cut_runs`; found anew when it is not that of `atoms`.
        pairs: (P, 2) int64 rows (atom, mask).
        atom_image: (K,) int64.
        n_masks: M.
    """

    def __init__(self, atoms: Tensor, runs: Tensor, pairs: Tensor, atom_image: Tensor, n_masks: int) -> None:
        self.shape = atoms.shape
        self.pixels = atoms.contiguous().view(-1)
        self.n_atoms, self.n_masks = len(atom_image), n_masks
        starts, run_atoms = _known_runs(self.pixels.numpy(), runs.numpy(), atoms.shape)
        batch = atoms.shape[0]
        ends = np.append(starts[1:], len(self.pixels))
        self.starts, self.run_atoms, self.lengths = (
            x.reshape(batch, 1, -1) for x in (starts, run_atoms, ends - starts)
        )
        self.tables: dict[int, tuple[NDArray[Any], NDArray[Any]]] = {}

        atom_of_pair, self.mask_of_pair = pairs.numpy().T.astype(np.int32, order="C")
        self.order = None
        if (atom_of_pair[1:] < atom_of_pair[:-1]).any():  # collate sorts them, others may not
            self.order = np.argsort(atom_of_pair, kind="stable")
            self.mask_of_pair = self.mask_of_pair[self.order]
        covering = np.bincount(atom_of_pair, minlength=self.n_atoms)
        self.first_pair = np.concatenate([[0], np.cumsum(covering)]).astype(np.int32)
        self.plain = self._matrix(np.ones(len(pairs)))
        self.bare = np.flatnonzero(covering == 0)
        self.background = n_masks + atom_image.numpy()[self.bare]

    def mask_areas(self) -> Tensor:
        """(M + B,) float64, pixels of each mask."""
        areas = np.bincount(self.run_atoms.ravel(), self.lengths.ravel(), self.n_atoms)
        return torch.from_numpy(self._to_masks(areas[:, None], None)[:, 0])

    def sums(self, features: Tensor, weights: Tensor | None) -> Tensor:
        """Weighted sums over the pixels of each mask.

        Args:
            features: (B, S, H, W), any floating type.
            weights: (P,) of the pairs, None for ones.

        Returns:
            (M + B, S) float64. Runs are added up in float32 (float64 for such features), all else in float64.
        """
        channels = features.shape[1]
        if features.dtype not in (torch.float32, torch.float64):
            features = features.float()
        if channels == 2 and lies_channels_last(features) and features.dtype == torch.float32:
            pixels = features.permute(0, 2, 3, 1).reshape(-1).numpy().view(np.complex64)  # two channels in one number
            parts = np.add.reduceat(pixels, self.starts.ravel())
            flat = self.run_atoms.ravel()
            atom_sums = np.stack([np.bincount(flat, part, self.n_atoms) for part in (parts.real, parts.imag)], axis=1)
            return torch.from_numpy(self._to_masks(atom_sums, weights))
        keys, _ = self._tables(channels)
        planes = self.pixels.numel() // self.shape[0] * np.arange(self.shape[0] * channels).reshape(-1, channels, 1)
        offsets = self.starts - self.starts[:, :, :1] + planes
        run_sums = np.add.reduceat(features.contiguous().view(-1).numpy(), offsets.ravel())
        atom_sums = np.bincount(keys, run_sums, channels * self.n_atoms).reshape(channels, -1).T
        return torch.from_numpy(self._to_masks(np.ascontiguousarray(atom_sums), weights))

    def spread(self, values: Tensor, weights: Tensor | None, dtype: torch.dtype, channels_last: bool = False) -> Tensor:
        """The adjoint of `sums`: to every pixel the weighted sum of the values of its masks.

        Args:
            values: (M + B, S).
            weights: (P,) of the pairs, None for ones.
            dtype: of the result.
            channels_last: the memory format of the result.

        Returns:
            (B, S, H, W).
        """
        channels = values.shape[1]
        masks = np.ascontiguousarray(values.double().numpy())
        atoms = self._weighted(weights)[0] @ masks[: self.n_masks]
        atoms[self.bare] = masks[self.background]
        narrow = dtype if dtype == torch.float64 else torch.float32
        batch, height, width = self.shape
        if channels_last:
            rows = torch.from_numpy(atoms).to(narrow)
            if channels == 2 and narrow == torch.float32:
                pooled = torch.view_as_real(torch.view_as_complex(rows).index_select(0, self.pixels))
            else:
                pooled = rows.index_select(0, self.pixels)
            return pooled.view(batch, height, width, channels).permute(0, 3, 1, 2).to(dtype)
        table = torch.from_numpy(atoms).T.to(narrow).contiguous()
        if batch == 1:  # planes lie as index_select leaves them
            pooled = table.index_select(1, self.pixels)
        else:
            keys, lengths = self._tables(channels)
            pooled = torch.from_numpy(np.repeat(table.view(-1).numpy().take(keys), lengths))
        return pooled.view(batch, channels, height, width).to(dtype)

    def _tables(self, channels: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Of every run of every plane, (B S R,): its entry in a table (S, K), and its length."""
        if channels not in self.tables:
            keys = self.run_atoms + self.n_atoms * np.arange(channels)[:, None]
            self.tables[channels] = keys.ravel(), np.broadcast_to(self.lengths, keys.shape).ravel()
        return self.tables[channels]

    def _matrix(self, weights: NDArray[np.float64]) -> tuple[csr_array, csc_array]:
        """The table of pairs as a matrix (K, M), and its transpose."""
        matrix = csr_array((weights, self.mask_of_pair, self.first_pair), shape=(self.n_atoms, self.n_masks))
        return matrix, matrix.T

    def _weighted(self, weights: Tensor | None) -> tuple[csr_array, csc_array]:
        if weights is None:
            return self.plain
        values = weights.double().numpy()
        return self._matrix(values if self.order is None else values[self.order])

    def _to_masks(self, atoms: NDArray[Any], weights: Tensor | None) -> NDArray[np.float64]:
        """(K, S) -> (M + B, S)."""
        masks = np.zeros((self.n_masks + self.shape[0], atoms.shape[1]))
        masks[: self.n_masks] = self._weighted(weights)[1] @ atoms
        np.add.at(masks, self.background, atoms[self.bare])
        return masks


def _known_runs(
    pixels: NDArray[np.int32], runs: NDArray[np.int32], shape: torch.Size
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Starts of the runs in the whole batch and their atoms; `runs` holds if the atom changes nowhere else."""
    batch, height, width = shape
    first = height * width * np.arange(batch)[:, None]
    if runs.shape[0] == batch and runs.size and not runs[:, 0].any():
        starts = (runs + first).ravel()
        if (starts[1:] > starts[:-1]).all() and starts[-1] < len(pixels):
            atoms = pixels.take(starts)
            known = np.count_nonzero(atoms[1:] != pixels.take(starts[1:] - 1))
            if known == np.count_nonzero(pixels[1:] != pixels[:-1]):
                return starts, atoms
    starts = (cut_runs(pixels.reshape(shape)) + first).ravel()
    return starts, pixels.take(starts)
