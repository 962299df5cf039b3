"""Dense losses with which an encoder learns before, and beside, the mask decoder: which places share a mask, and how
far the masks around a place reach."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from samdeblur.train.sam.prompts import SMALLEST, PromptedImage

PLACES = 160  # compared per image, and as many again in a part of it
PART = 32  # side of that part, pixels of the mask


class Affinity(nn.Module):
    """Two heads on an embedding of C channels.

    Vectors at the pixels of the low-resolution mask are near each other where places share masks; three kinds of
    sharing: all masks, any mask, and the share of the masks of both that they share. Extents at the tokens say where
    the smallest and the largest mask around a place have their middle, and how large they are.
    """

    def __init__(self, channels: int, vector: int = 16) -> None:
        super().__init__()
        self.vector = vector
        self.vectors = nn.Linear(channels, 16 * 3 * vector)  # 4x4 pixels to a token
        self.level = nn.Parameter(torch.tensor([1.0, 1.0, 1.0]))
        self.extents = nn.Linear(channels, 6)

    def forward(self, embedding: Tensor, images: list[PromptedImage], rng: np.random.Generator) -> Tensor:
        """The loss of an embedding (B, C, h, w); places are compared in random sets."""
        tokens = embedding.flatten(2).transpose(1, 2)
        losses = [self._shared(found, image, rng) for found, image in zip(tokens, images, strict=True)]
        reach, known = (np.stack(part) for part in zip(*map(extents, images), strict=True))
        wanted, there = torch.from_numpy(reach).to(embedding), torch.from_numpy(known).to(embedding.device)
        missed = F.smooth_l1_loss(self.extents(tokens)[there], wanted[there], beta=0.25)
        return torch.stack(losses).mean() + missed

    def _shared(self, found: Tensor, image: PromptedImage, rng: np.random.Generator) -> Tensor:
        """The loss of the vectors of an image, (p, C)."""
        side, device = len(image.atoms), found.device
        span = min(side, PART)
        top, left = rng.integers(0, side - span + 1, 2)
        near = (top + rng.integers(0, span, PLACES)) * side + left + rng.integers(0, span, PLACES)
        places = np.concatenate([rng.integers(0, side * side, PLACES), near])
        atoms = image.atoms.ravel()[places]
        table = torch.from_numpy(image.table[atoms].astype(np.float32)).to(device)
        shared = table @ table.T
        either = table.sum(1)[:, None] + table.sum(1)[None] - shared
        same = torch.from_numpy(atoms[:, None] == atoms[None]).to(device).float()
        truth = torch.stack([same, (shared > 0).float(), torch.where(either > 0, shared / either, same)])
        rows, columns = np.divmod(places, side)
        token = torch.from_numpy(rows // 4 * (side // 4) + columns // 4).to(device)
        pixel = torch.from_numpy(rows % 4 * 4 + columns % 4).to(device)
        vectors = self.vectors(found[token]).unflatten(1, (16, 3, self.vector))
        chosen = vectors[torch.arange(len(places), device=device), pixel].transpose(0, 1)
        logits = self.level[:, None, None] - torch.cdist(chosen, chosen, compute_mode="use_mm_for_euclid_dist")
        loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        positive = truth.mean(dim=(1, 2), keepdim=True).clamp(0.02, 0.98)
        return (loss * (truth / positive + (1 - truth) / (1 - positive)) / 2).mean()


def extents(image: PromptedImage) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Of the smallest and the largest mask around each token: (p, 6), and whether there is one, (p,).

    Row and column of its middle from here, in roots of its area, and half the binary logarithm of that root in tokens.
    """
    side = len(image.atoms)
    rows, columns = np.indices((side, side)).reshape(2, -1) / 4  # in tokens
    flat, table = image.atoms.ravel(), image.table.astype(np.float64)
    counts, *sums = (np.bincount(flat, w, len(table)) @ table for w in (None, rows, columns))
    root = np.sqrt(np.maximum(counts, 1)) / 4
    middle = np.stack(sums, axis=1) / np.maximum(counts, 1)[:, None]
    here = np.indices((side // 4, side // 4)).reshape(2, -1).T + 0.5
    around = image.table[image.atoms[2::4, 2::4].ravel()] & (counts >= SMALLEST * flat.size)
    known: NDArray[np.bool_] = np.any(around, axis=1, keepdims=True)[:, 0]
    found = []
    for mask in (np.where(around, counts, np.inf).argmin(axis=1), np.where(around, counts, -1).argmax(axis=1)):
        found += [(middle[mask] - here) / root[mask, None], np.log2(root[mask, None]) / 2]
    return np.concatenate(found, axis=1).astype(np.float32), known
