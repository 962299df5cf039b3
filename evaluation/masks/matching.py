"""How well masks of an image match other masks of it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from samdeblur.storage import AtomMap


def mask_iou(found: AtomMap, truth: AtomMap) -> NDArray[np.float64]:
    """(M, N) intersection over union of every mask of one image with every mask of another map of the same image.

    Works on the pixel counts of atom pairs: one pass over the pixels, however many masks there are.
    """
    joint = found.atoms.astype(np.int64) * (truth.n_atoms + 1) + truth.atoms
    counts = np.bincount(joint.ravel(), minlength=(found.n_atoms + 1) * (truth.n_atoms + 1))
    counts = counts.reshape(found.n_atoms + 1, truth.n_atoms + 1)
    shared = found.mask_table().T.astype(np.float64) @ counts @ truth.mask_table()
    either = found.mask_areas()[:, None] + truth.mask_areas()[None] - shared
    return shared / np.maximum(either, 1)


@dataclass(frozen=True)
class Match:
    """Counts of one image: true masks, found masks, and how many of each have a partner at IoU 0.5 and 0.75.

    Partners are one to one: pairs are taken by falling IoU.
    """

    true: int
    found: int
    at_50: int
    at_75: int


def match(iou: NDArray[np.float64]) -> Match:
    """Pair (M, N) found with true masks, highest IoU first."""
    order = np.argsort(-iou, axis=None, kind="stable")
    rows, columns = np.unravel_index(order, iou.shape)
    free_rows, free_columns = np.ones(iou.shape[0], bool), np.ones(iou.shape[1], bool)
    values = []
    for row, column in zip(rows, columns, strict=True):
        if iou[row, column] < 0.5:
            break
        if free_rows[row] and free_columns[column]:
            free_rows[row] = free_columns[column] = False
            values.append(iou[row, column])
    return Match(iou.shape[1], iou.shape[0], len(values), int((np.array(values) >= 0.75).sum()))


def borders(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """(H, W) pixels whose right or lower neighbour has another label."""
    found = np.zeros(labels.shape, bool)
    found[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    found[:-1] |= labels[:-1] != labels[1:]
    return found


def boundary_recall(found: NDArray[np.bool_], truth: NDArray[np.bool_], tolerance: int = 2) -> float:
    """Share of the true border pixels with a found one at most `tolerance` pixels away; NaN without true ones.

    With the arguments exchanged, the precision of the borders.
    """
    side = 2 * tolerance + 1
    near = cv2.dilate(found.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
    return float(near[truth].mean()) if truth.any() else float("nan")


def distinct(masks: AtomMap, low: float = 0.001, high: float = 0.5, overlap: float = 0.8) -> list[int]:
    """Masks that cover a share of the image in [low, high], and no earlier one with an IoU of `overlap` or more."""
    shares = masks.mask_areas() / masks.atoms.size
    iou = mask_iou(masks, masks)
    kept: list[int] = []
    for mask in np.flatnonzero((shares >= low) & (shares <= high)):
        if (iou[mask, kept] < overlap).all():
            kept.append(int(mask))
    return kept
